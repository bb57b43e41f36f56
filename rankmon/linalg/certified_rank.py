"""The number of singular values above a cut, certified without computing the singular values.

Symbols: W is s x l with singular values sigma, s <= l; t is a cut.

The certificates are Cholesky factorizations: a symmetric matrix is certainly positive definite if
its factorization succeeds although its diagonal was lowered by all that rounding can have raised
the eigenvalues (Rump, Verification of positive definiteness, BIT 46, 2006).

  all s      W W^T - t^2 I is definite.
  only r     A Cholesky factorization with pivoting, F F^T = W W^T but for rounding, picks r rows
             W_1. At least r exceed t if W_1 W_1^T - t^2 I is definite, since W_1 is a part of W.
             At most r exceed t if t^2 I - N N^T is, N = W - U (U^T W) with U [s, r] a basis of
             F's columns, since W - N has rank r.

No step costs more than a few products of the matrix with itself. W W^T loses half of the digits, so
that "at least" can be certified for t from about 1e-5 ||W||_2 on; N keeps them, so that "at most"
can for smaller t too.
"""

import math

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float
from scipy.linalg import lapack

from rankmon.linalg.gram import Gram, sum_rounding

_UNIT = float(np.finfo(np.float64).eps) / 2


def spectral_norm(gram: Float[np.ndarray, "s s"]) -> float:
    """Return ||W||_2 from W W^T, by Lanczos iterations."""
    if len(gram) < 3:
        return math.sqrt(np.linalg.eigvalsh(gram)[-1])
    start = np.random.default_rng(0).standard_normal(len(gram))
    (largest,) = scipy.sparse.linalg.eigsh(
        gram, k=1, v0=start, tol=1e-12, return_eigenvectors=False
    )
    return math.sqrt(largest)


def certified_count(
    matrix: Float[np.ndarray, "s l"], gram: Gram, *, above: float, below: float
) -> int | None:
    """Return the r for which r singular values exceed `above` and all others are below `below`.

    Args:
      matrix: W, finite, s <= l.
      gram: W W^T.
      above: a cut.
      below: a lower one.

    Returns:
      r; None if there is no such r, or rounding hides it.
    """
    s = len(matrix)
    if _all_exceed(gram, above):
        return s
    rounding = 2 * s * _UNIT * float(np.max(np.diagonal(gram.matrix)))
    factor, order, r, _ = lapack.dpstrf(gram.matrix, tol=max(above * below, rounding), lower=1)
    if r == s:
        return None
    picked = order[:r] - 1
    if not _all_exceed(Gram(gram.matrix[np.ix_(picked, picked)], gram.error), above):
        return None
    F = np.empty((s, r))
    F[order - 1] = np.tril(factor[:, :r])
    U = _orthonormal(F)
    return r if U is not None and _has_rank_below(matrix, U, below) else None


def _orthonormal(F: Float[np.ndarray, "s r"]) -> Float[np.ndarray, "s r"] | None:
    """Return a basis of F's columns by Cholesky QR; None if they are too close to each other.

    Pivoting has graded the columns, which costs no digits here; and what is certified does not
    depend on how far from orthonormal the basis is.
    """
    try:
        R = np.linalg.cholesky(F.T @ F)
    except np.linalg.LinAlgError:
        return None
    return scipy.linalg.solve_triangular(R, F.T, lower=True, check_finite=False).T


def _has_rank_below(
    matrix: Float[np.ndarray, "s l"], U: Float[np.ndarray, "s r"], cut: float
) -> bool:
    """Return whether all but r singular values are certainly less than the cut."""
    B = U.T @ matrix
    N = matrix - U @ B
    # An entry is a sum of r products and one more term, whatever U and B are.
    sizes = np.linalg.norm(matrix) + np.linalg.norm(U) * np.linalg.norm(B)
    return _all_below(Gram.of([N], len(N)), cut - sum_rounding(U.shape[1] + 1) * float(sizes))


def _all_exceed(gram: Gram, cut: float) -> bool:
    return _is_definite(gram.matrix - cut**2 * np.eye(len(gram.matrix)), gram.error)


def _all_below(gram: Gram, cut: float) -> bool:
    return cut > 0 and _is_definite(cut**2 * np.eye(len(gram.matrix)) - gram.matrix, gram.error)


def _is_definite(matrix: Float[np.ndarray, "s s"], error: float) -> bool:
    """Return whether a symmetric matrix with this error is certainly positive definite."""
    slack = error + sum_rounding(len(matrix) + 1) * float(np.trace(matrix))
    try:
        np.linalg.cholesky(matrix - slack * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True
