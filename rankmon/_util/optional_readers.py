"""Optional readers of the user's program: one that fails is left out, and the general way measures.

A reader takes the network's jaxpr apart to make a measurement cheaper or richer. A new version of
JAX may write programs in another way, which must neither end training nor change a number.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from rankmon._util.warnings import warn_user

T = TypeVar("T")


D = TypeVar("D")


_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def optionally(problem: Any, reader: str, read: Callable[[], T], *, otherwise: D) -> T | D:
    """Return what the reader finds; if it raises, `otherwise`, with one warning a problem.

    Args:
      problem: the user's problem; it is warned of each reader once.
      reader: the name of what is read, as the warning gives it.
      read: the reader.
      otherwise: the value that makes the caller take the general way.

    Raises:
      MemoryError: from the reader; a limit is no fault of its own.
    """
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  any error: a newer JAX may raise any
        warned = _warned.setdefault(problem, set())
        if reader not in warned:
            warned.add(reader)
            warn_user(unreadable(reader, error))
        return otherwise


def unreadable(reader: str, error: Exception) -> str:
    """Return the warning about a reader that raised."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return (
        f"expected to read {reader} from the network's program, got {type(error).__name__}: "
        f"{text}; this is left out and the network is measured the general way. Please report it "
        "to rankmon with your version of JAX"
    )
