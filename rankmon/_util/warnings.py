"""Warnings that point at the user's line of code and never stop training."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

_log = logging.getLogger("rankmon")
_PACKAGE = str(Path(__file__).parents[1]) + os.sep

_Keep = Callable[[str], None]
_thread = threading.local()


class RankmonWarning(UserWarning):
    """A measurement or record is missing or incomplete; training continues."""


def warn_user(message: str) -> None:
    """Warn at the nearest line outside the package; log if warnings are turned into errors.

    On a thread that does not run the user's code, keep the warning as `keep_warnings` said.
    """
    keep: _Keep | None = getattr(_thread, "keep", None)
    if keep is not None:
        keep(message)
        return
    try:
        warnings.warn(f"rankmon: {message}", RankmonWarning, stacklevel=_level_outside())
    except RankmonWarning:  # the user turns warnings into errors, but training must continue
        _log.warning("rankmon: %s", message)


def keep_warnings(keep: _Keep | None) -> _Keep | None:
    """Pass this thread's later warnings to a function, or issue them; return the former choice."""
    former: _Keep | None = getattr(_thread, "keep", None)
    _thread.keep = keep
    return former


def warn_deprecated(message: str) -> None:
    """Warn at the nearest line outside the package that a name there will be removed."""
    warnings.warn(message, DeprecationWarning, stacklevel=_level_outside())


def _level_outside() -> int:
    """Return the caller's `stacklevel` for the nearest line outside the package."""
    level = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def log_unseen(kept: Iterable[str | BaseException]) -> None:
    """Log warnings and exceptions that the user has not seen in any other way."""
    for item in kept:
        if isinstance(item, BaseException):
            item = f"{type(item).__name__}: {item}"
        _log.warning("rankmon: %s", item)
