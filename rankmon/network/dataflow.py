"""The kind of each value in a jaxpr: a parameter leaf, a pre-activation, or a function of one.

Nothing is guessed from names or shapes. Every axis of every intermediate value has a label for its
meaning (an axis of a leaf, the examples, the features). The operations on an allow-list propagate
the labels; the result of any other operation is unknown.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn

from rankmon._util.jaxpr import (
    BROADCAST,
    CALLS,
    COPIES,
    CUSTOM_CALLS,
    DOT,
    ELEMENTWISE,
    RESHAPE,
    SLICE,
    SQUEEZE,
    SUMS,
    TRANSPOSE,
    broadcast_places,
    dot_axes,
    interpreted,
    is_plain_reshape,
    nested,
    permutation,
)


@dataclass(frozen=True)
class DenseLayer:
    """One layer z -> W z (+ b), with or without an elementwise function after it.

    `kernel` and `bias` are indices of parameter leaves. A `transposed` kernel is stored (in, out),
    as in Flax, so that W^l = leaf.T. An `activated` layer is followed by an elementwise function.
    """

    kernel: int
    transposed: bool
    bias: int | None = None
    activated: bool = False


class Label(Enum):
    """The meaning of an axis; axes of a leaf or of the unflattened input are ints instead."""

    EXAMPLE = "example"
    FEATURE = "feature"
    UNIT = "unit"  # any axis of size one, whatever its origin
    REPEATED = "repeated"  # an axis along which the value is constant


Axes = tuple[Label | int, ...]
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A single number, possibly broadcast, that depends on neither parameters nor inputs."""


@dataclass(frozen=True)
class Leaf:
    """A parameter leaf, possibly with permuted axes and added (size-one or repeated) axes."""

    index: int
    shape: _Shape
    axes: Axes


@dataclass(frozen=True, eq=False)
class Stage:
    """A pre-activation and the layers before it; compared by identity."""

    layers: tuple[DenseLayer, ...]


@dataclass(frozen=True)
class Activation:
    """A stage, or, if `mapped`, an elementwise function of it."""

    stage: Stage
    mapped: bool
    axes: Axes


# None is a value of any other kind.
Value = Constant | Leaf | Activation | None


def is_float(value: Any) -> bool:
    """Return whether the value has a floating dtype."""
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _labeled(labels: Iterable[Label | int], shape: Sequence[int]) -> Axes:
    return tuple(Label.UNIT if n == 1 else x for x, n in zip(labels, shape, strict=True))


def argument_values(leaves: Sequence[Any], batch: Any) -> list[Value]:
    """Return the kinds of a network's arguments: the parameter leaves and the batch [n, ...]."""
    return [*(_leaf(i, leaf) for i, leaf in enumerate(leaves)), _batch(batch.shape)]


def _leaf(index: int, array: Any) -> Value:
    axes = _labeled(range(array.ndim), array.shape)
    return Leaf(index, array.shape, axes) if is_float(array) else None


def _batch(shape: _Shape) -> Activation:
    """Return the kind of the network's input: the state before the first layer."""
    # Several feature axes keep their numbers until a reshape flattens them in C order.
    flat = sum(size > 1 for size in shape[1:]) <= 1
    features = [Label.FEATURE if flat else i for i in range(1, len(shape))]
    return Activation(Stage(()), False, _labeled([Label.EXAMPLE, *features], shape))


def constant_value(value: Any) -> Value:
    """Return the kind of a constant: `Constant` if it is one number, else unknown."""
    return Constant() if np.size(value) == 1 else None


