"""Weights that are matrices or products of two, with their singular values and changes.

A weight W [m, n] is given by its factors: (W,), or (A, B) for the product W = A B with A [m, r] and
B [r, n], as in a low-rank adapter. If r is less than m and n, min(m, n) - r singular values of the
product are exactly zero, and the others are those of an r x r matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.spectrum import padded, singular_values
from rankmon.network.matrix_views import MatrixView

Factors = Sequence[Float[np.ndarray, "_m _n"]]


@dataclass(frozen=True)
class Weight:
    """A matrix to measure: a view of a leaf, or the product of two such views.

    Attributes:
      name: its name, unique among all weights.
      parts: the index of the leaf and the view of it, for each factor.
    """

    name: str
    parts: tuple[tuple[int, MatrixView], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.parts[0][1].shape[0], self.parts[-1][1].shape[1]

    def of(self, leaves: Sequence[np.ndarray]) -> Factors:
        """Return the factors in float64, given all leaves."""
        return [view.of(leaves[index]).astype(np.float64) for index, view in self.parts]


def product_of(factors: Factors) -> Float[np.ndarray, "m n"]:
    """Return the weight itself; its entries may be infinite or NaN."""
    if len(factors) == 1:
        return factors[0]
    with np.errstate(over="ignore", invalid="ignore"):
        return factors[0] @ factors[1]


def inner_size(factors: Factors) -> int:
    """Return the largest possible rank: the smallest of m, r and n."""
    return min(side for factor in factors for side in factor.shape)


def product_values(factors: Factors) -> Float[np.ndarray, " s"]:
    """Return the singular values of a finite weight, descending.

    With A = Q R and B^T = P S they are those of R S^T.
    """
    first, last = factors[0], factors[-1]
    size = min(len(first), last.shape[1])
    if inner_size(factors) == size:
        return singular_values(product_of(factors))
    R, S = (np.asarray(np.linalg.qr(side, "r")) for side in (first, last.T))
    return padded(singular_values(R @ S.T), size)


def change_of(now: Factors, before: Factors) -> Factors:
    """Return the factors of the change of a weight.

    A_t B_t - A_0 B_0 = A_t (B_t - B_0) + (A_t - A_0) B_0, which is exactly zero if neither factor
    has changed.

    Args:
      now: the factors of the weight.
      before: the same factors at an earlier step.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if len(now) == 1:
            return (now[0] - before[0],)
        (A, B), (A0, B0) = now, before
        return np.hstack([A, A - A0]), np.vstack([B - B0, B0])
