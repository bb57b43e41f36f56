"""Rows C_i^T dF_i/dtheta of the Jacobian, from one example at a time or from the whole batch.

Symbols: w_i B_i = C_i C_i^T, a root of example i's weighted output Hessian, so that with A the rows
C_i^T dF_i/dtheta of all examples, [N k, p], H_o = A^T A. Rows go example by example; the order of
the columns of blocks is not that of theta, and does not matter to singular values.

The parameters stay on their devices, sharded or not: only blocks of A come to the host.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rankmon._util.distributed import gathered
from rankmon._util.expected_time import Pace
from rankmon.hessian.batching import RowFunction, Units, is_rounding
from rankmon.linalg.gram import Block, KhatriRao
from rankmon.network.dense_kernels import DenseKernel, DenseKernels
from rankmon.problem.flat import FlatProblem
from rankmon.problem.output_hessians import Roots
from rankmon.problem.precision import abstract_array

_T = TypeVar("_T")
_Leaves = Sequence[Any]


@dataclass(frozen=True)
class _Unweighted(Roots):
    """Roots C_i = I of k outputs, for the rows dF_i/dtheta themselves."""

    k: int
    signs = None

    @property
    def count(self) -> int:
        return self.k

    def products(self, V: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        return V

    def columns(self, example: np.ndarray, column: np.ndarray) -> np.ndarray:
        return (column[..., None] == np.arange(self.k)).astype(float)


@dataclass(frozen=True)
class _Group:
    """Leaves that are differentiated together: `size` columns, `width` of them at a time."""

    leaves: tuple[int, ...]
    size: int
    width: int


class JacobianRows:
    """Rows of the Jacobian, with each example as a unit (`per_example`) or the whole batch as one.

    The arguments of the methods are those of `JacobianOperator`.

    Attributes:
      units: the units.
    """

    def __init__(self, flat: FlatProblem, *, per_example: bool, room: int) -> None:
        self._flat, self._room = flat, room
        self._per_example = per_example
        self.units = Units(flat, per_example=per_example, room=room // 2)

    @cached_property
    def _kernels(self) -> DenseKernels | None:
        """The kernels that are applied to one vector per example; None for the whole batch."""
        return DenseKernels(self._flat, self.units.shape) if self._per_example else None

    def columns(self, leaves: _Leaves, roots: Roots, pace: Pace) -> Iterator[Block]:
        """Yield blocks of columns, each with all rows."""
        yield from self._dense_blocks(leaves, roots, pace)
        m = self._flat.positions * roots.count
        groups = self._groups(max(1, self._room // (2 * 8 * m)))
        blocks = [(group, start) for group in groups for start in range(0, group.size, group.width)]
        for group, start in pace.over("the Jacobian", blocks):
            first = min(start, group.size - group.width)
            block = np.empty((m, group.width))
            differentiated = self._differentiated(group)
            for piece, _, (part,) in self.units.pieces(
                group, differentiated, leaves, roots, first, pace
            ):
                block[piece.place] = part
            yield block[:, start - first :]

    def rows(self, leaves: _Leaves, roots: Roots, pace: Pace) -> Iterator[Float[np.ndarray, "p s"]]:
        """Yield blocks of rows, transposed, each with all columns in the order of theta."""
        group, function = self._all
        pieces = self.units.pieces(group, function, leaves, roots, 0, pace, self._most)
        for piece, _, (part,) in pieces:
            yield part[len(part) - piece.fresh :].T

    def matrix(self, leaves: _Leaves) -> Float[np.ndarray, "nk p"]:
        """Return the rows of all outputs, unweighted."""
        flat, done = self._flat, 0
        J = np.empty((flat.positions * flat.k, flat.p))
        for block in self.rows(leaves, _Unweighted(flat.k), flat.pace):
            J[done : done + block.shape[1]] = block.T
            done += block.shape[1]
        return J

    def compile(self) -> None:
        """Compile `matrix` for parameters on the host."""
        flat = self._flat
        leaves = [
            abstract_array(spec.shape, flat.precision.traced_dtype(spec.dtype))
            for spec in flat.specs
        ]
        with flat.precision.scope():
            self.units.program(*self._all, leaves, self.units.positions * flat.k, self._most)

    @property
    def _all(self) -> tuple[_Group, RowFunction]:
        """All differentiated leaves together, and their function."""
        group = _Group(self._moving, self._flat.p, self._flat.p)
        return group, self._differentiated(group)

    @property
    def _most(self) -> int:
        """The number of rows with all columns that take a quarter of the memory."""
        return self._room // (4 * 8 * self._flat.p)

    def _dense_blocks(self, leaves: _Leaves, roots: Roots, pace: Pace) -> Iterator[KhatriRao]:
        """Yield one block for each kernel that is applied to one vector per example.

        Kernels that fit in the memory together share a pass over the batch.
        """
        m = self._flat.positions * roots.count

        def need(kernel: DenseKernel) -> int:
            return 8 * (self.units.count * math.prod(kernel.summed) + m * math.prod(kernel.left))

        found = self._kernels.kernels if self._kernels else ()
        for kernels in _batched(found, need, self._room // 4):
            inputs = [np.empty((self.units.count, math.prod(kernel.summed))) for kernel in kernels]
            signals = [np.empty((m, math.prod(kernel.left))) for kernel in kernels]
            for piece, h, g in self.units.pieces(
                kernels, self._signals(kernels), leaves, roots, 0, pace
            ):
                for whole, part in zip(inputs, h, strict=True):
                    whole[piece.units] = part
                for whole, part in zip(signals, g, strict=True):
                    whole[piece.place] = part
            for left, right in zip(inputs, signals, strict=True):
                yield KhatriRao(left, right.reshape(self.units.count, m // self.units.count, -1))

    @property
    def _moving(self) -> tuple[int, ...]:
        """The indices of the differentiated leaves."""
        return tuple(i for i, spec in enumerate(self._flat.specs) if spec.differentiated)

    @property
    def _others(self) -> tuple[int, ...]:
        """The differentiated leaves except kernels that are applied to one vector per example."""
        dense = {kernel.leaf for kernel in self._kernels.kernels} if self._kernels else set()
        return tuple(i for i in self._moving if i not in dense)

    def _groups(self, width: int) -> list[_Group]:
        """Group neighboring leaves up to this many columns; a larger leaf is computed in parts."""
        sizes = {i: self._flat.specs[i].size for i in self._others if self._flat.specs[i].size}
        batches = _batched(tuple(sizes), lambda i: sizes[i], width)
        totals = [(leaves, sum(sizes[i] for i in leaves)) for leaves in batches]
        return [_Group(leaves, size, min(size, width)) for leaves, size in totals]

    def _differentiated(self, group: _Group) -> RowFunction:
        """Return the function that computes `group.width` columns, beginning with a given one."""
        flat = self._flat

        def blocks(leaves: Any, inputs: Any, cotangents: Any, first: Any) -> Any:
            leaves = flat.lifted(leaves)

            def unit(x: Any, u: Any) -> Any:
                def outputs(moving: Any) -> Any:
                    return flat.apply_leaves(_replaced(leaves, group.leaves, moving), x)

                z, pull_back = jax.vjp(outputs, [leaves[i] for i in group.leaves])
                (gradients,) = jax.vmap(pull_back)(u.astype(z.dtype))
                columns = [g.reshape(len(u), -1).astype(flat.dtype) for g in gradients]
                whole = jnp.concatenate(columns, axis=1)
                return jax.lax.dynamic_slice_in_dim(whole, first, group.width, axis=1)

            return [], [self.units.each(unit)(inputs, cotangents)]

        return blocks

    def _signals(self, kernels: Sequence[DenseKernel]) -> RowFunction:
        """Return the function to each kernel's input and the gradients at its product."""
        assert self._kernels is not None
        traced = self._kernels.traced

        def signals(leaves: Any, inputs: Any, cotangents: Any, first: Any) -> Any:
            leaves = self._flat.lifted(leaves)
            zeros = {kernel.leaf: kernel.zero for kernel in kernels}

            def unit(x: Any, u: Any) -> Any:
                z, pull_back, received = jax.vjp(
                    lambda shifts: traced(leaves, x, shifts), zeros, has_aux=True
                )
                (gradients,) = jax.vmap(pull_back)(u.astype(z.dtype))
                rows = [gradients[kernel.leaf].reshape(len(u), -1) for kernel in kernels]
                return [received[kernel.leaf] for kernel in kernels], rows

            return self.units.each(unit)(inputs, cotangents)

        return signals

    def agree(self, leaves: _Leaves) -> bool:
        """Return whether the gradients of the units add up to the gradient of the whole batch.

        They do not if the examples interact. Any combination of the outputs shows it, so one random
        combination is differentiated instead of all rows.
        """
        u = np.random.default_rng(0).standard_normal((self._flat.positions, self._flat.k))
        with self._flat.precision.scope():
            found = self._difference(list(leaves), self._flat.inputs, self.units.inputs, u)
            difference, scale = (float(a) for a in gathered(found))
        if not np.isfinite(difference):
            return True  # overflow is reported elsewhere and does not show that examples interact
        return is_rounding(difference, scale, self._flat)

    @cached_property
    def _difference(self) -> Callable[..., Any]:
        """The program for the largest difference of the two gradients and for their size."""
        flat, kernels = self._flat, self._kernels
        assert kernels is not None

        def difference(leaves: Any, batch: Any, inputs: Any, u: Any) -> Any:
            leaves = self._flat.lifted(leaves)

            def together(moving: Any) -> Any:
                z = flat.apply_leaves(_replaced(leaves, self._moving, moving), batch)
                return jnp.vdot(u.astype(z.dtype), z)

            def by_unit(moving: Any) -> Any:
                def unit(x: Any) -> Any:
                    return flat.apply_leaves(_replaced(leaves, self._others, moving), x)

                z = self.units.each(unit)(inputs).reshape(u.shape)
                return jnp.vdot(u.astype(z.dtype), z)

            whole = dict(
                zip(
                    self._moving,
                    jax.grad(together)([leaves[i] for i in self._moving]),
                    strict=True,
                )
            )
            sums = dict(
                zip(self._others, jax.grad(by_unit)([leaves[i] for i in self._others]), strict=True)
            )
            rows = u.reshape(self.units.count, 1, self.units.positions, flat.k)
            received, signals = self._signals(kernels.kernels)(leaves, inputs, rows, 0)
            for kernel, h, g in zip(kernels.kernels, received, signals, strict=True):
                sums[kernel.leaf] = kernel.gradient(h, g[:, 0])
            off = [jnp.max(jnp.abs(whole[i] - sums[i]), initial=0.0) for i in self._moving]
            sizes = [jnp.max(jnp.abs(whole[i]), initial=0.0) for i in self._moving]
            return jnp.max(jnp.stack(off)), jnp.max(jnp.stack(sizes))

        return jax.jit(difference)


def _batched(
    items: Sequence[_T], size: Callable[[_T], int], limit: int
) -> Iterator[tuple[_T, ...]]:
    """Yield runs of neighbors of at most this size; a larger item is a run of its own."""
    batch: list[_T] = []
    for item in items:
        if batch and sum(map(size, batch)) + size(item) > limit:
            yield tuple(batch)
            batch = []
        batch.append(item)
    if batch:
        yield tuple(batch)


def _replaced(leaves: Sequence[Any], which: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """Return the leaves with the values at these indices replaced."""
    new = list(leaves)
    for i, value in zip(which, values, strict=True):
        new[i] = value
    return new
