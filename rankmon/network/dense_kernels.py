"""Find kernels that are applied to exactly one vector per example: their gradient has rank one.

If a kernel W is used only once, in a product z = W h with a single vector h per example, the rows
of dF/dW are the products g (x) h with g = dF/dz. Both factors are computed without differentiating
with respect to W: the network's jaxpr is evaluated, h is recorded, and a shift is added to z, whose
derivative is g.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Array, Float

from rankmon._util.jaxpr import (
    CALLS,
    COPIES,
    DOT,
    TRANSPOSE,
    dot_axes,
    evaluated,
    interpreted,
    nested,
    permutation,
)
from rankmon._util.optional_readers import optionally
from rankmon.network.dataflow import is_float
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array


@dataclass(frozen=True)
class DenseKernel:
    """One kernel that is applied to one vector per example.

    Attributes:
      leaf: the kernel's index among the leaves.
      axes: the leaf's axes, first those that are summed over, then the others.
      summed: the sizes of the axes that are summed over.
      left: the sizes of the remaining axes.
      product: the shape of z in the network's program.
      dtype: the dtype of z.
    """

    leaf: int
    axes: tuple[int, ...]
    summed: tuple[int, ...]
    left: tuple[int, ...]
    product: tuple[int, ...]
    dtype: np.dtype

    @property
    def zero(self) -> Float[Array, "..."]:
        """The zero shift; traceable."""
        return jnp.zeros(self.product, self.dtype)

    def gradient(self, h: Float[Array, "n a"], g: Float[Array, "n b"]) -> Float[Array, "..."]:
        """Return sum_i h_i (x) g_i in the leaf's own layout; traceable."""
        outer = jnp.tensordot(h, g, axes=(0, 0)).reshape(*self.summed, *self.left)
        return jnp.transpose(outer, np.argsort(self.axes).tolist())


class DenseKernels:
    """The kernels of one network that are applied to one vector per example.

    They are found in the program that evaluates the network on a single example.

    Args:
      flat: the problem.
      example: shapes and dtypes of the inputs of one example, with a leading axis of one.
    """

    def __init__(self, flat: FlatProblem, example: Any) -> None:
        shapes = [
            abstract_array(spec.shape, flat.precision.traced_dtype(spec.dtype))
            for spec in flat.specs
        ]
        self._flat = flat
        with flat.precision.scope():
            self._program = jax.make_jaxpr(flat.apply_leaves)(shapes, example)
        self.kernels: tuple[DenseKernel, ...] = optionally(
            flat.problem, "dense kernels", lambda: self._found(shapes, example), otherwise=()
        )

    def _found(self, shapes: Sequence[Any], example: Any) -> tuple[DenseKernel, ...]:
        """Find the kernels in the program, and check that `traced` can evaluate it."""
        uses = _Uses()
        views = [
            _View(i, tuple(range(len(spec.shape)))) if spec.differentiated else None
            for i, spec in enumerate(self._flat.specs)
        ]
        others = [None] * (len(self._program.in_avals) - len(views))
        # A leaf that is a result of the program is used there too.
        uses.note_other(uses.through(self._program, [*views, *others]))
        kernels = uses.dense_alone()
        with self._flat.precision.scope():  # to raise errors of `traced` now
            shifts = {kernel.leaf: kernel.zero for kernel in kernels}
            jax.eval_shape(lambda leaves, x: self.traced(leaves, x, shifts), shapes, example)
        return kernels

    def traced(
        self, leaves: Sequence[Any], example: Any, shifts: Mapping[int, Float[Array, "..."]]
    ) -> tuple[Float[Array, "positions k"], dict[int, Float[Array, " _a"]]]:
        """Return the outputs with shifts added to the kernels' products, and the kernels' inputs.

        Args:
          leaves: all parameter leaves, lifted.
          example: the inputs of one example, with a leading axis of one.
          shifts: the shift for each kernel, by the index of its leaf; see `DenseKernel.zero`.
        """
        walk = _Walk(shifts)
        parameters = [(leaf, i) for i, leaf in enumerate(leaves)]
        inputs = [(value, None) for value in jax.tree.leaves(example)]
        ((outputs, _),) = walk.through(self._program, [*parameters, *inputs])
        return outputs, walk.vectors


@dataclass(frozen=True)
class _View:
    """A leaf with its axes permuted."""

    leaf: int
    axes: tuple[int, ...]


