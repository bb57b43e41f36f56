"""Eigenvalues of a symmetric matrix whose largest diagonal block has a low rank, or is zero.

With S the rows of that block and T the t others, A [m, q] and

  H = [ A_S^T A_S          A_S^T A_T + B ]
      [ (A_S^T A_T + B)^T  C             ]

a QR factorization [A_S^T B] = Q [R_A R_B] shows that H has the non-zero eigenvalues of the matrix

      [ R_A R_A^T          R_A A_T + R_B ]
      [ (R_A A_T + R_B)^T  C             ]

of at most m + 2 t rows. Without A, the block is zero and there are 2 t rows.
"""

import numpy as np
from jaxtyping import Float

from rankmon.linalg.spectrum import padded, symmetric_spectrum


def zero_block_spectrum(H: Float[np.ndarray, "q q"], block: slice) -> Float[np.ndarray, " q"]:
    """Return the eigenvalues of a symmetric matrix that is zero in a diagonal block.

    Args:
      H: the matrix; finite.
      block: the rows S of the block.

    Returns:
      The eigenvalues with their signs, by falling magnitude, padded with exact zeros.
    """
    others = _others(len(H), block)
    R = np.linalg.qr(H[block][:, others], mode="r")
    zero = np.zeros((len(R), len(R)))
    return _spectrum(zero, np.asarray(R), H[np.ix_(others, others)], len(H))


def low_rank_block_spectrum(
    A: Float[np.ndarray, "m q"],
    B: Float[np.ndarray, "s t"],
    C: Float[np.ndarray, "t t"],
    block: slice,
) -> Float[np.ndarray, " q"]:
    """Return the eigenvalues of the matrix H of this module's first formula, as above.

    Args:
      A: the rows whose products fill the block.
      B: the rest of the rows of the block, in the other columns.
      C: the other diagonal block, with its part of A^T A.
      block: the rows S of the block.
    """
    others = _others(A.shape[1], block)
    R = np.asarray(np.linalg.qr(np.concatenate([A[:, block].T, B], axis=1), mode="r"))
    R_A, R_B = R[:, : len(A)], R[:, len(A) :]
    return _spectrum(R_A @ R_A.T, R_A @ A[:, others] + R_B, C, A.shape[1])


def _spectrum(
    corner: Float[np.ndarray, "r r"],
    right: Float[np.ndarray, "r t"],
    C: Float[np.ndarray, "t t"],
    size: int,
) -> Float[np.ndarray, " q"]:
    small = np.block([[corner, right], [right.T, C]])
    values = symmetric_spectrum(small)
    return padded(values, size) if len(values) < size else values[:size]


def _others(q: int, block: slice) -> np.ndarray:
    return np.delete(np.arange(q), block)
