"""The features probe: ranks of the layers' inputs on the probe batch, and units that do nothing.

`network.taps` finds the layers and the activations. A kernel that is computed from parameters
(weight and spectral normalization) gets the name of the largest of them. Layers inside `lax.scan`,
`while` and `cond` are not found.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from rankmon._util.facts import Fact
from rankmon._util.optional_readers import optionally
from rankmon._util.text import listed
from rankmon._util.validate import as_flag
from rankmon.linalg.feature_ranks import (
    Centered,
    FeatureRanks,
    centered,
    feature_ranks,
    feature_singular_values,
    mean_norm,
)
from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    Tolerance,
    as_tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.measure.units import DORMANT_TAUS, SATURATED_SHARE, dormant_units, saturated_units
from rankmon.network.taps import Tapped, Taps, compiled_taps
from rankmon.probes.base import Description, Measurement, State, count_scalar
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem


@dataclass(frozen=True)
class FeaturesProbe:
    """Ranks of each layer's input on the probe batch, and units that do nothing on it.

    The features of a layer are its input as a matrix: one row per example and position for a dense
    layer, one row per example for a convolution. `linalg.feature_ranks.FeatureRanks` defines their
    ranks. Units lie along the last axis. A unit is dead if the ReLU after the layer returns zero
    for it on the whole probe batch. `measure.units` defines dormant units, which are counted after
    every ReLU, leaky ReLU, ELU, tanh, sigmoid, SiLU and GELU, and saturated units, which are
    counted after all of these but ReLU. The examples have to lie along the first axis of every
    intermediate array; those of weight zero do not count, and all others count alike.

    Args:
      tolerance: the cut; by default max(m, n) * eps * ||X||_2 for an m x n matrix X of features.
      centered: whether to subtract from the features their mean over the rows. The rank that is
        left is that of the features or one less, and at most the number of rows minus one. The cut
        is then relative to the larger of the norms of both parts, as the rounding errors are.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    name: str = "features"
    centered: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        as_flag("centered", self.centered)

    def placeholder_state(self, problem: Problem) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def prepare(self, flat: FlatProblem) -> "PreparedFeatures":
        """Find the layers and the activations.

        Raises:
          ValueError: if neither a layer nor a ReLU is found.
        """
        taps = optionally(flat.problem, "features", lambda: compiled_taps(flat), otherwise=None)
        if taps is None:
            taps = Taps(lambda *_: Tapped([], [], []), [], [], [], [])
        elif not (taps.layers or taps.relus):
            raise ValueError(
                "expected a network with a ReLU, or with a product or convolution of features and "
                "a parameter, got none outside loops; omit the features probe"
            )
        return PreparedFeatures(flat, taps, self.tolerance, self.centered)


