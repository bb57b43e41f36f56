"""Linear maps of a network's inputs as products of factors, each with parameters of its own.

A factor is a matrix leaf, a convolution by a leaf, or a skip connection. A product F_m ... F_1
lists its factors from the last to the first, as formulas do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Weight:
    """A matrix leaf, [out, in]; the leaf is stored as [in, out] if `transposed`."""

    leaf: int
    transposed: bool
    shape: tuple[int, int]


@dataclass(frozen=True)
class Identity:
    """A matrix [out, in] with ones on its main diagonal, such as one that appends zeros."""

    shape: tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """The entries from `first` to `last` (exclusive) along one axis of a value."""

    axis: int
    first: int
    last: int
    size: int


@dataclass(frozen=True)
class Wrapped:
    """The extension of a line by its own last entries before it and its first entries after it."""

    before: int
    after: int


@dataclass(frozen=True)
class Convolution:
    """A cross-correlation along one axis, without padding or on a circle.

    Attributes:
      leaf: the kernel.
      axes: the leaf's axes of steps, input channels and output channels; None for an axis of size
        one that the leaf lacks.
      shape: the numbers of steps, input channels and output channels.
      wrapped: the extension of the line before it, if it is on a circle.
    """

    leaf: int
    axes: tuple[int | None, int | None, int | None]
    shape: tuple[int, int, int]
    wrapped: Wrapped | None = None


@dataclass(frozen=True)
class Skip:
    """A skip connection: the identity, plus scale times a product of factors."""

    identity: Identity
    factors: "tuple[Factor, ...]"
    scale: float


Factor = Weight | Identity | Cut | Wrapped | Convolution | Skip


@dataclass(frozen=True)
class Product:
    """A number, which is not zero, times factors, from the last to the first.

    Attributes:
      factors: the factors.
      scale: the number.
      of_inputs: whether the product is applied to the inputs; otherwise it is a matrix.
    """

    factors: tuple[Factor, ...]
    scale: float = 1.0
    of_inputs: bool = True

    @property
    def transposed(self) -> "Product | None":
        """The transposed matrix; None if a factor is not a matrix."""
        factors = _transposed(self.factors)
        return None if factors is None else replace(self, factors=factors)

    def plus(self, other: "Product") -> "Product | None":
        """Return the sum if one is, up to their common first factors, an identity; else None."""
        common = 0
        for a, b in zip(reversed(self.factors), reversed(other.factors), strict=False):
            if a != b:
                break
            common += 1
        rest = self.factors[len(self.factors) - common :]
        left, right = (x.factors[: len(x.factors) - common] for x in (self, other))
        pairs = ((left, right, self, other), (right, left, other, self))
        for skip, branch, plain, added in pairs:
            identity = _identity(skip, _shape(branch))
            if identity is not None:
                factor = Skip(identity, branch, added.scale / plain.scale)
                return Product((factor, *rest), plain.scale, self.of_inputs)
        return None

    def applied(self, leaves: Sequence[Any], x: Float[np.ndarray, "n ..."]) -> np.ndarray | None:
        """Return the product applied to each example in NumPy; None if the shapes do not fit."""
        h: np.ndarray | None = x
        for factor in reversed(self.factors):
            h = None if h is None else _applied(factor, leaves, h)
        return None if h is None else self.scale * h


def matrix_of(factors: Sequence[Factor], leaves: Sequence[Any]) -> Float[np.ndarray, "out in"]:
    """Return a product of matrices (weights, identities and skip connections) as one matrix."""
    product: np.ndarray | None = None
    for factor in factors:
        match factor:
            case Weight():
                stored = np.asarray(leaves[factor.leaf])
                one = (stored.T if factor.transposed else stored).reshape(factor.shape)
            case Identity():
                one = np.eye(*factor.shape)
            case Skip():
                one = np.eye(*factor.identity.shape)
                one = one + factor.scale * matrix_of(factor.factors, leaves)
            case _:
                raise TypeError(f"expected matrices, got {factor}; use Product.applied")
        product = one if product is None else product @ one
    assert product is not None
    return product


def filter_of(
    factor: Convolution, leaves: Sequence[Any]
) -> Float[np.ndarray, "steps inputs outputs"]:
    """Return the kernel of a convolution."""
    order = [axis for axis in factor.axes if axis is not None]
    stored = np.asarray(leaves[factor.leaf])
    units = [axis for axis in range(stored.ndim) if axis not in order]
    return np.transpose(stored, [*order, *units]).reshape(factor.shape)


def _applied(factor: Factor, leaves: Sequence[Any], x: np.ndarray) -> np.ndarray | None:
    match factor:
        case Weight() | Skip() | Identity():
            matrix = matrix_of([factor], leaves)
            return x @ matrix.T if x.ndim == 2 and x.shape[1] == matrix.shape[1] else None
        case Convolution():
            return _convolved(factor, filter_of(factor, leaves), x)
    return None


def _convolved(factor: Convolution, w: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """Return sum_t w[t]^T x[i + t], for x [n, positions, channels]."""
    if x.ndim != 3 or x.shape[2] != w.shape[1]:
        return None
    if factor.wrapped is not None:
        before, after = factor.wrapped.before, factor.wrapped.after
        x = np.concatenate([x[:, x.shape[1] - before :], x, x[:, :after]], axis=1)
    length = x.shape[1] - len(w) + 1
    if length < 1:
        return None
    return sum(x[:, t : t + length] @ w[t] for t in range(len(w)))


def _transposed(factors: Sequence[Factor]) -> tuple[Factor, ...] | None:
    turned = list[Factor]()
    for factor in reversed(factors):
        match factor:
            case Weight(leaf, stored, shape):
                turned.append(Weight(leaf, not stored, shape[::-1]))
            case Identity(shape):
                turned.append(Identity(shape[::-1]))
            case Skip(identity, inside, scale):
                inner = _transposed(inside)
                if inner is None:
                    return None
                turned.append(Skip(Identity(identity.shape[::-1]), inner, scale))
            case _:
                return None
    return tuple(turned)


def _identity(factors: Sequence[Factor], shape: tuple[int, int] | None) -> Identity | None:
    """Return factors as an identity of this shape; None if they are something else."""
    match factors:
        case () if shape is not None and shape[0] == shape[1]:
            return Identity(shape)
        case (Identity() as identity,) if identity.shape == shape:
            return identity
        case (Cut(_, 0, last, size),) if (last, size) == shape:
            return Identity((last, size))
    return None


def _shape(factors: Sequence[Factor]) -> tuple[int, int] | None:
    """Return the shape of a product of matrices; None for other factors, or for none."""
    ends = [_one_shape(factors[i]) for i in (0, -1)] if factors else [None, None]
    return None if ends[0] is None or ends[1] is None else (ends[0][0], ends[1][1])


def _one_shape(factor: Factor) -> tuple[int, int] | None:
    match factor:
        case Weight() | Identity():
            return factor.shape
        case Skip():
            return factor.identity.shape
    return None
