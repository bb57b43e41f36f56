"""The class of each example of a probe batch, read from the targets of a classification loss."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from rankmon.problem.flat import FlatProblem


@dataclass(frozen=True)
class ClassLabels:
    """The class of each example with positive weight.

    Attributes:
      labels: the class, 0 to k - 1, of each position with positive weight.
      source: the form of the targets, in plain text.
    """

    labels: Int[np.ndarray, " n"]
    source: str


def class_labels(flat: FlatProblem) -> ClassLabels:
    """Return the classes of the examples with positive weight.

    Cross entropy is a classification loss. Any other loss is one if its targets are labels,
    integers in 0, ..., k - 1, or one-hot vectors: one entry has one value, and all others have a
    second value, the same two values in all examples. Targets under cross entropy may be any
    distributions (label smoothing, mixtures) with a single largest entry, which is the class.

    Raises:
      ValueError: if the targets are not of this form.
    """
    loss, k = flat.problem.loss.name, flat.k
    trees = jax.tree.leaves(flat.targets)
    if k < 2:
        raise _refused("at least two outputs", f"{k} output", "a network with an output per class")
    if len(trees) != 1:
        raise _refused("one array of targets", f"{len(trees)} arrays", "labels as targets")
    targets = np.asarray(trees[0])[flat.weights > 0]
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        if targets.size and not 0 <= np.min(targets) <= np.max(targets) < k:
            found = f"{np.min(targets)} to {np.max(targets)}"
            raise _refused(f"labels in 0 to {k - 1}", found, "labels of the outputs")
        return ClassLabels(targets.astype(np.int64), "labels")
    if targets.ndim != 2 or targets.shape[1] != k:
        shape = f"targets of shape {targets.shape} and dtype {targets.dtype}"
        raise _refused("labels or one-hot targets", shape, "integer labels")
    targets = targets.astype(np.float64)
    largest = targets == np.max(targets, axis=1, keepdims=True)
    labels, others = np.argmax(targets, axis=1), targets[~largest]
    if np.any(np.sum(largest, axis=1) != 1):
        raise _refused("targets with a single largest entry", "ties", "labels as targets")
    is_one_hot = np.ptp(others) == 0 and np.ptp(targets[largest]) == 0
    if not (is_one_hot or loss == "cross_entropy"):
        found = f"the loss {loss!r} with other targets"
        raise _refused("cross entropy, labels or one-hot targets", found, "one-hot targets")
    return ClassLabels(labels, "one-hot targets" if is_one_hot else "largest entries of targets")


def _refused(expected: str, got: str, remedy: str) -> ValueError:
    return ValueError(
        f"expected a classification problem with {expected}, got {got}; for neural collapse pass "
        f"{remedy}, or omit the collapse probe"
    )
