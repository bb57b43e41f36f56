"""The networks of the paper's experiments: dense layers without biases, stored (in, out)."""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float

Weights = list[Float[Array, "fan_in fan_out"]]


def glorot_normal(key: Array, dims: Sequence[int]) -> Weights:
    """Random weights for the widths (d, M_1, ..., K), as the paper initializes them."""
    initializer = jax.nn.initializers.glorot_normal()
    keys = jax.random.split(key, len(dims) - 1)
    shapes = zip(dims[:-1], dims[1:], strict=True)
    return [initializer(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def linear(weights: Weights, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """W^L ... W^1 x."""
    return _stack(weights, x, lambda z: z)


def relu(weights: Weights, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """The same with a ReLU between the layers."""
    return _stack(weights, x, jax.nn.relu)


def _stack(weights: Weights, x: Array, activation: Callable[[Array], Array]) -> Array:
    for weight in weights[:-1]:
        x = activation(x @ weight)
    return x @ weights[-1]
