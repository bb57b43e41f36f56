"""Warnings that point at the user's own line, and never end a training run; decides nothing."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

_log = logging.getLogger("rankmon")


_PACKAGE = str(Path(__file__).parents[1]) + os.sep


class RankmonWarning(UserWarning):
    """Something that could not be measured or written as one would expect; training goes on."""


def warn_user(message: str) -> None:
    """Warns at the nearest line outside the package; logs where warnings are made errors."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    try:
        warnings.warn(f"rankmon: {message}", RankmonWarning, stacklevel=level)
    except RankmonWarning:  # the user turns warnings into errors; training must go on
        _log.warning("rankmon: %s", message)


def log_unseen(troubles: Iterable[str | BaseException]) -> None:
    """Logs warnings and exceptions that nobody was there to be told."""
    for trouble in troubles:
        if isinstance(trouble, BaseException):
            trouble = f"{type(trouble).__name__}: {trouble}"
        _log.warning("rankmon: %s", trouble)
