"""The ranks that theory predicts for a network at given parameters, with r and s as measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rankmon import theory
from rankmon.linalg.numerical_rank import NumericalRank
from rankmon.measure.family_ranks import family_ranks_at
from rankmon.measure.genericity import Genericity
from rankmon.measure.symbols import MeasuredSymbols
from rankmon.network.recognized_stack import DenseStack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem, check_problem
from rankmon.weights.ranks import weight_rank


@dataclass(frozen=True)
class PredictedRanks:
    """The closed forms for a network, at the r and s measured on its probe batch.

    Attributes:
      dims: the widths (d, M_1, ..., M_{L-1}, K) found in the network.
      bias: whether every layer has a bias.
      linear: whether the network is a deep linear one; the predictions for any other stack of dense
        layers are those of its linear counterpart.
      r: the rank of the inputs; with biases rank (X, 1) - 1.
      visible: the rank of the inputs that H_o can resolve: the number of singular values whose
        squares exceed p * eps times the largest square.
      s: the rank of Omega = E[delta x^T], with its margin.
      full_rank: whether every weight has full rank, which the formulas assume (A1).
      ranks: "H_L", "H_o", "H_f" -> predicted rank; without H_L if s exceeds the visible rank, and
        for a family only the parts whose formulas apply.
      family: for a recognized linear network other than a stack, its family; dims are (d, K).
    """

    dims: tuple[int, ...]
    bias: bool
    linear: bool
    r: int
    visible: int
    s: NumericalRank
    full_rank: bool
    ranks: dict[str, int]
    family: theory.NetworkFamily | None = None


def predicted_ranks(problem: Problem, params: Any) -> PredictedRanks:
    """Return the ranks that theory predicts for a recognized network, without any Hessian.

    The closed forms of `theory` at the widths found in the network, the measured rank r of the
    inputs and the measured rank s of Omega, the covariance of residuals and inputs. Omega is
    counted with a cut relative to its own norm; `hessian_ranks` finds lower ranks if the residual
    is at the level of rounding errors of H_L.

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
    measured = MeasuredSymbols.of(flat)
    stack = measured.stack
    if measured.family is not None and measured.loss is not None:
        return _of_family(measured, flat, params)
    if stack is None or stack.bias is None or measured.loss is None:
        found = "no such stack" if stack is None else "biases in some layers only"
        found = f"loss {flat.problem.loss.name}" if measured.loss is None else found
        raise ValueError(
            "expected a stack of dense layers with biases in all of them or in none, every "
            f"parameter differentiated, and a loss by name, got {found}; use the functions of "
            "rankmon.theory with the widths that you mean"
        )
    snapshot = _finite(flat, params)
    s = measured.omega_rank(snapshot.residuals)
    ranks = closed_forms_at(measured, s.rank or 0, 0)
    return PredictedRanks(
        dims=stack.dims,
        bias=bool(stack.bias),
        linear=stack.linear,
        r=measured.r,
        visible=measured.visible,
        s=s,
        full_rank=_full_rank(stack, snapshot),
        ranks={part: ranks[part] for part in ("H_L", "H_o", "H_f") if part in ranks},
    )


def _finite(flat: FlatProblem, params: Any) -> Snapshot:
    flat.warn_once()
    snapshot = Snapshot.take(flat, 0, params)
    if not snapshot.is_finite:
        raise ValueError(
            "expected finite parameters and outputs, got NaN or infinite ones; measure before "
            "training diverges"
        )
    return snapshot


def _of_family(measured: MeasuredSymbols, flat: FlatProblem, params: Any) -> PredictedRanks:
    """Return the ranks of a residual, tied or convolutional linear network."""
    assert measured.family is not None
    snapshot, family = _finite(flat, params), measured.family.family
    s = measured.omega_rank(snapshot.residuals)
    omegas = [measured.omega(snapshot.residuals)]
    ranks = family_ranks_at(measured, snapshot.leaves, omegas, [s.rank or 0])
    generic = Genericity(measured.family, snapshot.leaves, measured.relative)
    return PredictedRanks(
        dims=(family.inputs, family.outputs),
        bias=False,
        linear=True,
        r=measured.r,
        visible=measured.visible,
        s=s,
        full_rank=generic.of_weights(),
        ranks={part: rank.value for part, rank in ranks.items()},
        family=family,
    )


def closed_forms_at(measured: MeasuredSymbols, s: int, held: int) -> dict[str, int]:
    """Return the closed forms at this s, and for H_f_fixed at the s of the residuals held.

    An input direction of relative size t enters H_f as t and H_o as t^2: between p * eps and its
    root, only H_f resolves it. H_o is predicted with the visible rank, H_f with r, and H_L only if
    s does not exceed the visible rank.
    """
    assert measured.stack is not None
    assert measured.loss is not None
    dims, bias = measured.stack.dims, bool(measured.stack.bias)
    r, visible, loss = measured.r, measured.visible, measured.loss
    outputs = dims[-1] - (loss == "cross_entropy")  # its residuals sum to zero over the outputs
    most, seen = (min(outputs, rank + bias) for rank in (r, visible))
    # Omega is counted at its own cut, which may see more directions than the inputs have at theirs.
    s, held = min(s, most), min(held, most)
    ranks = {
        "H_o": theory.rank_outer(dims, r=visible, bias=bias, loss=loss),
        "H_f": theory.rank_functional(dims, r=r, s=s, bias=bias, loss=loss),
        "H_f_fixed": theory.rank_functional(dims, r=r, s=held, bias=bias, loss=loss),
    }
    if s <= seen:
        ranks["H_L"] = theory.rank_loss(dims, r=visible, s=s, bias=bias, loss=loss)
    return ranks


def column_ranks_at(measured: MeasuredSymbols, s: int) -> tuple[int, ...]:
    """Return the closed forms for the ranks of H_f's column blocks at this s, by layer."""
    assert measured.stack is not None
    assert measured.loss is not None
    dims, bias, loss = measured.stack.dims, bool(measured.stack.bias), measured.loss
    s = min(s, dims[-1] - (loss == "cross_entropy"), measured.r + bias)
    return theory.rank_functional_columns(dims, r=measured.r, s=s, bias=bias, loss=loss)


def closed_forms_apply(measured: MeasuredSymbols, snapshot: Snapshot) -> bool:
    """Return whether the closed forms say anything of the network at these parameters.

    For a stack with activations, they are reference values, whatever its weights.
    """
    stack = measured.stack
    if stack is None or stack.bias is None or measured.loss is None:
        return False
    return not stack.linear or _full_rank(stack, snapshot)


def _full_rank(stack: DenseStack, snapshot: Snapshot) -> bool:
    """Return whether every weight has full rank, as the closed forms assume (A1)."""
    return all(
        w.size == 0 or weight_rank(np.asarray(w, np.float64)).rank == min(w.shape)
        for w in stack.weights(snapshot.leaves)
    )
