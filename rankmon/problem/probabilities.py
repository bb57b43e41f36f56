"""Detect outputs that are probabilities although the loss applies a softmax to them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rankmon._util.warnings import warn_user
from rankmon.problem.losses import Loss

_TOLERANCE = 1e-5  # of a row's sum: the rounding of a softmax in float32


def takes_logits(loss: Loss) -> bool:
    """Return whether the loss applies a softmax to the outputs."""
    return loss.name == "cross_entropy"


def are_probabilities(z: Float[Array, "n k"], weights: Float[Array, " n"]) -> Bool[Array, ""]:
    """Return whether each row that counts is a distribution (in [0, 1], sum 1); traceable."""
    inside = jnp.all((z >= 0) & (z <= 1), axis=-1)
    sums_to_one = jnp.abs(jnp.sum(z, axis=-1) - 1) <= _TOLERANCE
    return jnp.all((inside & sums_to_one) | (weights == 0))


def warn_of_probabilities(given: set[Any]) -> None:
    """Warn that a second softmax is applied, unless this is among the warnings given before."""
    if "probabilities" in given:
        return
    given.add("probabilities")
    warn_user(
        "expected logits for loss 'cross_entropy', got outputs that are probabilities (each row is "
        "in [0, 1] and sums to 1), to which cross entropy applies a second softmax: the loss and "
        "all ranks are not those of your network; let apply return the logits, or the logarithm of "
        "the probabilities, which are logits too: jnp.log(outputs), and for Keras "
        "Problem.from_keras(keras.Model(model.inputs, keras.ops.log(model.outputs[0])), ...)"
    )
