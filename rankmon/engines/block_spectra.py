"""Spectra of the blocks of a Hessian by layer, from the matrices of exact engines.

The diagonal block of layer l has the rows and the columns of its parameters; the column block of
H_f has all rows, and the columns of layer l (arXiv 2106.16225, section S4). Orthogonal changes of
coordinates inside the layers change none of these spectra but for exact zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from rankmon.engines.base import Spectra
from rankmon.engines.dense_parts import HessianParts
from rankmon.linalg.spectrum import singular_values, symmetric_spectrum

# The rows of one layer in a matrix, and of each layer.
LayerRows = slice | Int[np.ndarray, " _m"]
Rows = Sequence[LayerRows]

# One array for each layer; exact zeros may be left out.
Values = list[Float[np.ndarray, " _m"]]

DIAGONAL_PARTS = ("H_L", "H_o")


@dataclass(frozen=True)
class BlockSpectra:
    """The spectra of all blocks at one point.

    Attributes:
      diagonal: the eigenvalues of the diagonal blocks of H_L and H_o, as far as asked for.
      columns: the singular values of the column blocks of H_f; None if H_f is not asked for.
      off_diagonal: the share of ||H_L||_F^2 outside the diagonal blocks; NaN for a zero H_L.
    """

    diagonal: Mapping[str, Values] = field(default_factory=dict)
    columns: Values | None = None
    off_diagonal: float = float("nan")

    @classmethod
    def of_one_layer(cls, spectra: Spectra, asked: Sequence[str]) -> "BlockSpectra":
        """Return the blocks of a network with one layer, which are the parts themselves."""
        diagonal = {part: [spectra[part]] for part in DIAGONAL_PARTS if part in asked}
        columns = [np.abs(spectra["H_f"])] if "H_f" in asked else None
        share = 0.0 if np.any(spectra["H_L"]) else float("nan")
        return cls(diagonal, columns, share)

    @classmethod
    def of_parts(cls, parts: HessianParts, rows: Rows, asked: Sequence[str]) -> "BlockSpectra":
        """Return the blocks of dense matrices, of those parts that are asked for."""
        outer, functional = parts.outer, parts.functional[0]
        diagonal, share = dict[str, Values](), float("nan")
        of_outer = [_outer_values(parts, block) for block in rows]
        if "H_L" in asked:
            loss = outer + functional
            # Without a block of H_f, the values of H_o may come from few rows of the Jacobian.
            diagonal["H_L"] = [
                symmetric_spectrum(_corner(loss, block))
                if np.any(_corner(functional, block))
                else values
                for block, values in zip(rows, of_outer, strict=True)
            ]
            share = off_diagonal_share(loss, rows)
            del loss
        if "H_o" in asked:
            diagonal["H_o"] = of_outer
        columns = column_values(functional, rows) if "H_f" in asked else None
        return cls(diagonal, columns, share)


def _outer_values(parts: HessianParts, block: LayerRows) -> Float[np.ndarray, " _"]:
    """Return the eigenvalues of a diagonal block of H_o = A^T A, of A A^T if that is smaller."""
    A = None if parts.root is None else parts.root[:, block]
    if A is not None and 2 * A.shape[0] <= A.shape[1]:
        return singular_values(A) ** 2
    return symmetric_spectrum(_corner(parts.outer, block))


def column_values(H: Float[np.ndarray, "q q"], rows: Rows) -> Values:
    """Return the singular values of each column block of a symmetric matrix."""
    return [singular_values(_live(H[block])) for block in rows]  # of the transposes


def _live(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "_a _b"]:
    """Return the matrix without rows and columns of zeros, as those of the layer itself often are.

    A matrix without zero rows and columns is not copied.
    """
    rows, columns = np.any(matrix, axis=1), np.any(matrix, axis=0)
    return matrix if rows.all() and columns.all() else matrix[np.ix_(rows, columns)]


def off_diagonal_share(H: Float[np.ndarray, "q q"], rows: Rows) -> float:
    """Return the share of ||H||_F^2 outside the diagonal blocks; NaN for a zero matrix."""
    largest = max(float(np.max(H, initial=0.0)), -float(np.min(H, initial=0.0)))
    if not largest > 0:
        return float("nan")

    def squares(block: LayerRows, other: LayerRows) -> float:
        # Scaled, for the squares of tiny or huge entries would leave the range of floats.
        return float(np.sum((H[block][:, other] / largest) ** 2))

    inside = sum(squares(block, block) for block in rows)
    outside = sum(2 * squares(a, b) for i, a in enumerate(rows) for b in rows[:i])
    return outside / (inside + outside)


def _corner(H: Float[np.ndarray, "q q"], block: LayerRows) -> Float[np.ndarray, "m m"]:
    return H[block, block] if isinstance(block, slice) else H[np.ix_(block, block)]
