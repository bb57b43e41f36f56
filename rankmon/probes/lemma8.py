"""The Lemma 8 probe: compare the measured log|det W| with Lemma 8's prediction."""

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
    """Lemma 8's assumptions, and its prediction of log|det W^l| next to the measured value.

    For deep linear networks without biases under loss "mse". Lemma 8 is about the gradient flow, so
    that the measured value differs from the prediction by two errors: gradient descent has a finite
    step size, and the integral over time is a trapezoid rule over the probes, whose error is
    `lemma8/quadrature_error/<layer>`.

    Args:
      learning_rate: the flow time of one step. This is the learning rate of gradient descent on the
        *mean* loss over the probe batch; for the sum of the losses, n times the learning rate.

    Source: Lemma 8, section S5, arXiv 2106.16225.
    """

    learning_rate: float
    name: str = "lemma8"

    per_batch = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"expected a positive learning_rate, got {self.learning_rate}; pass the flow time "
                "of one step"
            )

    def placeholder_state(self, problem: Problem) -> State:
        """Return an empty path of one layer; the number of layers is not known yet."""
        return _state_of(lemma8.DeterminantPath.empty(1))

    def prepare(self, flat: FlatProblem) -> "PreparedLemma8":
        """Recognize the deep linear network.

        Raises:
          ValueError: if the network is not a deep linear one without biases, if the loss is not
            "mse", or if the probe batch has weights.
        """
        stack = recognized_stack(flat)
        loss = flat.problem.loss.name
        if stack is None or not stack.linear or stack.bias is not False or loss != "mse":
            raise ValueError(
                "expected a deep linear network without biases under loss 'mse' for Lemma 8, got "
                f"{_describe_stack(stack)} under {loss!r}; omit the Lemma 8 probe"
            )
        if flat.problem.weights is not None:
            raise ValueError(
                "expected a probe batch without weights for Lemma 8, got weights; omit them"
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
        """Return an empty path with one entry per layer."""
        return _state_of(lemma8.DeterminantPath.empty(len(self.stack.layers)))

    @property
    def layers(self) -> list[str]:
        """The names of the layers, from the first to the last."""
        return [self.flat.specs[layer.kernel].name for layer in self.stack.layers]

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure how far the assumptions are violated, and extend the path to the snapshot."""
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
        if measured.square:  # determinants exist only for square weights
            path = self._advance(_path_of(state), snapshot)
            scalars |= self._path_scalars(path, snapshot)
            state = _state_of(path)
        return Measurement(scalars), state

    def _labels(self) -> np.ndarray | None:
        """Return the class of each example, or None if the targets are not one-hot."""
        y = np.asarray(self.flat.targets)
        one_hot = np.all((y == 0) | (y == 1)) and np.all(np.sum(y, axis=1) == 1)
        return np.argmax(y, axis=1) if one_hot else None

    def _advance(self, path: lemma8.DeterminantPath, snapshot: Snapshot) -> lemma8.DeterminantPath:
        """Return the path extended to the snapshot."""
        time = self.learning_rate * snapshot.step
        with self.flat.precision.scope():
            weights = self.stack.weights(snapshot.leaves)
            sigma = self.inputs.T @ self.inputs / len(self.inputs)
            trace = np.asarray(lemma8.trace_B(weights, sigma), np.float64)
        # If training went back to an earlier step, the integral starts again at this step.
        if path.probes == 0 or time < path.times[-1]:
            return lemma8.DeterminantPath.start(time, self._log_abs_dets(snapshot), trace)
        return path.advance(time, trace)

    def _log_abs_dets(self, snapshot: Snapshot) -> np.ndarray:
        weights = self.stack.weights(snapshot.leaves)
        return np.array([log_abs_det(np.asarray(w, np.float64)) for w in weights])

    def _path_scalars(self, path: lemma8.DeterminantPath, snapshot: Snapshot) -> dict[str, float]:
        """Return the predicted log|det W^l|, its error, and the estimated error of the integral."""
        scalars = {}
        measured = self._log_abs_dets(snapshot)
        with np.errstate(invalid="ignore"):  # both are -inf for a singular weight
            off = measured - path.predicted
        for i, name in enumerate(self.layers):
            scalars[f"lemma8/predicted_log_abs_det/{name}"] = float(path.predicted[i])
            scalars[f"lemma8/prediction_error/{name}"] = float(off[i])
            scalars[f"lemma8/quadrature_error/{name}"] = float(path.error[i])
        return scalars

    def describe(self) -> Description:
        """Describe the flow time of one step."""
        return Description([Fact("Lemma 8", f"flow time per step: {self.learning_rate:g}")])


def _state_of(path: lemma8.DeterminantPath) -> State:
    return {f.name: np.asarray(getattr(path, f.name), np.float64) for f in fields(path)}


def _path_of(state: State) -> lemma8.DeterminantPath:
    return lemma8.DeterminantPath(**state)
