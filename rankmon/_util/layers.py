"""The families of curves with one curve for each layer, as <family>/<layer>."""

from collections.abc import Iterable, Mapping

from rankmon._util.tags import RESERVED_NAMES

# Families whose lowest, median and highest value over the layers are logged too.
SUMMARIZED = (
    "rank_weights",
    "stable_rank",
    "effective_rank",
    "condition_number",
    "log_abs_det",
    "norm",
    "above_mp_edge",
    "rank_since_start",
    "stable_rank_since_start",
    "effective_rank_since_start",
    "norm_since_start",
    "rank_since_last",
    "stable_rank_since_last",
    "effective_rank_since_last",
    "norm_since_last",
    "rank_features",
    "effective_rank_features",
    "stable_rank_features",
    "srank_features",
    "components_features",
    "feature_rank",
    "norm_features",
    "dead_share",
    "dormant_share_0.1",
    "dormant_share_0.025",
    "saturated_share",
    "norm_gradient",
    "rank_gradient",
    "stable_rank_gradient",
    "gradient_to_weight",
    "gradient_alignment",
    "update_to_weight",
)
FAMILIES = frozenset(
    (
        *SUMMARIZED,
        "tolerance",
        "rank_low",
        "rank_high",
        "gap",
        "det_sign",
        "mp_edge",
        "singular_values_zeros",
        *(
            f"{margin}/since_{kind}"
            for margin in ("tolerance", "rank_low", "rank_high", "gap")
            for kind in ("start", "last")
        ),
        "dead_units",
        "rank_low/features",
        "rank_high/features",
        "tolerance/gradient",
        "rank_low/gradient",
        "rank_high/gradient",
        "lemma8/balancedness",
        "lemma8/predicted_log_abs_det",
        "lemma8/prediction_error",
        "lemma8/quadrature_error",
        *(
            f"{family}/{part}"
            for family in (
                "rank_block",
                "eigenvalue_max_block",
                "eigenvalue_min_block",
                "trace_block",
                "rank_low/block",
                "rank_high/block",
            )
            for part in ("H_L", "H_o")
        ),
        "rank_columns/H_f",
        "rank_columns_theory/H_f",
        "rank_low/columns/H_f",
        "rank_high/columns/H_f",
    )
)


def by_family(tags: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return family -> layer -> tag of all curves of layers; the parts of the Hessian have none."""
    found: dict[str, dict[str, str]] = {}
    for tag in tags:
        first, *others = tag.split("/")
        # The longest name first: with "rank_low" and "rank_low/features" both are families.
        for length in range(min(2, len(others) - 1), -1, -1):
            family = "/".join([first, *others[:length]])
            layer = "/".join(others[length:])
            if layer and family in FAMILIES and (length or layer not in RESERVED_NAMES):
                found.setdefault(family, {})[layer] = tag
                break
    return found


def values_of(layers: Mapping[str, str], scalars: Mapping[str, float]) -> list[float]:
    """Return a family's values, in the order of its layers, given layer -> tag."""
    return [float(scalars[tag]) for tag in layers.values()]
