"""Optional readers of the network's program: a reader that fails is left out, with one warning.

A reader analyzes the network's jaxpr to make a measurement cheaper or more detailed; without it the
general method is used. If a new version of JAX writes programs differently, that must neither stop
training nor change a number.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from rankmon._util.warnings import warn_user

T = TypeVar("T")
D = TypeVar("D")
_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def optionally(problem: Any, reader: str, read: Callable[[], T], *, otherwise: D) -> T | D:
    """Return the reader's result; if it raises, warn once per problem and return `otherwise`.

    Args:
      problem: the user's problem.
      reader: the name of the structure that is read, for the warning.
      read: the reader.
      otherwise: the value with which the caller uses the general method.

    Raises:
      MemoryError: if the reader raises it, because a memory limit is not a failure to read.
    """
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  a newer JAX may raise any error
        warned = _warned.setdefault(problem, set())
        if reader not in warned:
            warned.add(reader)
            warn_user(unreadable(reader, error))
        return otherwise


def unreadable(reader: str, error: Exception) -> str:
    """Return the warning about a reader that raised an error."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return (
        f"expected to read {reader} from the network's program, got {type(error).__name__}: "
        f"{text}; this is left out and the network is measured the general way. Please report it "
        "to rankmon with your version of JAX"
    )
