"""Recognize from a network's jaxpr that it is a stack of dense layers, for instance deep linear.

Symbols (arXiv 2106.16225): F(x) = W^L ... W^1 x with W^l of shape M_l x M_{l-1}, M_0 = d, M_L = K,
possibly with biases and with elementwise functions after the layers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jaxtyping import PyTree, Shaped

from rankmon._util.expected_time import compiled
from rankmon._util.optional_readers import optionally
from rankmon.network.dataflow import (
    Activation,
    DenseLayer,
    Label,
    Value,
    argument_values,
    closed_layers,
    is_float,
    kinds_of,
)
from rankmon.problem.flat import FlatProblem

__all__ = ["DenseLayer", "DenseStack", "dense_stack", "recognized_stack"]

_A = TypeVar("_A", Array, np.ndarray)


@dataclass(frozen=True)
class DenseStack:
    """A chain of dense layers, in the order of the data flow; `dims` is (d, M_1, ..., K)."""

    layers: tuple[DenseLayer, ...]
    dims: tuple[int, ...]

    @property
    def bias(self) -> bool | None:
        """True if every layer has a bias, False if no layer has one, None if layers differ."""
        having = {layer.bias is not None for layer in self.layers}
        return having.pop() if len(having) == 1 else None

    @property
    def linear(self) -> bool:
        """Whether there are no elementwise functions, so that F(x) = W^L ... W^1 x (+ biases)."""
        return not any(layer.activated for layer in self.layers)

    def weights(self, leaves: Sequence[Shaped[_A, "..."]]) -> tuple[Shaped[_A, "_out _in"], ...]:
        """Return (W^1, ..., W^L), each M_l x M_{l-1}, of leaves in `dense_stack`'s order."""
        stored = ((leaves[layer.kernel], layer.transposed) for layer in self.layers)
        return tuple(kernel.T if transposed else kernel for kernel, transposed in stored)

    def biases(self, leaves: Sequence[Shaped[_A, "..."]]) -> tuple[Shaped[_A, " _out"] | None, ...]:
        """Return (b^1, ..., b^L), each of length M_l; None for a layer without bias."""
        indices = (layer.bias for layer in self.layers)
        return tuple(None if i is None else leaves[i].reshape(-1) for i in indices)


def dense_stack(
    apply: Callable[..., Any],
    leaves: Sequence[Shaped[Array | np.ndarray, "..."]],
    inputs: PyTree[Shaped[Array | np.ndarray, "n ..."]],
) -> DenseStack | None:
    """Return the stack of dense layers that apply computes, or None if it is not one.

    A stack is F(x) = f_L(W^L f_{L-1}(... f_1(W^1 x + b^1) ...) + b^L), where every f_l is the
    identity or an elementwise function (the same for all examples and features), and x is the
    input, flattened in C order. Each floating leaf is one W^l or one b^l and is used once. The
    result is None for skip connections, tied, sliced or multiplied weights, constant weights,
    functions of the inputs before the first layer, `stop_gradient`, normalization, convolution and
    scans. A function with a custom derivative rule never counts as the identity. Without
    elementwise functions, apply must also equal the chain up to 1e-12 of the largest output at
    Gaussian parameters and inputs; a linear network that computes below float64 gives None.

    Args:
      apply: (leaves, inputs) -> outputs [n, k]; traceable by JAX.
      leaves: the parameter leaves, a flat list; float64, inside `jax.enable_x64(True)`. Only their
        shapes and dtypes are used. The result's indices refer to this list.
      inputs: the probe batch [n, ...]; only its shape and dtype are used.
    """
    batch = jax.tree_util.tree_leaves(inputs)
    if len(batch) != 1 or batch[0].ndim == 0 or not is_float(batch[0]):
        return None
    jaxpr, output = jax.make_jaxpr(apply, return_shape=True)(list(leaves), inputs)
    if not isinstance(output, jax.ShapeDtypeStruct) or len(output.shape) != 2:
        return None
    (result,) = kinds_of(jaxpr, argument_values(leaves, batch[0]))
    stack = _stack(result, leaves, batch[0].shape)
    if stack is None or (stack.linear and not _equals_chain(apply, stack, leaves, inputs)):
        return None
    return stack


def recognized_stack(flat: FlatProblem) -> DenseStack | None:
    """Return the network as a stack of dense layers; None if it is not one in float64."""
    if "stack" not in flat.memo:
        flat.memo["stack"] = optionally(
            flat.problem, "the stack of dense layers", lambda: _recognized(flat), otherwise=None
        )
    return flat.memo["stack"]


def _recognized(flat: FlatProblem) -> DenseStack | None:
    """Return `dense_stack` of a problem with float64 arithmetic and all leaves differentiated."""
    if flat.precision.dtype is None or not all(spec.differentiated for spec in flat.specs):
        return None
    leaves = [np.zeros(spec.shape, flat.precision.dtype) for spec in flat.specs]
    with flat.precision.scope():
        return dense_stack(flat.apply_leaves, leaves, flat.inputs)


def _stack(result: Value, leaves: Sequence[Any], input_shape: tuple[int, ...]) -> DenseStack | None:
    """Return the stack that ends in this result, if it is one and uses each leaf exactly once."""
    if not isinstance(result, Activation) or not result.stage.layers:
        return None
    rows, columns = result.axes
    if rows not in (Label.EXAMPLE, Label.UNIT) or columns not in (Label.FEATURE, Label.UNIT):
        return None
    layers = closed_layers(result)
    used = [i for layer in layers for i in (layer.kernel, layer.bias) if i is not None]
    if sorted(used) != [i for i, leaf in enumerate(leaves) if is_float(leaf)]:
        return None
    widths = [leaves[layer.kernel].shape[1 if layer.transposed else 0] for layer in layers]
    return DenseStack(layers, (math.prod(input_shape[1:]), *widths))


def _equals_chain(apply: Callable[..., Any], stack: DenseStack, leaves: Any, inputs: Any) -> bool:
    """Return whether apply is W^L ... W^1 x (+ biases) at Gaussian parameters and inputs."""
    rng = np.random.default_rng(0)

    def gaussian(like: Any) -> Any:
        return rng.standard_normal(like.shape).astype(like.dtype) if is_float(like) else like

    drawn, batch = jax.tree_util.tree_map(gaussian, (list(leaves), inputs))
    for layer, fan_in in zip(stack.layers, stack.dims[:-1], strict=True):
        # Keeps the outputs of the same order as the inputs.
        drawn[layer.kernel] = drawn[layer.kernel] / math.sqrt(fan_in)
    (chain,) = (np.reshape(x, (len(x), -1)) for x in jax.tree_util.tree_leaves(batch))
    for W, b in zip(stack.weights(drawn), stack.biases(drawn), strict=True):
        chain = chain @ W.T if b is None else chain @ W.T + b
    program = compiled("the chain of layers", jax.jit(apply).trace(drawn, batch))
    error = np.abs(np.asarray(program(drawn, batch)) - chain).max()
    return bool(error <= 1e-12 * np.abs(chain).max())
