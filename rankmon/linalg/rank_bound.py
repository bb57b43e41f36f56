"""An upper bound on rank H_f, from the directions of each weight matrix that its image spans.

For a dense layer's kernel W [a, b] with inputs a_i [a] and backpropagated gradients e_i [b], the
block of H_f x at W is M(x) = sum_i a_i (x) de_i + da_i (x) e_i for some derivatives de_i, da_i. So

  (I - P_U) M(x) (I - P_V) = 0,   U = span(a_i), V = span(e_i), of at most n dimensions each.

Of the a b directions of W this leaves dim U b + a dim V - dim U dim V. It leaves only dim U b if
da_i = 0, as in the first layer, and only a dim V if de_i = 0, as in the last. If activations are
piecewise linear, f is linear in W and the block of H_f at (W, W) is zero; if the other leaves have
d directions, then rank H_f <= 2 d. U and V are the column and row spaces of the matrices
sum_i o_i a_i (x) e_i with random o_i: gradients of the outputs, weighted by residuals times o_i.

The bound holds for any network. With P the projection on d such directions,
sigma_{d + 1}(A) <= ||(I - P) A||_2 for any symmetric A, and for Gaussian x_1, ..., x_m

  ||E||_2 <= max_j ||E x_j|| / tau   except with probability (tau sqrt(2 / pi))^m,

because ||E x|| >= sigma_1(E) |<v_1, x>|. This is applied to E = (I - P) A, leaf by leaf, and to the
zero block.

Source: Halko, Martinsson and Tropp, arXiv 0909.4061, section 4.3, for the bound of the norm.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rankmon.linalg.sketch import CHANCE

# The number m of random vectors x_j.
TRIED = 8

# Columns of the random basis: at first, at most, and in excess of the rank before it is trusted.
_FEW, _MOST, _SPARE = 64, 1024, 8


@runtime_checkable
class Seen(Protocol):
    """Views of a symmetric matrix, leaf by leaf: images, gradients, diagonal blocks."""

    def is_finite(self) -> bool:
        """Return whether all entries are finite."""

    def images(self, leaf: int) -> Float[np.ndarray, "m s"]:
        """Return the entries at one leaf of H_f x_j, for `TRIED` Gaussian x_j."""

    def gradients(self, leaf: int) -> Float[np.ndarray, "m s"]:
        """Return the entries at one leaf of the gradients of sum_i o_i <delta_i, F(x_i)>."""

    def block_norms(self, leaf: int) -> Iterable[float]:
        """Yield the norms of a diagonal block's images of `TRIED` more Gaussian vectors."""


class SeenOnHost:
    """Images under a product with vectors [p].

    Args:
      product: the map v -> H_f v.
      gradients: the gradients, for m draws of o.
      sizes: the sizes of the leaves.
      rng: draws the vectors.
    """

    def __init__(
        self,
        product: Callable[[Float[np.ndarray, " p"]], Float[np.ndarray, " p"]],
        gradients: Float[np.ndarray, "m p"],
        sizes: Sequence[int],
        rng: np.random.Generator,
    ) -> None:
        *starts, self._p = np.cumsum([0, *sizes]).tolist()
        self._leaves = [slice(i, i + size) for i, size in zip(starts, sizes, strict=True)]
        self._product, self._gradients, self._rng = product, gradients, rng
        self._images = np.stack([product(rng.standard_normal(self._p)) for _ in range(TRIED)])

    def is_finite(self) -> bool:
        """Return whether all entries are finite."""
        return bool(np.all(np.isfinite(self._images)) and np.all(np.isfinite(self._gradients)))

    def images(self, leaf: int) -> Float[np.ndarray, "m s"]:
        """Return the images' entries at one leaf."""
        return self._images[:, self._leaves[leaf]]

    def gradients(self, leaf: int) -> Float[np.ndarray, "m s"]:
        """Return the gradients' entries at one leaf."""
        return self._gradients[:, self._leaves[leaf]]

    def block_norms(self, leaf: int) -> Iterator[float]:
        """Yield the norms of a diagonal block's images of more vectors."""
        block = self._leaves[leaf]
        for _ in range(TRIED):
            x = np.zeros(self._p)
            x[block] = self._rng.standard_normal(block.stop - block.start)
            yield float(np.linalg.norm(self._product(x)[block]))


