"""Haiku's transformed functions as functions apply(params, inputs, state), in inference mode."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rankmon.problem.calling import passing, switches
from rankmon.problem.equinox_keras import kinds
from rankmon.problem.flax import plain
from rankmon.problem.pytree import Bundle


def haiku_network(
    transformed: Any, rng: Any, arguments: Mapping[str, Any], inputs: Any = None
) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    """Return apply(params, inputs, state), and a function that unpacks parameters.

    Raises:
      TypeError: if it is not a transformed function, or cannot be called with the inputs.
    """
    has_state = isinstance(transformed, kinds("haiku", "TransformedWithState"))
    if not (has_state or isinstance(transformed, kinds("haiku", "Transformed"))):
        raise TypeError(
            "expected the result of haiku.transform or haiku.transform_with_state, got "
            f"{type(transformed).__name__}; transform your function first, or use Problem for a "
            "function of parameters"
        )
    names = list(inspect.signature(transformed.apply).parameters)
    takes_rng = names[1 + has_state : 2 + has_state] == ["rng"]  # else hk.without_apply_rng
    key = (rng,) if takes_rng else ()
    given = {**switches(transformed.apply), **arguments}
    first = (None,) * (1 + has_state + takes_rng)
    call = f"net.apply(p, {'state, ' * has_state}{'None, ' * takes_rng}x[0], x[1])"
    passed = passing(transformed.apply, first, given, inputs, call)

    def apply(params: Any, inputs: Any, state: Any = None) -> Any:
        several, named = passed(inputs)
        if not has_state:
            return transformed.apply(params, *key, *several, **named, **given)
        if state is None:
            raise TypeError(
                "expected the parameters and the state, got the parameters alone; pass (params, "
                "state), or monitor(step, params, extra=state)"
            )
        return transformed.apply(params, state, *key, *several, **named, **given)[0]

    def unpack(params: Any) -> Any:
        if has_state and type(params) is tuple and len(params) == 2:
            return Bundle(*params)
        return plain(params)

    return apply, unpack
