"""The matrices of a Hessian's parts, and their eigenvalues, however they are assembled."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from rankmon.linalg.spectrum import padded, singular_values, symmetric_spectrum
from rankmon.linalg.zero_block import low_rank_block_spectrum, zero_block_spectrum
from rankmon.problem.flat import FlatProblem

# A smaller eigenproblem is worth the QR factorization before it at this share of the rows.
_WORTHWHILE = 0.7


@dataclass
class HessianParts:
    """Dense parts of one Hessian, all in the same order of q coordinates.

    Attributes:
      outer: H_o.
      functional: H_f for each of the residuals that were asked for.
      root: A, the rows C_i^T dF_i/dtheta with H_o = A^T A, whose singular values keep the digits
        that H_o loses; None if H_o is not large enough for that to be the cheaper way, or B_i is
        indefinite.
      layers: the rows of the parameters of each layer, or of each leaf.
    """

    outer: Float[np.ndarray, "q q"]
    functional: tuple[Float[np.ndarray, "q q"], ...]
    root: Float[np.ndarray, "m q"] | None
    layers: tuple[slice, ...]

    @property
    def is_finite(self) -> bool:
        """Whether nothing overflowed."""
        return all(np.all(np.isfinite(H)) for H in (self.outer, *self.functional))

    @cached_property
    def outer_values(self) -> Float[np.ndarray, " m"] | None:
        """The eigenvalues of H_o from the singular values of A, descending; None without A."""
        return None if self.root is None else singular_values(self.root) ** 2

    def spectra(self, needed: Collection[str]) -> dict[str, Float[np.ndarray, " q"]]:
        """Return the eigenvalues of the parts that are needed and are here.

        Args:
          needed: names of parts; H_f_fixed has the second of the residuals, if there is one.
        """
        functional = dict(zip(("H_f", "H_f_fixed"), self.functional, strict=False))
        found = {}
        if "H_L" in needed:
            found["H_L"] = self._loss_spectrum(self.outer, functional["H_f"])
        if "H_o" in needed:
            found["H_o"] = self._outer_spectrum()
        for part, H in functional.items():
            if part in needed:
                found[part] = self._functional_spectrum(H)
        return found

    def _outer_spectrum(self) -> Float[np.ndarray, " q"]:
        values = self.outer_values
        outer = self.outer
        return symmetric_spectrum(outer) if values is None else padded(values, len(outer))

    def _functional_spectrum(self, H: Float[np.ndarray, "q q"]) -> Float[np.ndarray, " q"]:
        block = self._zero_block(H, 0)
        return symmetric_spectrum(H) if block is None else zero_block_spectrum(H, block)

    def _loss_spectrum(
        self, outer: Float[np.ndarray, "q q"], functional: Float[np.ndarray, "q q"]
    ) -> Float[np.ndarray, " q"]:
        A = self.root
        block = None if A is None else self._zero_block(functional, len(A))
        if A is None or block is None:
            return symmetric_spectrum(functional + outer)
        others = np.delete(np.arange(len(outer)), block)
        C = functional[np.ix_(others, others)] + outer[np.ix_(others, others)]
        return low_rank_block_spectrum(A, functional[block][:, others], C, block)

    def _zero_block(self, H: Float[np.ndarray, "q q"], rank: int) -> slice | None:
        """Return the largest layer if H_f is zero there, and that makes a much smaller problem.

        The loss is linear in one layer's weights if all activations are piecewise linear.
        """
        largest = largest_layer(self.layers)
        rows = small_order(len(H), largest, rank)
        return largest if rows < len(H) and not np.any(H[largest, largest]) else None


def largest_layer(layers: Sequence[slice]) -> slice:
    """Return the rows of the layer that has the most."""
    return max(layers, key=lambda layer: layer.stop - layer.start)


def small_order(q: int, block: slice, rank: int = 0) -> int:
    """Return the rows of the eigenproblem that a zero block leaves; q if that is not worth it.

    Args:
      q: the rows of the matrix.
      block: the rows of the block.
      rank: the rank of the block itself; zero for a zero block.
    """
    t = q - (block.stop - block.start)
    return rank + 2 * t if rank + 2 * t < _WORTHWHILE * q else q


def is_wide(flat: FlatProblem) -> bool:
    """Return whether the Jacobian, n k x p, has so few rows that its singular values are cheaper.

    An SVD takes about three times as long as the eigenvalues of a symmetric matrix of that size.
    """
    return 2 * flat.positions * flat.k <= flat.p
