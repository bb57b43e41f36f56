"""Recognizes from apply's jaxpr that a network is a stack of dense layers; computes no Hessian.

Symbols (arXiv 2106.16225): F(x) = W^L ... W^1 x with W^l of shape M_l x M_{l-1}, M_0 = d, M_L = K,
possibly with biases and with elementwise functions after the layers.

Nothing is guessed from names or shapes: every axis of every intermediate value carries a label
that says what it stands for (an axis of a leaf, the examples, the features), the operations on an
allow-list carry the labels along, and a value that any other operation has touched is unknown.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Float, PyTree

_A = TypeVar("_A", Array, np.ndarray)


@dataclass(frozen=True)
class DenseLayer:
    """One layer z -> W z (+ b), with or without an elementwise function after it.

    `kernel` and `bias` are indices of parameter leaves; a `transposed` kernel is stored (in, out),
    as in Flax, so that W^l = leaf.T; an elementwise function follows an `activated` layer.
    """

    kernel: int
    transposed: bool
    bias: int | None = None
    activated: bool = False


@dataclass(frozen=True)
class DenseStack:
    """A chain of dense layers, in the order of the data flow; `dims` is (d, M_1, ..., K)."""

    layers: tuple[DenseLayer, ...]
    dims: tuple[int, ...]

    @property
    def bias(self) -> bool | None:
        """True if every layer has a bias, False if none has, None if they differ."""
        having = {layer.bias is not None for layer in self.layers}
        return having.pop() if len(having) == 1 else None

    @property
    def linear(self) -> bool:
        """Whether no elementwise function occurs, so that F(x) = W^L ... W^1 x (+ biases)."""
        return not any(layer.activated for layer in self.layers)

    def weights(self, leaves: Sequence[Float[_A, "..."]]) -> tuple[Float[_A, "out in"], ...]:
        """(W^1, ..., W^L), each M_l x M_{l-1}, taken from the leaves `dense_stack` was given."""
        stored = ((leaves[layer.kernel], layer.transposed) for layer in self.layers)
        return tuple(kernel.T if transposed else kernel for kernel, transposed in stored)

    def biases(self, leaves: Sequence[Float[_A, "..."]]) -> tuple[Float[_A, " out"] | None, ...]:
        """(b^1, ..., b^L), each of length M_l, None for a layer that has none."""
        indices = (layer.bias for layer in self.layers)
        return tuple(None if i is None else leaves[i].reshape(-1) for i in indices)


def dense_stack(
    apply: Callable[..., Any],
    leaves: Sequence[Float[Array | np.ndarray, "..."]],
    inputs: PyTree[Float[Array | np.ndarray, "n ..."]],
) -> DenseStack | None:
    """The stack of dense layers that apply is, or None where it is none.

    A stack is F(x) = f_L(W^L f_{L-1}(... f_1(W^1 x + b^1) ...) + b^L), where every f_l is the
    identity or an elementwise function (the same for all examples and features), and x is the
    input, flattened in C order. Each floating leaf is one W^l or one b^l, and is used once. Skips,
    tied, sliced or multiplied weights, weights held as constants, functions of the inputs before
    the first layer, `stop_gradient`, normalization, convolution and scans give None. A function
    with a derivative rule of its own is never taken for the identity. Without any elementwise
    function, apply must also equal the chain to 1e-12 of the largest output at Gaussian parameters
    and inputs: a linear network that computes below float64 gives None.

    Args:
      apply: (leaves, inputs) -> outputs [n, k]; traceable by JAX.
      leaves: the parameter leaves, a flat list; float64, inside `jax.enable_x64(True)`. Only
        shapes and dtypes matter. The result's indices refer to this list.
      inputs: the probe batch [n, ...]; only its shape and dtype matter.
    """
    batch = jax.tree_util.tree_leaves(inputs)
    if len(batch) != 1 or batch[0].ndim == 0 or not _is_float(batch[0]):
        return None
    jaxpr, output = jax.make_jaxpr(apply, return_shape=True)(list(leaves), inputs)
    if not isinstance(output, jax.ShapeDtypeStruct) or len(output.shape) != 2:
        return None
    arguments = [*(_leaf(i, leaf) for i, leaf in enumerate(leaves)), _batch(batch[0].shape)]
    (result,) = _interpret(jaxpr.jaxpr, jaxpr.consts, arguments)
    stack = _stack(result, leaves, batch[0].shape)
    if stack is None or (stack.linear and not _equals_chain(apply, stack, leaves, inputs)):
        return None
    return stack


class _Label(Enum):
    """What an axis stands for, if not an axis of a leaf or of the unflattened input (an int)."""

    EXAMPLE = "example"
    FEATURE = "feature"
    UNIT = "unit"  # every axis of size one, whatever it came from
    REPEATED = "repeated"  # an axis along which the value is constant


_Axes = tuple[_Label | int, ...]
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Constant:
    """One number, broadcast, that depends on neither parameters nor inputs."""


@dataclass(frozen=True)
class _Leaf:
    """A parameter leaf, its axes permuted, and axes of size one or repeated ones added."""

    index: int
    shape: _Shape
    axes: _Axes


@dataclass(frozen=True, eq=False)
class _Stage:
    """One pre-activation, and the layers before it; compared by identity."""

    layers: tuple[DenseLayer, ...]


@dataclass(frozen=True)
class _Activation:
    """A stage, or (mapped) an elementwise function of it."""

    stage: _Stage
    mapped: bool
    axes: _Axes


# None stands for a value of any other kind.
_Value = _Constant | _Leaf | _Activation | None


def _is_float(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _labeled(labels: Iterable[_Label | int], shape: Sequence[int]) -> _Axes:
    return tuple(_Label.UNIT if n == 1 else x for x, n in zip(labels, shape, strict=True))


def _leaf(index: int, array: Any) -> _Value:
    axes = _labeled(range(array.ndim), array.shape)
    return _Leaf(index, array.shape, axes) if _is_float(array) else None


def _batch(shape: _Shape) -> _Activation:
    flat = sum(size > 1 for size in shape[1:]) <= 1
    features = [_Label.FEATURE if flat else i for i in range(1, len(shape))]
    return _Activation(_Stage(()), False, _labeled([_Label.EXAMPLE, *features], shape))


def _constant(value: Any) -> _Value:
    return _Constant() if np.size(value) == 1 else None


def _interpret(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[_Value]) -> list[_Value]:
    """The kinds of a jaxpr's results, given the kinds of its arguments."""
    kinds: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    kinds |= dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))

    def kind(atom: Any) -> _Value:
        return _constant(atom.val) if isinstance(atom, Literal) else kinds[atom]

    for eqn in jaxpr.eqns:
        results = _results(eqn, [kind(atom) for atom in eqn.invars])
        kinds |= dict(zip(eqn.outvars, results, strict=True))
    return [kind(atom) for atom in jaxpr.outvars]


