"""What a dense engine gives: H_o, H_f and H_f^fixed, and what bounds them; assembles nothing.

The modules that assemble them are `curvature`, for any network, and `contraction`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon._util.text import bytes_text
from rankmon.linalg.spectrum import singular_values
from rankmon.problem.flat import FlatProblem

DEFAULT_MEMORY_LIMIT = 4 * 2**30


# H_o, H_f, H_f^fixed, one without rows of zeros (or a block, or the Jacobian), and LAPACK's copy.
DENSE_MATRICES_ALIVE = 5


@dataclass
class HessianParts:
    """Dense parts of one Hessian, all in the same order of parameters.

    Attributes:
      outer: H_o.
      functional: H_f for each of the residuals that were asked for.
      outer_values: the non-zero eigenvalues of H_o as squares of singular values of the weighted
        Jacobian, which keep the digits that H_o loses; None where H_o is not large enough for that
        to be the cheaper way, or B_i is indefinite.
    """

    outer: Float[np.ndarray, "p p"]
    functional: tuple[Float[np.ndarray, "p p"], ...]
    outer_values: Float[np.ndarray, " nk"] | None


def dense_bytes(p: int) -> int:
    """Bytes that the dense p x p float64 matrices of one measurement take together."""
    return DENSE_MATRICES_ALIVE * 8 * p * p


def refuse_oversize(p: int, memory_limit: int) -> None:
    """Raises MemoryError where the dense matrices do not fit, with what they need."""
    if dense_bytes(p) >= memory_limit:
        raise MemoryError(
            f"expected the dense Hessian's {DENSE_MATRICES_ALIVE} matrices to fit in "
            f"memory_limit = {bytes_text(memory_limit)}, got p = {p:,} parameters, which need "
            f"{bytes_text(dense_bytes(p))}; raise memory_limit, choose fewer parameters with "
            "Problem(include=...), or watch the weights alone (RankMonitor: oversize='weights')"
        )


def is_wide(flat: FlatProblem) -> bool:
    """Whether the Jacobian, n k x p, has so few rows that its singular values come cheaper.

    An SVD costs about three times what the eigenvalues of a symmetric matrix of that size cost.
    """
    return 2 * flat.positions * flat.k <= flat.p


def root_values(root: Float[np.ndarray, "m p"]) -> Float[np.ndarray, " m"]:
    """The eigenvalues of A^T A that are not zero by shape, descending, from A's singular values."""
    return singular_values(root) ** 2
