"""Optional readers of the network's program: one that fails is left out, with one warning.

A reader takes the network's jaxpr apart to make a measurement cheaper or richer; without it the
network is measured the general way. A new version of JAX may write programs in another way, which
must neither end training nor change a number.
"""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from rankmon._util.warnings import warn_user

T = TypeVar("T")
D = TypeVar("D")
_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def optionally(problem: Any, reader: str, read: Callable[[], T], *, otherwise: D) -> T | D:
    """Return what the reader finds; if it raises, warn once per problem and return `otherwise`.

    Args:
      problem: the user's problem.
      reader: the name of what is read, for the warning's text.
      read: the reader.
      otherwise: the value that makes the caller take the general way.

    Raises:
      MemoryError: if the reader does, since a memory limit is not a failure to read.
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
