"""The features probe: ranks of the layers' inputs on the probe batch, and dead units of ReLUs.

`network.taps` finds the layers and the ReLUs. A kernel that is computed from parameters (weight and
spectral normalization) gets the name of the largest of them. Layers inside `lax.scan`, `while` and
`cond` are not found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from rankmon import theory
from rankmon._util.facts import Fact
from rankmon._util.optional_readers import optionally
from rankmon._util.text import listed
from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    Tolerance,
    as_tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.network.recognized_stack import recognized_stack
from rankmon.network.taps import compiled_taps
from rankmon.probes.base import Description, Measurement, Prediction, State, count_scalar
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem


@dataclass(frozen=True)
class FeaturesProbe:
    """The rank of each layer's input on the probe batch, and the dead units of each ReLU.

    The features of a layer are its input as a matrix: one row per example and position for a dense
    layer, one row per example for a convolution. Units lie along the last axis. A unit is dead if
    the ReLU after the layer returns zero for it on the whole probe batch. The examples have to lie
    along the first axis of every intermediate array.

    Args:
      tolerance: the cut; by default max(m, n) * eps * ||X||_2 for an m x n matrix X of features.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    name: str = "features"

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)

    def placeholder_state(self, problem: Problem) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def prepare(self, flat: FlatProblem) -> "PreparedFeatures":
        """Find the layers and the ReLUs.

        Raises:
          ValueError: if neither a layer nor a ReLU is found.
        """
        found = optionally(flat.problem, "features", lambda: compiled_taps(flat), otherwise=None)
        if found is None:
            return PreparedFeatures(flat, lambda *_: ([], []), [], [], self.tolerance)
        compiled, layers, relus = found
        if not (layers or relus):
            raise ValueError(
                "expected a network with a ReLU, or with a product or convolution of features and "
                "a parameter, got none outside loops; omit the features probe"
            )
        return PreparedFeatures(flat, compiled, layers, relus, self.tolerance)


@dataclass(frozen=True)
class PreparedFeatures:
    """`FeaturesProbe` for one problem.

    Attributes:
      flat: the problem.
      walk: a function of leaves and inputs that returns the features of each of `layers`, and for
        each of `relus` a boolean array: whether the output is positive.
      layers: the name of each layer, which is that of its kernel.
      relus: the name of each ReLU, which is that of the parameter before it.
      tolerance: the rule for the cut.
    """

    flat: FlatProblem
    walk: Callable[..., Any]
    layers: list[str]
    relus: list[str]
    tolerance: Tolerance

    def initial_state(self) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure features' ranks and dead units; all are NaN if the snapshot is not finite."""
        with self.flat.precision.scope():
            features, positive = self.walk(snapshot.leaves, self.flat.inputs)
            features = [self._counted(np.asarray(rows, np.float64)) for rows in features]
            positive = [self._counted(np.asarray(rows)) for rows in positive]
        scalars: dict[str, float] = {}
        for name, matrix in zip(self.layers, features, strict=True):
            rank = self._rank(matrix)
            scalars[f"rank_features/{name}"] = count_scalar(rank.rank)
            scalars[f"rank_low/features/{name}"] = count_scalar(rank.low)
            scalars[f"rank_high/features/{name}"] = count_scalar(rank.high)
        for name, units in zip(self.relus, positive, strict=True):
            dead = ~np.any(units, axis=0)
            scalars[f"dead_units/{name}"] = float(np.sum(dead))
            scalars[f"dead_share/{name}"] = float(np.mean(dead))
        if snapshot.nonfinite:  # NaN > 0 is false, and would count as a dead unit
            return Measurement(dict.fromkeys(scalars, float("nan"))), state
        return Measurement(scalars | self._bound(features, positive, scalars)), state

    def _counted(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows without those of examples with weight zero."""
        kept = self.flat.weights > 0
        # If the rows are not a multiple of the examples, their weights are unknown: all rows count.
        pixels, rest = divmod(len(rows), len(kept))
        return rows if rest else rows[np.repeat(kept, pixels)]

    def _rank(self, matrix: Float[np.ndarray, "rows m"]) -> NumericalRank:
        """Return the rank of a layer's features."""
        if not np.all(np.isfinite(matrix)):
            return undefined_rank(min(matrix.shape))
        # A tall matrix has the singular values of its much smaller QR factor R.
        is_tall = len(matrix) > matrix.shape[1]
        values = singular_values(np.asarray(np.linalg.qr(matrix, "r")) if is_tall else matrix)
        default = max(matrix.shape) * self.flat.precision.eps
        cut = self.tolerance.cut(float(values[0]) if values.size else 0.0, default=default)
        return numerical_rank(values, cut)

    def _bound(
        self,
        features: Sequence[Float[np.ndarray, "_rows _m"]],
        positive: Sequence[Bool[np.ndarray, "_rows _m"]],
        scalars: Mapping[str, float],
    ) -> dict[str, float]:
        """Return Theorem 9's bound on rank H_o, for ReLU networks of one hidden layer."""
        if not self._has_one_relu:
            return {}
        stack, loss = recognized_stack(self.flat), self.flat.problem.loss.name
        assert stack is not None
        is_relu = np.all(features[1] >= 0) and np.array_equal(features[1] > 0, positive[0])
        r = scalars[f"rank_features/{self.layers[0]}"]
        if not (is_relu and np.isfinite(r)):
            return {}
        active = int(np.sum(np.any(positive[0], axis=0)))
        bound = theory.rank_outer_bound(stack.dims, r=int(r), active=active, loss=loss)
        return {"rank_bound/H_o": bound}

    def describe(self) -> Description:
        """Describe the layers, the ReLUs, the cut, and Theorem 9's bound if it applies."""
        facts = [
            Fact("layers with features", listed(self.layers)),
            Fact("layers with a ReLU", listed(self.relus)),
            Fact("feature cut", self.tolerance.rule("max(m, n) eps ‖X‖₂ for m x n features X")),
        ]
        bound = Prediction(
            "H_o at most",
            "rank_bound/H_o",
            "Mt (r + K - 1), where Mt is the number of active hidden units",
            "theory.rank_outer_bound: Theorem 9, an upper bound for ReLU",
        )
        return Description(facts, predictions=[bound] if self._has_one_relu else [])

    @property
    def _has_one_relu(self) -> bool:
        """Whether Theorem 9 applies to a network of this structure."""
        stack, loss = recognized_stack(self.flat), self.flat.problem.loss.name
        return (
            stack is not None
            and len(stack.layers) == len(self.layers) == 2
            and stack.bias is False
            and len(self.relus) == 1
            and loss in ("mse", "cosh", "cross_entropy")
        )
