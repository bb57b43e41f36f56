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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.sketch import CHANCE

# The number m of random vectors x_j.
_TRIED = 8

# Columns of the random basis: at first, at most, and in excess of the rank before it is trusted.
_FEW, _MOST, _SPARE = 64, 1024, 8


def most_rank(
    product: Callable[[Float[np.ndarray, " p"]], Float[np.ndarray, " p"]],
    gradients: Float[np.ndarray, "m p"],
    shapes: Sequence[tuple[int, int]],
    cut: float,
    *,
    eps: float,
    seed: int,
) -> int:
    """Return a bound on the number of singular values of H_f above the cut.

    It fails with a probability of at most one in a thousand.

    Args:
      product: the map v -> H_f v.
      gradients: the gradients of sum_i o_i <delta_i, F(x_i)>, for m draws of o.
      shapes: the leaves' shapes as matrices, in the parameter order; their sizes sum to p.
      cut: the absolute value below which a singular value counts as zero.
      eps: the eps of the arithmetic of products and gradients.
      seed: the seed of the random vectors.
    """
    rng = np.random.default_rng([seed, 2])
    *starts, p = np.cumsum([0, *(a * b for a, b in shapes)]).tolist()
    leaves = [slice(start, start + a * b) for start, (a, b) in zip(starts, shapes, strict=True)]
    # A union bound: four tests for each leaf (`_missed`), and one for the zero block.
    tau = math.sqrt(math.pi / 2) * (CHANCE / (4 * len(leaves) + 1)) ** (1 / _TRIED)
    negligible = cut * tau / (4 * math.sqrt(len(leaves)))
    images = np.stack([product(rng.standard_normal(p)) for _ in range(_TRIED)])
    if not (np.all(np.isfinite(images)) and np.all(np.isfinite(gradients))):
        return p
    reached = [
        _Spaces.of(gradients[:, leaf].reshape(-1, *shape), eps, rng).reached(
            images[:, leaf].reshape(-1, *shape), negligible
        )
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]
    largest = int(np.argmax(reached))
    others = sum(reached) - reached[largest]
    # With a zero block at one leaf, the rank is at most twice the directions of the other leaves.
    if 2 * others < sum(reached):
        block = leaves[largest]
        if _is_zero(product, p, block, cut * tau / 2, rng):
            return 2 * others
    return sum(reached)


def _is_zero(
    product: Callable[[np.ndarray], np.ndarray],
    p: int,
    block: slice,
    negligible: float,
    rng: np.random.Generator,
) -> bool:
    """Return whether the images of all vectors under the diagonal block are negligible."""
    for _ in range(_TRIED):
        x = np.zeros(p)
        x[block] = rng.standard_normal(block.stop - block.start)
        if not np.linalg.norm(product(x)[block]) <= negligible:
            return False
    return True


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
