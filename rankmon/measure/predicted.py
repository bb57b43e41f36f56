"""What theory expects of a network: its ranks r and s, measured, and the closed forms at them.

Symbols: Omega = E[delta x^T] (k x d, with biases E[delta (x, 1)^T]), s its rank at its own cut; r
the rank of the inputs. The closed forms themselves are in `theory`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rankmon import theory
from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    numerical_rank,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.measure.rank_scalars import rank_scalars
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import DOUBLE
from rankmon.problem.problem import Problem, check_problem
from rankmon.weights.ranks import weight_rank


@dataclass(frozen=True)
class Expectation:
    """The measured r and s, and the closed forms at them.

    Attributes:
      stack: the network as a stack of dense layers, or None.
      inputs: X, or (X, 1) with biases, [n, d] or [n, d + 1]; None where Omega is not defined.
      weights: of the examples, [n], summing to 1.
      r: the rank of the inputs at their own cut; with biases that of (X, 1), less 1.
      visible: the same as far as H_o shows it: the count of singular values whose squares, the
        eigenvalues of E[x x^T], exceed p * eps of the largest.
      loss: the name that `theory` knows, or None for a callable loss.
      eps: of the arithmetic.
    """

    stack: DenseStack | None
    inputs: Float[np.ndarray, "n d"] | None
    weights: Float[np.ndarray, " n"]
    r: int
    visible: int
    loss: str | None
    eps: float

    @classmethod
    def of(cls, flat: FlatProblem) -> "Expectation":
        """What theory can say of this problem."""
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
        own, visible = _input_ranks(x, flat.weights, flat.p * flat.precision.eps)
        r, visible = max(own - with_bias, 0), max(visible - with_bias, 0)
        return cls(stack, x, flat.weights, r, visible, loss, flat.precision.eps)

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
        omega = self.omega_rank(delta)
        scalars = rank_scalars("rank", "Omega", omega)
        if omega.rank is None or not self._applies(snapshot):
            return scalars
        held = self.omega_rank(reference).rank or 0
        predicted = self.predicted(0 if vanished else omega.rank, held)
        return scalars | {f"rank_theory/{part}": rank for part, rank in predicted.items()}

    def omega_rank(self, delta: Float[np.ndarray, "n k"]) -> NumericalRank:
        """s, the rank of Omega with these residuals, at its own cut."""
        assert self.inputs is not None
        return _own_rank((self.weights[:, None] * delta).T @ self.inputs, self.eps)

    def _applies(self, snapshot: Snapshot) -> bool:
        stack = self.stack
        if stack is None or stack.bias is None or self.loss is None:
            return False
        # For other stacks the linear counterpart is a landmark, not a claim about their weights.
        return not stack.linear or _full_rank(stack, snapshot)

    def predicted(self, s: int, held: int) -> dict[str, int]:
        """The closed forms at this s, and for H_f_fixed at the s of the residuals held.

        An input direction of relative size t enters H_f as t and H_o as t^2: between p * eps and
        its root it is seen in H_f alone. H_o is predicted at the visible rank, H_f at the own one,
        and H_L where s does not tell the two apart.
        """
        assert self.stack is not None
        assert self.loss is not None
        dims, bias = self.stack.dims, bool(self.stack.bias)
        r, visible, loss = self.r, self.visible, self.loss
        outputs = dims[-1] - (loss == "cross_entropy")
        most, seen = (min(outputs, rank + bias) for rank in (r, visible))
        s, held = min(s, most), min(held, most)
        ranks = {
            "H_o": theory.rank_outer(dims, r=visible, bias=bias, loss=loss),
            "H_f": theory.rank_functional(dims, r=r, s=s, bias=bias, loss=loss),
            "H_f_fixed": theory.rank_functional(dims, r=r, s=held, bias=bias, loss=loss),
        }
        if s <= seen:
            ranks["H_L"] = theory.rank_loss(dims, r=visible, s=s, bias=bias, loss=loss)
        return ranks


@dataclass(frozen=True)
class PredictedRanks:
    """What the closed forms say of a network, at the r and s measured on its probe batch.

    Attributes:
      dims: the widths (d, M_1, ..., M_{L-1}, K) found in the network.
      bias: whether every layer has a bias.
      linear: whether the network is a deep linear one; the predictions for any other stack of dense
        layers are those of its linear counterpart.
      r: the rank of the inputs; with biases rank (X, 1) - 1.
      visible: the same as far as H_o shows it: singular values whose squares exceed p * eps of the
        largest.
      s: the rank of Omega = E[delta x^T], with its margin.
      full_rank: whether every weight has full rank, which the formulas assume (A1).
      ranks: "H_L", "H_o", "H_f" -> predicted rank; H_L is left out where s exceeds what is visible.
    """

    dims: tuple[int, ...]
    bias: bool
    linear: bool
    r: int
    visible: int
    s: NumericalRank
    full_rank: bool
    ranks: dict[str, int]


def predicted_ranks(problem: Problem, params: Any) -> PredictedRanks:
    """What theory predicts for the Hessian's ranks of a stack of dense layers; forms no Hessian.

    The closed forms of `theory` at the widths found in the network, the measured rank r of the
    inputs and the measured rank s of Omega, the covariance of residuals and inputs. Omega is
    counted at its own cut: where the residual is rounding beside H_L, `hessian_ranks` finds less.

    Args:
      problem: network, loss and probe batch.
      params: the parameters.

    Raises:
      TypeError, ValueError: for input that does not fit; for a network that is not recognized as a
        stack of dense layers with biases in all layers or in none; for a callable loss; for
        parameters or residuals that are not finite.

    Source: arXiv 2106.16225, and the extensions that `theory` names.
    """
    check_problem(problem, params)
    flat = problem.flat(params)
    expectation = Expectation.of(flat)
    stack = expectation.stack
    if stack is None or stack.bias is None or expectation.loss is None:
        found = "no such stack" if stack is None else "biases in some layers only"
        found = f"loss {flat.problem.loss.name}" if expectation.loss is None else found
        raise ValueError(
            "expected a stack of dense layers with biases in all of them or in none, every "
            f"parameter differentiated, and a loss by name, got {found}; use the functions of "
            "rankmon.theory with the widths that you mean"
        )
    flat.warn_once()
    snapshot = Snapshot.take(flat, 0, params)
    _, delta = flat.loss_and_residuals(snapshot.theta, snapshot.fixed)
    if snapshot.nonfinite or not np.all(np.isfinite(delta)):
        raise ValueError(
            "expected finite parameters and outputs, got NaN or infinite ones; theory says nothing "
            "of them"
        )
    s = expectation.omega_rank(delta)
    ranks = expectation.predicted(s.rank or 0, 0)
    return PredictedRanks(
        dims=stack.dims,
        bias=bool(stack.bias),
        linear=stack.linear,
        r=expectation.r,
        visible=expectation.visible,
        s=s,
        full_rank=_full_rank(stack, snapshot),
        ranks={part: ranks[part] for part in ("H_L", "H_o", "H_f") if part in ranks},
    )


def _full_rank(stack: DenseStack, snapshot: Snapshot) -> bool:
    return all(
        w.size == 0 or weight_rank(np.asarray(w, np.float64)).rank == min(w.shape)
        for w in stack.weights(snapshot.leaves)
    )


def _input_ranks(
    X: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"], relative: float
) -> tuple[int, int]:
    """The rank of the inputs that count, and that of E[x x^T] at a relative cut.

    Both from X, whose digits its square would lose.
    """
    live = weights > 0
    own = _own_rank(X[live], DOUBLE.eps).rank or 0
    values = singular_values(np.sqrt(weights[live])[:, None] * X[live])
    seen = numerical_rank(values, np.sqrt(relative) * float(values[0])).rank or 0
    return own, min(own, seen)


def _own_rank(matrix: Float[np.ndarray, "m n"], eps: float) -> NumericalRank:
    if not np.all(np.isfinite(matrix)):
        return undefined_rank(min(matrix.shape))
    values = singular_values(matrix)
    cut = DEFAULT_TOLERANCE.cut(float(values[0]), default=max(matrix.shape) * eps)
    return numerical_rank(values, cut)
