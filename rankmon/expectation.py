"""What theory expects of a network: its ranks r and s, measured, and the closed forms at them.

Symbols: Omega = E[delta x^T] (k x d, with biases E[delta (x, 1)^T]), s its rank at its own cut; r
the rank of the inputs. The closed forms themselves are in `theory`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon import theory
from rankmon._precision import DOUBLE
from rankmon.measurement import Snapshot, rank_scalars
from rankmon.problem import FlatProblem
from rankmon.rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    numerical_rank,
    undefined_rank,
    weight_rank,
)
from rankmon.spectrum import singular_values
from rankmon.stack import DenseStack, recognized_stack


@dataclass(frozen=True)
class Expectation:
    """The measured r and s, and the closed forms at them.

    Attributes:
      stack: the network as a stack of dense layers, or None.
      inputs: X, or (X, 1) with biases, [n, d] or [n, d + 1]; None where Omega is not defined.
      weights: of the examples, [n], summing to 1.
      r: the rank of the inputs (with biases, that of (X, 1) less 1).
      loss: the name that `theory` knows, or None for a callable loss.
      eps: of the arithmetic.
    """

    stack: DenseStack | None
    inputs: Float[np.ndarray, "n d"] | None
    weights: Float[np.ndarray, " n"]
    r: int
    loss: str | None
    eps: float

    @classmethod
    def of(cls, flat: FlatProblem) -> "Expectation":
        """What theory can say of this problem."""
        name = flat.problem.loss.name
        loss = None if name.startswith("custom:") else name
        inputs = flat.inputs
        usable = (
            isinstance(inputs, np.ndarray)
            and np.issubdtype(inputs.dtype, np.floating)
            and inputs.ndim >= 2
            and len(flat.position_axes) == 1
        )
        if not usable:
            return cls(None, None, flat.weights, 0, loss, flat.precision.eps)
        stack = recognized_stack(flat)
        x = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
        with_bias = stack is not None and bool(stack.bias)
        if with_bias:
            x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        live = x[flat.weights > 0]
        r = _own_rank(live, DOUBLE.eps).rank or 0
        return cls(stack, x, flat.weights, r - with_bias, loss, flat.precision.eps)

    def scalars(
        self,
        snapshot: Snapshot,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"],
        *,
        vanished: bool,
    ) -> dict[str, float]:
        """rank/Omega, and rank_theory/* where the closed forms apply.

        Args:
          snapshot: the parameters.
          delta: the residuals there.
          reference: the residuals that H_f_fixed holds.
          vanished: whether all of H_f is below a tenth of the common cut. The residual is rounding
            beside H_L then, and counts as zero, s = 0, although Omega has a rank at its own cut.
        """
        if self.inputs is None:
            return {}
        omega = self._omega_rank(delta)
        scalars = rank_scalars("rank", "Omega", omega)
        if omega.rank is None or not self._applies(snapshot):
            return scalars
        held = self._omega_rank(reference).rank or 0
        predicted = self.predicted(0 if vanished else omega.rank, held)
        return scalars | {f"rank_theory/{part}": rank for part, rank in predicted.items()}

    def _omega_rank(self, delta: Float[np.ndarray, "n k"]) -> NumericalRank:
        assert self.inputs is not None
        return _own_rank((self.weights[:, None] * delta).T @ self.inputs, self.eps)

    def _applies(self, snapshot: Snapshot) -> bool:
        stack = self.stack
        if stack is None or stack.bias is None or self.loss is None:
            return False
        # For other stacks the linear counterpart is a landmark, not a claim about their weights.
        return not stack.linear or all(
            w.size == 0 or weight_rank(np.asarray(w, np.float64)).rank == min(w.shape)
            for w in stack.weights(snapshot.leaves)
        )

    def predicted(self, s: int, held: int) -> dict[str, int]:
        """The closed forms at r, at this s, and for H_f_fixed at the s of the residuals held."""
        assert self.stack is not None
        assert self.loss is not None
        dims, bias = self.stack.dims, bool(self.stack.bias)
        r, loss = self.r, self.loss
        most = min(dims[-1] - (loss == "cross_entropy"), r + bias)
        s, held = min(s, most), min(held, most)
        return {
            "H_L": theory.rank_loss(dims, r=r, s=s, bias=bias, loss=loss),
            "H_o": theory.rank_outer(dims, r=r, bias=bias, loss=loss),
            "H_f": theory.rank_functional(dims, r=r, s=s, bias=bias, loss=loss),
            "H_f_fixed": theory.rank_functional(dims, r=r, s=held, bias=bias, loss=loss),
        }

    def describe(self) -> str:
        """What the predictions are, for the run's card."""
        if self.stack is None or self.stack.bias is None or self.loss is None:
            return "* no prediction: not recognized as a stack of dense layers in float64"
        dims = "-".join(map(str, self.stack.dims))
        kind = (
            f"deep linear network {dims}"
            if self.stack.linear
            else f"stack of dense layers {dims}; rank_theory is its **linear counterpart's**"
        )
        biases = " with biases" if self.stack.bias else ""
        return f"* {kind}{biases}, rank of the inputs r = {self.r}"


def _own_rank(matrix: Float[np.ndarray, "m n"], eps: float) -> NumericalRank:
    if not np.all(np.isfinite(matrix)):
        return undefined_rank(min(matrix.shape))
    values = singular_values(matrix)
    cut = DEFAULT_TOLERANCE.cut(float(values[0]), default=max(matrix.shape) * eps)
    return numerical_rank(values, cut)
