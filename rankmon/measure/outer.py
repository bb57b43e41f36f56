"""The rank of H_o alone at given parameters, without a monitor."""

from typing import Any

import jax

from rankmon.hessian.gauss_newton import METHODS, OuterRank, OuterSpectrum
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import Tolerance, as_tolerance
from rankmon.problem.problem import Problem, check_problem


def outer_rank(
    problem: Problem,
    params: Any,
    *,
    tolerance: Tolerance | None = None,
    method: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> OuterRank:
    """Return the rank of H_o = E[J^T B J], the outer-product (Gauss-Newton) term, at any p.

    From the N k rows of the weighted Jacobian, block by block: time grows with p (N k)^2, for dense
    layers with (N k)^2 times their widths alone, and memory with (N k)^2. The parameters stay on
    their devices, sharded or not.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      tolerance: another cut than p * eps * ||H_o||_2. (The common cut of `hessian_ranks` is
        p * eps * ||H_L||_2 if that is more: pass it as Tolerance(absolute=...) if known.)
      method: "gram", the eigenvalues of the Gram matrix of the rows, which are off by about N k eps
        ||H_o||_2; "qr", the squares of singular values, which resolves far smaller ones in more
        time; or "auto", the first of these whose error the cut allows, and that fits.
      memory_limit: bytes for the matrices and for blocks of the Jacobian.

    Returns:
      The rank with its margin and the finest cut that rounding allows; `size` is p, `rank` None if
      the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the matrices do not fit in memory_limit.

    Example:
      >>> import numpy as np, rankmon
      >>> x, y = np.eye(6, 4), np.ones((6, 2))
      >>> problem = rankmon.Problem(lambda W, x: x @ W, loss="mse", inputs=x, targets=y)
      >>> rankmon.outer_rank(problem, np.ones((4, 2))).rank
      8

    Source: arXiv 2106.16225, section 3.
    """
    tolerance = as_tolerance(tolerance)
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {METHODS}, got {method!r}; use 'auto'")
    check_problem(problem, params)
    flat = problem.flat(params)
    key = ("outer", memory_limit)
    if key not in flat.memo:
        flat.memo[key] = OuterSpectrum(flat, memory_limit=memory_limit)
    flat.warn_once()
    return flat.memo[key].rank(jax.tree.leaves(problem.unpack(params)), tolerance, method)
