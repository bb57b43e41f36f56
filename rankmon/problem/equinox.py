"""Equinox models as functions apply(model, inputs, state), evaluated in inference mode."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rankmon.problem.calling import passing, switches
from rankmon.problem.equinox_keras import as_arrays, kinds
from rankmon.problem.flax import plain
from rankmon.problem.pytree import Bundle


def equinox_network(
    model: Any, arguments: Mapping[str, Any], inputs: Any = None
) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    """Return apply(model, inputs, state) over a batch, and a function that unpacks parameters.

    Raises:
      TypeError: if it is not an Equinox model, or cannot be called with the inputs.
    """
    if not (isinstance(model, kinds("equinox", "Module")) and callable(model)):
        raise TypeError(
            f"expected a callable equinox.Module, got {type(model).__name__}; for a function of "
            "parameters use Problem"
        )
    import equinox

    function = type(model).__call__
    state_of_call = inspect.signature(function).parameters.get("state")
    takes_state = state_of_call is not None and "state" not in arguments
    needs_state = takes_state and getattr(state_of_call, "default", 0) is inspect.Parameter.empty
    given = {**switches(function), **arguments}
    bound = {**given, **({"state": None} if needs_state else {})}
    passed = passing(function, (model,), bound, inputs, "jax.vmap(p)(x[0], x[1])")
    static = equinox.filter(model, equinox.is_array, inverse=True)

    def apply(params: Any, inputs: Any, state: Any = None) -> Any:
        if needs_state and state is None:
            raise TypeError(
                "expected the model and its state, got the model alone; pass (model, state) as "
                "parameters, or monitor(step, model, extra=state)"
            )
        network = equinox.nn.inference_mode(_combined(equinox, params, static))

        def outputs_of(example: Any) -> Any:
            several, named = passed(example)
            if takes_state and state is not None:
                return network(*several, **named, **given, state=state)[0]
            return network(*several, **named, **given)

        return jax.vmap(outputs_of)(inputs)

    def unpack(params: Any) -> Any:
        is_pair = isinstance(params, tuple) and len(params) == 2
        if takes_state and is_pair and isinstance(params[1], equinox.nn.State):
            return Bundle(as_arrays(params[0]), params[1])
        return plain(params)

    return apply, unpack


def _combined(equinox: Any, params: Any, static: Any) -> Any:
    """Return the model, of which `equinox.filter` may have left only the arrays."""
    try:
        return equinox.combine(params, static)
    except ValueError:
        raise TypeError(
            "expected parameters of the model that from_equinox was given, got another structure; "
            "pass the model, or equinox.filter(model, equinox.is_array)"
        ) from None
