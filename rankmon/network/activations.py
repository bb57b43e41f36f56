"""Activations of the layers of a recognized stack: values, derivatives and names.

The network's jaxpr is evaluated with two changes: the input of each layer is recorded, and a shift
is added to the result of each layer's product. The derivatives with respect to the shifts are those
with respect to the pre-activations. JAX computes them, with any custom derivative rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float

from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import (
    CALLS,
    CUSTOM_CALLS,
    CUSTOM_VJP_CALLS,
    DOT,
    called_name,
    evaluated,
    interpreted,
    nested,
)
from rankmon.network.dataflow import (
    Activation,
    Axes,
    Label,
    Value,
    argument_values,
    constant_value,
    results_of,
    transparent_call,
)
from rankmon.network.recognized_stack import DenseStack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array, abstract_arrays


class UnsupportedActivationError(ValueError):
    """An activation whose derivative rules may be inconsistent with each other."""


@dataclass(frozen=True)
class LayerStates:
    """The state of every layer z^l = W^l h^{l-1} (+ b^l), h^l = f_l(z^l), for each example.

    Attributes:
      received: the inputs h^0, ..., h^{L-1} of the layers, each [n, M_{l-1}].
      slopes: the first derivatives f_1'(z^1), ..., f_L'(z^L), each [n, M_l]; ones for layers
        without activation.
      bends: the second derivatives f_1''(z^1), ..., f_L''(z^L), each [n, M_l].
    """

    received: tuple[Float[np.ndarray, "n _in"], ...]
    slopes: tuple[Float[np.ndarray, "n _out"], ...]
    bends: tuple[Float[np.ndarray, "n _out"], ...]


def layer_states(flat: FlatProblem, stack: DenseStack) -> Callable[..., LayerStates]:
    """Compile a function from the parameter leaves to the `LayerStates` on the probe batch.

    Args:
      flat: the problem.
      stack: the result of `recognized_stack` for this problem.

    Raises:
      UnsupportedActivationError: if an activation has a custom backward rule (`custom_vjp`).
    """
    if "layer_states" not in flat.memo:
        flat.memo["layer_states"] = _compiled_states(flat, stack)
    return flat.memo["layer_states"]


def _compiled_states(flat: FlatProblem, stack: DenseStack) -> Callable[..., LayerStates]:
    precision, inputs = flat.precision, flat.inputs
    shapes = [(flat.positions, width) for width in stack.dims[1:]]

    def states(leaves: Sequence[Any], inputs: Any) -> Any:
        jaxpr = _live(jax.make_jaxpr(flat.apply_leaves)(list(leaves), inputs))
        (batch,) = jax.tree_util.tree_leaves(inputs)
        kinds = argument_values(leaves, batch)

        def total(shifts: Sequence[Any]) -> Any:
            walk = _Walk(shifts)
            arguments = zip(kinds, [*leaves, batch], strict=True)
            ((_, outputs),) = walk.through(jaxpr, [*arguments])
            activations = [*(walk.received[at] for at in range(1, len(shifts))), outputs]
            # Gradients stop at each layer's input, so the gradient of this sum in a layer's shifts
            # is f_l', and the derivative of the gradient along ones is f_l''.
            return sum(jnp.sum(h) for h in activations), walk.received

        def slopes(shifts: Sequence[Any]) -> Any:
            return jax.grad(total, has_aux=True)(shifts)

        zeros = [jnp.zeros(shape, precision.dtype) for shape in shapes]
        ones = [jnp.ones(shape, precision.dtype) for shape in shapes]
        (slope, received), (bend, _) = jax.jvp(slopes, (zeros,), (ones,))
        return [received[at] for at in range(len(shapes))], slope, bend

    leaves = [abstract_array(spec.shape, precision.dtype) for spec in flat.specs]
    shape = abstract_arrays(inputs)
    with precision.scope():
        program = compiled("the layers' activations", jax.jit(states).trace(leaves, shape))

    def at(leaves: Sequence[np.ndarray]) -> LayerStates:
        with precision.scope():
            parts = program(list(leaves), inputs)
            return LayerStates(*(tuple(np.asarray(a, np.float64) for a in part) for part in parts))

    return at


def activation_names(flat: FlatProblem) -> tuple[str, ...]:
    """Return the distinct names of a recognized stack's activations, as they occur in its jaxpr.

    A name is that of the outermost function called ("relu", "gelu") or of an operation ("tanh"). An
    activation that consists of several operations has several names.
    """
    names: dict[str, None] = {}

    def operation(_: Jaxpr, eqn: JaxprEqn, kinds: list[Value]) -> list[Value]:
        results = results_of(eqn, kinds)
        stages = [kind.stage for kind in kinds if isinstance(kind, Activation)]
        if any(_is_mapped(kind) and kind.stage in stages for kind in results):
            names[_name(eqn)] = None
        elif transparent_call(eqn) is not None:
            return through(nested(eqn), kinds)
        return results

    def through(program: ClosedJaxpr, kinds: Sequence[Value]) -> list[Value]:
        return interpreted(
            program, kinds, constant=lambda _, value: constant_value(value), operation=operation
        )

    (batch,) = jax.tree_util.tree_leaves(flat.inputs)
    leaves = [abstract_array(spec.shape, flat.precision.dtype) for spec in flat.specs]
    through(_live(flat.program), argument_values(leaves, batch))
    return tuple(names)


def _is_mapped(kind: Value) -> TypeGuard[Activation]:
    return isinstance(kind, Activation) and kind.mapped


def _name(eqn: JaxprEqn) -> str:
    """Return the name of the outermost function that is called, or else of the operation."""
    if eqn.primitive.name in CALLS:
        return called_name(eqn)
    if eqn.primitive.name in CUSTOM_CALLS:
        called = [one for one in nested(eqn).jaxpr.eqns if one.primitive.name in CALLS]
        return _name(called[0]) if called else eqn.primitive.name
    return eqn.primitive.name


def _live(program: ClosedJaxpr) -> ClosedJaxpr:
    """Return the program without dead code; the dead code contains no layer of the stack."""
    # `instantiate` keeps arguments that are not used, so that the arguments do not change.
    jaxpr, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
    return ClosedJaxpr(jaxpr, program.consts)


class _Walk:
    """An evaluation of a jaxpr that adds shifts to the layers' products and records their inputs.

    The gradient is stopped at each layer's input, so that the derivative with respect to a shift is
    that of a single activation.
    """

    def __init__(self, shifts: Sequence[Float[Array, "n _out"]]) -> None:
        self.received: dict[int, Float[Array, "n _in"]] = {}
        self._shifts = shifts

    def through(
        self, program: ClosedJaxpr, arguments: Sequence[tuple[Value, Any]]
    ) -> list[tuple[Value, Any]]:
        """Evaluate the program; return the kinds and values of its results."""
        return interpreted(
            program,
            arguments,
            constant=lambda _, value: (constant_value(value), value),
            operation=self._operation,
        )

    def _operation(
        self, jaxpr: Jaxpr, eqn: JaxprEqn, operands: list[tuple[Value, Any]]
    ) -> list[tuple[Value, Any]]:
        called = transparent_call(eqn)
        if called is not None:
            return self.through(called, operands)
        if eqn.primitive.name in CUSTOM_VJP_CALLS:
            raise UnsupportedActivationError(
                f"expected activations without a custom backward rule, got {eqn}"
            )
        kinds, values = [kind for kind, _ in operands], [value for _, value in operands]
        results = results_of(eqn, kinds)
        layer = results[0] if eqn.primitive.name == DOT else None
        if not isinstance(layer, Activation):
            return list(zip(results, evaluated(jaxpr, eqn, values), strict=True))
        number = len(layer.stage.layers) - 1
        at = next(i for i, kind in enumerate(kinds) if isinstance(kind, Activation))
        operand = kinds[at]
        assert isinstance(operand, Activation)
        self.received[number] = _rows(values[at], operand.axes)
        values[at] = jax.lax.stop_gradient(values[at])
        (product,) = evaluated(jaxpr, eqn, values)
        return [(layer, product + _placed(self._shifts[number], layer.axes, product))]


def _order(axes: Axes) -> list[int]:
    """Return the permutation of the axes to examples first, then features in their own order.

    Axes of size one may be anywhere, because their place does not change the order of the values.
    """

    def place(i: int) -> int:
        label = axes[i]
        return label if isinstance(label, int) else -1 if label is Label.EXAMPLE else 0

    return sorted(range(len(axes)), key=place)


def _rows(value: Any, axes: Axes) -> Float[Array, "n m"]:
    """Return the value with one row per example."""
    order = _order(axes)
    examples = [n for label, n in zip(axes, value.shape, strict=True) if label is Label.EXAMPLE]
    return jnp.transpose(value, order).reshape(*(examples or [1]), -1)


def _placed(rows: Float[Array, "n m"], axes: Axes, like: Any) -> Any:
    """Return the rows in the layout of another value: the inverse of `_rows`."""
    order = _order(axes)
    ordered = rows.reshape([like.shape[i] for i in order])
    return jnp.transpose(ordered, np.argsort(order).tolist()).astype(like.dtype)
