"""Errors about how a problem is stated: models in place of functions, unknown arguments."""

from collections.abc import Mapping
from typing import Any

from rankmon.problem.equinox_keras import kinds

_REQUIRED = ("loss", "inputs", "targets")
_OPTIONAL = ("weights", "include", "exclude", "lift_dtype")


def constructor_of(value: Any) -> str | None:
    """Return the code that states the problem of a framework's model, or None."""
    for library, remedy in (
        ("flax.linen", "Problem.from_linen(module, ...)"),
        ("flax.nnx", "Problem.from_nnx(model, ...)"),
        ("equinox", "Problem.from_equinox(model, ...)"),
    ):
        if isinstance(value, kinds(library, "Module")):
            return remedy
    if isinstance(value, kinds("keras", "Layer")):
        return "Problem.from_keras(model, ...)"
    if not callable(value) and hasattr(value, "init") and hasattr(value, "apply"):
        return "Problem.from_haiku(transformed, ...)"
    return None


def how_to_state(apply: Any) -> str | None:
    """Return the code to write instead of `Problem(apply)` for a framework's model, or None."""
    constructor = constructor_of(apply)
    if constructor is None:
        return None if callable(apply) else "write a lambda"
    if "equinox" in constructor:
        return (
            f"use {constructor}, or write Problem(lambda model, x: jax.vmap(model)(x), ...), "
            "and pass the model itself as parameters"
        )
    if "keras" in constructor:
        return (
            f"use {constructor}, or write Problem(lambda p, x: model.stateless_call(p, "
            "model.non_trainable_variables, x)[0], ...) and pass model.trainable_variables"
        )
    if "haiku" in constructor:
        return f"use {constructor}, or write Problem(lambda p, x: net.apply(p, None, x), ...)"
    return f"use {constructor}"


def how_to_state_method(apply: Any) -> str | None:
    """Return the code to write instead of `Problem(model.apply)`, if that fails, or None."""
    constructor = constructor_of(getattr(apply, "__self__", None))
    if constructor is None or "haiku" in constructor:  # any object with init and apply
        return None
    return f"use {constructor}, which evaluates it in inference"


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse arguments of `from_linen` and its like that `Problem` does not have, or lacks.

    Raises:
      TypeError: for an unknown argument, or without loss, inputs or targets.
    """
    for name in options:
        if name not in (*_REQUIRED, *_OPTIONAL):
            raise TypeError(
                f"expected the arguments of Problem, {', '.join((*_REQUIRED, *_OPTIONAL))}, got "
                f"{name!r}; pass an argument of the model's call as arguments={{{name!r}: value}} "
                "(train=False and the like are set for you)"
            )
    missing = [name for name in _REQUIRED if name not in options]
    if missing:
        raise TypeError(
            f"expected loss=, inputs= and targets=, got no {' and no '.join(missing)}; inputs and "
            "targets are the probe batch, a fixed set of examples on which everything is measured"
        )
