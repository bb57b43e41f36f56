"""Eigenvalues and singular values, on the host in float64; what they count as is in `rank`."""

import numpy as np
import scipy.linalg
from jaxtyping import Float


def symmetric_spectrum(matrix: Float[np.ndarray, "p p"]) -> Float[np.ndarray, " p"]:
    """The absolute eigenvalues of a symmetric matrix, descending.

    LAPACK through SciPy computes the eigenvalues alone; `jnp.linalg.eigvalsh` computes the vectors
    too on a CPU and takes more than twice as long. Only the lower triangle is read.

    Args:
      matrix: symmetric, finite; it is left as it was.

    Raises:
      ValueError: where an entry is NaN or infinite (LAPACK must never see one).
    """
    _refuse_nonfinite(matrix)
    # The transpose is Fortran-ordered, as LAPACK wants it, and symmetric: one copy, not two.
    work = np.array(matrix, np.float64, order="C", copy=True).T
    eigenvalues = scipy.linalg.eigvalsh(work, lower=False, overwrite_a=True, check_finite=False)
    return np.sort(np.abs(eigenvalues))[::-1]


def singular_values(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " min(m,n)"]:
    """The singular values of a finite matrix, descending.

    Raises:
      ValueError: where an entry is NaN or infinite.
    """
    _refuse_nonfinite(matrix)
    return scipy.linalg.svdvals(np.asarray(matrix, np.float64), check_finite=False)


def _refuse_nonfinite(matrix: Float[np.ndarray, "m n"]) -> None:
    if not np.all(np.isfinite(matrix)):
        raise ValueError(
            "expected a finite matrix, got NaN or infinite entries; test np.isfinite before "
            "asking for a spectrum"
        )
