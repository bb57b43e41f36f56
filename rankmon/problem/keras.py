"""Keras models on the JAX backend as functions apply(variables, inputs, others), in inference."""

from collections.abc import Callable, Mapping
from typing import Any

from rankmon.problem.equinox_keras import as_arrays, kinds
from rankmon.problem.pytree import Bundle


def keras_network(
    model: Any, arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    """Return apply(trainable, inputs, non_trainable), and a function that unpacks the model.

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

    def apply(trainable: Any, inputs: Any, others: Any = None) -> Any:
        rest = network.non_trainable_variables if others is None else others
        return network.stateless_call(trainable, rest, inputs, training=False, **arguments)[0]

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
