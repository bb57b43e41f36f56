"""Names that have moved: old modules still give them for one version, with a DeprecationWarning."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any
from warnings import warn


def moved_names(old: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module whose names have moved.

    Args:
      old: the module's name.
      homes: each name's new module.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        new = homes[name]
        text = f"expected {new}.{name}, got {old}.{name}, which has moved; import it from {new}"
        warn(text, DeprecationWarning, stacklevel=2)
        return getattr(import_module(new), name)

    return get
