"""The linear networks of `linear_families`: residual, tied and convolutional."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


def residual(params, x):
    """Return the outputs of residual blocks x + B A x."""
    for first, last in params:
        x = x + x @ first @ last
    return x


def tied(params, x):
    """Return the outputs of W_out W^3 W_in, a linear recurrent network."""
    first, again, last = params
    h = x @ first
    for _ in range(3):
        h = h @ again
    return h @ last


def convolutional(params, x):
    """Return the outputs of convolutions along one axis, flattened."""
    for kernel in params:
        x = jax.lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
    return x.reshape(len(x), -1)


def weight(key, *shape, scale=1.0):
    """Draw a weight that keeps the size of its inputs, times `scale`."""
    fan_in = shape[0] if len(shape) == 2 else shape[0] * shape[1]
    return scale * fan_in**-0.5 * jax.random.normal(key, shape)


def residual_params(key, quick):
    """Draw A and B of each block; as wide as the inputs, for which H_f has a formula."""
    d, inner = (4, (4, 5)) if quick else (10, (10, 12, 14))
    keys = jax.random.split(key, (len(inner), 2))
    return [
        (weight(a, d, m, scale=0.5), weight(b, m, d, scale=0.5))
        for m, (a, b) in zip(inner, keys, strict=True)
    ]


def tied_params(key, quick):
    """Draw W_in, W and W_out."""
    d, M, K = (6, 4, 2) if quick else (20, 12, 4)
    keys = jax.random.split(key, 3)
    again = 0.8 * jnp.eye(M) + weight(keys[1], M, M, scale=0.3)
    return [weight(keys[0], d, M), again, weight(keys[2], M, K)]


def convolutional_params(key, quick):
    """Draw two kernels, [steps, inputs, outputs]."""
    channels, steps = ((2, 3, 2), (2, 2)) if quick else ((4, 8, 4), (4, 3))
    shapes = zip(steps, channels, channels[1:], strict=False)
    return [
        weight(one, *shape)
        for one, shape in zip(jax.random.split(key, len(steps)), shapes, strict=True)
    ]


@dataclass(frozen=True)
class Family:
    """A network, its initial parameters by key and size, and how it is trained and drawn."""

    apply: Callable[[Any, Any], Any]
    params: Callable[[Any, bool], Any]
    title: str
    rate: float
    steps: int
    input_shape: tuple[int, ...]
    quick_shape: tuple[int, ...]


FAMILIES = {
    "residual": Family(
        residual, residual_params, r"residual blocks $x + B_l A_l x$", 0.05, 1600, (10,), (4,)
    ),
    "tied": Family(
        tied,
        tied_params,
        r"tied weights $W_\mathrm{out} W^3 W_\mathrm{in}$",
        0.1,
        3200,
        (20,),
        (6,),
    ),
    "convolutional": Family(
        convolutional, convolutional_params, "two 1-D convolutions", 0.03, 2400, (10, 4), (5, 2)
    ),
}
