"""Linen and NNX modules as functions of their parameters; flax is imported where one is given.

What a module needs beside its parameters (batch statistics) is `extra`: it changes during training
like they do, and is never differentiated. Modules are evaluated in inference mode.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rankmon._tree import Bundle

Apply = Callable[..., Any]
Unpack = Callable[[Any], Any]

# What modules call the switch between training and inference, and its value in inference.
_INFERENCE = {"train": False, "training": False, "is_training": False, "deterministic": True}


def plain(params: Any) -> Any:
    """Parameters of a function apply(params, inputs): those of a flax TrainState, or themselves."""
    return params.params if _is_train_state(params) else params


def linen_apply(module: Any, method: Any, arguments: Mapping[str, Any]) -> Apply:
    """apply(params, inputs, extra) of a Linen module.

    Raises:
      TypeError: for what is no Linen module.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(
            f"expected a flax.linen.Module, got {type(module).__name__}; for an NNX model use "
            "Problem.from_nnx, for a function of parameters Problem"
        )
    function = method if callable(method) else getattr(module, method or "__call__")
    accepted = inspect.signature(function).parameters
    switches = {name: value for name, value in _INFERENCE.items() if name in accepted}
    given = {**switches, **arguments}

    def apply(params: Any, inputs: Any, extra: Any = None) -> Any:
        if "params" in (extra or {}):
            raise ValueError(
                f"expected extra to hold collections beside the parameters, got {sorted(extra)}; "
                "leave 'params' out of it"
            )
        return module.apply({"params": params, **(extra or {})}, inputs, method=method, **given)

    return apply


def linen_unpack(params: Any) -> Bundle:
    """The parameters, with the collections beside them, of a TrainState or a dict of variables."""
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


def nnx_network(model: Any, arguments: Mapping[str, Any]) -> tuple[Apply, Unpack]:
    """apply(params, inputs, extra) of an NNX model, and what takes a model apart.

    Raises:
      TypeError: for what is no NNX module.
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"expected a flax.nnx.Module, got {type(model).__name__}; for a Linen module use "
            "Problem.from_linen, for a function of parameters Problem"
        )
    inference = nnx.clone(model)
    inference.eval()
    nnx.pop(inference, nnx.Intermediate)  # what was sown; a forward pass sows it anew
    graph, _, random, at_first = nnx.split(inference, nnx.Param, nnx.RngState, ...)

    def apply(params: Any, inputs: Any, extra: Any = None) -> Any:
        rest = at_first if extra is None else extra
        return nnx.merge(graph, params, random, rest)(inputs, **arguments)

    def unpack(params: Any) -> Any:
        weights, rest = params, at_first
        if isinstance(params, nnx.Module):
            not_measured = (nnx.RngState, nnx.Intermediate)
            _, weights, _, rest = nnx.split(params, nnx.Param, not_measured, ...)
        return Bundle(weights, rest) if jax.tree.leaves(rest) else weights

    return apply, unpack


def is_module(value: Any) -> bool:
    """Whether this is a module of Linen or NNX; flax is not imported to find out."""
    return _is_of("flax.nnx", value) or _is_of("flax.linen", value)


def is_nnx_live(params: Any) -> bool:
    """Whether training changes these in place: an NNX module, or a state with its variables."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return False

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    leaves = jax.tree.leaves(params, is_leaf=is_variable)
    return isinstance(params, nnx.Module) or any(map(is_variable, leaves))


def _is_of(library: str, value: Any) -> bool:
    found = sys.modules.get(library)
    return found is not None and isinstance(value, found.Module)


def _is_train_state(params: Any) -> bool:
    return hasattr(params, "params") and hasattr(params, "apply_fn")