def most_rank(
    seen: Seen,
    shapes: Sequence[tuple[int, int]],
    cut: float,
    *,
    eps: float,
    rng: np.random.Generator,
) -> int:
    """Return a bound on the number of singular values of H_f above the cut.

    It fails with a probability of at most one in a thousand.

    Args:
      seen: the images and gradients.
      shapes: the leaves' shapes as matrices, in the parameter order; their sizes sum to p.
      cut: the absolute value below which a singular value counts as zero.
      eps: the eps of the arithmetic of products and gradients.
      rng: draws the combinations of gradients.
    """
    # A union bound: four tests for each leaf (`_missed`), and one for the zero block.
    tau = math.sqrt(math.pi / 2) * (CHANCE / (4 * len(shapes) + 1)) ** (1 / TRIED)
    negligible = cut * tau / (4 * math.sqrt(len(shapes)))
    if not seen.is_finite():
        return sum(a * b for a, b in shapes)
    reached = [
        _Spaces.of(seen.gradients(leaf).reshape(-1, *shape), eps, rng).reached(
            seen.images(leaf).reshape(-1, *shape), negligible
        )
        for leaf, shape in enumerate(shapes)
    ]
    largest = int(np.argmax(reached))
    others = sum(reached) - reached[largest]
    # With a zero block at one leaf, the rank is at most twice the directions of the other leaves.
    if 2 * others < sum(reached) and all(
        norm <= cut * tau / 2 for norm in seen.block_norms(largest)
    ):
        return 2 * others
    return sum(reached)


@dataclass(frozen=True)
class _Spaces:
    """Orthonormal bases U [a, u] and V [b, v] of the spaces of one leaf W [a, b]."""

    U: Float[np.ndarray, "a u"]
    V: Float[np.ndarray, "b v"]

    @classmethod
    def of(
        cls,
        gradients: Float[np.ndarray, "m a b"],
        eps: float,
        rng: np.random.Generator,
    ) -> "_Spaces":
        """Return bases of the gradients' column space and row space."""
        _, a, b = gradients.shape
        return cls(
            _basis(gradients.transpose(1, 0, 2).reshape(a, -1), eps, rng),
            _basis(gradients.transpose(2, 0, 1).reshape(b, -1), eps, rng),
        )

    def reached(self, images: Float[np.ndarray, "m a b"], negligible: float) -> int:
        """Return the smallest number of directions that misses a negligible part of the images."""
        (a, u), (b, v) = self.U.shape, self.V.shape
        missed = np.max([self._missed(image) for image in images], axis=0)
        directions = np.array([0, u * b, a * v, u * b + a * v - u * v])
        return min([a * b, *directions[missed <= negligible].tolist()])

    def _missed(self, image: Float[np.ndarray, "a b"]) -> tuple[float, ...]:
        """Return the norms of the image and of its parts outside U, outside V and outside both."""
        outside_U = image - self.U @ (self.U.T @ image)
        outside_V = image - (image @ self.V) @ self.V.T
        outside_both = outside_U - (outside_U @ self.V) @ self.V.T
        parts = (image, outside_U, outside_V, outside_both)
        return tuple(float(np.linalg.norm(part)) for part in parts)


def _basis(
    columns: Float[np.ndarray, "a c"], eps: float, rng: np.random.Generator
) -> Float[np.ndarray, "a r"]:
    """Return an orthonormal basis of the columns' span, from random combinations of the columns.

    The number of combinations is doubled until it exceeds the rank by `_SPARE`, up to `_MOST`.
    """
    a, c = columns.shape
    count = _FEW // 2
    while True:
        count = min(2 * count, a + _SPARE)
        mixed = columns @ (rng.standard_normal((c, count)) / math.sqrt(count))
        U, values, _ = np.linalg.svd(mixed, full_matrices=False)
        noise = 8 * eps * math.sqrt(c) * values[0]
        r = int(np.sum(values > noise))
        if r <= count - _SPARE or count > a or 2 * count > _MOST:
            return U[:, :r]
