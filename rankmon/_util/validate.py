"""Check single options; the errors give the expectation, the value and the remedy."""

import operator
from collections.abc import Collection, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

from rankmon._util.tags import HESSIAN_PARTS


def as_integer(
    name: str, value: int, *, least: int | None = None, remedy: str = "pass an int"
) -> int:
    """Return the value as an integer.

    Raises:
      TypeError: for anything else, including True and False.
      ValueError: if it is below `least`.
    """
    number = None
    with suppress(TypeError):
        number = None if isinstance(value, bool) else operator.index(value)
    if number is None:
        kind = type(value).__name__
        raise TypeError(f"expected {name} to be an integer, got {value!r} ({kind}); {remedy}")
    if least is not None and number < least:
        raise ValueError(f"expected {name} to be at least {least}, got {number}; {remedy}")
    return number


def as_flag(name: str, value: bool) -> bool:
    """Return a Python or NumPy boolean as a bool.

    Raises:
      TypeError: for anything else.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    is_numpys = kind == "b" and getattr(value, "shape", None) == ()
    if not (isinstance(value, bool) or is_numpys):
        raise TypeError(
            f"expected {name} to be True or False, got {value!r} ({type(value).__name__}); "
            "choose one"
        )
    return bool(value)


def as_share(name: str, value: float, *, remedy: str) -> float:
    """Return a number in (0, 1].

    Raises:
      TypeError: if it is not a real number.
      ValueError: if it is out of range.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a number, got {type(value).__name__}; {remedy}")
    if not 0 < value <= 1:
        raise ValueError(f"expected {name} to be in (0, 1], got {value}; {remedy}")
    return float(value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {choices}, got {value!r}; choose one")


def as_parts(parts: Any) -> tuple[str, ...]:
    """Return parts of the Hessian, in their usual order; all of them for None.

    Raises:
      ValueError: if there is none, or one of another name.
      TypeError: if these are not names.
    """
    if parts is None:
        return HESSIAN_PARTS
    given = (parts,) if isinstance(parts, str) else parts
    if not isinstance(given, Collection) or not all(isinstance(part, str) for part in given):
        raise TypeError(f"expected parts to be names of parts, got {parts!r}; write parts=('H_L',)")
    if not given or not set(given) <= set(HESSIAN_PARTS):
        raise ValueError(
            f"expected parts among {HESSIAN_PARTS}, got {tuple(given)}; leave it out for all"
        )
    return tuple(part for part in HESSIAN_PARTS if part in given)


def as_layers(layers: Any) -> tuple[str, ...] | None:
    """Return globs over the names of layers as a tuple, or None.

    Raises:
      TypeError: if they are neither None nor strings.
    """
    globs = (layers,) if isinstance(layers, str) else layers
    if globs is None:
        return None
    if not isinstance(globs, Sequence) or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(
            f"expected layers to be globs over the layers' names or None, got {layers!r}; pass "
            'for instance ("block_0/*", "head/*")'
        )
    return tuple(globs)


def check_engine(name: str, known: Sequence[str]) -> None:
    """Refuse a name that is not among the known engines."""
    if name not in known:
        raise ValueError(f"expected engine to be one of {known}, got {name!r}; use 'auto'")


def check_time_limit(seconds: float) -> None:
    """Refuse anything but a positive number of seconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(
            f"expected time_limit to be a number, got {type(seconds).__name__}; give seconds"
        )
    if not seconds > 0:
        raise ValueError(f"expected time_limit to be positive, got {seconds}; give seconds")
