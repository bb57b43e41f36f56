"""Checks of options: expected, got, and what to do."""

import operator
from collections.abc import Sequence


def check_flag(name: str, value: bool) -> None:
    """Refuses what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} to be True or False, got {value!r}; choose one")


def check_engine(name: str, known: Sequence[str]) -> None:
    """Refuses what is none of these engines."""
    if name not in known:
        raise ValueError(f"expected engine to be one of {known}, got {name!r}; use 'auto'")


def as_memory_limit(limit: int) -> int:
    """The number of bytes.

    Raises:
      TypeError: for what is no integer.
      ValueError: where it is not positive.
    """
    try:
        number = operator.index(limit)
    except TypeError:
        raise TypeError(
            f"expected memory_limit to be an integer, got {type(limit).__name__}; give bytes, for "
            "instance 4 * 2**30"
        ) from None
    if number < 1:
        raise ValueError(f"expected memory_limit to be positive, got {number}; give bytes")
    return number


def as_count(name: str, count: int) -> int:
    """How many there are or may be.

    Raises:
      TypeError: for what is no integer.
      ValueError: where it is negative.
    """
    try:
        number = operator.index(count)
    except TypeError:
        raise TypeError(
            f"expected {name} to be an integer, got {type(count).__name__}; give a number of them"
        ) from None
    if number < 0:
        raise ValueError(f"expected {name} to be at least 0, got {number}; 0 is none")
    return number


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses what is not among the choices."""
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {choices}, got {value!r}; choose one")
