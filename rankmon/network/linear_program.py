"""The linear map of its inputs that a network's jaxpr computes, as a product of factors.

A value of the program is followed as F_m ... F_1 x, with the factors of `linear_maps`. Operations
that are polynomial in the parameters and linear in the inputs have a rule here; the result of any
other operation is unknown. The meaning of x's axes is not followed: `recognized_family` compares
the product with the program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from rankmon._util.jaxpr import (
    BROADCAST,
    CALLS,
    CONCATENATE,
    CONVOLUTION,
    COPIES,
    DIVIDE,
    DOT,
    MULTIPLY,
    NEGATE,
    PAD,
    RESHAPE,
    SCAN,
    SLICE,
    SQUEEZE,
    SUBTRACT,
    SUMS,
    TRANSPOSE,
    concatenated_axis,
    convolution_axes,
    dot_axes,
    evaluated,
    interpreted,
    is_plain_convolution,
    is_plain_reshape,
    nested,
    padding_of,
    permutation,
    scan_of,
    slice_bounds,
)
from rankmon.network.linear_maps import (
    Convolution,
    Cut,
    Identity,
    Product,
    Weight,
    Wrapped,
)

# A loop of more rounds is not followed: no closed form needs so many factors.
_MOST_ROUNDS = 64

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A value that depends on neither parameters nor inputs, computed when it is needed."""

    compute: Callable[[], Any]


@dataclass(frozen=True)
class Kernel:
    """A leaf times a number, its axes permuted; an added axis of size one is None."""

    leaf: int
    axes: tuple[int | None, ...]
    scale: float = 1.0


# None is a value of any other kind.
Value = Constant | Kernel | Product | None


def linear_map(program: ClosedJaxpr, leaves: int) -> Product | None:
    """Return the linear map that a program with one batch of inputs computes; None if unknown.

    Args:
      program: from the parameter leaves and one array of inputs to one array of outputs.
      leaves: the number of parameter leaves.
    """
    shapes = [aval.shape for aval in program.in_avals]
    kernels = [Kernel(i, tuple(range(len(shape)))) for i, shape in enumerate(shapes[:leaves])]
    (result,) = _values(program, [*kernels, Product(())])
    return result if isinstance(result, Product) and result.of_inputs else None