def _results(eqn: JaxprEqn, values: list[_Value]) -> list[_Value]:
    name = eqn.primitive.name
    if name in _RULES:
        return [_RULES[name](eqn, values)]
    if name not in _CALLS | _CUSTOM_CALLS:
        return [None] * len(eqn.outvars)
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    nested = next(eqn.params[key] for key in keys if key in eqn.params)
    closed = nested if isinstance(nested, ClosedJaxpr) else ClosedJaxpr(nested, ())
    results = _interpret(closed.jaxpr, closed.consts, values)
    return results if name in _CALLS else [_with_own_derivative(r, values) for r in results]


def _with_own_derivative(result: _Value, arguments: list[_Value]) -> _Value:
    # A gradient reversal is the identity in value only. On a parameter, nothing is known.
    if isinstance(result, _Activation):
        return None if any(isinstance(a, _Leaf) for a in arguments) else _mapped(result)
    return result if isinstance(result, _Constant) else None


def _mapped(value: _Activation) -> _Activation | None:
    # A function of the inputs would change r, the rank that the theory starts from.
    return replace(value, mapped=True) if value.stage.layers else None


def _rearranged(eqn: JaxprEqn, values: list[_Value]) -> _Value:
    """transpose, broadcast_in_dim; reshape, squeeze, and slices that leave nothing out."""
    value = values[0]
    if value is None or isinstance(value, _Constant):
        return value
    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    name, params = eqn.primitive.name, eqn.params
    axes: _Axes | None = None
    if name == "transpose":
        axes = tuple(value.axes[i] for i in params["permutation"])
    elif name == "broadcast_in_dim":
        axes = _broadcast_axes(value.axes, old, new, params["broadcast_dimensions"])
    elif name != "reshape" or params["dimensions"] is None:
        axes = _reshaped_axes(value, old, new)
    return None if axes is None else replace(value, axes=axes)


