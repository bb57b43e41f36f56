"""The symbols r and s of theory, measured: the ranks of the inputs and of Omega.

Symbols: X the inputs, [n, d], with biases (X, 1); r their rank, with biases that of (X, 1), less 1;
Omega = E[delta x^T], [k, d], with biases E[delta (x, 1)^T], for residuals delta; s its rank. Each
is counted at its own cut.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    numerical_rank,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.network.recognized_family import RecognizedFamily, recognized_family
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import DOUBLE


@dataclass(frozen=True)
class MeasuredSymbols:
    """The arguments of the closed forms, as far as a network and a probe batch have them.

    Attributes:
      stack: the network as a stack of dense layers, or None.
      inputs: X, or (X, 1) with biases, [n, d] or [n, d + 1]; None if Omega is not defined.
      weights: of the examples, [n], summing to 1.
      r: the rank of the inputs at their own cut; with biases that of (X, 1), less 1.
      visible: the same as far as H_o shows it: the count of singular values whose squares, the
        eigenvalues of E[x x^T], exceed p * eps of the largest.
      loss: the name that `theory` knows, or None for a callable loss.
      eps: of the arithmetic.
      relative: the cut of the Hessian's ranks relative to its norm, p * eps.
      family: a recognized linear network other than a stack, or None.
    """

    stack: DenseStack | None
    inputs: Float[np.ndarray, "n d"] | None
    weights: Float[np.ndarray, " n"]
    r: int
    visible: int
    loss: str | None
    eps: float
    relative: float = 0.0
    family: RecognizedFamily | None = None

    @classmethod
    def of(cls, flat: FlatProblem) -> "MeasuredSymbols":
        """Return the symbols of this problem."""
        name = flat.problem.loss.name
        loss = None if name.startswith("custom:") else name
        inputs, *others = jax.tree.leaves(flat.inputs)
        usable = (
            not others
            and np.issubdtype(inputs.dtype, np.floating)
            and inputs.ndim >= 2
            and len(flat.position_axes) == 1
        )
        if not usable:
            return cls(None, None, flat.weights, 0, 0, loss, flat.precision.eps)
        stack = recognized_stack(flat)
        x = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
        with_bias = stack is not None and bool(stack.bias)
        if with_bias:
            x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        relative = flat.p * flat.precision.eps
        own, visible = _input_ranks(x, flat.weights, relative)
        r, visible = max(own - with_bias, 0), max(visible - with_bias, 0)
        family = recognized_family(flat) if stack is None else None
        return cls(stack, x, flat.weights, r, visible, loss, flat.precision.eps, relative, family)

    def omega(self, delta: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "k d"]:
        """Return Omega with these residuals."""
        assert self.inputs is not None
        return (self.weights[:, None] * delta).T @ self.inputs

    def omega_rank(self, delta: Float[np.ndarray, "n k"]) -> NumericalRank:
        """Return s, the rank of Omega with these residuals, at its own cut."""
        return _own_rank(self.omega(delta), self.eps)


def _input_ranks(
    X: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"], relative: float
) -> tuple[int, int]:
    """Return the rank of the inputs that count, and that of E[x x^T] at a relative cut.

    Use the SVD of X for both: X^T X would halve the number of correct digits.
    """
    live = weights > 0
    own = _own_rank(X[live], DOUBLE.eps).rank or 0
    values = singular_values(np.sqrt(weights[live])[:, None] * X[live])
    # A cut of the eigenvalues of E[x x^T] is the root of it for singular values of x.
    seen = numerical_rank(values, np.sqrt(relative) * float(values[0])).rank or 0
    return own, min(own, seen)


def _own_rank(matrix: Float[np.ndarray, "m n"], eps: float) -> NumericalRank:
    """Return the rank of a matrix with a cut relative to its own norm."""
    if not np.all(np.isfinite(matrix)):
        return undefined_rank(min(matrix.shape))
    values = singular_values(matrix)
    cut = DEFAULT_TOLERANCE.cut(float(values[0]), default=max(matrix.shape) * eps)
    return numerical_rank(values, cut)