def _values(program: ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
    return interpreted(
        program,
        arguments,
        constant=lambda _, value: Constant(lambda: value),
        operation=_results,
    )


def _results(jaxpr: Jaxpr, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Return the values of an operation's results, given those of its operands."""
    name = eqn.primitive.name
    if all(isinstance(value, Constant) for value in values):
        return _constants(jaxpr, eqn, values)
    if any(value is None for value in values):
        return [None] * len(eqn.outvars)
    if name in CALLS:
        return _values(nested(eqn), values)
    if name == SCAN:
        return _scanned(eqn, values)
    return [_RULES[name](eqn, values)] if name in _RULES else [None] * len(eqn.outvars)


def _constants(jaxpr: Jaxpr, eqn: JaxprEqn, values: list[Any]) -> list[Value]:
    def result(i: int) -> Constant:
        return Constant(lambda: evaluated(jaxpr, eqn, [value.compute() for value in values])[i])

    return [result(i) for i in range(len(eqn.outvars))]


def _scanned(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Follow the rounds of a loop that repeats the same operations on its carry."""
    scan = scan_of(eqn)
    consts, carry = values[: scan.consts], values[scan.consts : scan.consts + scan.carry]
    if len(values) > len(consts) + len(carry) or scan.length > _MOST_ROUNDS:
        return [None] * len(eqn.outvars)
    for _ in range(scan.length):
        carry = _values(scan.body, [*consts, *carry])[: len(carry)]
    return [*carry, *[None] * (len(eqn.outvars) - len(carry))]


def _shape(atom: Any) -> _Shape:
    return tuple(atom.aval.shape)


def _matrix(value: Value, shape: _Shape) -> Product | None:
    """Return a value of parameters as a product of matrices."""
    if isinstance(value, Product):
        return None if value.of_inputs else value
    if not isinstance(value, Kernel) or len(shape) != 2 or set(value.axes) - {0, 1, None}:
        return None
    rows = value.axes[0]
    if rows is None:
        rows = None if value.axes[1] is None else 1 - value.axes[1]
    if rows is None:
        return None
    weight = Weight(value.leaf, rows == 1, (shape[0], shape[1]))
    return Product((weight,), value.scale, of_inputs=False)


def _product(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply dot_general, of two matrices or of a matrix and the inputs."""
    contracted, batch = dot_axes(eqn)
    if any(batch) or any(len(axes) != 1 for axes in contracted):
        return None
    sides = [
        value if isinstance(value, Product) and value.of_inputs else _matrix(value, _shape(atom))
        for value, atom in zip(values, eqn.invars, strict=True)
    ]
    left, right = sides
    if left is None or right is None or (left.of_inputs and right.of_inputs):
        return None
    (a,), (b,) = contracted
    if left.of_inputs:
        left, right, a, b = right, left, b, a
    first = left if a == 1 else left.transposed
    second = right if right.of_inputs or b == 0 else right.transposed
    if first is None or second is None:
        return None
    scale = first.scale * second.scale
    return Product((*first.factors, *second.factors), scale, second.of_inputs)


def _convolution(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply a convolution along one axis, without strides, dilation, groups or padding."""
    match values:
        case [Product(of_inputs=True) as x, Kernel() as kernel]:
            pass
        case _:
            return None
    sides = convolution_axes(eqn).rhs_spec  # the kernel's axes of outputs, inputs and steps
    if len(sides) != 3 or not is_plain_convolution(eqn):
        return None
    shape = _shape(eqn.invars[1])
    places = (sides[2], sides[1], sides[0])
    axes = (kernel.axes[places[0]], kernel.axes[places[1]], kernel.axes[places[2]])
    steps, before, after = (shape[place] for place in places)
    factor = Convolution(kernel.leaf, axes, (steps, before, after))
    rest = x.factors
    if rest and isinstance(rest[0], Wrapped):
        if rest[0].before + rest[0].after != steps - 1:
            return None
        factor, rest = replace(factor, wrapped=rest[0]), rest[1:]
    return Product((factor, *rest), x.scale * kernel.scale)


def _sum(eqn: JaxprEqn, values: list[Value], sign: float = 1.0) -> Value:
    """Add two values of one shape: a skip connection, or a matrix and the identity."""
    left, right = values
    shapes = [_shape(atom) for atom in eqn.invars]
    if isinstance(left, Constant):
        left, right, shapes = right, left, shapes[::-1]
        swapped = sign
        sign = 1.0
    else:
        swapped = 1.0
    if shapes[0] != _shape(eqn.outvars[0]):
        return None
    if isinstance(left, Kernel):
        left = _matrix(left, shapes[0])
    if not isinstance(left, Product):
        return None
    left = replace(left, scale=left.scale * swapped)
    if isinstance(right, Constant):
        return _plus_constant(left, sign * np.asarray(right.compute(), float), shapes[0])
    if isinstance(right, Kernel):
        right = _matrix(right, shapes[1])
    if right is None or shapes[0] != shapes[1] or left.of_inputs != right.of_inputs:
        return None
    return left.plus(replace(right, scale=sign * right.scale))


def _plus_constant(left: Product, constant: np.ndarray, shape: _Shape) -> Product | None:
    """Add a constant: zero, or a multiple of the identity to a matrix."""
    if not np.any(constant):
        return left
    if left.of_inputs or constant.shape != shape or len(shape) != 2:
        return None
    scale = float(constant.flat[0])
    if scale == 0 or not np.array_equal(constant, scale * np.eye(*shape)):
        return None
    return left.plus(Product((Identity((shape[0], shape[1])),), scale, of_inputs=False))


def _scaled(value: Value, factor: float) -> Value:
    if isinstance(value, (Kernel, Product)) and factor and np.isfinite(factor):
        return replace(value, scale=value.scale * factor)
    return None


def _multiplied(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Multiply or divide by a constant number."""
    name = eqn.primitive.name
    left, right = values
    at = 0
    if isinstance(left, Constant) and name == MULTIPLY:
        left, right, at = right, left, 1
    if not isinstance(right, Constant) or _shape(eqn.invars[at]) != _shape(eqn.outvars[0]):
        return None
    numbers = np.asarray(right.compute(), float)
    if not numbers.size or not numbers.flat[0] or np.any(numbers != numbers.flat[0]):
        return None
    number = float(numbers.flat[0])
    return _scaled(left, 1 / number if name == DIVIDE else number)


def _transposed(eqn: JaxprEqn, values: list[Value]) -> Value:
    (value,) = values
    axes = permutation(eqn)
    if isinstance(value, Kernel):
        return replace(value, axes=tuple(value.axes[i] for i in axes))
    if not isinstance(value, Product) or value.of_inputs or axes == (0, 1):
        return value
    return value.transposed


def _reshaped(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply a reshape, a squeeze, or a broadcast that adds axes of size one."""
    value, old, new = values[0], _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    plain = eqn.primitive.name != RESHAPE or is_plain_reshape(eqn)
    if not plain or np.prod(old) != np.prod(new):
        return None
    if isinstance(value, Product):
        return value if value.of_inputs or old == new else None
    if not isinstance(value, Kernel):
        return None
    kept = [axis for axis, size in zip(value.axes, old, strict=True) if size != 1]
    if [n for n in old if n != 1] != [n for n in new if n != 1]:
        return None
    rest = iter(kept)
    units = value.axes if old == new else [None] * len(new)
    axes = tuple(next(rest) if n != 1 else unit for n, unit in zip(new, units, strict=True))
    return replace(value, axes=axes)


def _sliced(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Cut a value of the inputs along one axis."""
    value, bounds, shape = values[0], slice_bounds(eqn), _shape(eqn.invars[0])
    if shape == _shape(eqn.outvars[0]):
        return value
    if bounds is None or not isinstance(value, Product) or not value.of_inputs:
        return None
    cuts = [
        (axis, first, last)
        for axis, (first, last, size) in enumerate(zip(*bounds, shape, strict=True))
        if (first, last) != (0, size)
    ]
    if len(cuts) != 1:
        return None
    ((axis, first, last),) = cuts
    return replace(value, factors=(Cut(axis, first, last, shape[axis]), *value.factors))


def _padded(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Append zeros to a value of the inputs along one axis: a partial identity."""
    value, filled = values
    if not isinstance(value, Product) or not value.of_inputs or not isinstance(filled, Constant):
        return None
    grown = [i for i, amounts in enumerate(padding_of(eqn)) if any(amounts)]
    if not grown:
        return value
    before, after, between = padding_of(eqn)[grown[0]]
    if len(grown) != 1 or before or between or after < 0 or np.any(np.asarray(filled.compute())):
        return None
    size = _shape(eqn.invars[0])[grown[0]]
    return replace(value, factors=(Identity((size + after, size)), *value.factors))


def _joined(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Join a value of the inputs with its own end before it and its beginning after it."""
    axis = concatenated_axis(eqn)
    sizes = [_shape(atom)[axis] for atom in eqn.invars]
    middle = max(range(len(values)), key=sizes.__getitem__)
    line, size = values[middle], sizes[middle]
    if (
        not isinstance(line, Product)
        or not line.of_inputs
        or middle > 1
        or len(values) > middle + 2
    ):
        return None
    before, after = sum(sizes[:middle]), sum(sizes[middle + 1 :])
    ends = {0: Cut(axis, size - before, size, size), middle + 1: Cut(axis, 0, after, size)}
    for i, value in enumerate(values):
        if i != middle and value != replace(line, factors=(ends[i], *line.factors)):
            return None
    return replace(line, factors=(Wrapped(before, after), *line.factors))


def _copied(eqn: JaxprEqn, values: list[Value]) -> Value:
    """Apply a copy, or a conversion that changes no dtype."""
    dtypes = {atom.aval.dtype for atom in (*eqn.invars, *eqn.outvars)}  # type: ignore[attr-defined]
    return values[0] if len(dtypes) == 1 else None


_RULES: dict[str, Callable[[JaxprEqn, list[Value]], Value]] = {
    DOT: _product,
    CONVOLUTION: _convolution,
    **dict.fromkeys(SUMS, _sum),
    SUBTRACT: lambda eqn, values: _sum(eqn, values, -1.0),
    NEGATE: lambda _, values: _scaled(values[0], -1.0),
    MULTIPLY: _multiplied,
    DIVIDE: _multiplied,
    TRANSPOSE: _transposed,
    **dict.fromkeys((RESHAPE, SQUEEZE, BROADCAST), _reshaped),
    SLICE: _sliced,
    PAD: _padded,
    CONCATENATE: _joined,
    **dict.fromkeys(COPIES, _copied),
}
