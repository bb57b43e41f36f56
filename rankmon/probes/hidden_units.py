"""The theory of stacks with activations, for comparison with measured ranks: scalars and texts.

The upper bound on rank H_o applies to all of them; the exact rank of H_f to one hidden layer of
piecewise linear units, and the rank of H_o to one of tanh.
"""

import numpy as np

from rankmon.engines.base import Ranks
from rankmon.linalg.numerical_rank import NumericalRank
from rankmon.measure.hidden_units import HiddenUnits, UnitStates
from rankmon.probes.base import Prediction
from rankmon.problem.point import Point

BOUND = "rank_bound/H_o"


def hidden_unit_scalars(units: HiddenUnits, point: Point, found: Ranks) -> dict[str, float]:
    """Return rank_bound/H_o, and rank_theory/* as far as its conditions hold at this point."""
    with np.errstate(over="ignore", invalid="ignore"):  # overflow leaves the theory out
        states = units.at(point)
        return {} if states is None else _scalars(states, point, found)


def _scalars(states: UnitStates, point: Point, found: Ranks) -> dict[str, float]:
    scalars: dict[str, float] = {}
    if "H_o" in point.asked:
        scalars[BOUND] = states.outer_bound
        if (rank := states.outer_rank) is not None:
            scalars["rank_theory/H_o"] = rank
    parts = ("H_f", "H_f_fixed")[: len(point.functional_residuals)]
    for part, residuals in zip(parts, point.functional_residuals, strict=True):
        if part in point.asked:
            scalars |= _functional_scalars(states, part, residuals, found)
    return scalars


def _functional_scalars(
    states: UnitStates, part: str, residuals: np.ndarray, found: Ranks
) -> dict[str, float]:
    """Return the exact rank of H_f at the cut of its measured rank, and of its columns by layer.

    The singular values of the units' blocks are the eigenvalues of H_f, so that the count falls
    with the residual as the measured one does.
    """
    values = states.functional_values(residuals)
    if values is None:
        return {}
    scalars = {f"rank_theory/{part}": 2 * _count(values, found.parts[part])}
    if part == "H_f" and found.blocks is not None:
        for layer, rank in found.blocks.columns.items():
            scalars[f"rank_columns_theory/H_f/{layer}"] = _count(values, rank)
    return {tag: count for tag, count in scalars.items() if np.isfinite(count)}


def _count(values: np.ndarray, like: NumericalRank) -> float:
    """Return the number of singular values above the cut of a measured rank; NaN without one."""
    cut = like.tolerance
    return float(np.sum(values > cut)) if np.isfinite(cut) else float("nan")


def hidden_unit_predictions(units: HiddenUnits) -> list[Prediction]:
    """Return the rows of the card; a row whose conditions do not hold at a step says so there."""
    if not units.is_one_layer:
        formula = "min(n K, p - the number of units that can be rescaled)"
        source = "theory.rank_outer_rescaling_bound: an upper bound that holds at every step"
        return [Prediction("H_o at most", BOUND, formula, source)]
    if units.tanh is not None:
        formula = "min(p, n K - max(K - M, 0) (n - rank of the hidden features))"
        source = "theory.rank_outer_tanh: "
        return [
            Prediction("H_o", "rank_theory/H_o", formula, source + "checked, not proved"),
            Prediction("H_o at most", BOUND, formula, source + "as an upper bound, proved there"),
        ]
    return [
        Prediction(
            "H_o at most",
            BOUND,
            "the least over sets of groups of units with equal slopes",
            "theory.rank_outer_group_bound: an upper bound that holds at every step; for units "
            "that are not piecewise linear that of theory.rank_outer_tanh",
        ),
        *(
            Prediction(
                part,
                f"rank_theory/{part}",
                "the sum over hidden units j of 2 rank E[delta sigma'(z_j) x^T]",
                "theory.rank_functional_hidden: exact for piecewise linear units, at the cut of "
                f"{part}",
            )
            for part in ("H_f", "H_f_fixed")
        ),
    ]
