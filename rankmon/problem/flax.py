"""Flax modules as functions apply(params, inputs, extra), evaluated in inference mode.

`extra` contains the collections that a module needs in addition to its parameters (batch
statistics). They change during training too, but are never differentiated. Flax is imported only if
one of its modules is passed.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rankmon.problem.calling import passing, switches
from rankmon.problem.equinox_keras import as_arrays
from rankmon.problem.pytree import Bundle

Apply = Callable[..., Any]
Unpack = Callable[[Any], Any]

# Keywords of Linen's `apply` that are not passed to the module.
_OF_LINEN_APPLY = ("rngs", "mutable", "capture_intermediates")


def plain(params: Any) -> Any:
    """Return the parameters for a function apply(params, inputs), extracted from a TrainState."""
    return as_arrays(params.params if _is_train_state(params) else params)


def linen_apply(
    module: Any, method: Any, arguments: Mapping[str, Any], inputs: Any = None
) -> Apply:
    """Return the function apply(params, inputs, extra) of a Linen module.

    Raises:
      TypeError: if it is not a Linen module, or cannot be called with the inputs.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        remedy = "for an NNX model use Problem.from_nnx, for a function of parameters Problem"
        if isinstance(getattr(module, "__self__", None), linen.Module):
            remedy = "pass the module itself, from_linen(module, ...), not its apply"
        raise TypeError(f"expected a flax.linen.Module, got {type(module).__name__}; {remedy}")
    function = method if callable(method) else getattr(module, method or "__call__", None)
    if function is None:
        raise TypeError(
            f"expected method to be one of {type(module).__name__}'s, got {method!r}; give its "
            "name, or the function"
        )
    given = {**switches(function), **arguments}
    own = {name: value for name, value in given.items() if name not in _OF_LINEN_APPLY}
    is_bound = not callable(method) or inspect.ismethod(method)
    call = "module.apply({'params': p}, x[0], x[1])"
    passed = passing(function, () if is_bound else (module,), own, inputs, call)

    def apply(params: Any, inputs: Any, extra: Any = None) -> Any:
        if "params" in (extra or {}):
            raise ValueError(
                f"expected extra to hold collections beside the parameters, got {sorted(extra)}; "
                "leave 'params' out of it"
            )
        several, named = passed(inputs)
        variables = {"params": params, **(extra or {})}
        return module.apply(variables, *several, method=method, **named, **given)

    return apply


def linen_unpack(params: Any) -> Any:
    """Return the parameters and the other collections of a TrainState or a dict of variables."""
    if _is_train_state(params):
        inner = linen_unpack(params.params)
        statistics = getattr(params, "batch_stats", None)
        if statistics is None:
            return inner
        return Bundle(inner.params, {**(inner.extra or {}), "batch_stats": statistics})
    if isinstance(params, Mapping) and "params" in params:
        extra = {name: value for name, value in params.items() if name != "params"}
        return Bundle(params["params"], extra or None)
    return Bundle(params, None)


def nnx_network(
    model: Any, arguments: Mapping[str, Any], inputs: Any = None
) -> tuple[Apply, Unpack]:
    """Return apply(params, inputs, extra) of an NNX model, and a function that unpacks models.

    Raises:
      TypeError: if it is not an NNX module, or cannot be called with the inputs.
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"expected a flax.nnx.Module, got {type(model).__name__}; for a Linen module use "
            "Problem.from_linen, for a function of parameters Problem"
        )
    function = type(model).__call__
    given = {**switches(function), **arguments}
    call = "nnx.merge(graph, p, rest)(x[0], x[1])"
    passed = passing(function, (model,), given, inputs, call)
    inference = nnx.clone(model)
    inference.eval()
    not_measured = (nnx.RngState, nnx.Intermediate)
    nnx.pop(inference, nnx.Intermediate)  # sown values; each forward pass sows them again
    graph, _, random, at_first = nnx.split(inference, nnx.Param, nnx.RngState, ...)

    def fresh(argument: Any) -> Any:
        is_node = isinstance(argument, (nnx.Rngs, nnx.Module))
        return nnx.merge(*nnx.split(argument), copy=True) if is_node else argument

    def apply(params: Any, inputs: Any, extra: Any = None) -> Any:
        rest = at_first if extra is None else extra
        # Copies, because a forward pass counts its random draws, and JAX forbids changes to
        # variables that were created outside of the trace.
        network = nnx.merge(graph, params, random, rest, copy=True)
        several, named = passed(inputs)
        constants = {name: fresh(value) for name, value in given.items()}
        return network(*several, **named, **constants)

    def unpack(params: Any) -> Any:
        weights, rest = params, at_first
        if isinstance(params, nnx.Optimizer):
            params = _model_of(params)
        if isinstance(params, nnx.Module):
            _, weights, _, rest = nnx.split(params, nnx.Param, not_measured, ...)
        elif isinstance(params, nnx.State) and _has_other_variables(params):
            weights, _, rest = nnx.split_state(params, nnx.Param, not_measured, ...)
        return Bundle(weights, rest) if jax.tree.leaves(rest) else weights

    return apply, unpack


def _model_of(optimizer: Any) -> Any:
    model = getattr(optimizer, "model", None)
    if model is None:
        raise TypeError(
            "expected an NNX model or its state, got an nnx.Optimizer, which has no model; pass "
            "the model, or nnx.state(model, nnx.Param)"
        )
    return model


def _has_other_variables(state: Any) -> bool:
    """Return whether an NNX state has variables other than parameters."""
    from flax import nnx

    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    kinds = {type(variable) for variable in variables if isinstance(variable, nnx.Variable)}
    return not all(issubclass(kind, nnx.Param) for kind in kinds)


def _is_train_state(params: Any) -> bool:
    """Return whether this is a training state that contains parameters, as in Flax and Haiku."""
    trains = hasattr(params, "apply_fn") or hasattr(params, "opt_state")
    return hasattr(params, "params") and trains
