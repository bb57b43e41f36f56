"""Hessians of polynomial networks over the integers modulo a prime, with their exact ranks.

A `Jet` is an array of field elements with its first and second derivatives by every parameter. A
network written with `+`, `@`, `.T`, indexing and `reshape` on jets has its Jacobian and all second
derivatives computed exactly, with nothing in common with automatic differentiation by JAX.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flint
import numpy as np

PRIME = 33_554_393  # below 2^25: sums of 8,192 products fit in 64 bits


def field(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw field elements, uniformly."""
    return rng.integers(0, PRIME, shape)


def exact_rank(matrix: np.ndarray) -> int:
    """Return the rank over the field; 0 for a matrix without entries."""
    rows, columns = matrix.shape
    if not matrix.size:
        return 0
    return flint.nmod_mat(rows, columns, (matrix % PRIME).ravel().tolist(), PRIME).rank()


def of_rank(rng: np.random.Generator, rows: int, columns: int, rank: int) -> np.ndarray:
    """Draw a matrix of this rank."""
    return field(rng, rows, rank) @ field(rng, rank, columns) % PRIME


class Jet:
    """Values [...], first derivatives [p, ...] and second derivatives [p, p, ...], modulo PRIME."""

    __array_ufunc__ = None  # so that `array @ jet` reaches __rmatmul__

    def __init__(self, value: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
        self.value, self.first, self.second = value % PRIME, first % PRIME, second % PRIME

    @property
    def p(self) -> int:
        return len(self.first)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def T(self) -> "Jet":
        return self._map(lambda array: np.swapaxes(array, -1, -2))

    def reshape(self, *shape: int) -> "Jet":
        p = self.p
        return Jet(
            self.value.reshape(shape),
            self.first.reshape(p, *shape),
            self.second.reshape(p, p, *shape),
        )

    def __getitem__(self, key: Any) -> "Jet":
        key = key if isinstance(key, tuple) else (key,)
        every = slice(None)
        return Jet(self.value[key], self.first[(every, *key)], self.second[(every, every, *key)])

    def __add__(self, other: Any) -> "Jet":
        other = self._constant(other)
        return Jet(self.value + other.value, self.first + other.first, self.second + other.second)

    __radd__ = __add__

    def __matmul__(self, other: Any) -> "Jet":
        if not isinstance(other, Jet):
            return self._map(lambda array: array @ other)
        crossed = self.first[:, None] @ other.first[None] % PRIME
        return Jet(
            self.value @ other.value,
            self.first @ other.value % PRIME + self.value @ other.first % PRIME,
            self.second @ other.value % PRIME
            + self.value @ other.second % PRIME
            + crossed
            + np.swapaxes(crossed, 0, 1),
        )

    def __rmatmul__(self, other: np.ndarray) -> "Jet":
        return self._map(lambda array: other @ array)

    def _map(self, linear: Callable[[np.ndarray], np.ndarray]) -> "Jet":
        return Jet(linear(self.value), linear(self.first), linear(self.second))

    def _constant(self, other: Any) -> "Jet":
        if isinstance(other, Jet):
            return other
        value = np.broadcast_to(np.asarray(other, np.int64), self.shape)
        return Jet(value, np.zeros_like(self.first), np.zeros_like(self.second))


def parameters(arrays: Sequence[np.ndarray]) -> list[Jet]:
    """Return the arrays as jets whose entries are the parameters, array by array, row-major."""
    p, start, jets = sum(array.size for array in arrays), 0, []
    for array in arrays:
        first = np.zeros((p, array.size), np.int64)
        first[start : start + array.size] = np.eye(array.size, dtype=np.int64)
        jets.append(
            Jet(array, first.reshape(p, *array.shape), np.zeros((p, p, *array.shape), np.int64))
        )
        start += array.size
    return jets


@dataclass(frozen=True)
class ExactHessians:
    """H_o and H_f [p, p] of sum <delta_i, F(x_i)> and sum |F(x_i)|^2 / 2, and parameter groups."""

    outer: np.ndarray
    functional: np.ndarray
    sizes: tuple[int, ...]

    @property
    def loss(self) -> np.ndarray:
        """H_o + t H_f at one t (t = 1: the residuals are generic)."""
        return (self.outer + self.functional) % PRIME

    @property
    def columns(self) -> list[np.ndarray]:
        """The column blocks of H_f, one for each parameter array."""
        ends = np.cumsum(self.sizes)
        return np.split(self.functional, ends[:-1], axis=1)


def exact_hessians(
    network: Callable[[list[Jet]], Jet], arrays: Sequence[np.ndarray], residuals: np.ndarray
) -> ExactHessians:
    """Return the Hessians of a network's outputs, of the shape of `residuals`, at these arrays."""
    outputs = network(parameters(arrays))
    assert outputs.shape == residuals.shape
    jacobian = outputs.first.reshape(outputs.p, -1)
    second = outputs.second.reshape(outputs.p, outputs.p, -1)
    return ExactHessians(
        outer=jacobian @ jacobian.T % PRIME,
        functional=second @ residuals.ravel() % PRIME,
        sizes=tuple(array.size for array in arrays),
    )
