"""The neural tangent kernel at given parameters: its Gram matrix on the probe batch, and its rank.

With J = dF/dtheta, a row for each output of each example, the empirical kernel is J J^T: entry
(i c, j d) is <dF_c(x_i)/dtheta, dF_d(x_j)/dtheta>. It depends on no loss, residual or weight.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.optional_readers import optionally
from rankmon._util.text import bytes_text
from rankmon._util.validate import check_engine
from rankmon.hessian.jacobian import JacobianOperator
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.hessian.stack_jacobian import StackJacobian
from rankmon.linalg.numerical_rank import (
    NumericalRank,
    Tolerance,
    as_tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.network.activations import UnsupportedActivationError
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import DOUBLE
from rankmon.problem.problem import Problem, check_problem

ENGINES = ("auto", "stack", "dense")
Assembly = Callable[[list[np.ndarray]], Float[np.ndarray, "..."]]

# J, LAPACK's copy of it, and one for the rows that come in another order.
_JACOBIANS_ALIVE = 3


def ntk_gram(
    problem: Problem,
    params: Any,
    *,
    engine: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> Float[np.ndarray, "nk nk"]:
    """Return the Gram matrix J J^T of the empirical neural tangent kernel, in float64.

    Args:
      problem: network and probe batch; its loss, targets and weights do not enter.
      params: the parameters, any pytree of arrays.
      engine: "stack" (dense layers with elementwise activations), "dense" (any network, by
        automatic differentiation), or "auto", the first that applies.
      memory_limit: bytes for the Jacobian and the matrices computed from it.

    Returns:
      [N k, N k], the outputs of one example side by side; NaN or infinite if the network is.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the Jacobian does not fit in memory_limit.

    Source: arXiv 2106.16225, section S9.5.
    """
    _, J = _jacobian(problem, params, engine, memory_limit)
    with np.errstate(over="ignore", invalid="ignore"):
        return J @ J.T


def ntk_rank(
    problem: Problem,
    params: Any,
    *,
    tolerance: Tolerance | None = None,
    engine: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> NumericalRank:
    """Return the rank of the neural tangent kernel's Gram matrix, from J's singular values.

    rank J J^T = rank J, and J's singular values keep the digits that their squares, the eigenvalues
    of the Gram matrix, lose. The cut is max(N k, p) * eps * ||J||_2. For a deep linear network
    theory says rank J = `theory.rank_outer(dims, r=r)`, r the rank of the N inputs; for a residual,
    tied or other linear network of `theory` it says `family.ranks(r=r)["H_o"]`: under mse
    H_o = J^T J / N has the rank of J.

    Args:
      problem: network and probe batch; its loss, targets and weights do not enter.
      params: the parameters, any pytree of arrays.
      tolerance: another cut, in the units of J's singular values.
      engine: as for `ntk_gram`.
      memory_limit: bytes for the Jacobian and the matrices computed from it.

    Returns:
      The rank with its margin; `size` is min(N k, p), `rank` None if J is not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the Jacobian does not fit in memory_limit.

    Source: arXiv 2106.16225, section S9.5.
    """
    tolerance = as_tolerance(tolerance)
    flat, J = _jacobian(problem, params, engine, memory_limit)
    if not np.all(np.isfinite(J)):
        return undefined_rank(min(J.shape))
    values = singular_values(J)
    cut = tolerance.cut(float(values[0]), default=max(J.shape) * flat.precision.eps)
    return numerical_rank(values, cut)


def _jacobian(
    problem: Problem, params: Any, engine: str, memory_limit: int
) -> tuple[FlatProblem, Float[np.ndarray, "nk p"]]:
    """Return the problem and its Jacobian at these parameters; arguments as for `ntk_gram`."""
    check_engine(engine, ENGINES)
    check_problem(problem, params)
    flat = problem.flat(params)
    J = jacobian_program(flat, engine, memory_limit)(flat.leaves(params))
    return flat, J.reshape(-1, flat.p)


def jacobian_program(flat: FlatProblem, engine: str, memory_limit: int) -> Assembly:
    """Return a function that computes the Jacobian at given leaves; it is compiled once.

    Raises:
      ValueError: if this engine does not apply.
      MemoryError: if the Jacobian does not fit in memory_limit.
    """
    # The Gram matrix is counted too.
    need = 8 * flat.positions * flat.k * (_JACOBIANS_ALIVE * flat.p + flat.positions * flat.k)
    if need > memory_limit:
        raise MemoryError(
            f"expected the Jacobian's {flat.positions * flat.k:,} rows of p = {flat.p:,} to fit in "
            f"memory_limit = {bytes_text(memory_limit)}, got {bytes_text(need)}; raise "
            "memory_limit or take a smaller probe batch"
        )
    flat.warn_once()
    key = ("jacobian", engine, memory_limit)
    if key not in flat.memo:
        flat.memo[key] = _assembly(flat, engine, memory_limit - need)
    program: Assembly = flat.memo[key]
    return program


def _assembly(flat: FlatProblem, engine: str, room: int) -> Assembly:
    """Return a function that computes the Jacobian at given leaves."""
    stacked = None if engine == "dense" else _stack_jacobian(flat)
    if stacked is not None:
        return stacked
    if engine == "stack":
        raise ValueError(
            "expected a stack of dense layers that computes in float64 with every parameter "
            "differentiated, got a network that is not recognized as one; use engine='auto'"
        )
    return JacobianOperator(flat, room=room).as_matrix


def _stack_jacobian(flat: FlatProblem) -> StackJacobian | None:
    """Return the Jacobian in closed form; None if this is not a stack that computes in float64."""
    stack = recognized_stack(flat)
    if stack is None or flat.precision.eps > DOUBLE.eps:
        return None
    return optionally(
        flat.problem, "the layers' activations", lambda: _if_supported(flat, stack), otherwise=None
    )


def _if_supported(flat: FlatProblem, stack: DenseStack) -> StackJacobian | None:
    """Return the Jacobian of a stack; None if an activation has a custom backward rule."""
    try:
        return StackJacobian(flat, stack)
    except UnsupportedActivationError:
        return None
