"""Keras models on the JAX backend as functions apply(variables, inputs, others), in inference."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from rankmon.problem.equinox_keras import as_arrays, kinds
from rankmon.problem.pytree import Bundle


def keras_network(
    model: Any, arguments: Mapping[str, Any], loss: Any = None
) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    """Return apply(trainable, inputs, non_trainable), and a function that unpacks the model.

    If the loss takes logits and the last layer is a softmax, apply returns the logarithm of its
    probabilities, which are logits of the same probabilities.

    Raises:
      TypeError: if it is not a model or layer of Keras.
      ValueError: if the model is not built, or Keras does not run on JAX.
    """
    if not isinstance(model, kinds("keras", "Layer")):
        raise TypeError(
            f"expected a model of Keras, got {type(model).__name__}; for a function of parameters "
            "use Problem"
        )
    import keras

    if (backend := keras.backend.backend()) != "jax":
        raise ValueError(
            f"expected Keras on JAX, got the backend {backend!r}; set KERAS_BACKEND=jax in the "
            "environment before keras is imported"
        )
    if not getattr(model, "built", False):
        raise ValueError(
            f"expected a model with weights, got a {type(model).__name__}, which is not built; "
            "begin it with keras.Input(shape), or call it on a batch first"
        )

    network: Any = model
    takes_log = loss == "cross_entropy" and _ends_in_softmax(model)

    def apply(trainable: Any, inputs: Any, others: Any = None) -> Any:
        rest = network.non_trainable_variables if others is None else others
        outputs = network.stateless_call(trainable, rest, inputs, training=False, **arguments)[0]
        return jnp.log(outputs) if takes_log else outputs

    def unpack(params: Any) -> Any:
        if not isinstance(params, kinds("keras", "Layer")):
            return as_arrays(params)
        # During `fit` the arrays are the trainer's, until someone asks for them.
        given: Any = params
        getattr(given, "jax_state_sync", bool)()
        trainable = as_arrays(given.trainable_variables)
        others = given.non_trainable_variables
        return Bundle(trainable, as_arrays(others)) if others else trainable

    return apply, unpack


def has_one_dtype(model: Any) -> bool:
    """Return whether the layers compute in the dtype of their variables (no mixed precision)."""
    layers = [model, *getattr(model, "layers", ())]
    return all(layer.compute_dtype == layer.variable_dtype for layer in layers)


def _ends_in_softmax(model: Any) -> bool:
    """Return whether the model's only output is that of a layer with a softmax."""
    import keras

    outputs: list[Any] = list(getattr(model, "outputs", None) or ())
    for layer in getattr(model, "layers", ()) if len(outputs) == 1 else ():
        try:
            is_last = layer.output is outputs[0]
        except (AttributeError, ValueError):  # the layer is called several times, or never
            continue
        if is_last:
            own = isinstance(layer, keras.layers.Softmax) and layer.axis == -1
            return own or getattr(layer, "activation", None) is keras.activations.softmax
    return False
