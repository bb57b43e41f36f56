"""Find the input and output axes of each kernel, and the axes along which it stacks layers.

They are read from the network's program, never from names or shapes. Each axis of a value is
labeled with the axes of the leaf that it runs over. Operations that rearrange, slice or scale a
leaf propagate the labels. A product or a convolution then determines the input axes (rows) and the
output axes (columns). A loop over a leaf, an index into it, or a batch axis of a product shows an
axis that counts layers.
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

_ENTRY_BY_ENTRY = ELEMENTWISE | SUMS | COPIES | ROUNDINGS | {REVERSE}
_CUTS = frozenset({SLICE, DYNAMIC_SLICE, SPLIT, PAD})
_NO_AXIS = -1  # in the label of an axis that runs over none of the leaf's axes

_Shape = tuple[int, ...]
# The leaf's axes that one axis of a value runs over, slowest first, with their sizes.
Label = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Part:
    """A rearranged leaf or some of its entries, possibly changed elementwise.

    Attributes:
      leaf: the index of the leaf.
      labels: the label of each axis.
      layers: the leaf's axes along which a single entry was selected.
    """

    leaf: int
    labels: tuple[Label, ...]
    layers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Use:
    """One use of a leaf by an operation; rows and columns are known only for products."""

    layers: frozenset[int]
    rows: frozenset[int] = frozenset()
    columns: frozenset[int] = frozenset()
    operation: str = ""

    @property
    def sides(self) -> frozenset[frozenset[int]]:
        """Rows and columns as a set, because a matrix and its transpose have the same rank."""
        return frozenset({self.rows, self.columns})


# The parts of leaves that a value consists of.
_Value = tuple[_Part, ...]


def kernel_axes(flat: FlatProblem) -> dict[int, MatrixAxes]:
    """Return `operation_axes`; if the program cannot be read, warn once and return no axes."""
    return optionally(
        flat.problem, "the axes of kernels", lambda: operation_axes(flat), otherwise={}
    )


def operation_axes(flat: FlatProblem) -> dict[int, MatrixAxes]:
    """Return the matrix axes of each leaf with at least three axes, if all its uses agree."""
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
    """Return the layer axes and matrix axes that all uses of a leaf agree on, or None."""
    found = {use.layers for use in uses}
    layers = found.pop() if len(found) == 1 else frozenset()
    if len(shape) - len(layers) < 2:  # each layer's entry is a vector, not a matrix
        return None
    products = [use for use in uses if use.operation and use.layers == layers]
    if len({use.sides for use in products}) == 1:
        first = products[0]
        columns = tuple(sorted(first.columns))
        rows = [axis for axis in range(len(shape)) if axis not in first.columns | layers]
        return MatrixAxes(tuple(rows), columns, first.operation)
    return named_axes(name, shape, layers=tuple(sorted(layers))) if layers else None


@dataclass
class _Walk:
    """A walk through a program that records the uses of each leaf, in the order of evaluation."""

    uses: dict[int, list[_Use]] = field(default_factory=dict)

    def through(self, program: ClosedJaxpr, arguments: Sequence[_Value]) -> list[_Value]:
        """Return the parts of leaves in the program's results."""
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
                    self._note(part, _Use(part.layers))
                else:
                    results = [_united(pair) for pair in zip(results, moved, strict=True)]
        return results

    def _scan(self, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        """Record the uses of leaves in the body of a loop, whose results are not followed."""
        scan = scan_of(eqn)
        xs = scan.consts + scan.carry
        # Each iteration sees one entry of xs: their first axis counts layers.
        entries = [tuple(_entry(part, 0) for part in value) for value in operands[xs:]]
        self.through(scan.body, [*operands[:xs], *entries])
        return [()] * len(eqn.outvars)

    def _note(self, part: _Part, use: _Use) -> None:
        self.uses.setdefault(part.leaf, []).append(use)


def _united(values: Sequence[_Value]) -> _Value:
    return tuple(dict.fromkeys(part for value in values for part in value))


def _axes_of(labels: Sequence[Label]) -> frozenset[int]:
    return frozenset(axis for label in labels for axis, _ in label if axis != _NO_AXIS)


def _entry(part: _Part, axis: int) -> _Part:
    """Select one entry of the value along this axis, and drop the axis."""
    rest = part.labels[:axis] + part.labels[axis + 1 :]
    return replace(part, labels=rest, layers=part.layers | _axes_of([part.labels[axis]]))


def _product(eqn: JaxprEqn, place: int, part: _Part) -> _Use:
    """Return the use of a part of a leaf as an operand of a product or convolution."""
    if eqn.primitive.name == DOT:
        contracted, batch = (axes[place] for axes in dot_axes(eqn))
        rows = [part.labels[axis] for axis in contracted]
        kept = [x for axis, x in enumerate(part.labels) if axis not in {*contracted, *batch}]
        layers = part.layers | _axes_of([part.labels[axis] for axis in batch])
        return _Use(layers, _axes_of(rows), _axes_of(kept), "product")
    if place == 0:  # the operand of a convolution, not its kernel
        return _Use(part.layers)
    out = convolution_axes(eqn).rhs_spec[0]
    rows = [x for axis, x in enumerate(part.labels) if axis != out]
    return _Use(part.layers, _axes_of(rows), _axes_of([part.labels[out]]), "convolution")


def _moved(eqn: JaxprEqn, place: int, part: _Part) -> list[_Value] | None:
    """Return the part of the leaf in each result, given that in an operand; None if unknown."""
    name, old = eqn.primitive.name, _shape(eqn.invars[place])
    moved: list[_Value] = []
    for result in eqn.outvars:
        if (name in _CUTS and place == 0) or name == CONCATENATE:
            held = _cut(part, old, _shape(result))
        else:
            labels = arranged_labels(eqn, part.labels, old, _shape(result))
            held = None if labels is None else replace(part, labels=labels)
        if held is None:
            return None
        moved.append((held,))
    return moved


def arranged_labels(
    eqn: JaxprEqn, labels: tuple[Label, ...], old: _Shape, new: _Shape
) -> tuple[Label, ...] | None:
    """Return the labels of the result's axes, for an operation that keeps all entries."""
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
    labels: tuple[Label, ...], old: _Shape, new: _Shape, places: Sequence[int]
) -> tuple[Label, ...]:
    """Return the labels after a broadcast; repeated axes run over no axis of the leaf."""
    results: list[Label] = [((_NO_AXIS, size),) for size in new]
    for place, label, size in zip(places, labels, old, strict=True):
        if size == new[place]:
            results[place] = label
    return tuple(results)


def _reshaped(labels: tuple[Label, ...], new: _Shape) -> tuple[Label, ...] | None:
    """Merge axes and split merged ones; None if an axis of the leaf itself would be split."""
    rest = [entry for label in labels for entry in label]
    results: list[Label] = []
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
    """Select some entries along each axis, or pad with other values."""
    labels, layers = list(part.labels), part.layers
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after:
            continue
        if len(labels[axis]) > 1:
            return None
        if after == 1:
            layers, labels[axis] = layers | _axes_of([labels[axis]]), ()
        else:
            leaf_axis = labels[axis][0][0] if labels[axis] else _NO_AXIS
            labels[axis] = ((leaf_axis, after),)
    return replace(part, labels=tuple(labels), layers=layers)
