"""An orthonormal basis adapted to nested column spaces."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_EPS = float(np.finfo(np.float64).eps)


def nested_basis(
    generators: Sequence[Float[np.ndarray, "m _"]],
) -> tuple[Float[np.ndarray, "m a"], list[int]]:
    """Return an orthonormal basis adapted to nested column spaces, and the dimension of each space.

    Directions of a generator G below its rounding error, max(shape) eps ||G||_F, are dropped. A
    direction kept in excess would add a coordinate without changing any result.

    Args:
      generators: matrices G_1, G_2, ...; the first counts[i] columns of the basis span the sum of
        the column spaces up to generator i.

    Raises:
      OverflowError: if an entry is NaN or infinite (LAPACK must never see one).
    """
    basis = np.empty((len(generators[0]), 0))
    counts = []
    for G in generators:
        largest = float(np.max(np.abs(G), initial=0.0))
        if not np.isfinite(largest):
            raise OverflowError("expected finite products of weights, got NaN or infinite entries")
        if largest > 0 and basis.shape[1] < len(basis):
            G = G / largest  # so that its norm cannot overflow
            norm = np.linalg.norm(G)
            vectors, values, _ = np.linalg.svd(_orthogonal_to(basis, G), full_matrices=False)
            new = vectors[:, values > max(G.shape) * _EPS * norm]
            # The vectors of small singular values are orthogonal to the basis only to few digits.
            new, _ = np.linalg.qr(_orthogonal_to(basis, new))
            basis = np.concatenate([basis, new], axis=1)
        counts.append(basis.shape[1])
    return basis, counts


def _orthogonal_to(basis: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    for _ in range(2):  # the first pass leaves rounding errors of the part that it removes
        vectors = vectors - basis @ (basis.T @ vectors)
    return vectors
