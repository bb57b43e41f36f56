"""The p x p matrices of a Hessian's parts, however they are assembled."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.spectrum import singular_values
from rankmon.problem.flat import FlatProblem


@dataclass
class HessianParts:
    """Dense parts of one Hessian, all in the same order of parameters.

    Attributes:
      outer: H_o.
      functional: H_f for each of the residuals that were asked for.
      outer_values: the non-zero eigenvalues of H_o as squares of singular values of the weighted
        Jacobian, which keep the digits that H_o loses; None if H_o is not large enough for that
        to be the cheaper way, or B_i is indefinite.
    """

    outer: Float[np.ndarray, "p p"]
    functional: tuple[Float[np.ndarray, "p p"], ...]
    outer_values: Float[np.ndarray, " nk"] | None


def is_wide(flat: FlatProblem) -> bool:
    """Return whether the Jacobian, n k x p, has so few rows that its singular values are cheaper.

    An SVD takes about three times as long as the eigenvalues of a symmetric matrix of that size.
    """
    return 2 * flat.positions * flat.k <= flat.p


def root_values(root: Float[np.ndarray, "m p"]) -> Float[np.ndarray, " m"]:
    """Return the eigenvalues of A^T A, without the zeros that p > m implies, descending."""
    return singular_values(root) ** 2
