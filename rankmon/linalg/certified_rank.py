"""Certify the number of singular values above a cut without computing the singular values.

Symbols: W is s x l with singular values sigma, s <= l; t is a cut.

The certificates are Cholesky factorizations. A symmetric matrix is certainly positive definite if
the factorization still succeeds after the diagonal is lowered by a bound on the rounding error of
the eigenvalues (Rump, Verification of positive definiteness, BIT 46, 2006).

  all s      W W^T - t^2 I is definite.
  only r     A Cholesky factorization with pivoting, F F^T = W W^T up to rounding, selects r rows
             W_1. At least r values exceed t if W_1 W_1^T - t^2 I is definite, because W_1 is a
             submatrix of W. At most r values exceed t if t^2 I - N N^T is definite, where
             N = W - U (U^T W) and U [s, r] is a basis of F's columns: W - N has rank r.

No step costs more than a few products of the matrix with itself. W W^T has only half of the digits
of W, so "at least" can be certified only for t above about 1e-5 ||W||_2. N keeps all digits, so
"at most" can be certified for smaller t too.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float
from scipy.linalg import lapack

from rankmon.linalg.gram import Gram, sum_rounding

Residual = Callable[[Float[np.ndarray, "s r"]], tuple[Gram, float]]

_UNIT = float(np.finfo(np.float64).eps) / 2


def spectral_norm(gram: Float[np.ndarray, "s s"]) -> float:
    """Return ||W||_2 from W W^T, by Lanczos iterations."""
    if len(gram) < 3:  # too small for ARPACK
        return math.sqrt(np.linalg.eigvalsh(gram)[-1])
    # SciPy's own start vector is random, which would change the last digits from call to call.
    start = np.random.default_rng(0).standard_normal(len(gram))
    (largest,) = scipy.sparse.linalg.eigsh(
        gram, k=1, v0=start, tol=1e-12, return_eigenvectors=False
    )
    return math.sqrt(largest)


def certified_count(
    matrix: Float[np.ndarray, "s l"], gram: Gram, *, above: float, below: float
) -> int | None:
    """Return r if exactly r singular values exceed `above` and all others are below `below`.

    Args:
      matrix: W, finite, s <= l.
      gram: W W^T.
      above: a cut.
      below: a second, lower cut.

    Returns:
      r; None if there is no such r, or if rounding prevents certification.
    """
    return certified_count_by(gram, partial(_residual, matrix), above=above, below=below)


def certified_count_by(gram: Gram, residual: Residual, *, above: float, below: float) -> int | None:
    """Return the result of `certified_count` for W that is stored elsewhere.

    Args:
      gram: W W^T.
      residual: returns, for U [s, r], the Gram matrix of N = W - U (U^T W) as it is computed, and a
        bound on the 2-norm of N's rounding errors.
      above: a cut.
      below: a second, lower cut.
    """
    s = len(gram.matrix)
    if _all_exceed(gram, above):
        return s
    # Pivoting stops between the squares of the two cuts, but not below the rounding of W W^T.
    rounding = 2 * s * _UNIT * float(np.max(np.diagonal(gram.matrix)))
    factor, order, r, _ = lapack.dpstrf(gram.matrix, tol=max(above * below, rounding), lower=1)
    if r == s:  # `_all_exceed` has failed to certify this
        return None
    picked = order[:r] - 1  # LAPACK counts from 1
    if not _all_exceed(Gram(gram.matrix[np.ix_(picked, picked)], gram.error), above):
        return None
    F = np.empty((s, r))
    F[order - 1] = np.tril(factor[:, :r])
    U = _orthonormal(F)
    if U is None:
        return None
    rest, error = residual(U)
    return r if _all_below(rest, below - error) else None


def _orthonormal(F: Float[np.ndarray, "s r"]) -> Float[np.ndarray, "s r"] | None:
    """Return a basis of F's columns by Cholesky QR; None if they are nearly linearly dependent.

    Pivoting leaves columns of decreasing norm, which does not reduce the accuracy of Cholesky QR.
    The certificate does not depend on the orthonormality of the basis.
    """
    try:
        R = np.linalg.cholesky(F.T @ F)
    except np.linalg.LinAlgError:
        return None
    return scipy.linalg.solve_triangular(R, F.T, lower=True, check_finite=False).T


def _residual(matrix: Float[np.ndarray, "s l"], U: Float[np.ndarray, "s r"]) -> tuple[Gram, float]:
    """Return the Gram matrix of N = W - U (U^T W), and a bound on N's rounding errors."""
    B = U.T @ matrix
    N = matrix - U @ B
    sizes = float(np.linalg.norm(matrix) + np.linalg.norm(U) * np.linalg.norm(B))
    return Gram.of([N], len(N)), residual_rounding(U.shape[1], sizes)


def residual_rounding(r: int, sizes: float) -> float:
    """Return a bound on the rounding errors of N = W - U B, given ||W||_F + ||U||_F ||B||_F.

    Each entry is a sum of r products and one more term, for any U and B.
    """
    return sum_rounding(r + 1) * sizes


def _all_exceed(gram: Gram, cut: float) -> bool:
    """Return whether all singular values certainly exceed the cut."""
    return _is_definite(gram.matrix - cut**2 * np.eye(len(gram.matrix)), gram.error)


def _all_below(gram: Gram, cut: float) -> bool:
    """Return whether all singular values are certainly less than the cut."""
    return cut > 0 and _is_definite(cut**2 * np.eye(len(gram.matrix)) - gram.matrix, gram.error)


def _is_definite(matrix: Float[np.ndarray, "s s"], error: float) -> bool:
    """Return whether a symmetric matrix, known up to this error, is certainly positive definite."""
    # Rump's bound on the rounding of the factorization, in addition to the error of the matrix.
    slack = error + sum_rounding(len(matrix) + 1) * float(np.trace(matrix))
    try:
        np.linalg.cholesky(matrix - slack * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True
