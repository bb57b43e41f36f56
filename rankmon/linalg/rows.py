"""Vectors in R^p as rows, and the few operations on them from which Krylov spaces are built.

Blocks of rows stay wherever they are: in memory of the host here, sharded over devices in
`hessian.mesh_rows`. Only small matrices, of a number of rows by a number of rows, are NumPy arrays
in each case.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

# A block of rows [m, p] in the form of its space: it has a length, and nothing else is assumed.
Rows = Any


@runtime_checkable
class Basis(Protocol):
    """Rows that are appended block by block."""

    def append(self, block: Rows) -> None:
        """Append a block of rows."""

    def between(self, start: int, stop: int) -> Rows:
        """Return consecutive rows; both ends are ends of blocks."""


class RowSpace(ABC):
    """R^p, with blocks of rows in one form.

    Attributes:
      p: the dimension.
      width: the rows of a block of random vectors.
    """

    p: int
    width: int

    @abstractmethod
    def drawn(self, count: int) -> Rows:
        """Return new Gaussian rows."""

    @abstractmethod
    def units(self, start: int, stop: int) -> Rows:
        """Return the rows start to stop of the identity."""

    @abstractmethod
    def copied(self, rows: Any) -> Rows:
        """Return rows, or a product of rows, as rows of this space that `less` may overwrite."""

    @abstractmethod
    def gram(self, a: Rows, b: Rows) -> Float[np.ndarray, "m n"]:
        """Return a b^T in the precision of the rows."""

    @abstractmethod
    def squares(self, a: Rows) -> Float[np.ndarray, "m m"]:
        """Return a a^T in float64."""

    @abstractmethod
    def inner(self, a: Rows, b: Rows) -> Float[np.ndarray, " m"]:
        """Return the products of corresponding rows in float64."""

    @abstractmethod
    def norms(self, a: Rows) -> Float[np.ndarray, " m"]:
        """Return the norm of each row in float64."""

    @abstractmethod
    def size(self, a: Rows) -> float:
        """Return the Frobenius norm of all rows."""

    @abstractmethod
    def combined(self, C: Float[np.ndarray, "n m"], a: Rows) -> Rows:
        """Return C a."""

    @abstractmethod
    def less(self, a: Rows, C: Float[np.ndarray, "m n"], b: Rows) -> Rows:
        """Return a - C b; a may be overwritten."""

    @abstractmethod
    def divided(self, a: Rows, size: float) -> Rows:
        """Return the rows divided by a number."""

    @abstractmethod
    def joined(self, a: Rows, b: Rows) -> Rows:
        """Return the rows of both."""

    @abstractmethod
    def basis(self, most: int) -> Basis:
        """Return a basis without rows that may have so many."""

    @abstractmethod
    def on_host(self, a: Rows) -> Float[np.ndarray, "m p"]:
        """Return rows of a small space as an array in float64."""


class HostRows(RowSpace):
    """R^p with blocks of rows as NumPy arrays [m, p].

    Args:
      p: the dimension.
      dtype: the type of rows.
      width: the rows of a block of random vectors.
      seed: the seed of the random vectors.
    """

    def __init__(
        self, p: int, dtype: DTypeLike = np.float64, *, width: int = 16, seed: int = 0
    ) -> None:
        self.p, self.width = p, width
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._rng = np.random.default_rng([seed, 3])

    def drawn(self, count: int) -> Float[np.ndarray, "m p"]:
        """Return new Gaussian rows."""
        return self._rng.standard_normal((count, self.p)).astype(self._dtype)

    def units(self, start: int, stop: int) -> Float[np.ndarray, "m p"]:
        """Return the rows start to stop of the identity."""
        return np.eye(stop - start, self.p, start, dtype=self._dtype)

    def copied(self, rows: Any) -> Float[np.ndarray, "m p"]:
        """Return a copy of the rows in the type of this space."""
        return np.array(rows, self._dtype)

    def gram(self, a: Rows, b: Rows) -> Float[np.ndarray, "m n"]:
        """Return a b^T in the precision of the rows."""
        return a @ b.T

    def squares(self, a: Rows) -> Float[np.ndarray, "m m"]:
        """Return a a^T in float64."""
        exact = a.astype(np.float64, copy=False)
        return exact @ exact.T

    def inner(self, a: Rows, b: Rows) -> Float[np.ndarray, " m"]:
        """Return the products of corresponding rows in float64."""
        return np.einsum("ij,ij->i", a, b, dtype=np.float64)

    def norms(self, a: Rows) -> Float[np.ndarray, " m"]:
        """Return the norm of each row in float64."""
        return np.linalg.norm(a.astype(np.float64, copy=False), axis=1)

    def size(self, a: Rows) -> float:
        """Return the Frobenius norm of all rows."""
        return float(np.linalg.norm(a))

    def combined(self, C: Float[np.ndarray, "n m"], a: Rows) -> Float[np.ndarray, "n p"]:
        """Return C a."""
        return C.astype(self._dtype) @ a

    def less(self, a: Rows, C: Float[np.ndarray, "m n"], b: Rows) -> Float[np.ndarray, "m p"]:
        """Return a - C b, in the memory of a."""
        a -= C @ b
        return a

    def divided(self, a: Rows, size: float) -> Float[np.ndarray, "m p"]:
        """Return the rows divided by a number."""
        return a / self._dtype.type(size)

    def joined(self, a: Rows, b: Rows) -> Float[np.ndarray, "m p"]:
        """Return the rows of both."""
        return np.append(a, b, axis=0)

    def basis(self, most: int) -> "HostBasis":
        """Return a basis without rows that may have so many."""
        return HostBasis(np.empty((most, self.p), self._dtype))

    def on_host(self, a: Rows) -> Float[np.ndarray, "m p"]:
        """Return rows as an array in float64."""
        return a.astype(np.float64)


class HostBasis:
    """Rows in one array [most, p], of which the first ones are known."""

    def __init__(self, rows: Float[np.ndarray, "most p"]) -> None:
        self._rows, self._known = rows, 0

    def append(self, block: Float[np.ndarray, "s p"]) -> None:
        """Append a block of rows."""
        new = self._known + len(block)
        self._rows[self._known : new] = block
        self._known = new

    def between(self, start: int, stop: int) -> Float[np.ndarray, "m p"]:
        """Return consecutive rows, as a view."""
        return self._rows[start:stop]
