"""Find the directions of each parameter on which the outputs for the probe batch can depend.

An operation whose other operand comes from data alone fixes them for all parameters: the outputs
depend on a kernel W that is applied to inputs x_i only in span(x_i) along its input axis, on a
table only in the rows that are looked up, on a masked kernel only in its unmasked entries, and not
at all on a parameter that is not used.

Each leaf is followed through the program as an array of its own indices, to which every operation
that only moves entries is applied. An entry that any other operation uses is kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Float, Int

from rankmon._util.jaxpr import (
    CALLS,
    CONVOLUTION,
    COPIES,
    DOT,
    MOVES,
    SCALINGS,
    convolution_axes,
    convolution_groups,
    dot_axes,
    evaluated,
    interpreted,
    nested,
)
from rankmon.network.dataflow import is_float
from rankmon.problem.flat import FlatProblem

# Entries of the patches of a convolution's inputs; more are not worth a basis.
_MOST_ENTRIES = 2**24


@dataclass(frozen=True)
class Dependence:
    """The directions of one leaf on which the outputs can depend.

    Attributes:
      entries: the flat indices of the entries that are used, ascending.
      kernel: the use of the leaf as a kernel of data; None if it is used otherwise.
    """

    entries: Int[np.ndarray, " e"]
    kernel: "KernelOfData | None" = None


@dataclass(frozen=True)
class KernelOfData:
    """A leaf that is only used as one kernel, applied to data.

    Attributes:
      axes: the leaf's axes, first the input axes, then the others.
      summed: the number of input axes.
      inputs: the rows x_i that the kernel is applied to.
    """

    axes: tuple[int, ...]
    summed: int
    inputs: Float[np.ndarray, "rows a"]


def dependences(flat: FlatProblem) -> list[Dependence | None]:
    """Return the directions of each differentiated leaf; None for a leaf held fixed."""
    walk = _Walk([spec.shape for spec in flat.specs])
    leaves = [
        _View(i, np.arange(spec.size).reshape(spec.shape)) if spec.differentiated else None
        for i, spec in enumerate(flat.specs)
    ]
    data = [_Known(partial(_same, x)) for x in jax.tree.leaves(flat.inputs)]
    # Operations may fill indices up with NaN, which is cast to an integer.
    with flat.precision.scope(), np.errstate(invalid="ignore"):
        walk.note_all(walk.through(flat.program, [*leaves, *data]))
        return [
            walk.dependence(i) if spec.differentiated else None for i, spec in enumerate(flat.specs)
        ]


@dataclass
class _Known:
    """A value that comes from data alone; it is computed only if a kernel is applied to it."""

    compute: Callable[[], Any]
    _value: Any = None

    @property
    def value(self) -> Any:
        if self._value is None:
            self._value = self.compute()
        return self._value


@dataclass(frozen=True)
class _View:
    """Entries of a leaf.

    Attributes:
      leaf: the leaf.
      indices: the flat index of each entry; negative if it is zero whatever the leaf is.
    """

    leaf: int
    indices: Int[np.ndarray, "..."]


_Value = _Known | _View | None  # None: depends on parameters


@dataclass
class _Uses:
    """The uses of one leaf.

    Attributes:
      shape: the leaf's shape.
      used: for each entry whether it is used.
      kernels: the uses as a kernel of data.
      otherwise: whether there is any other use.
    """

    shape: tuple[int, ...]
    used: np.ndarray
    kernels: list[KernelOfData] = field(default_factory=list)
    otherwise: bool = False

    @property
    def kernel(self) -> KernelOfData | None:
        """The kernel that all uses have in common."""
        ways = {(kernel.axes, kernel.summed) for kernel in self.kernels}
        if self.otherwise or len(ways) != 1:
            return None
        inputs = np.concatenate([kernel.inputs for kernel in self.kernels])
        return KernelOfData(*ways.pop(), inputs)


class _Walk:
    """A walk through a network's program that notes the uses of each leaf."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._uses = [_Uses(shape, np.zeros(math.prod(shape), bool)) for shape in shapes]

    def dependence(self, leaf: int) -> Dependence:
        """Return the directions of a leaf, from all its uses."""
        uses = self._uses[leaf]
        return Dependence(np.flatnonzero(uses.used), uses.kernel)

    def through(self, program: ClosedJaxpr, arguments: Sequence[_Value]) -> list[_Value]:
        """Note the uses in a program; return its results."""
        return interpreted(
            program,
            arguments,
            constant=lambda _, value: _Known(lambda: value),
            operation=self._operation,
        )

    def note_all(self, values: Sequence[_Value]) -> None:
        """Note that all entries of these views are used, in an unknown way."""
        for value in values:
            if isinstance(value, _View):
                uses = self._uses[value.leaf]
                uses.otherwise = True
                uses.used[value.indices[value.indices >= 0]] = True

    def _operation(self, jaxpr: Jaxpr, eqn: JaxprEqn, values: list[_Value]) -> Sequence[_Value]:
        name = eqn.primitive.name
        views = [value for value in values if isinstance(value, _View)]
        if name in CALLS:
            return self.through(nested(eqn), values)
        if not views:
            if any(value is None for value in values):
                return [None] * len(eqn.outvars)
            return self._known(jaxpr, eqn, values)
        others = [value for value in values if not isinstance(value, _View)]
        if len(views) == 1 and all(isinstance(value, _Known) for value in others):
            found = self._linear(jaxpr, eqn, values)
            if found is not None:
                return found
        self.note_all(values)
        return [None] * len(eqn.outvars)

    def _known(self, jaxpr: Jaxpr, eqn: JaxprEqn, values: Sequence[Any]) -> list[_Value]:
        """Return the results of an operation on data, which are computed together on request."""
        results = _Known(lambda: evaluated(jaxpr, eqn, [value.value for value in values]))
        return [_Known(partial(_item, results, i)) for i in range(len(eqn.outvars))]

    def _linear(
        self, jaxpr: Jaxpr, eqn: JaxprEqn, values: Sequence[Any]
    ) -> Sequence[_Value] | None:
        """Return the results of an operation that is linear in the leaf, else None."""
        name = eqn.primitive.name
        at = next(i for i, value in enumerate(values) if isinstance(value, _View))
        view = values[at]
        if name in COPIES:
            return [view] if is_float(_aval(eqn.outvars[0])) else None
        if name in MOVES and at == 0:
            return [_View(view.leaf, self._moved(jaxpr, eqn, values))]
        if name in SCALINGS and at == 0:
            return self._scaled(eqn, view, *values[1:])
        if name == "mul":
            return self._scaled(eqn, view, values[0])
        if name == DOT:
            return self._product(eqn, view, values[1 - at], at)
        if name == CONVOLUTION and at == 1:
            return self._convolution(jaxpr, eqn, view, values[0])
        return None

    def _moved(self, jaxpr: Jaxpr, eqn: JaxprEqn, values: Sequence[Any]) -> np.ndarray:
        # Indices from one on: zeros, with which an operation may fill up, are not entries.
        operands = [v.indices + 1 if isinstance(v, _View) else v.value for v in values]
        return np.maximum(np.asarray(evaluated(jaxpr, eqn, operands)[0]), 0) - 1

    def _scaled(self, eqn: JaxprEqn, view: _View, *factors: _Known) -> Sequence[_Value] | None:
        if view.indices.shape != tuple(_aval(eqn.outvars[0]).shape):
            return None
        factor = np.asarray(factors[0].value) if factors else np.ones(())
        if np.all(factor == factor.flat[0]) and factor.flat[0] != 0:
            return [view]  # the same directions
        # Products with different factors are no kernel: entries that do not vanish count as used.
        alive = np.broadcast_to(factor != 0, view.indices.shape)
        self.note_all([_View(view.leaf, np.where(alive, view.indices, -1))])
        return [None]

    def _product(
        self, eqn: JaxprEqn, view: _View, other: _Known, at: int
    ) -> Sequence[_Value] | None:
        contracted, batch = dot_axes(eqn)
        if any(batch):
            return None
        x = np.asarray(other.value, np.float64)
        if x.size > _MOST_ENTRIES:
            return None
        summed = contracted[1 - at]
        kept = [axis for axis in range(x.ndim) if axis not in summed]
        rows = x.transpose([*kept, *summed]).reshape(-1, math.prod(x.shape[i] for i in summed))
        self._apply(view, contracted[at], rows)
        return [None]

    def _convolution(
        self, jaxpr: Jaxpr, eqn: JaxprEqn, view: _View, images: _Known
    ) -> Sequence[_Value] | None:
        if convolution_groups(eqn) != (1, 1):
            return None
        out = convolution_axes(eqn).rhs_spec[0]
        summed = [axis for axis in range(view.indices.ndim) if axis != out]
        shape = [view.indices.shape[axis] for axis in summed]
        a = math.prod(shape)
        result = _aval(eqn.outvars[0]).shape
        channel = convolution_axes(eqn).out_spec[1]
        places = math.prod(n for axis, n in enumerate(result) if axis != channel)
        if places * a > _MOST_ENTRIES:
            return None
        # The convolution with the identity as its kernel gives the patches.
        identity = np.moveaxis(np.eye(a).reshape(*shape, a), -1, out)
        (patches,) = evaluated(jaxpr, eqn, [images.value, identity])
        self._apply(view, summed, np.moveaxis(np.asarray(patches), channel, -1).reshape(-1, a))
        return [None]

    def _apply(self, view: _View, summed: Sequence[int], rows: np.ndarray) -> None:
        """Note that a kernel is applied to these rows, its axes `summed` contracted."""
        kept = [axis for axis in range(view.indices.ndim) if axis not in summed]
        matrix = view.indices.transpose([*summed, *kept]).reshape(rows.shape[1], -1)
        uses = self._uses[view.leaf]
        used = matrix[np.any(rows != 0, axis=0)]
        uses.used[used[used >= 0]] = True
        axes = _axes_of(view.indices, uses.shape)
        if axes is None:
            uses.otherwise = True
        else:
            order = tuple(axes[i] for i in [*summed, *kept])
            uses.kernels.append(KernelOfData(order, len(summed), rows))


def _same(value: Any) -> Any:
    return value


def _item(results: _Known, i: int) -> Any:
    return results.value[i]


def _aval(atom: Any) -> Any:
    return atom.aval


def _steps(indices: np.ndarray) -> list[int]:
    """Return the distance of neighbors along each axis; 0 for axes of size one."""
    return [
        int(np.ravel(np.diff(indices, axis=i))[0]) if n > 1 else 0
        for i, n in enumerate(indices.shape)
    ]


def _axes_of(indices: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the permutation of the leaf's axes that gives these indices; None if there is none."""
    whole = np.arange(math.prod(shape)).reshape(shape)
    if indices.ndim != whole.ndim or indices.size != whole.size:
        return None
    # An axis is known by the distance of its neighbors, which for axes of size one is arbitrary.
    axes: list[int] = []
    for step in _steps(indices):
        left = [i for i, own in enumerate(_steps(whole)) if own == step and i not in axes]
        if not left:
            return None
        axes.append(left[0])
    return tuple(axes) if np.array_equal(whole.transpose(axes), indices) else None