class _Uses:
    """The uses of each leaf: products with one vector, and any other use."""

    def __init__(self) -> None:
        self._products: list[DenseKernel] = []
        self._otherwise: set[int] = set()

    def dense_alone(self) -> tuple[DenseKernel, ...]:
        """Return the leaves whose only use is a single product with one vector."""
        leaves = [kernel.leaf for kernel in self._products]
        return tuple(
            kernel
            for kernel in self._products
            if leaves.count(kernel.leaf) == 1 and kernel.leaf not in self._otherwise
        )

    def through(
        self, program: ClosedJaxpr, arguments: Sequence[_View | None]
    ) -> list[_View | None]:
        """Record the uses in a program; return for each result the leaf that it is, if any."""
        return interpreted(program, arguments, constant=lambda *_: None, operation=self._operation)

    def note_other(self, views: Sequence[_View | None]) -> None:
        """Record that these leaves are used otherwise than in a product with one vector."""
        self._otherwise |= {view.leaf for view in views if view is not None}

    def _operation(
        self, _: Jaxpr, eqn: JaxprEqn, views: list[_View | None]
    ) -> Sequence[_View | None]:
        name = eqn.primitive.name
        if name in CALLS:
            return self.through(nested(eqn), views)
        if views and views[0] is not None:  # copies and transposes are still the leaf
            if name in COPIES and is_float(eqn.outvars[0].aval):
                return views
            if name == TRANSPOSE:
                axes = tuple(views[0].axes[i] for i in permutation(eqn))
                return [_View(views[0].leaf, axes)]
        kernel = _dense_kernel(eqn, views) if name == DOT else None
        if kernel is None:
            self.note_other(views)
        else:
            self._products.append(kernel)
        return [None] * len(eqn.outvars)


def _dense_kernel(eqn: JaxprEqn, views: Sequence[_View | None]) -> DenseKernel | None:
    """Return the kernel of this product if the other operand is one vector, else None."""
    contracted, batch = dot_axes(eqn)
    at = 0 if views[0] is not None else 1
    view = views[at]
    if view is None or views[1 - at] is not None or any(batch):
        return None
    kernel, vector = _aval(eqn.invars[at]).shape, _aval(eqn.invars[1 - at]).shape
    product = _aval(eqn.outvars[0])
    # The operand has further axes: several vectors, as for each position of a sequence.
    if math.prod(n for i, n in enumerate(vector) if i not in contracted[1 - at]) != 1:
        return None
    summed = list(contracted[at])
    left = [i for i in range(len(kernel)) if i not in summed]
    return DenseKernel(
        leaf=view.leaf,
        axes=tuple(view.axes[i] for i in [*summed, *left]),
        summed=tuple(kernel[i] for i in summed),
        left=tuple(kernel[i] for i in left),
        product=tuple(product.shape),
        dtype=product.dtype,
    )


def _aval(atom: Any) -> Any:
    return atom.aval


_Seen = tuple[Any, int | None]  # a value, and the leaf that it is (perhaps transposed)


class _Walk:
    """An evaluation of the network that adds shifts to products and records the kernels' inputs."""

    def __init__(self, shifts: Mapping[int, Float[Array, "..."]]) -> None:
        self.vectors: dict[int, Float[Array, " _a"]] = {}
        self._shifts = shifts

    def through(self, program: ClosedJaxpr, arguments: Sequence[_Seen]) -> list[_Seen]:
        """Evaluate the program; return its results, each with the leaf that it is, if any."""
        return interpreted(
            program, arguments, constant=lambda _, value: (value, None), operation=self._operation
        )

    def _operation(self, jaxpr: Jaxpr, eqn: JaxprEqn, seen: list[_Seen]) -> list[_Seen]:
        name = eqn.primitive.name
        if name in CALLS:
            return self.through(nested(eqn), seen)
        operands, which = [value for value, _ in seen], [leaf for _, leaf in seen]
        results = evaluated(jaxpr, eqn, operands)
        if name == TRANSPOSE or name in COPIES:
            return [(results[0], which[0])]
        leaf = next((i for i in which if i in self._shifts), None)
        if name != DOT or leaf is None:
            return [(result, None) for result in results]
        at = 1 - which.index(leaf)
        self.vectors[leaf] = _summed_first(operands[at], dot_axes(eqn)[0][at])
        return [(results[0] + self._shifts[leaf], None)]


def _summed_first(vector: Any, summed: Sequence[int]) -> Float[Array, " a"]:
    kept = [i for i in range(vector.ndim) if i not in summed]
    return jnp.transpose(vector, [*summed, *kept]).reshape(-1)
