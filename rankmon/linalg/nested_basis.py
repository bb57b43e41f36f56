"""An orthonormal basis adapted to nested column spaces."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_EPS = float(np.finfo(np.float64).eps)


def nested_basis(
    generators: Sequence[Float[np.ndarray, "m _"]],
) -> tuple[Float[np.ndarray, "m a"], list[int]]:
    """Return an orthonormal basis adapted to nested column spaces, and the columns that span each.

    Directions below rounding, max(shape) eps ||G||_F of a generator G, do not count as part of its
    space; keeping one too many would cost a coordinate and change no result.

    Args:
      generators: matrices whose column spaces grow: the sum of the first i of them is spanned by
        the first counts[i] columns of the basis.

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
            G = G / largest  # whose norm cannot overflow
            norm = np.linalg.norm(G)
            vectors, values, _ = np.linalg.svd(_orthogonal_to(basis, G), full_matrices=False)
            new = vectors[:, values > max(G.shape) * _EPS * norm]
            new, _ = np.linalg.qr(_orthogonal_to(basis, new))
            basis = np.concatenate([basis, new], axis=1)
        counts.append(basis.shape[1])
    return basis, counts


def _orthogonal_to(basis: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    for _ in range(2):  # once leaves rounding of the part that is removed
        vectors = vectors - basis @ (basis.T @ vectors)
    return vectors
