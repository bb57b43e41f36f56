"""Which axes of each kernel the network sums over, and which count layers, read from its program.

Each axis of a value carries the axes of the leaf that it runs over. The operations that rearrange,
cut or scale a leaf carry them along; a product or a convolution then says which of them are its
input (rows) and its output (columns). Loops over a leaf, indices into it and the batch axes of a
product take its layers apart. Names and shapes decide nothing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn

from rankmon._util.jaxpr import (
    BROADCAST,
    CALLS,
    CONCATENATE,
    COND,
    CONVOLUTION,
    COPIES,
    CUSTOM_CALLS,
    DOT,
    DYNAMIC_SLICE,
    ELEMENTWISE,
    PAD,
    RESHAPE,
    REVERSE,
    ROUNDINGS,
    SCAN,
    SLICE,
    SPLIT,
    SQUEEZE,
    SUMS,
    TRANSPOSE,
    branches_of,
    broadcast_places,
    convolution_axes,
    dot_axes,
    interpreted,
    is_plain_reshape,
    nested,
    permutation,
    scan_of,
)
from rankmon._util.optional_readers import optionally
from rankmon.network.matrix_views import MatrixAxes, named_axes
from rankmon.problem.flat import FlatProblem

_Shape = tuple[int, ...]

# What one axis of a value runs over, slowest first: axes of the leaf, each with its size there.
_Label = tuple[tuple[int, int], ...]
_NO_AXIS = -1


@dataclass(frozen=True)
class _Part:
    """A leaf, or entries of it, elementwise changed or not, in some arrangement."""

    leaf: int
    labels: tuple[_Label, ...]
    apart: frozenset[int] = frozenset()  # axes of the leaf of which one entry was taken


@dataclass(frozen=True)
class _Use:
    """What an operation makes of a leaf; without rows and columns if it is not a product."""

    apart: frozenset[int]
    rows: frozenset[int] = frozenset()
    columns: frozenset[int] = frozenset()
    operation: str = ""

    @property
    def sides(self) -> frozenset[frozenset[int]]:
        """Rows and columns, whichever is which: the rank is the same."""
        return frozenset({self.rows, self.columns})


# The leaves that a value is made of.
_Value = tuple[_Part, ...]


def kernel_axes(flat: FlatProblem) -> dict[int, MatrixAxes]:
    """Return `operation_axes`; nothing, with one warning, if the program cannot be read."""
    return optionally(
        flat.problem, "the axes of kernels", lambda: operation_axes(flat), otherwise={}
    )


def operation_axes(flat: FlatProblem) -> dict[int, MatrixAxes]:
    """Return the matrix axes of each leaf of three axes or more whose uses in the network agree."""
    walk = _Walk()
    arguments: list[_Value] = [()] * len(flat.program.in_avals)
    for leaf, spec in enumerate(flat.specs):
        if len(spec.shape) >= 3:
            labels = tuple(((axis, size),) for axis, size in enumerate(spec.shape))
            arguments[leaf] = (_Part(leaf, labels),)
    walk.through(flat.program, arguments)
    found = {}
    for leaf, uses in walk.uses.items():
        axes = _agreed(flat.specs[leaf].name, flat.specs[leaf].shape, uses)
        if axes is not None:
            found[leaf] = axes
    return found


def _agreed(name: str, shape: _Shape, uses: Sequence[_Use]) -> MatrixAxes | None:
    """What all uses of a leaf agree on: layers and matrix, one of the two, or nothing."""
    apart = {use.apart for use in uses}
    layers = apart.pop() if len(apart) == 1 else frozenset()
    if len(shape) - len(layers) < 2:
        return None
    products = [use for use in uses if use.operation and use.apart == layers]
    if len({use.sides for use in products}) == 1:
        first = products[0]
        columns = tuple(sorted(first.columns))
        rows = [axis for axis in range(len(shape)) if axis not in first.columns | layers]
        return MatrixAxes(tuple(rows), columns, first.operation)
    return named_axes(name, shape, layers=tuple(sorted(layers))) if layers else None


@dataclass
class _Walk:
    """A walk through a program that notes the uses of each leaf, in the order of evaluation."""

    uses: dict[int, list[_Use]] = field(default_factory=dict)

    def through(self, program: ClosedJaxpr, arguments: Sequence[_Value]) -> list[_Value]:
        """Return what the program's results are made of."""
        if not any(arguments):
            return [()] * len(program.jaxpr.outvars)
        return interpreted(
            program, arguments, constant=lambda *_: (), operation=lambda _, *args: self._use(*args)
        )

    def _use(self, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        if not any(operands):
            return [()] * len(eqn.outvars)
        if name in CALLS | CUSTOM_CALLS:
            return self.through(nested(eqn), operands)
        if name == COND:
            taken = [self.through(branch, operands[1:]) for branch in branches_of(eqn)]
            return [_united(values) for values in zip(*taken, strict=True)]
        if name == SCAN:
            return self._scan(eqn, operands)
        results: list[_Value] = [()] * len(eqn.outvars)
        for place, value in enumerate(operands):
            for part in value:
                if name in (DOT, CONVOLUTION):
                    self._note(part, _product(eqn, place, part))
                    continue
                moved = _moved(eqn, place, part)
                if moved is None:
                    self._note(part, _Use(part.apart))
                else:
                    results = [_united(pair) for pair in zip(results, moved, strict=True)]
        return results

    def _scan(self, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        scan = scan_of(eqn)
        xs = scan.consts + scan.carry
        entries = [tuple(_entry(part, 0) for part in value) for value in operands[xs:]]
        self.through(scan.body, [*operands[:xs], *entries])
        return [()] * len(eqn.outvars)

    def _note(self, part: _Part, use: _Use) -> None:
        self.uses.setdefault(part.leaf, []).append(use)


def _united(values: Sequence[_Value]) -> _Value:
    return tuple(dict.fromkeys(part for value in values for part in value))


def _axes_of(labels: Sequence[_Label]) -> frozenset[int]:
    return frozenset(axis for label in labels for axis, _ in label if axis != _NO_AXIS)


def _entry(part: _Part, axis: int) -> _Part:
    """One entry of the value along this axis, which is gone."""
    rest = part.labels[:axis] + part.labels[axis + 1 :]
    return replace(part, labels=rest, apart=part.apart | _axes_of([part.labels[axis]]))


# Products


def _product(eqn: JaxprEqn, place: int, part: _Part) -> _Use:
    if eqn.primitive.name == DOT:
        contracted, batch = (axes[place] for axes in dot_axes(eqn))
        rows = [part.labels[axis] for axis in contracted]
        layers = [part.labels[axis] for axis in batch]
        kept = [x for axis, x in enumerate(part.labels) if axis not in {*contracted, *batch}]
        apart = part.apart | _axes_of(layers)
        return _Use(apart, _axes_of(rows), _axes_of(kept), "product")
    if place == 0:  # convolved with a kernel, and no kernel itself
        return _Use(part.apart)
    out = convolution_axes(eqn).rhs_spec[0]
    rows = [x for axis, x in enumerate(part.labels) if axis != out]
    return _Use(part.apart, _axes_of(rows), _axes_of([part.labels[out]]), "convolution")


# Arrangements


_ENTRY_BY_ENTRY = ELEMENTWISE | SUMS | COPIES | ROUNDINGS | {REVERSE}
_CUTS = frozenset({SLICE, DYNAMIC_SLICE, SPLIT, PAD})


def _moved(eqn: JaxprEqn, place: int, part: _Part) -> list[_Value] | None:
    """What the results hold of this part of an operand; None if that cannot be said."""
    name, old = eqn.primitive.name, _shape(eqn.invars[place])
    moved: list[_Value] = []
    for result in eqn.outvars:
        if (name in _CUTS and place == 0) or name == CONCATENATE:
            held = _cut(part, old, _shape(result))
        else:
            labels = _arranged(eqn, part.labels, old, _shape(result))
            held = None if labels is None else replace(part, labels=labels)
        if held is None:
            return None
        moved.append((held,))
    return moved


def _arranged(
    eqn: JaxprEqn, labels: tuple[_Label, ...], old: _Shape, new: _Shape
) -> tuple[_Label, ...] | None:
    """What the axes of a result run over, of an operation on all entries of its operand."""
    name = eqn.primitive.name
    if name in _ENTRY_BY_ENTRY and old == new:
        return labels
    if name == TRANSPOSE:
        return tuple(labels[axis] for axis in permutation(eqn))
    if name == BROADCAST:
        return _broadcast(labels, old, new, broadcast_places(eqn))
    if name == SQUEEZE or (name == RESHAPE and is_plain_reshape(eqn)):
        return _reshaped(labels, new)
    return None


def _shape(atom: Any) -> _Shape:
    return tuple(atom.aval.shape)


def _broadcast(
    labels: tuple[_Label, ...], old: _Shape, new: _Shape, places: Sequence[int]
) -> tuple[_Label, ...]:
    results: list[_Label] = [((_NO_AXIS, size),) for size in new]
    for place, label, size in zip(places, labels, old, strict=True):
        if size == new[place]:
            results[place] = label
    return tuple(results)


def _reshaped(labels: tuple[_Label, ...], new: _Shape) -> tuple[_Label, ...] | None:
    """Axes merged and parted again; None if an axis of the leaf itself would be parted."""
    rest = [entry for label in labels for entry in label]
    results: list[_Label] = []
    for size in new:
        label: list[tuple[int, int]] = []
        held = 1
        while rest and (held < size or (size == 1 and not label and rest[0][1] == 1)):
            label.append(rest.pop(0))
            held *= label[-1][1]
        if held != size:
            return None
        results.append(tuple(label))
    return tuple(results) if all(size == 1 for _, size in rest) else None


def _cut(part: _Part, old: _Shape, new: _Shape) -> _Part | None:
    """Some entries along each axis, or zeros and other values beside them."""
    labels, apart = list(part.labels), part.apart
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            continue
        if len(labels[axis]) > 1:
            return None
        if after == 1:
            apart, labels[axis] = apart | _axes_of([labels[axis]]), ()
        else:
            leaf_axis = labels[axis][0][0] if labels[axis] else _NO_AXIS
            labels[axis] = ((leaf_axis, after),)
    return replace(part, labels=tuple(labels), apart=apart)
