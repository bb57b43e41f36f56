"""The coordinates of one leaf: all entries, some rows or entries, or the span of its inputs."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int


class LeafMap(Protocol):
    """The coordinates of one leaf."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the coordinates."""

    def inward(self, leaf: np.ndarray) -> np.ndarray:
        """Return the coordinates of a leaf."""

    def outward(self, coordinates: Any) -> Any:
        """Return the leaf at these coordinates, zero in all other directions; traceable."""


@dataclass(frozen=True)
class Whole:
    """All entries of a leaf."""

    shape: tuple[int, ...]

    def inward(self, leaf: np.ndarray) -> np.ndarray:
        """Return the coordinates of a leaf."""
        return leaf

    def outward(self, coordinates: Any) -> Any:
        """Return the leaf, zero in all other directions; traceable."""
        return coordinates


@dataclass(frozen=True)
class Rows:
    """Some rows of a leaf, along its first axis."""

    rows: Int[np.ndarray, " r"]
    leaf: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the coordinates."""
        return (len(self.rows), *self.leaf[1:])

    def inward(self, leaf: np.ndarray) -> np.ndarray:
        """Return the coordinates of a leaf."""
        return leaf[self.rows]

    def outward(self, coordinates: Any) -> Any:
        """Return the leaf, zero in all other directions; traceable."""
        return jnp.zeros(self.leaf, coordinates.dtype).at[self.rows].set(coordinates)


@dataclass(frozen=True)
class Entries:
    """Some entries of a leaf, by their flat indices."""

    entries: Int[np.ndarray, " e"]
    leaf: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the coordinates."""
        return (len(self.entries),)

    def inward(self, leaf: np.ndarray) -> np.ndarray:
        """Return the coordinates of a leaf."""
        return leaf.ravel()[self.entries]

    def outward(self, coordinates: Any) -> Any:
        """Return the leaf, zero in all other entries; traceable."""
        flat = jnp.zeros(math.prod(self.leaf), coordinates.dtype)
        return flat.at[self.entries].set(coordinates).reshape(self.leaf)


@dataclass(frozen=True)
class Span:
    """The span of a kernel's inputs: W = U C.

    Attributes:
      basis: U, with orthonormal columns.
      axes: the leaf's axes, first the input axes, then the others.
      leaf: the leaf's shape.
      inputs: the number of input axes.
    """

    basis: Float[np.ndarray, "a r"]
    axes: tuple[int, ...]
    leaf: tuple[int, ...]
    inputs: int

    @property
    def left(self) -> tuple[int, ...]:
        """The sizes of the other axes."""
        return tuple(self.leaf[i] for i in self.axes[self.inputs :])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the coordinates."""
        return (self.basis.shape[1], math.prod(self.left))

    def inward(self, leaf: np.ndarray) -> np.ndarray:
        """Return the coordinates of a leaf."""
        return self.basis.T @ leaf.transpose(self.axes).reshape(len(self.basis), -1)

    def outward(self, coordinates: Any) -> Any:
        """Return the leaf, zero in all other directions; traceable."""
        sizes = [self.leaf[i] for i in self.axes]
        whole = (jnp.asarray(self.basis, coordinates.dtype) @ coordinates).reshape(sizes)
        return jnp.transpose(whole, np.argsort(self.axes).tolist())
