"""How a framework's module is called: with one input or several, switched to inference."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# The arguments of a call, positional and by keyword, for the inputs of a probe batch.
Arguments = Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]

# Names of arguments that switch between training and inference, with their values for inference.
_INFERENCE = {
    "train": False,
    "training": False,
    "is_train": False,
    "is_training": False,
    "deterministic": True,
}


def switches(function: Callable[..., Any]) -> dict[str, bool]:
    """Return the function's arguments that switch to inference mode, with their values."""
    accepted = inspect.signature(function).parameters
    return {name: value for name, value in _INFERENCE.items() if name in accepted}


def passing(
    function: Callable[..., Any],
    first: tuple[Any, ...],
    given: Mapping[str, Any],
    inputs: Any,
    call: str,
) -> Arguments:
    """Return how to pass inputs to a module: whole, or as several arguments if it needs them.

    Args:
      function: the module's method or function.
      first: its arguments before the inputs.
      given: its keyword arguments apart from the inputs.
      inputs: those of the probe batch; a tuple can be positional arguments, a dict keywords.
      call: code that calls the module, for the error's remedy.

    Raises:
      TypeError: if the module cannot be called with these inputs and the given keywords.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*first, object(), **given)
        return lambda x: ((x,), {})
    except TypeError as error:
        alone = error
    try:
        if isinstance(inputs, tuple):
            signature.bind(*first, *inputs, **given)
            return lambda x: (tuple(x), {})
        if isinstance(inputs, dict):
            signature.bind(*first, **inputs, **given)
            return lambda x: ((), dict(x))
    except TypeError as error:
        alone = error
    raise TypeError(
        f"expected a module that is called as module(inputs), got one that takes {signature} "
        f"({alone}); give several inputs as a tuple or a dict, and constants and switches by "
        f"arguments={{'name': value}}, or call it yourself: Problem(lambda p, x: {call}, ...)"
    ) from None
