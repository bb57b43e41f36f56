"""Eigenvalues and singular values, on the host in float64; what they count as is in `rank`.

LAPACK comes through NumPy, as the products around it do: SciPy brings a BLAS of its own, and the
waiting threads of the one keep the cores from the other (0.19 s became 0.27 s on two cores).
"""

import numpy as np
from jaxtyping import Float


def symmetric_spectrum(matrix: Float[np.ndarray, "p p"]) -> Float[np.ndarray, " p"]:
    """The absolute eigenvalues of a symmetric matrix, descending.

    Rows of zeros, those of a dead unit say, are exact zeros here and cost nothing. NumPy computes
    the eigenvalues alone; `jnp.linalg.eigvalsh` computes the vectors too on a CPU and takes more
    than twice as long. Only the lower triangle is read.

    Args:
      matrix: symmetric, finite; it is left as it was.

    Raises:
      ValueError: where an entry is NaN or infinite (LAPACK must never see one).
    """
    _refuse_nonfinite(matrix)
    live = np.any(matrix, axis=0)
    if not np.all(live):
        matrix = matrix[np.ix_(live, live)]
    eigenvalues = np.linalg.eigvalsh(np.asarray(matrix, np.float64), UPLO="L")
    return padded(np.sort(np.abs(eigenvalues))[::-1], len(live))


def padded(values: Float[np.ndarray, " m"], size: int) -> Float[np.ndarray, " p"]:
    """The values and exact zeros after them."""
    return np.concatenate([values, np.zeros(size - len(values))])


def singular_values(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " min(m,n)"]:
    """The singular values of a finite matrix, descending.

    Raises:
      ValueError: where an entry is NaN or infinite.
    """
    _refuse_nonfinite(matrix)
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


def _refuse_nonfinite(matrix: Float[np.ndarray, "m n"]) -> None:
    if not np.all(np.isfinite(matrix)):
        raise ValueError(
            "expected a finite matrix, got NaN or infinite entries; test np.isfinite before "
            "asking for a spectrum"
        )
