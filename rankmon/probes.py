"""The named probes: what to measure. The Hessian's is in `hessian`; weights and Lemma 8 are here.

A probe is a frozen description; `prepare` checks it against a problem before training starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np

from rankmon import lemma8
from rankmon._kernels import kernel_axes
from rankmon._precision import eps_of
from rankmon._tree import left_out
from rankmon._views import MatrixView, Views, matrix_views, tag_names
from rankmon._warnings import warn_user
from rankmon.counts import weight_count
from rankmon.features import FeaturesProbe
from rankmon.flat import FlatProblem
from rankmon.hessian import HessianProbe
from rankmon.measurement import (
    Description,
    Fact,
    Measurement,
    Probe,
    Snapshot,
    State,
    listed,
    rank_scalars,
)
from rankmon.problem import Problem
from rankmon.rank import DEFAULT_TOLERANCE, Tolerance, as_tolerance, log_abs_det, weight_rank
from rankmon.stack import DenseStack, recognized_stack


@dataclass(frozen=True)
class WeightsProbe:
    """Rank, stable and effective rank and condition number of each weight matrix; determinants.

    The operations of the network tell which axes of a kernel are rows and columns: for a
    convolution what it sums over, spatial axes and inputs, against its outputs, those of all groups
    side by side. Layers that the network scans, stacked along an axis of one leaf, are matrices of
    their own: "<leaf>/0" and so on.

    Args:
      tolerance: another cut than the default of `rank.weight_rank`.
      by_head: also each head of attention's projections by itself, "<layer>/head_0" and so on.
      largest: matrices of more rows and more columns than this get a rank alone, as `weight_counts`
        gives it, since their singular values take minutes.
      views: axes of rows and of columns, by globs over the leaves' names, as for `weight_ranks`,
        instead of those that the network's operations tell.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    by_head: bool = False
    largest: int = 2048
    name: str = "weights"
    views: Views | None = None

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        if isinstance(self.largest, bool) or not isinstance(self.largest, int):
            kind = type(self.largest).__name__
            raise TypeError(f"expected largest to be an integer, got {kind}; give a side")

    def placeholder_state(self, problem: Problem) -> State:
        """Nothing to remember."""
        return {}

    def prepare(self, flat: FlatProblem) -> "PreparedWeights":
        """Finds the matrices.

        Raises:
          ValueError: where no differentiated leaf is a matrix.
        """
        matrices = matrix_views(
            flat.specs, known=kernel_axes(flat), views=self.views, by_head=self.by_head
        )
        told = left_out(flat.specs)
        if told:
            warn_user(told)
        if not matrices:
            raise ValueError(
                "expected parameters with at least one matrix, got shapes "
                f"{ {spec.name: spec.shape for spec in flat.specs} }; watch the Hessian alone: "
                "probes=['hessian']"
            )
        leaves = [spec.name for spec in flat.specs]
        tags = tag_names([view.name for _, view in matrices], leaves)
        return PreparedWeights(flat, tuple(matrices), tags, self.tolerance, self.largest)


@dataclass(frozen=True)
class PreparedWeights:
    """`WeightsProbe` for one problem."""

    flat: FlatProblem
    matrices: tuple[tuple[int, MatrixView], ...]  # each with the index of its leaf
    tags: tuple[str, ...]
    tolerance: Tolerance
    largest: int

    def initial_state(self) -> State:
        """Nothing to remember."""
        return {}

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """The ranks of the snapshot's matrices; NaN for those that are not finite."""
        scalars: dict[str, float] = {}
        for name, (index, view) in zip(self.tags, self.matrices, strict=True):
            matrix = view.of(snapshot.leaves[index]).astype(np.float64)
            eps = eps_of(self.flat.specs[index].dtype)
            if min(matrix.shape) > self.largest:
                count = weight_count(matrix, eps=eps, tolerance=self.tolerance)
                scalars |= rank_scalars("rank_weights", name, count)
                continue
            rank = weight_rank(matrix, eps=eps, tolerance=self.tolerance)
            scalars |= rank_scalars("rank_weights", name, rank)
            scalars[f"stable_rank/{name}"] = rank.stable_rank
            scalars[f"effective_rank/{name}"] = rank.effective_rank
            scalars[f"condition_number/{name}"] = rank.condition_number
            if rank.det_sign is not None and rank.log_abs_det is not None:
                scalars[f"det_sign/{name}"] = rank.det_sign
                scalars[f"log_abs_det/{name}"] = rank.log_abs_det
        return Measurement(scalars), state

    def describe(self) -> Description:
        """The matrices, their shapes, and the cut."""
        shapes = [f"{view.name} {view.shape[0]}x{view.shape[1]}" for _, view in self.matrices]
        cut = self.tolerance.rule(
            "max(m, n) eps64 ‖W‖₂, plus eps / 2 ‖W‖_F for weights stored below float64"
        )
        return Description([Fact("weights", listed(shapes)), Fact("weights' cut", cut)])