def _shape(atom: Any) -> _Shape:
    return tuple(atom.aval.shape)


def _broadcast_axes(axes: _Axes, old: _Shape, new: _Shape, kept: Sequence[int]) -> _Axes:
    labels: list[_Label | int] = [_Label.REPEATED] * len(new)
    for target, label, size in zip(kept, axes, old, strict=True):
        if size == new[target]:
            labels[target] = label
    return _labeled(labels, new)


def _reshaped_axes(value: _Leaf | _Activation, old: _Shape, new: _Shape) -> _Axes | None:
    """Axes of size one come and go, and an input's feature axes are flattened into one."""
    full = [(label, n) for label, n in zip(value.axes, old, strict=True) if n != 1]
    candidates = [full, _flattened(full)] if isinstance(value, _Activation) else [full]
    for candidate in candidates:
        if [n for _, n in candidate] == [n for n in new if n != 1]:
            rest = iter(candidate)
            return tuple(_Label.UNIT if n == 1 else next(rest)[0] for n in new)
    return None


def _flattened(axes: list[tuple[_Label | int, int]]) -> list[tuple[_Label | int, int]]:
    first = axes[:1] if axes and axes[0][0] is _Label.EXAMPLE else []
    features = [label for label, _ in axes[len(first) :]]
    if features != sorted(label for label in features if isinstance(label, int)):
        return axes
    return [*first, (_Label.FEATURE, math.prod(n for _, n in axes[len(first) :]))]


def _converted(eqn: JaxprEqn, values: list[_Value]) -> _Value:
    """convert_element_type and copies."""
    floats = _is_float(eqn.invars[0].aval) and _is_float(eqn.outvars[0].aval)
    return values[0] if floats else _elementwise(eqn, values)


def _elementwise(eqn: JaxprEqn, values: list[_Value]) -> _Value:
    """One function of one pre-activation's entries; uniform constants may take part."""
    kinds = {
        (value.stage, value.axes, _shape(atom)) if isinstance(value, _Activation) else None
        for value, atom in zip(values, eqn.invars, strict=True)
        if not isinstance(value, _Constant)
    }
    if not kinds:
        return _Constant()
    first = next((value for value in values if isinstance(value, _Activation)), None)
    # Axes of size one broadcast implicitly in a jaxpr's arithmetic, so the shapes count too.
    if first is None or kinds != {(first.stage, first.axes, _shape(eqn.outvars[0]))}:
        return None
    return _mapped(first)


def _sum(eqn: JaxprEqn, values: list[_Value]) -> _Value:
    """A bias added to a pre-activation, or an elementwise sum."""
    pair = _activation_and_leaf(values)
    if pair is None:
        return _elementwise(eqn, values)
    activation, leaf, at = pair
    layers = activation.stage.layers
    if activation.mapped or not layers or layers[-1].bias is not None:
        return None
    # A leaf without some of the axes is a scalar.
    missing = [False] * (len(activation.axes) - len(leaf.axes))
    varies = missing + [isinstance(label, int) for label in leaf.axes]
    along_features = varies == [label is _Label.FEATURE for label in activation.axes]
    if not along_features or _shape(eqn.invars[at]) != _shape(eqn.outvars[0]):
        return None
    return replace(activation, stage=_Stage((*layers[:-1], replace(layers[-1], bias=leaf.index))))


def _activation_and_leaf(values: list[_Value]) -> tuple[_Activation, _Leaf, int] | None:
    """The two operands, whichever comes first, and the activation's place."""
    match values:
        case [_Activation() as activation, _Leaf() as leaf]:
            return activation, leaf, 0
        case [_Leaf() as leaf, _Activation() as activation]:
            return activation, leaf, 1
    return None


