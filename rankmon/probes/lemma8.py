"""The Lemma 8 probe: log|det W| as Lemma 8 predicts it, and as measured."""

from dataclasses import dataclass, fields

import jax
import numpy as np

from rankmon._util.facts import Fact
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.probes.base import Description, Measurement, State
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem
from rankmon.theory import lemma8
from rankmon.weights.ranks import log_abs_det


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
        """Return an empty path of one layer: their number is known with the parameters."""
        return _state_of(lemma8.DeterminantPath.empty(1))

    def prepare(self, flat: FlatProblem) -> "PreparedLemma8":
        """Recognize the deep linear network.

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
        """Return an empty path, one entry a layer."""
        return _state_of(lemma8.DeterminantPath.empty(len(self.stack.layers)))

    @property
    def layers(self) -> list[str]:
        """The layers' names, first layer first."""
        return [self.flat.specs[layer.kernel].name for layer in self.stack.layers]

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Return how far the assumptions are from holding, and the path up to the snapshot."""
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
        """Return the classes, if targets are one-hot."""
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
        """Describe the flow time of one step."""
        return Description([Fact("Lemma 8", f"flow time of one step {self.learning_rate:g}")])


def _state_of(path: lemma8.DeterminantPath) -> State:
    return {f.name: np.asarray(getattr(path, f.name), np.float64) for f in fields(path)}


def _path_of(state: State) -> lemma8.DeterminantPath:
    return lemma8.DeterminantPath(**state)