@dataclass(frozen=True)
class PreparedFeatures:
    """`FeaturesProbe` for one problem.

    Attributes:
      flat: the problem.
      taps: the layers and activations, and the function that evaluates them.
      tolerance: the rule for the cut.
      centered: whether to subtract the mean over the rows.
    """

    flat: FlatProblem
    taps: Taps
    tolerance: Tolerance
    centered: bool

    def initial_state(self) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure features and units; all numbers are NaN if the snapshot is not finite."""
        with self.flat.precision.scope():
            tapped = self.taps.evaluate(snapshot.leaves, self.flat.inputs)
            features = [self._counted(np.asarray(rows, np.float64)) for rows in tapped.features]
            positive = [self._counted(np.asarray(rows)) for rows in tapped.positive]
            units = [[self._counted(np.asarray(rows)) for rows in one] for one in tapped.units]
        scalars: dict[str, float] = {}
        for name, matrix in zip(self.taps.layers, features, strict=True):
            scalars |= self._of_features(name, matrix)
        for name, active in zip(self.taps.relus, positive, strict=True):
            dead = ~np.any(active, axis=0)
            scalars[f"dead_units/{name}"] = float(np.sum(dead))
            scalars[f"dead_share/{name}"] = float(np.mean(dead))
        for (name, function), (sizes, slopes) in zip(self.taps.activations, units, strict=True):
            scalars |= _of_units(name, function, sizes, slopes)
        if snapshot.nonfinite:  # NaN > 0 is false, and would count as a dead unit
            return Measurement(dict.fromkeys(scalars, float("nan"))), state
        return Measurement(scalars), state

    def _counted(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows without those of examples with weight zero."""
        kept = self.flat.weights > 0
        # If the rows are not a multiple of the examples, their weights are unknown: all rows count.
        pixels, rest = divmod(len(rows), len(kept))
        return rows if rest else rows[np.repeat(kept, pixels)]

    def _of_features(self, name: str, matrix: Float[np.ndarray, "rows m"]) -> dict[str, float]:
        """Return the scalars of a layer's features."""
        rank, soft, norm = undefined_rank(min(matrix.shape)), None, float("nan")
        if np.all(np.isfinite(matrix)):
            shifted = centered(matrix) if self.centered else Centered(matrix, 0.0)
            rank, values = self._rank(shifted)
            soft = feature_ranks(values, rows=len(matrix))
            norm = mean_norm(shifted.X)
        return {
            f"rank_features/{name}": count_scalar(rank.rank),
            f"rank_low/features/{name}": count_scalar(rank.low),
            f"rank_high/features/{name}": count_scalar(rank.high),
            **{f"{tag}/{name}": value for tag, value in _soft_scalars(soft).items()},
            f"norm_features/{name}": norm,
        }

    def _rank(self, features: Centered) -> tuple[NumericalRank, Float[np.ndarray, " r"]]:
        """Return the rank of features and their singular values."""
        values = feature_singular_values(features.X)
        norm, default = float(np.max(values, initial=0.0)), self._eps(features.X)
        cut = self.tolerance.cut(norm, default=default, reference_norm=features.norm_of_mean)
        rank = numerical_rank(values, cut)
        # If all rows are equal, the difference from their mean consists of rounding errors.
        is_zero = norm <= default * features.norm_of_mean
        return rank, np.zeros_like(values) if is_zero else values

    def _eps(self, matrix: Float[np.ndarray, "rows m"]) -> float:
        return max(matrix.shape) * self.flat.precision.eps

    def describe(self) -> Description:
        """Describe the layers, the activations and the cut."""
        taps = self.taps
        rule = "max(m, n) eps ‖X‖₂ for m x n features X"
        if self.centered:
            rule = "max(m, n) eps max(‖X - M‖₂, ‖M‖₂) for m x n features X with the mean M"
        facts = [
            Fact("layers with features", listed(taps.layers)),
            Fact("features, rows x columns", self._shapes()),
            Fact("layers with a ReLU", listed(taps.relus)),
            Fact("layers with dormant and saturated units", _functions(taps)),
            Fact("feature cut", self.tolerance.rule(rule)),
        ]
        if self.centered:
            text = (
                "minus their mean over the rows: their rank is at most the number of rows minus 1"
            )
            facts.append(Fact("features", text))
        return Description(facts)

    def _shapes(self) -> str:
        """Return the numbers of rows that count, and of columns, for each layer."""
        kept = float(np.mean(self.flat.weights > 0))
        shapes = zip(self.taps.layers, self.taps.shapes, strict=True)
        count = len(self.flat.weights)
        return listed(
            [f"{name} {n if n % count else round(kept * n)} x {d}" for name, (n, d) in shapes]
        )


def _soft_scalars(ranks: FeatureRanks | None) -> dict[str, float]:
    """Return the families of ranks without a cut; None gives NaN."""
    return {
        "effective_rank_features": ranks.effective_rank if ranks else float("nan"),
        "stable_rank_features": ranks.stable_rank if ranks else float("nan"),
        "srank_features": count_scalar(ranks.srank if ranks else None),
        "components_features": count_scalar(ranks.components if ranks else None),
        "feature_rank": count_scalar(ranks.feature_rank if ranks else None),
    }


def _of_units(
    name: str,
    function: str,
    magnitudes: Float[np.ndarray, "_rows units"],
    slopes: Float[np.ndarray, "_rows units"],
) -> dict[str, float]:
    """Return the shares of dormant and saturated units; NaN if an output is not finite.

    Args:
      name: the layer's name in the tags.
      function: the name of the activation; a ReLU has no share of saturated units.
      magnitudes: the mean |f(z)| of each unit, by row.
      slopes: the largest |f'(z)| of each unit, by row, divided by the largest value of |f'|.
    """
    mean = np.mean(magnitudes, axis=0)
    undefined = not np.all(np.isfinite(mean))
    shares = {f"dormant_share_{tau}": dormant_units(mean, tau) for tau in DORMANT_TAUS}
    if function != "ReLU":  # its saturated units are the dead ones
        shares["saturated_share"] = saturated_units(slopes)
    return {
        f"{tag}/{name}": float("nan") if undefined else float(np.mean(units))
        for tag, units in shares.items()
    }


def _functions(taps: Taps) -> str:
    """Return the recognized activations, and how units are counted in them."""
    text = listed([f"{layer} ({function})" for layer, function in taps.activations])
    if not taps.activations:
        return text
    return f"{text}; saturated: |f'| below {SATURATED_SHARE:g} of its maximum on the whole batch"