def _product(eqn: JaxprEqn, values: list[_Value]) -> _Value:
    """dot_general: one more layer, where a kernel's axis meets the features."""
    contracted, batch = eqn.params["dimension_numbers"]
    pair = _activation_and_leaf(values)
    if pair is None or any(batch):
        return None
    activation, leaf, at = pair
    transposed = _is_transposed(leaf, contracted[1 - at])
    summed = {activation.axes[i] for i in contracted[at]} - {_Label.UNIT}
    features = set(activation.axes) - {_Label.UNIT, _Label.EXAMPLE}  # none where there is but one
    if transposed is None or summed != features or not features <= {_Label.FEATURE}:
        return None
    sides = (activation.axes, leaf.axes) if at == 0 else (leaf.axes, activation.axes)
    axes = tuple(
        _Label.FEATURE if isinstance(label, int) else label
        for labels, gone in zip(sides, contracted, strict=True)
        for i, label in enumerate(labels)
        if i not in gone
    )
    stage = _Stage((*_closed(activation), DenseLayer(leaf.index, transposed)))
    return _Activation(stage, mapped=False, axes=axes)


def _is_transposed(leaf: _Leaf, contracted: Sequence[int]) -> bool | None:
    """Whether the kernel is stored (in, out), from the axis that is summed; None for no kernel."""
    if len(leaf.shape) != 2 or _Label.REPEATED in leaf.axes:
        return None
    summed = [leaf.axes[i] for i in contracted if leaf.axes[i] is not _Label.UNIT]
    kept = [axis for axis in leaf.axes if axis is not _Label.UNIT and axis not in summed]
    if len(summed) > 1 or len(kept) > 1:
        return None
    return summed == [0] or kept == [1] or leaf.shape == (1, 1)


def _closed(activation: _Activation) -> tuple[DenseLayer, ...]:
    """The layers up to here, the last one marked if an elementwise function followed it."""
    layers = activation.stage.layers
    return (*layers[:-1], replace(layers[-1], activated=activation.mapped)) if layers else ()


def _stack(result: _Value, leaves: Sequence[Any], input_shape: _Shape) -> DenseStack | None:
    if not isinstance(result, _Activation) or not result.stage.layers:
        return None
    rows, columns = result.axes
    if rows not in (_Label.EXAMPLE, _Label.UNIT) or columns not in (_Label.FEATURE, _Label.UNIT):
        return None
    layers = _closed(result)
    used = [i for layer in layers for i in (layer.kernel, layer.bias) if i is not None]
    if sorted(used) != [i for i, leaf in enumerate(leaves) if _is_float(leaf)]:
        return None
    widths = [leaves[layer.kernel].shape[1 if layer.transposed else 0] for layer in layers]
    return DenseStack(layers, (math.prod(input_shape[1:]), *widths))


def _equals_chain(apply: Callable[..., Any], stack: DenseStack, leaves: Any, inputs: Any) -> bool:
    """Whether apply is W^L ... W^1 x (+ biases) at Gaussian parameters and inputs."""
    rng = np.random.default_rng(0)

    def gaussian(like: Any) -> Any:
        return rng.standard_normal(like.shape).astype(like.dtype) if _is_float(like) else like

    drawn, batch = jax.tree_util.tree_map(gaussian, (list(leaves), inputs))
    for layer, fan_in in zip(stack.layers, stack.dims[:-1], strict=True):
        drawn[layer.kernel] = drawn[layer.kernel] / math.sqrt(fan_in)
    (chain,) = (np.reshape(x, (len(x), -1)) for x in jax.tree_util.tree_leaves(batch))
    for W, b in zip(stack.weights(drawn), stack.biases(drawn), strict=True):
        chain = chain @ W.T if b is None else chain @ W.T + b
    error = np.abs(np.asarray(jax.jit(apply)(drawn, batch)) - chain).max()
    return bool(error <= 1e-12 * np.abs(chain).max())


_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
_CUSTOM_CALLS = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
_ELEMENTWISE = """
    abs acos acosh and asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt
    max min mul ne neg not or pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh
    xor
""".split()
_RULES: dict[str, Callable[[JaxprEqn, list[_Value]], _Value]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("add", "add_any"), _sum),
    **dict.fromkeys(("transpose", "broadcast_in_dim", "reshape", "squeeze", "slice"), _rearranged),
    **dict.fromkeys(("convert_element_type", "copy", "copy_p"), _converted),
    "dot_general": _product,
}
