"""Rows of R^p on a mesh: each leaf of each row is sharded like the parameter.

A block is a tuple of arrays [width, *leaf shape]; the rows of a block that are not used are zero,
so that every program is compiled for one shape. Sums over p run on the devices, and the compiler
adds up those of the shards: only matrices of a number of rows by a number of rows come to the host.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rankmon.linalg.rows import RowSpace
from rankmon.problem.flat import FlatProblem
from rankmon.problem.placement import Placement

Leaves = tuple[Array, ...]


@dataclass(frozen=True)
class MeshRows:
    """Some rows, in blocks.

    Attributes:
      blocks: the blocks.
      counts: the rows of each block that are used, the first ones.
    """

    blocks: tuple[Leaves, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def spans(self) -> list[slice]:
        """The places of each block's rows among all rows."""
        ends = list(itertools.accumulate(self.counts))
        return [slice(end - m, end) for end, m in zip(ends, self.counts, strict=True)]


class MeshBasis:
    """Rows that are appended block by block, none of which is copied."""

    def __init__(self) -> None:
        self._rows = MeshRows((), ())

    def append(self, block: MeshRows) -> None:
        """Append a block of rows."""
        rows = self._rows
        self._rows = MeshRows(rows.blocks + block.blocks, rows.counts + block.counts)

    def between(self, start: int, stop: int) -> MeshRows:
        """Return consecutive rows; both ends are ends of blocks."""
        rows = self._rows
        inside = [i for i, s in enumerate(rows.spans) if start <= s.start and s.stop <= stop]
        found = MeshRows(
            tuple(rows.blocks[i] for i in inside), tuple(rows.counts[i] for i in inside)
        )
        assert len(found) == stop - start
        return found


class MeshSpace(RowSpace):
    """R^p with rows on a mesh.

    Args:
      flat: the problem.
      placement: the shardings.
      width: the rows of a block.
      seed: the seed of the random rows, which do not depend on the devices.
    """

    def __init__(
        self, flat: FlatProblem, placement: Placement, *, width: int, seed: int = 0
    ) -> None:
        self.p, self.width = flat.p, width
        self._flat, self._placement = flat, placement
        self._programs = _Programs.of(flat, placement, width)
        self._seed, self._drawn = seed, 0

    def drawn(self, count: int) -> MeshRows:
        """Return new Gaussian rows, at most `width`."""
        self._drawn += 1
        with self._placement.scope(self._flat.precision):
            block = self._programs.drawn(self._seed, self._drawn)
        rows = MeshRows((block,), (self.width,))
        return rows if count == self.width else self.combined(np.eye(count, self.width), rows)

    def units(self, start: int, stop: int) -> MeshRows:
        """Return at most `width` rows of the identity."""
        with self._placement.scope(self._flat.precision):
            return MeshRows((self._programs.units(start, stop - start),), (stop - start,))

    def copied(self, rows: Any) -> MeshRows:
        """Return the rows themselves, which no operation overwrites."""
        return rows

    def gram(self, a: MeshRows, b: MeshRows) -> Float[np.ndarray, "m n"]:
        """Return a b^T."""
        found = np.empty((len(a), len(b)))
        with self._placement.scope(self._flat.precision):
            # Where devices can, all are dispatched before the first one is waited for.
            pieces = [[self._gram(x, y) for y in b.blocks] for x in a.blocks]
            for row, several in zip(a.spans, pieces, strict=True):
                for column, one in zip(b.spans, several, strict=True):
                    height, width = row.stop - row.start, column.stop - column.start
                    found[row, column] = np.asarray(one)[:height, :width]
        return found

    def _gram(self, x: Leaves, y: Leaves) -> Array:
        return self._placement.settled(self._programs.gram(x, y))

    def squares(self, a: MeshRows) -> Float[np.ndarray, "m m"]:
        """Return a a^T."""
        return self.gram(a, a)

    def inner(self, a: MeshRows, b: MeshRows) -> Float[np.ndarray, " m"]:
        """Return the products of corresponding rows; both have the same blocks."""
        with self._placement.scope(self._flat.precision):
            pieces = [
                np.diagonal(self._gram(x, y))[:count]
                for x, y, count in zip(a.blocks, b.blocks, a.counts, strict=True)
            ]
        return np.concatenate([np.zeros(0), *pieces])

    def norms(self, a: MeshRows) -> Float[np.ndarray, " m"]:
        """Return the norm of each row."""
        return np.sqrt(self.inner(a, a))

    def size(self, a: MeshRows) -> float:
        """Return the Frobenius norm of all rows."""
        return float(np.linalg.norm(self.norms(a)))

    def combined(self, C: Float[np.ndarray, "n m"], a: MeshRows) -> MeshRows:
        """Return C a."""
        if not len(C) or not len(a):
            assert not len(C)
            return MeshRows((), ())
        starts = range(0, len(C), self.width)
        blocks = tuple(self._summed(None, C[i : i + self.width], a) for i in starts)
        return MeshRows(blocks, tuple(min(self.width, len(C) - i) for i in starts))

    def less(self, a: MeshRows, C: Float[np.ndarray, "m n"], b: MeshRows) -> MeshRows:
        """Return a - C b."""
        spans = zip(a.blocks, a.spans, strict=True)
        return MeshRows(tuple(self._summed(x, -C[rows], b) for x, rows in spans), a.counts)

    def _summed(self, x: Leaves | None, C: Float[np.ndarray, "m n"], a: MeshRows) -> Leaves:
        """Return x + C a as one block."""
        with self._placement.scope(self._flat.precision):
            for block, columns in zip(a.blocks, a.spans, strict=True):
                square = np.zeros((self.width, self.width), self._flat.dtype)
                part = C[:, columns]
                square[: part.shape[0], : part.shape[1]] = part
                programs = self._programs
                x = (
                    programs.product(square, block)
                    if x is None
                    else programs.plus(x, square, block)
                )
        assert x is not None
        return x

    def divided(self, a: MeshRows, size: float) -> MeshRows:
        """Return the rows divided by a number."""
        return self.combined(np.eye(len(a)) / size, a)

    def joined(self, a: MeshRows, b: MeshRows) -> MeshRows:
        """Return the rows of both."""
        return MeshRows(a.blocks + b.blocks, a.counts + b.counts)

    def basis(self, most: int) -> MeshBasis:
        """Return a basis without rows."""
        return MeshBasis()

    def on_host(self, a: MeshRows) -> Float[np.ndarray, "m p"]:
        """Return rows of a small space as an array in float64."""
        rows = [
            np.concatenate([np.asarray(x, np.float64)[:m].reshape(m, -1) for x in block], axis=1)
            for block, m in zip(a.blocks, a.counts, strict=True)
        ]
        return np.concatenate(rows)

    def within(self, a: MeshRows, shares: Float[np.ndarray, "m leaves"]) -> MeshRows:
        """Return one block of rows with each leaf of a row multiplied by a number."""
        (block,) = a.blocks
        padded = np.zeros((self.width, shares.shape[1]), self._flat.dtype)
        padded[: len(shares)] = shares
        with self._placement.scope(self._flat.precision):
            return MeshRows((self._programs.within(block, padded),), a.counts)


