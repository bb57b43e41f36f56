"""Equinox models as functions apply(model, inputs, state), evaluated in inference mode."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import numpy as np

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

    def apply(params: Any, inputs: Any, state: Any, each: Any = jax.vmap) -> Any:
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

        return each(outputs_of)(inputs)

    def over_examples(params: Any, inputs: Any, state: Any = None) -> Any:
        outputs = apply(params, inputs, state)
        # A model with a scalar for each example, `out_features="scalar"`, has one output.
        return outputs[:, None] if getattr(outputs, "ndim", None) == 1 else outputs

    def on_a_batch(params: Any, inputs: Any, state: Any = None) -> Any:
        return apply(params, inputs, state, each=lambda function: function)

    vars(over_examples)["on_a_batch"] = on_a_batch  # for errors: a model of a batch

    def unpack(params: Any) -> Any:
        if not (isinstance(params, tuple) and len(params) == 2) or hasattr(params, "params"):
            return plain(params)  # the model, its arrays, or a training state
        _check_pair(params, equinox.nn.State, takes_state=takes_state)
        return Bundle(as_arrays(params[0]), params[1])

    return over_examples, unpack


def as_column(targets: Any, loss: Any) -> Any:
    """Return targets [n] of a loss that compares numbers as [n, 1], and others unchanged."""
    is_vector = loss in ("mse", "cosh") and np.ndim(targets) == 1
    return np.asarray(targets)[:, None] if is_vector else targets


def _check_pair(pair: tuple[Any, Any], state: type, *, takes_state: bool) -> None:
    """Refuse a pair in place of parameters unless it is (model, state) and the model takes one."""
    kinds_of = f"({type(pair[0]).__name__}, {type(pair[1]).__name__})"
    if not takes_state:
        raise TypeError(
            f"expected a model without state, got the pair {kinds_of}; pass the model alone"
        )
    if not isinstance(pair[1], state) or isinstance(pair[0], state):
        raise TypeError(
            f"expected the pair (model, state) with the model's equinox.nn.State, got {kinds_of}; "
            "pass the model first and its state second (not the optimizer's)"
        )


def _combined(equinox: Any, params: Any, static: Any) -> Any:
    """Return the model, of which `equinox.filter` may have left only the arrays."""
    try:
        return equinox.combine(params, static)
    except ValueError:
        where = _difference(static, params)
        raise TypeError(
            "expected parameters of the model that from_equinox was given, got another structure"
            f"{'' if where is None else f' ({where})'}; pass the model, or "
            "equinox.filter(model, equinox.is_array), or state a problem for each such model"
        ) from None


def _difference(one: Any, other: Any, name: str = "model") -> str | None:
    """Return the first field in which two models differ apart from their arrays, or None."""
    if one is None or other is None or hasattr(one, "dtype") or hasattr(other, "dtype"):
        return None
    if type(one) is not type(other):
        return f"{name} is of {type(other).__name__}, not {type(one).__name__}"
    if is_dataclass(one):
        parts = {f".{f.name}": (getattr(one, f.name), getattr(other, f.name)) for f in fields(one)}
    elif isinstance(one, dict) and one.keys() == other.keys():
        parts = {f"[{key!r}]": (one[key], other[key]) for key in one}
    elif isinstance(one, (list, tuple)) and len(one) == len(other):
        parts = {f"[{i}]": pair for i, pair in enumerate(zip(one, other, strict=True))}
    else:
        return None if one is other or one == other else f"{name} is {other!r}, not {one!r}"[:200]
    found = (_difference(*pair, f"{name}{part}") for part, pair in parts.items())
    return next((text for text in found if text is not None), None)
