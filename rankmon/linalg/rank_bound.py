"""The most that H_f's rank can be, from which directions of each weight matrix its image reaches.

With inputs a_i [a] of a dense layer's kernel W [a, b] and what comes backwards, e_i [b], H_f x has
the block M(x) = sum_i a_i (x) de_i + da_i (x) e_i there, whose derivatives may be anything. So

  (I - P_U) M(x) (I - P_V) = 0,   U = span(a_i), V = span(e_i), no more than n dimensions each,

which leaves dim U b + a dim V - dim U dim V directions of a b; dim U b alone where da_i = 0, as in
the first layer, and a dim V where de_i = 0, as in the last. Where activations are piecewise linear,
f is linear in W, and H_f has a zero block there: with d directions of the other leaves,
rank H_f <= 2 d. U and V are the columns and rows of sum_i o_i a_i (x) e_i, gradients of the outputs
with residuals times random o_i.

No assumption on the network is left in the result: with P the projection on these directions,
sigma_{d + 1}(A) <= ||(I - P) A||_2 for any symmetric A, and for Gaussian x_1, ..., x_m

  ||E||_2 <= max_j ||E x_j|| / tau   but for a chance of (tau sqrt(2 / pi))^m,

since ||E x|| >= sigma_1(E) |<v_1, x>|; so with E = (I - P) A, leaf by leaf, and the zero block.

Source: the bound is that of Halko, Martinsson and Tropp, arXiv 0909.4061, section 4.3.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.sketch import CHANCE

# Random x_j that a bound is tried with.
_TRIED = 8

# Columns to try; how many there are is certain only if some are to spare.
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
    """How many singular values of H_f may exceed the cut, but for one chance in a thousand.

    Args:
      product: v -> H_f v.
      gradients: of sum_i o_i <delta_i, F(x_i)>, for m draws of o.
      shapes: of the leaves, as matrices, one after the other; their sizes sum to p.
      cut: what counts as zero, absolute.
      eps: of the arithmetic of products and gradients.
      seed: of the vectors.
    """
    rng = np.random.default_rng([seed, 2])
    *starts, p = np.cumsum([0, *(a * b for a, b in shapes)]).tolist()
    leaves = [slice(start, start + a * b) for start, (a, b) in zip(starts, shapes, strict=True)]
    # Four ways to leave out directions of each leaf, and the zero block.
    tau = math.sqrt(math.pi / 2) * (CHANCE / (4 * len(leaves) + 1)) ** (1 / _TRIED)
    room = cut * tau / (4 * math.sqrt(len(leaves)))
    images = np.stack([product(rng.standard_normal(p)) for _ in range(_TRIED)])
    if not (np.all(np.isfinite(images)) and np.all(np.isfinite(gradients))):
        return p
    reached = [
        _Spaces.of(gradients[:, leaf].reshape(-1, *shape), eps, rng).reached(
            images[:, leaf].reshape(-1, *shape), room
        )
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]
    largest = int(np.argmax(reached))
    others = sum(reached) - reached[largest]
    if 2 * others < sum(reached):
        block = leaves[largest]
        if _is_zero(product, p, block, cut * tau / 2, rng):
            return 2 * others
    return sum(reached)


def _is_zero(
    product: Callable[[np.ndarray], np.ndarray],
    p: int,
    block: slice,
    room: float,
    rng: np.random.Generator,
) -> bool:
    """Whether the diagonal block is zero within the room."""
    for _ in range(_TRIED):
        x = np.zeros(p)
        x[block] = rng.standard_normal(block.stop - block.start)
        if not np.linalg.norm(product(x)[block]) <= room:
            return False
    return True


@dataclass(frozen=True)
class _Spaces:
    """U [a, u] and V [b, v] of one leaf W [a, b], orthonormal bases."""

    U: Float[np.ndarray, "a u"]
    V: Float[np.ndarray, "b v"]

    @classmethod
    def of(
        cls,
        gradients: Float[np.ndarray, "m a b"],
        eps: float,
        rng: np.random.Generator,
    ) -> "_Spaces":
        """The spans of columns and of rows."""
        _, a, b = gradients.shape
        return cls(
            _basis(gradients.transpose(1, 0, 2).reshape(a, -1), eps, rng),
            _basis(gradients.transpose(2, 0, 1).reshape(b, -1), eps, rng),
        )

    def reached(self, images: Float[np.ndarray, "m a b"], room: float) -> int:
        """The fewest of these directions that leave out no more of the images than the room."""
        (a, u), (b, v) = self.U.shape, self.V.shape
        missed = np.max([self._missed(image) for image in images], axis=0)
        directions = np.array([0, u * b, a * v, u * b + a * v - u * v])
        return min([a * b, *directions[missed <= room].tolist()])

    def _missed(self, image: Float[np.ndarray, "a b"]) -> tuple[float, ...]:
        """The norms of the image, and of it beside U, beside V and beside both."""
        beside_columns = image - self.U @ (self.U.T @ image)
        beside_rows = image - (image @ self.V) @ self.V.T
        beside_both = beside_columns - (beside_columns @ self.V) @ self.V.T
        parts = (image, beside_columns, beside_rows, beside_both)
        return tuple(float(np.linalg.norm(part)) for part in parts)


def _basis(
    columns: Float[np.ndarray, "a c"], eps: float, rng: np.random.Generator
) -> Float[np.ndarray, "a r"]:
    """Of the columns' span, from random combinations of ever more of them, of some at the most."""
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