def kinds_of(program: ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
    """Return the kinds of a program's results, given the kinds of its arguments."""
    return interpreted(
        program,
        arguments,
        constant=lambda _, value: constant_value(value),
        operation=lambda _, eqn, values: results_of(eqn, values),
    )


def results_of(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Return the kinds of an operation's results, given the kinds of its operands."""
    name = eqn.primitive.name
    if name in _RULES:
        return [_RULES[name](eqn, values)]
    if name not in CALLS | CUSTOM_CALLS:
        return [None] * len(eqn.outvars)
    results = kinds_of(nested(eqn), values)
    return results if name in CALLS else [_with_own_derivative(r, values) for r in results]


def transparent_call(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Return the program of an operation that merely calls it, such as `jit`; else None."""
    return nested(eqn) if eqn.primitive.name in CALLS else None


def _with_own_derivative(result: Value, arguments: list[Value]) -> Value:
    """Return the kind of the result of a function with a custom derivative rule."""
    # Gradient reversal is the identity only in value, so its result on a parameter is unknown.
    if isinstance(result, Activation):
        return None if any(isinstance(a, Leaf) for a in arguments) else _mapped(result)
    return result if isinstance(result, Constant) else None


def _mapped(value: Activation) -> Activation | None:
    # A function of the inputs would change r, the rank of the inputs in the closed forms.
    return replace(value, mapped=True) if value.stage.layers else None


def _rearranged(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply transpose, broadcast_in_dim, reshape, squeeze, or a slice that keeps all entries."""
    value = values[0]
    if value is None or isinstance(value, Constant):
        return value
    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    name = eqn.primitive.name
    axes: Axes | None = None
    if name == TRANSPOSE:
        axes = tuple(value.axes[i] for i in permutation(eqn))
    elif name == BROADCAST:
        axes = _broadcast_axes(value.axes, old, new, broadcast_places(eqn))
    elif name != RESHAPE or is_plain_reshape(eqn):
        axes = _reshaped_axes(value, old, new)
    return None if axes is None else replace(value, axes=axes)


def _shape(atom: Any) -> _Shape:
    return tuple(atom.aval.shape)


def _broadcast_axes(axes: Axes, old: _Shape, new: _Shape, kept: Sequence[SupportsIndex]) -> Axes:
    """Return the labels after a broadcast to a new shape; `kept` are the new places of the axes."""
    labels: list[Label | int] = [Label.REPEATED] * len(new)
    for target, label, size in zip(kept, axes, old, strict=True):
        if size == new[target]:
            labels[target] = label
    return _labeled(labels, new)


def _reshaped_axes(value: Leaf | Activation, old: _Shape, new: _Shape) -> Axes | None:
    """Add or remove axes of size one, or flatten an input's feature axes into one."""
    full = [(label, n) for label, n in zip(value.axes, old, strict=True) if n != 1]
    candidates = [full, _flattened(full)] if isinstance(value, Activation) else [full]
    for candidate in candidates:
        if [n for _, n in candidate] == [n for n in new if n != 1]:
            rest = iter(candidate)
            return tuple(Label.UNIT if n == 1 else next(rest)[0] for n in new)
    return None


def _flattened(axes: list[tuple[Label | int, int]]) -> list[tuple[Label | int, int]]:
    """Merge an input's feature axes into one if they are in C order, as a reshape would."""
    first = axes[:1] if axes and axes[0][0] is Label.EXAMPLE else []
    features = [label for label, _ in axes[len(first) :]]
    if features != sorted(label for label in features if isinstance(label, int)):
        return axes  # transposed, or not axes of the input
    return [*first, (Label.FEATURE, math.prod(n for _, n in axes[len(first) :]))]


def _converted(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply convert_element_type or a copy."""
    # A cast between floats keeps the kind; a cast to integers is a function of the value.
    floats = is_float(eqn.invars[0].aval) and is_float(eqn.outvars[0].aval)
    return values[0] if floats else _elementwise(eqn, values)


def _elementwise(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply an elementwise function to one pre-activation and any uniform constants."""
    kinds = {
        (value.stage, value.axes, _shape(atom)) if isinstance(value, Activation) else None
        for value, atom in zip(values, eqn.invars, strict=True)
        if not isinstance(value, Constant)
    }
    if not kinds:
        return Constant()
    first = next((value for value in values if isinstance(value, Activation)), None)
    # Arithmetic in a jaxpr broadcasts axes of size one implicitly, so compare the shapes too.
    if first is None or kinds != {(first.stage, first.axes, _shape(eqn.outvars[0]))}:
        return None
    return _mapped(first)


def _sum(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Add a bias to a pre-activation, or apply an elementwise sum."""
    pair = _activation_and_leaf(values)
    if pair is None:
        return _elementwise(eqn, values)
    activation, leaf, at = pair
    layers = activation.stage.layers
    if activation.mapped or not layers or layers[-1].bias is not None:
        return None
    # A leaf has fewer axes than the activation only if it is a scalar.
    missing = [False] * (len(activation.axes) - len(leaf.axes))
    varies = missing + [isinstance(label, int) for label in leaf.axes]
    along_features = varies == [label is Label.FEATURE for label in activation.axes]
    if not along_features or _shape(eqn.invars[at]) != _shape(eqn.outvars[0]):
        return None
    return replace(activation, stage=Stage((*layers[:-1], replace(layers[-1], bias=leaf.index))))


def _activation_and_leaf(values: list[Value]) -> tuple[Activation, Leaf, int] | None:
    """Return the activation and the leaf among two operands, and the activation's position."""
    match values:
        case [Activation() as activation, Leaf() as leaf]:
            return activation, leaf, 0
        case [Leaf() as leaf, Activation() as activation]:
            return activation, leaf, 1
    return None


def _product(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply dot_general; it adds a layer if a kernel's axis is contracted with the features."""
    contracted, batch = dot_axes(eqn)
    pair = _activation_and_leaf(values)
    if pair is None or any(batch):
        return None
    activation, leaf, at = pair
    transposed = _is_transposed(leaf, contracted[1 - at])
    summed = {activation.axes[i] for i in contracted[at]} - {Label.UNIT}
    features = set(activation.axes) - {Label.UNIT, Label.EXAMPLE}  # empty for a single feature
    if transposed is None or summed != features or not features <= {Label.FEATURE}:
        return None
    sides = (activation.axes, leaf.axes) if at == 0 else (leaf.axes, activation.axes)
    axes = tuple(
        Label.FEATURE if isinstance(label, int) else label
        for labels, gone in zip(sides, contracted, strict=True)
        for i, label in enumerate(labels)
        if i not in gone
    )
    stage = Stage((*closed_layers(activation), DenseLayer(leaf.index, transposed)))
    return Activation(stage, mapped=False, axes=axes)


def _is_transposed(leaf: Leaf, contracted: Sequence[int]) -> bool | None:
    """Return whether a kernel with this summed axis is stored (in, out); None if not a kernel."""
    if len(leaf.shape) != 2 or Label.REPEATED in leaf.axes:
        return None
    summed = [leaf.axes[i] for i in contracted if leaf.axes[i] is not Label.UNIT]
    kept = [axis for axis in leaf.axes if axis is not Label.UNIT and axis not in summed]
    if len(summed) > 1 or len(kept) > 1:
        return None
    # A 1 x 1 kernel has neither axis: both orientations are right.
    return summed == [0] or kept == [1] or leaf.shape == (1, 1)


def closed_layers(activation: Activation) -> tuple[DenseLayer, ...]:
    """Return the layers so far, the last one marked if an elementwise function follows it."""
    layers = activation.stage.layers
    return (*layers[:-1], replace(layers[-1], activated=activation.mapped)) if layers else ()


_RULES: dict[str, Callable[[JaxprEqn, list[Value]], Value]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys((TRANSPOSE, BROADCAST, RESHAPE, SQUEEZE, SLICE), _rearranged),
    **dict.fromkeys(COPIES, _converted),
    DOT: _product,
}
