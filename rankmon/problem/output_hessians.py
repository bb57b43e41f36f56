"""The output Hessians B_i of a batch, on the host, in as little memory as the loss allows.

Symbols: w_i B_i = C_i S_i C_i^T with a root C_i, [k, r], and signs S_i; x_i an example's inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rankmon.problem.losses import Root

_ALL = slice(None)

# Number of arrays of the size of B_i during evaluation and products, and while computing roots.
EVALUATED_ALIVE, ROOTED_ALIVE = 4, 5

# Entries of dense output Hessians that are evaluated at once: 32 MiB, plus temporary arrays.
_ENTRIES_AT_ONCE = 2**22


class Roots(ABC):
    """The roots C_i and signs S_i of all examples.

    Attributes:
      signs: the diagonals of S_i; None if all are 1.
    """

    signs: Float[np.ndarray, "n r"] | None

    @property
    @abstractmethod
    def count(self) -> int:
        """The columns of each C_i."""

    @abstractmethod
    def products(
        self, V: Float[np.ndarray, "m k c"], part: slice = _ALL
    ) -> Float[np.ndarray, "m r c"]:
        """Return C_i^T V_i for the examples of a part."""

    @abstractmethod
    def columns(
        self, example: Int[np.ndarray, "..."], column: Int[np.ndarray, "..."]
    ) -> Float[np.ndarray, "... k"]:
        """Return these columns of these examples' C_i."""

    def of_sign(self, sign: int) -> "Roots":
        """Return the roots with all columns of the other sign set to zero."""
        return self


class OutputHessians(ABC):
    """The output Hessians B_i of all examples."""

    @abstractmethod
    def products(
        self, V: Float[np.ndarray, "m k c"], part: slice = _ALL
    ) -> Float[np.ndarray, "m k c"]:
        """Return B_i V_i for the examples of a part."""

    @abstractmethod
    def roots(self, weights: Float[np.ndarray, " n"]) -> Roots | None:
        """Return the roots of w_i B_i; None if some B_i is not finite."""

    @abstractmethod
    def second_moment(
        self, weights: Float[np.ndarray, " n"], x: Float[np.ndarray, "n r"]
    ) -> Float[np.ndarray, "kr kr"]:
        """Return sum_i w_i B_i (x) x_i x_i^T."""


@dataclass(frozen=True)
class FactoredHessians(OutputHessians):
    """Output Hessians of a loss with a closed-form root, without arrays of size k x k.

    Attributes:
      root: the roots of all examples, as arrays [n, k].
    """

    root: Root

    def products(
        self, V: Float[np.ndarray, "m k c"], part: slice = _ALL
    ) -> Float[np.ndarray, "m k c"]:
        """Return B_i V_i for the examples of a part."""
        root = Root(*(None if a is None else a[part, None] for a in self.root))
        return np.swapaxes(root.hessian_product(np.swapaxes(V, 1, 2)), 1, 2)

    def roots(self, weights: Float[np.ndarray, " n"]) -> Roots | None:
        """Return the roots of w_i B_i; None if some B_i is not finite."""
        scale, shift, skipped = self.root
        if not all(np.all(np.isfinite(a)) for a in (scale, shift) if a is not None):
            return None
        return FactoredRoots(Root(np.sqrt(weights)[:, None] * scale, shift, skipped))

    def second_moment(
        self, weights: Float[np.ndarray, " n"], x: Float[np.ndarray, "n r"]
    ) -> Float[np.ndarray, "kr kr"]:
        """Return sum_i w_i B_i (x) x_i x_i^T for B = diag(d) - a d^T - d a^T + (sum d) a a^T."""
        d, a, _ = self.root
        d = weights[:, None] * d**2
        (n, k), r = d.shape, x.shape[1]
        moment = np.zeros((k, r, k, r))
        for c in range(k):
            moment[c, :, c, :] = x.T @ (d[:, c, None] * x)
        moment = moment.reshape(k * r, k * r)
        if a is None:
            return moment
        half = d.sum(1, keepdims=True) * a / 2 - d
        step = k * r  # examples at once, so that their rows are no larger than the result
        for start in range(0, n, step):
            part = slice(start, start + step)
            left, right = (_rows(v[part], x[part]) for v in (a, half))
            cross = left.T @ right
            moment += cross
            moment += cross.T
        return moment


