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

# Rows v [m, p] -> rows H v [m, p], in their dtype.
Product = Callable[[Float[np.ndarray, "m p"]], Float[np.ndarray, "m p"]]

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
      start: the rows X; their dtype is that of the basis.
      deflated: orthonormal rows Y: H is replaced by P H P with P = I - Y^T Y, X by X P.
      most: the most rows that the basis may have.
      noise: the relative error of a product.
    """

    def __init__(
        self,
        product: Product,
        start: Float[np.ndarray, "s p"],
        *,
        deflated: Float[np.ndarray, "d p"] | None = None,
        most: int,
        noise: float,
    ) -> None:
        self._product, self._noise = product, noise
        self._deflated = None if deflated is None or not len(deflated) else deflated
        s, p = start.shape
        most = min(max(most, s), p)
        self.norm, self.steps, self.seconds = 0.0, 0, 0.0
        self._rows = np.empty((most, p), start.dtype)
        self._projection = np.zeros((most, most))
        self._known = 0  # the rows whose images are in the projection
        start = start.copy()
        for _ in range(2):
            self._project(start, 0)
        block, self.start = orthonormal_rows(start, noise * float(np.linalg.norm(start)))
        self.first_images: Float[np.ndarray, "s p"] | None = None
        self._append(block)
        self._next = block[:0]
        self._coupling = np.zeros((len(block), 0))

    @property
    def rows(self) -> Float[np.ndarray, "n p"]:
        """The basis Q."""
        return self._rows[: self._known]

    @property
    def size(self) -> int:
        """The number of rows of Q."""
        return self._known

    @property
    def projection(self) -> Float[np.ndarray, "n n"]:
        """The matrix T."""
        return self._projection[: self._known, : self._known]

    @property
    def next_rows(self) -> Float[np.ndarray, "s p"]:
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
            len(self._next) > 0 and self._known + len(self._next) <= len(self._rows)
        )

    def grow(self) -> None:
        """Multiply the next block, and find the one after it."""
        if self.steps:
            self._append(self._next)
        known, new = self._known, self._known + self._added
        block = self._rows[known:new]
        images = np.array(self._product(block), block.dtype)
        self.steps += 1
        if self.steps == 1:
            self.first_images = images.copy()
        sizes = np.linalg.norm(images.astype(np.float64, copy=False), axis=1)
        if not np.all(np.isfinite(sizes)):
            raise FloatingPointError("expected finite products with the matrix")
        self.norm = max(self.norm, float(np.max(sizes, initial=0.0)))
        last = known - len(self._coupling) if known else 0
        along = self._project(images, new, since=last)[:, known - last :]
        tiny = 8 * self._noise * self.norm
        following, factor = orthonormal_rows(images, tiny)
        again = self._project(following, new)
        if np.max(np.abs(again), initial=0.0) > _LOST:
            again += self._project(following, new)
        following, refined = orthonormal_rows(following, 0.1)
        diagonal = along + factor @ again[:, known:]
        self._projection[known:new, known:new] = (diagonal + diagonal.T) / 2
        self._known, self._next = new, following
        self._coupling = factor @ refined

    def _append(self, block: Float[np.ndarray, "s p"]) -> None:
        known, new = self._known, self._known + len(block)
        self._rows[known:new] = block
        self._added = len(block)
        if self.steps:
            last = slice(known - len(self._coupling), known)
            self._projection[last, known:new] = self._coupling
            self._projection[known:new, last] = self._coupling.T

    def _project(
        self, rows: Float[np.ndarray, "s p"], count: int, since: int = 0
    ) -> Float[np.ndarray, "s n"]:
        """Subtract the projections to Y and some rows of Q; return the coefficients in Q."""
        if self._deflated is not None:
            rows -= (rows @ self._deflated.T) @ self._deflated
        basis = self._rows[since:count]
        along = rows @ basis.T
        rows -= along @ basis
        return along.astype(np.float64)

    def ritz(self) -> RitzPairs:
        """Return the Ritz pairs."""
        values, vectors = np.linalg.eigh(self.projection)
        return RitzPairs(values, vectors, self.coupling.T @ vectors)


def orthonormal_rows(
    rows: Float[np.ndarray, "s p"], tiny: float
) -> tuple[Float[np.ndarray, "r p"], Float[np.ndarray, "s r"]]:
    """Return orthonormal rows Q and C with C Q = rows, but for parts of norm `tiny` or less."""
    if len(rows) == 1 and (size := float(np.linalg.norm(rows))) > tiny:
        return rows / rows.dtype.type(size), np.array([[size]])  # cheaper than eigenvectors
    exact = rows.astype(np.float64, copy=False)
    squares, vectors = np.linalg.eigh(exact @ exact.T)
    sizes = np.sqrt(np.maximum(squares, 0.0))
    kept = sizes > max(tiny, 1e-7 * float(np.max(sizes, initial=0.0)))
    vectors, sizes = vectors[:, kept], sizes[kept]
    return (vectors / sizes).T.astype(rows.dtype) @ rows, vectors * sizes