# Lemma 8


@dataclass(frozen=True)
class Lemma8Probe:
    """Lemma 8's assumptions, and its predicted log|det W^l| beside the measured one.

    For a deep linear network without biases under mse. The prediction is along the gradient flow;
    gradient descent follows it up to the step, and the trapezoid rule over the probes up to
    `lemma8/quadrature_error/<layer>`.

    Args:
      learning_rate: the flow time that passes in one step: the learning rate of gradient descent on
        the probe batch's *mean* loss (times n for a sum).

    Source: Lemma 8, section S5, arXiv 2106.16225.
    """

    learning_rate: float
    name: str = "lemma8"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"expected a positive learning_rate, got {self.learning_rate}; pass the flow time "
                "of one step"
            )

    def placeholder_state(self, problem: Problem) -> State:
        """An empty path of one layer: how many there are, only the parameters tell."""
        return _state_of(lemma8.DeterminantPath.empty(1))

    def prepare(self, flat: FlatProblem) -> "PreparedLemma8":
        """Recognizes the deep linear network.

        Raises:
          ValueError: for other networks, with biases, or under another loss than mse.
        """
        stack = recognized_stack(flat)
        loss = flat.problem.loss.name
        if stack is None or not stack.linear or stack.bias is not False or loss != "mse":
            raise ValueError(
                "expected a deep linear network without biases under loss 'mse' for Lemma 8, got "
                f"{_describe_stack(stack)} under {loss!r}; leave the Lemma 8 probe out"
            )
        if flat.problem.weights is not None:
            raise ValueError(
                "expected a probe batch without weights for Lemma 8, got weights; leave them out"
            )
        (inputs,) = jax.tree.leaves(flat.inputs)
        inputs = np.asarray(inputs, np.float64).reshape(flat.problem.n, -1)
        return PreparedLemma8(flat, stack, inputs, self.learning_rate)


def _describe_stack(stack: DenseStack | None) -> str:
    if stack is None:
        return "a network that is not a stack of dense layers"
    kind = "a deep linear network" if stack.linear else "a stack with activations"
    return kind if stack.bias is False else f"{kind} with biases"


