"""The old name of `rankmon.writers.layout`, for one version."""

from rankmon._util.moved import moved_names

__getattr__ = moved_names(
    "rankmon.layout",
    {
        "HESSIAN_PARTS": "rankmon._util.tags",
        "custom_scalars_layout": "rankmon.writers.layout",
        "seeds_layout": "rankmon.writers.layout",
    },
)
