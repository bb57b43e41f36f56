"""The old name of `rankmon.linalg.numerical_rank`, for one version."""

from rankmon._util.moved import moved_names

__getattr__ = moved_names(
    "rankmon.rank",
    {
        "DEFAULT_TOLERANCE": "rankmon.linalg.numerical_rank",
        "NumericalRank": "rankmon",
        "Tolerance": "rankmon",
        "WeightRank": "rankmon",
        "log_abs_det": "rankmon.weights.ranks",
        "numerical_rank": "rankmon.linalg.numerical_rank",
        "undefined_rank": "rankmon.linalg.numerical_rank",
        "weight_rank": "rankmon.weights.ranks",
        "weight_ranks": "rankmon",
    },
)