@dataclass(frozen=True)
class _Programs:
    """The compiled operations on blocks of one width."""

    flat: FlatProblem
    placement: Placement
    width: int

    @classmethod
    def of(cls, flat: FlatProblem, placement: Placement, width: int) -> "_Programs":
        """Return the operations, compiled once for each placement and width."""
        key = ("mesh rows", placement, width)
        if key not in flat.memo:
            flat.memo[key] = cls(flat, placement, width)
        return flat.memo[key]

    @property
    def _rows(self) -> tuple[NamedSharding, ...]:
        return row_shardings(self.flat, self.placement)

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [spec.shape for spec in self.flat.specs if spec.differentiated]

    @cached_property
    def gram(self) -> Callable[..., Any]:
        """The program for a b^T, which all devices then have."""
        whole = NamedSharding(self.placement.mesh, PartitionSpec())
        return jax.jit(_gram, out_shardings=whole)

    @cached_property
    def product(self) -> Callable[..., Any]:
        """The program for C b."""
        return jax.jit(_product, out_shardings=self._rows)

    @cached_property
    def plus(self) -> Callable[..., Any]:
        """The program for a + C b."""

        def plus(a: Leaves, C: Any, b: Leaves) -> Leaves:
            return tuple(x + y for x, y in zip(a, _product(C, b), strict=True))

        return jax.jit(plus, out_shardings=self._rows)

    @cached_property
    def within(self) -> Callable[..., Any]:
        """The program that multiplies each leaf of each row by a number."""

        def within(a: Leaves, shares: Any) -> Leaves:
            columns = enumerate(a)
            return tuple(x * shares[:, i].reshape(-1, *[1] * (x.ndim - 1)) for i, x in columns)

        return jax.jit(within, out_shardings=self._rows)

    @cached_property
    def drawn(self) -> Callable[..., Any]:
        """The program for Gaussian rows: numbers by counters, the same on any devices."""

        @partial(jax.jit, out_shardings=self._rows)
        def drawn(seed: Any, draw: Any) -> Leaves:
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), draw)
            shapes = enumerate(self._shapes)
            return tuple(
                jax.random.normal(jax.random.fold_in(key, i), (self.width, *shape), self.flat.dtype)
                for i, shape in shapes
            )

        def partitioned(seed: int, draw: int) -> Leaves:
            with jax.threefry_partitionable(True):  # else each device would draw everything
                return drawn(np.uint32(seed), np.uint32(draw))

        return partitioned

    @cached_property
    def units(self) -> Callable[..., Any]:
        """The program for rows of the identity."""
        starts = np.cumsum([0, *(int(np.prod(shape)) for shape in self._shapes)]).tolist()

        @partial(jax.jit, out_shardings=self._rows)
        def units(start: Any, count: Any) -> Leaves:
            row = jnp.arange(self.width)
            place = jnp.where(row < count, start + row, -1)
            found = []
            for first, stop, shape in zip(starts, starts[1:], self._shapes, strict=False):
                own = jnp.arange(first, stop).reshape(shape)
                at = place.reshape(-1, *[1] * len(shape))
                found.append((own == at).astype(self.flat.dtype))
            return tuple(found)

        return units


def _gram(a: Leaves, b: Leaves) -> Float[Array, "m n"]:
    return sum(
        (_contracted(x, y, range(1, x.ndim), range(1, x.ndim)) for x, y in zip(a, b, strict=True)),
        jnp.zeros((), a[0].dtype),
    )


def _product(C: Any, b: Leaves) -> Leaves:
    return tuple(_contracted(C, y, [1], [0]) for y in b)


def _contracted(x: Any, y: Any, over: Sequence[int], with_: Sequence[int]) -> Any:
    return jnp.tensordot(x, y, (list(over), list(with_)), precision=jax.lax.Precision.HIGHEST)


def row_shardings(flat: FlatProblem, placement: Placement) -> tuple[NamedSharding, ...]:
    """Return the shardings of a block's leaves: those of the parameters, with all rows together."""
    return tuple(
        NamedSharding(placement.mesh, PartitionSpec(None, *sharding.spec))
        for sharding in placement.moving(flat)
    )