def _rows(v: Float[np.ndarray, "n k"], x: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n kr"]:
    return (v[:, :, None] * x[:, None, :]).reshape(len(v), -1)


@dataclass(frozen=True)
class FactoredRoots(Roots):
    """Roots C_i = (I - a_i 1^T) diag(u_i), without the skipped column.

    Attributes:
      root: the roots of all examples, as arrays [n, k].
    """

    root: Root
    signs = None

    @property
    def count(self) -> int:
        """The columns of each C_i."""
        return self.root.scale.shape[1] - (self.root.skipped is not None)

    def products(
        self, V: Float[np.ndarray, "m k c"], part: slice = _ALL
    ) -> Float[np.ndarray, "m r c"]:
        """Return C_i^T V_i for the examples of a part."""
        scale, shift, _ = self.root
        if shift is not None:
            V = V - shift[part, None] @ V
        V = scale[part, :, None] * V
        if self.root.skipped is None:
            return V
        examples = np.arange(len(scale))[part]
        kept = self._outputs(examples[:, None], np.arange(self.count)[None, :])
        return np.take_along_axis(V, kept[:, :, None], axis=1)

    def columns(
        self, example: Int[np.ndarray, "..."], column: Int[np.ndarray, "..."]
    ) -> Float[np.ndarray, "... k"]:
        """Return these columns of these examples' C_i: u_c (e_c - a)."""
        scale, shift, _ = self.root
        example, output = np.broadcast_arrays(example, self._outputs(example, column))
        size = scale[example, output][..., None]
        shape = (*output.shape, scale.shape[1])
        found = np.zeros(shape) if shift is None else -size * shift[example]
        entry = np.take_along_axis(found, output[..., None], axis=-1)
        np.put_along_axis(found, output[..., None], entry + size, axis=-1)
        return found

    def _outputs(
        self, example: Int[np.ndarray, "..."], column: Int[np.ndarray, "..."]
    ) -> Int[np.ndarray, "..."]:
        """Return the output indices of these columns, counted without the skipped one."""
        if self.root.skipped is None:
            return column
        return column + (column >= self.root.skipped[example])


@dataclass(frozen=True)
class DenseHessians(OutputHessians):
    """Output Hessians as k x k arrays, evaluated a few at a time.

    Attributes:
      n: the number of examples.
      at: maps a slice of the examples to their B_i, [m, k, k].
    """

    n: int
    at: Callable[[slice], Float[np.ndarray, "m k k"]]

    @classmethod
    def of(
        cls, n: int, k: int, evaluate: Callable[[slice], Float[np.ndarray, "m k k"]]
    ) -> "DenseHessians":
        """Build the output Hessians from a function that evaluates a fixed number of examples."""

        def at(part: slice) -> Float[np.ndarray, "m k k"]:
            first, last, _ = part.indices(n)
            step = max(1, min(last - first, _ENTRIES_AT_ONCE // k**2))
            b = np.empty((last - first, k, k))
            for start in range(first, last, step):
                start = min(start, last - step)  # the last chunk has the same size
                b[start - first : start - first + step] = evaluate(slice(start, start + step))
            return b

        return cls(n, at)

    def products(
        self, V: Float[np.ndarray, "m k c"], part: slice = _ALL
    ) -> Float[np.ndarray, "m k c"]:
        """Return B_i V_i for the examples of a part."""
        return self.at(part) @ V

    def roots(self, weights: Float[np.ndarray, " n"]) -> Roots | None:
        """Return the roots of w_i B_i; None if some B_i is not finite."""
        b = self.at(_ALL)
        return DenseRoots(*signed_roots(weights, b)) if np.all(np.isfinite(b)) else None

    def second_moment(
        self, weights: Float[np.ndarray, " n"], x: Float[np.ndarray, "n r"]
    ) -> Float[np.ndarray, "kr kr"]:
        """Return sum_i w_i B_i (x) x_i x_i^T."""
        r = x.shape[1]
        k = self.at(slice(0, 1)).shape[1]
        total, step = np.zeros((k * k, r * r)), max(1, r * r)
        for start in range(0, self.n, step):  # no more memory than the result
            part = slice(start, min(start + step, self.n))
            b = weights[part, None, None] * self.at(part)
            total += b.reshape(-1, k * k).T @ _rows(x[part], x[part])
        return total.reshape(k, k, r, r).transpose(0, 2, 1, 3).reshape(k * r, k * r)


@dataclass(frozen=True)
class DenseRoots(Roots):
    """Roots stored as arrays.

    Attributes:
      transposed: the transposed roots C_i^T.
      signs: the diagonals of S_i; None if all are 1.
    """

    transposed: Float[np.ndarray, "n r k"]
    signs: Float[np.ndarray, "n r"] | None = None

    @property
    def count(self) -> int:
        """The columns of each C_i."""
        return self.transposed.shape[1]

    def products(
        self, V: Float[np.ndarray, "m k c"], part: slice = _ALL
    ) -> Float[np.ndarray, "m r c"]:
        """Return C_i^T V_i for the examples of a part."""
        return self.transposed[part] @ V

    def columns(
        self, example: Int[np.ndarray, "..."], column: Int[np.ndarray, "..."]
    ) -> Float[np.ndarray, "... k"]:
        """Return these columns of these examples' C_i."""
        return self.transposed[example, column]

    def of_sign(self, sign: int) -> "Roots":
        """Return the roots with all columns of the other sign set to zero."""
        if self.signs is None:
            return self
        return DenseRoots(np.where((self.signs == sign)[:, :, None], self.transposed, 0.0))


def signed_roots(
    weights: Float[np.ndarray, " n"], b: Float[np.ndarray, "n k k"]
) -> tuple[Float[np.ndarray, "n k k"], Float[np.ndarray, "n k"] | None]:
    """Return C_i^T for finite B_i, and the diagonals of S_i, or None if all signs are 1.

    Eigenvalues of B_i that are negative only by rounding count as zero.
    """
    values, vectors = np.linalg.eigh(b)
    rounding = b.shape[1] * np.finfo(np.float64).eps * np.abs(values).max(axis=1)
    negative = values < -rounding[:, None]
    sizes = np.where(negative, -values, np.maximum(values, 0.0))
    scaled = vectors * np.sqrt(sizes)[:, None, :]
    roots = np.sqrt(weights)[:, None, None] * scaled.transpose(0, 2, 1)
    return roots, np.where(negative, -1.0, 1.0) if np.any(negative) else None
