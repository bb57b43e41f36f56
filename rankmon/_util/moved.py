"""Moved names: old modules provide them for one more version, with a DeprecationWarning."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any
from warnings import warn


def moved_names(old: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module whose names have moved.

    Args:
      old: the name of the old module.
      homes: the new module of each name.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        new = homes[name]
        text = f"expected {new}.{name}, got {old}.{name}, which has moved; import it from {new}"
        warn(text, DeprecationWarning, stacklevel=2)
        return getattr(import_module(new), name)

    return get
