"""Eigenvalues and singular values on the host in float64; `numerical_rank` counts them.

The LAPACK is NumPy's, because the products before it use NumPy's BLAS. SciPy has a BLAS of its own,
and the idle threads of each slow the other down (0.27 s instead of 0.19 s on two cores).
"""

import numpy as np
from jaxtyping import Float


def symmetric_spectrum(matrix: Float[np.ndarray, "p p"]) -> Float[np.ndarray, " p"]:
    """Return the signed eigenvalues of a symmetric matrix, in order of decreasing magnitude.

    Zero rows, for instance those of a dead unit, are removed first and give exact zeros. NumPy
    computes only the eigenvalues; on a CPU, `jnp.linalg.eigvalsh` also computes the eigenvectors
    and takes more than twice as long. Only the lower triangle is read.

    Args:
      matrix: symmetric and finite; it is not modified.

    Raises:
      ValueError: if an entry is NaN or infinite (LAPACK must never see one).
    """
    _refuse_nonfinite(matrix)
    live = np.any(matrix, axis=0)
    if not np.all(live):
        matrix = matrix[np.ix_(live, live)]
    eigenvalues = np.linalg.eigvalsh(np.asarray(matrix, np.float64), UPLO="L")
    by_magnitude = np.argsort(np.abs(eigenvalues), kind="stable")[::-1]
    return padded(eigenvalues[by_magnitude], len(live))


def padded(values: Float[np.ndarray, " m"], size: int) -> Float[np.ndarray, " p"]:
    """Return the values, padded with exact zeros to `size` entries."""
    return np.concatenate([values, np.zeros(size - len(values))])


def reconstruction_error(eigenvalues: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p+1"]:
    """Return ||H - H_k||_F / ||H||_F for k = 0, ..., p, where H_k keeps the k largest eigenvalues.

    This is sqrt(sum_{i > k} lambda_i^2 / sum_i lambda_i^2) for magnitudes in descending order: the
    best approximation of rank k of a symmetric H drops the smallest ones, so no eigenvectors are
    needed. The sum starts with the smallest terms, so that small tails stay accurate.

    Args:
      eigenvalues: the eigenvalues of a symmetric matrix, or its singular values; in any order.

    Returns:
      Shares of the Frobenius norm, from 1 for k = 0 to 0 for k = p; NaN for a zero matrix.

    Raises:
      ValueError: if the eigenvalues are not one finite vector.

    Source: arXiv 2106.16225, figure 4 and section S9.3, which do not name the norm.

    Example:
      >>> reconstruction_error(np.array([0.0, 3.0, -4.0]))
      array([1. , 0.6, 0. , 0. ])
    """
    values = np.asarray(eigenvalues, np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"expected one vector of finite eigenvalues, got shape {values.shape}; pass one part "
            "of rankmon.hessian_spectra"
        )
    largest = np.max(np.abs(values), initial=0.0)
    if largest == 0:
        return np.full(values.size + 1, np.nan)
    squares = np.sort(np.abs(values) / largest) ** 2  # scaled: squares of huge values overflow
    left = np.concatenate([[0.0], np.cumsum(squares)])[::-1]
    return np.sqrt(left / left[0])


def singular_values(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " min(m,n)"]:
    """Return the singular values of a finite matrix, descending.

    Raises:
      ValueError: if an entry is NaN or infinite.
    """
    _refuse_nonfinite(matrix)
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


def _refuse_nonfinite(matrix: Float[np.ndarray, "m n"]) -> None:
    """Raise ValueError if an entry is NaN or infinite."""
    if not np.all(np.isfinite(matrix)):
        raise ValueError(
            "expected a finite matrix, got NaN or infinite entries; test np.isfinite before "
            "asking for a spectrum"
        )
