"""The networks of the paper's experiments: dense layers, kernels stored (in, out)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Weights = list[Float[Array, "fan_in fan_out"]]
Layers = list[dict[str, Array]]


def _uniform(key: Array, shape: tuple[int, int]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


INITIALIZERS = {
    "Glorot": jax.nn.initializers.glorot_normal(),
    "uniform": _uniform,
    "orthogonal": jax.nn.initializers.orthogonal(),
}
ACTIVATIONS = {"ReLU": jax.nn.relu, "ELU": jax.nn.elu, "tanh": jnp.tanh}


def glorot_normal(key: Array, dims: Sequence[int]) -> Weights:
    """Draw random weights for the widths (d, M_1, ..., K), as the paper initializes them."""
    return initial_weights(key, dims, "Glorot")


def initial_weights(key: Array, dims: Sequence[int], initializer: str) -> Weights:
    """Draw random weights for the widths (d, M_1, ..., K), by one of the `INITIALIZERS`."""
    keys = jax.random.split(key, len(dims) - 1)
    shapes = zip(dims[:-1], dims[1:], strict=True)
    return [INITIALIZERS[initializer](k, shape) for k, shape in zip(keys, shapes, strict=True)]


def with_biases(weights: Weights) -> Layers:
    """Return layers with these kernels and with zero biases, as Flax initializes them."""
    return [{"kernel": weight, "bias": jnp.zeros(weight.shape[1:])} for weight in weights]


def linear(weights: Weights, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Return W^L ... W^1 x."""
    return stack(lambda z: z)(weights, x)


def affine(layers: Layers, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Return W^L (... (W^1 x + b^1) ...) + b^L."""
    for layer in layers:
        x = x @ layer["kernel"] + layer["bias"]
    return x


def relu(weights: Weights, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
    """Return the outputs of a network with ReLU between its layers."""
    return stack(jax.nn.relu)(weights, x)


def stack(activation: Callable[[Array], Array]) -> Callable[[Weights, Array], Array]:
    """Return the function of a network with this activation between its layers."""

    def apply(weights: Weights, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        return features(activation, weights, x) @ weights[-1]

    return apply


def features(
    activation: Callable[[Array], Array], weights: Weights, x: Float[Array, "n d"]
) -> Float[Array, "n m"]:
    """Return the inputs of the last layer."""
    for weight in weights[:-1]:
        x = activation(x @ weight)
    return x
