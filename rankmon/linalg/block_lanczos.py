"""Block Lanczos on a symmetric matrix: a basis of a Krylov space, and the projection to it.

From s rows X = C Q_1 and a symmetric H [p, p] it finds orthonormal rows Q = (Q_1; ...; Q_k) with

  H Q^T = Q^T T + Q_{k+1}^T Z^T,

T = Q H Q^T block tridiagonal and Z zero but for its last rows. An eigenvector u of T gives a Ritz
pair: T u = theta u and |H Q^T u - theta Q^T u| = |Z^T u|. All rows are kept. A block of images
is made orthogonal to the last two blocks, which is all in exact arithmetic, and, once its rows are
orthonormal, to all blocks: once, or twice if much of a row is lost.

Source: Golub and Van Loan, Matrix Computations, 4th edition, section 10.3.6.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.rows import HostRows, Rows, RowSpace

# Rows v [m, p] -> rows H v [m, p], in their dtype and form.
Product = Callable[[Rows], Rows]

# A component along the basis that a unit row may have before it is removed: of a larger one,
# rounding leaves too much beside the little that remains of the row.
_LOST = 0.3


@dataclass(frozen=True)
class RitzPairs:
    """The eigenpairs of T, by rising value.

    Attributes:
      values: the Ritz values theta_i.
      vectors: the eigenvectors u_i of T, as columns.
      coupling: Z^T u_i, as columns.
    """

    values: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n n"]
    coupling: Float[np.ndarray, "s n"]

    @property
    def residuals(self) -> Float[np.ndarray, " n"]:
        """The norms |H y_i - theta_i y_i| of the Ritz vectors y_i = Q^T u_i."""
        return np.linalg.norm(self.coupling, axis=0)


class BlockLanczos:
    """The Krylov space of some rows, grown a block at a time.

    Args:
      product: the product with H.
      start: the rows X; on the host their dtype is that of the basis.
      space: the form of rows; by default NumPy arrays.
      deflated: orthonormal rows Y: H is replaced by P H P with P = I - Y^T Y, X by X P.
      most: the most rows that the basis may have.
      noise: the relative error of a product.
    """

    def __init__(
        self,
        product: Product,
        start: Rows,
        *,
        space: RowSpace | None = None,
        deflated: Rows | None = None,
        most: int,
        noise: float,
    ) -> None:
        self._product, self._noise = product, noise
        self._deflated = None if deflated is None or not len(deflated) else deflated
        self.space = space or HostRows(start.shape[1], start.dtype)
        self._most = most = min(max(most, len(start)), self.space.p)
        self.norm, self.steps, self.seconds = 0.0, 0, 0.0
        self._basis = self.space.basis(most)
        self._projection = np.zeros((most, most))
        self._known = 0  # the rows whose images are in the projection
        start = self.space.copied(start)
        if self._deflated is not None:
            for _ in range(2):
                start = self._deflate(start)
        tiny = noise * self.space.size(start)
        block, self.start = orthonormal_rows(self.space, start, tiny)
        self.first_rows, self.first_images = block, None
        self._append(block)
        self._next: Rows = None  # only after a step
        self._coupling = np.zeros((len(block), 0))

    @property
    def rows(self) -> Rows:
        """The basis Q."""
        return self._basis.between(0, self._known)

    @property
    def size(self) -> int:
        """The number of rows of Q."""
        return self._known

    @property
    def projection(self) -> Float[np.ndarray, "n n"]:
        """The matrix T."""
        return self._projection[: self._known, : self._known]

    @property
    def next_rows(self) -> Rows:
        """The rows Q_{k+1}; none if the space is invariant."""
        return self._next

    @property
    def coupling(self) -> Float[np.ndarray, "n s"]:
        """The matrix Z."""
        Z = np.zeros((self._known, self._coupling.shape[1]))
        Z[self._known - len(self._coupling) :] = self._coupling
        return Z

    @property
    def can_grow(self) -> bool:
        """Whether there is a next block, and a place for it."""
        return not self.steps or (
            len(self._next) > 0 and self._known + len(self._next) <= self._most
        )

    def grow(self) -> None:
        """Multiply the next block, and find the one after it."""
        space = self.space
        if self.steps:
            self._append(self._next)
        known, new = self._known, self._known + self._added
        images = space.copied(self._product(self._basis.between(known, new)))
        self.steps += 1
        if self.steps == 1:
            self.first_images = space.copied(images)
        sizes = space.norms(images)
        if not np.all(np.isfinite(sizes)):
            raise FloatingPointError("expected finite products with the matrix")
        self.norm = max(self.norm, float(np.max(sizes, initial=0.0)))
        last = known - len(self._coupling) if known else 0
        images, along = self._projected(images, new, since=last)
        along = along[:, known - last :]
        tiny = 8 * self._noise * self.norm
        following, factor = orthonormal_rows(space, images, tiny)
        following, again = self._projected(following, new)
        if np.max(np.abs(again), initial=0.0) > _LOST:
            following, more = self._projected(following, new)
            again += more
        following, refined = orthonormal_rows(space, following, 0.1)
        diagonal = along + factor @ again[:, known:]
        self._projection[known:new, known:new] = (diagonal + diagonal.T) / 2
        self._known, self._next = new, following
        self._coupling = factor @ refined

    def _append(self, block: Rows) -> None:
        known, new = self._known, self._known + len(block)
        self._basis.append(block)
        self._added = len(block)
        if self.steps:
            last = slice(known - len(self._coupling), known)
            self._projection[last, known:new] = self._coupling
            self._projection[known:new, last] = self._coupling.T

    def _projected(
        self, rows: Rows, count: int, since: int = 0
    ) -> tuple[Rows, Float[np.ndarray, "s n"]]:
        """Return rows without the projections to Y and some of Q, and the coefficients in Q."""
        if self._deflated is not None:
            rows = self._deflate(rows)
        basis = self._basis.between(since, count)
        along = self.space.gram(rows, basis)
        return self.space.less(rows, along, basis), along.astype(np.float64)

    def _deflate(self, rows: Rows) -> Rows:
        return self.space.less(rows, self.space.gram(rows, self._deflated), self._deflated)

    def ritz(self) -> RitzPairs:
        """Return the Ritz pairs."""
        values, vectors = np.linalg.eigh(self.projection)
        return RitzPairs(values, vectors, self.coupling.T @ vectors)


def orthonormal_rows(
    space: RowSpace, rows: Rows, tiny: float
) -> tuple[Rows, Float[np.ndarray, "s r"]]:
    """Return orthonormal rows Q and C with C Q = rows, but for parts of norm `tiny` or less."""
    if len(rows) == 1 and (size := space.size(rows)) > tiny:
        return space.divided(rows, size), np.array([[size]])  # cheaper than eigenvectors
    squares, vectors = np.linalg.eigh(space.squares(rows))
    sizes = np.sqrt(np.maximum(squares, 0.0))
    kept = sizes > max(tiny, 1e-7 * float(np.max(sizes, initial=0.0)))
    vectors, sizes = vectors[:, kept], sizes[kept]
    return space.combined((vectors / sizes).T, rows), vectors * sizes