@dataclass(frozen=True)
class PreparedLemma8:
    """`Lemma8Probe` for one problem."""

    flat: FlatProblem
    stack: DenseStack
    inputs: np.ndarray
    learning_rate: float

    def initial_state(self) -> State:
        """An empty path, one entry a layer."""
        return _state_of(lemma8.DeterminantPath.empty(len(self.stack.layers)))

    @property
    def layers(self) -> list[str]:
        """The layers' names, first layer first."""
        return [self.flat.specs[layer.kernel].name for layer in self.stack.layers]

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """How far the assumptions are from holding, and the path up to the snapshot."""
        if snapshot.nonfinite:
            names = [f"lemma8/predicted_log_abs_det/{name}" for name in self.layers]
            return Measurement(dict.fromkeys(names, float("nan"))), state
        with self.flat.precision.scope():
            weights = self.stack.weights(snapshot.leaves)
            imbalance = np.asarray(lemma8.balancedness(weights), np.float64)
            measured = lemma8.assumptions(weights, self.inputs, self.flat.targets)
        scalars = {
            "lemma8/target_input": measured.target_input,
            "lemma8/centered": float(measured.centered),
            "lemma8/balanced": float(measured.balanced),
            "lemma8/square": float(measured.square),
        }
        labels = self._labels()
        if labels is not None:
            scalars["lemma8/class_mean"] = lemma8.class_mean_size(self.inputs, labels, self.flat.k)
        for name, value in zip(self.layers, imbalance, strict=False):
            scalars[f"lemma8/balancedness/{name}"] = float(value)
        if measured.square:
            path = self._advance(_path_of(state), snapshot)
            scalars |= self._path_scalars(path, snapshot)
            state = _state_of(path)
        return Measurement(scalars), state

    def _labels(self) -> np.ndarray | None:
        """The classes, where targets are one-hot."""
        y = np.asarray(self.flat.targets)
        one_hot = np.all((y == 0) | (y == 1)) and np.all(np.sum(y, axis=1) == 1)
        return np.argmax(y, axis=1) if one_hot else None

    def _advance(self, path: lemma8.DeterminantPath, snapshot: Snapshot) -> lemma8.DeterminantPath:
        time = self.learning_rate * snapshot.step
        with self.flat.precision.scope():
            weights = self.stack.weights(snapshot.leaves)
            sigma = self.inputs.T @ self.inputs / len(self.inputs)
            trace = np.asarray(lemma8.trace_B(weights, sigma), np.float64)
        # Training went back to an earlier step: the integral starts again there.
        if path.probes == 0 or time < path.times[-1]:
            return lemma8.DeterminantPath.start(time, self._log_abs_dets(snapshot), trace)
        return path.advance(time, trace)

    def _log_abs_dets(self, snapshot: Snapshot) -> np.ndarray:
        weights = self.stack.weights(snapshot.leaves)
        return np.array([log_abs_det(np.asarray(w, np.float64)) for w in weights])

    def _path_scalars(self, path: lemma8.DeterminantPath, snapshot: Snapshot) -> dict[str, float]:
        scalars = {}
        measured = self._log_abs_dets(snapshot)
        with np.errstate(invalid="ignore"):  # of a singular weight both are -inf
            off = measured - path.predicted
        for i, name in enumerate(self.layers):
            scalars[f"lemma8/predicted_log_abs_det/{name}"] = float(path.predicted[i])
            scalars[f"lemma8/prediction_error/{name}"] = float(off[i])
            scalars[f"lemma8/quadrature_error/{name}"] = float(path.error[i])
        return scalars

    def describe(self) -> Description:
        """What Lemma 8 is watched with."""
        return Description([Fact("Lemma 8", f"flow time of one step {self.learning_rate:g}")])


def _state_of(path: lemma8.DeterminantPath) -> State:
    return {f.name: np.asarray(getattr(path, f.name), np.float64) for f in fields(path)}


def _path_of(state: State) -> lemma8.DeterminantPath:
    return lemma8.DeterminantPath(**state)


def as_probes(
    probes: Sequence[str | Probe], *, tolerance: Tolerance, memory_limit: int
) -> list[Probe]:
    """The probes of these names, or as they are.

    Args:
      probes: "hessian", "weights", "features", or probe objects (`Lemma8Probe(learning_rate)`).
      tolerance: of the Hessian probe given by name.
      memory_limit: of the Hessian probe given by name.

    Raises:
      ValueError: for an unknown name, none at all, or two probes of the same name.
      TypeError: for what is neither.
    """
    named: dict[str, Probe] = {
        "hessian": HessianProbe(tolerance=tolerance, memory_limit=memory_limit),
        "weights": WeightsProbe(),
        "features": FeaturesProbe(),
    }

    def resolve(probe: str | Probe) -> Probe:
        if not isinstance(probe, str):
            if not hasattr(probe, "prepare"):
                raise TypeError(
                    f"expected probes to be names or probe objects, got {type(probe).__name__}; "
                    f"use one of {sorted(named)} or an object with prepare()"
                )
            return probe
        if probe not in named:
            hint = "pass Lemma8Probe(learning_rate)" if probe == "lemma8" else "use one of these"
            raise ValueError(f"expected a probe among {sorted(named)}, got {probe!r}; {hint}")
        return named[probe]

    chosen = [resolve(probe) for probe in ((probes,) if isinstance(probes, str) else probes)]
    names = [probe.name for probe in chosen]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"expected one or more distinct probes, got {names}; name each once")
    return chosen
