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
    missing = [
        parameter.name
        for parameter in list(signature.parameters.values())[len(first) + 1 :]
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in given
    ]
    example = ", ".join(f"{name!r}: None" for name in missing) or "'name': value"
    raise TypeError(
        f"expected a module that is called as module(inputs), got one that takes {signature} "
        f"({alone}); give constants and switches by arguments={{{example}}} (a key that inference "
        "does not use may be None), several inputs as a tuple or a dict, or call it yourself: "
        f"Problem(lambda p, x: {call}, ...)"
    ) from None
