"""Records, and the protocol that writers of records implement."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from rankmon._util.files import WholeFile
from rankmon._util.hparams import Hparam

# The ways in which training can end.
Outcome = Literal["success", "failure", "unknown"]


@dataclass(frozen=True, eq=False)
class Record:
    """One measurement: tagged numbers at one training step.

    Attributes:
      step: the training step.
      attempt: the number of the training attempt, counted from 1; each restart adds one.
      wall_time: the time of the measurement, in seconds since the epoch.
      scalars: tag -> number.
      arrays: tag -> array of real numbers.
      texts: tag -> Markdown.
      hparams: name -> number, string or bool; empty except in the first record of an attempt.
    """

    step: int
    attempt: int
    wall_time: float
    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, str] = field(default_factory=dict)
    hparams: Mapping[str, Hparam] = field(default_factory=dict)


class Writer(Protocol):
    """The protocol that writers of records implement."""

    def start(self, step: int) -> None:
        """Begin an attempt: it supersedes all earlier records of steps >= step."""
        ...

    def write(self, record: Record) -> None:
        """Write one record."""
        ...

    def flush(self) -> None:
        """Pass all records written so far to the operating system."""
        ...

    def close(self) -> None:
        """Flush, and accept no further records; a second call has no effect."""
        ...


@runtime_checkable
class SessionWriter(Writer, Protocol):
    """A writer that also records how training ended."""

    def end_session(self, outcome: Outcome) -> None:
        """Record the outcome of training; the next call is `close`."""
        ...


def lost_file(lost: WholeFile, file: WholeFile, *, whole: bool) -> str:
    """Return the warning that the writer continues in a new file because it lost its own.

    Args:
      lost: the old file.
      file: the new file.
      whole: whether the contents of the old file were copied to the new one.
    """
    held = "all that it held" if whole else "no earlier record: they cannot be read any more"
    return (
        f"expected {lost.path} to stay while it is written to, got one that was removed, moved, "
        f"replaced or cut; {file.path.name} goes on with {held}. Remove a run folder after close()"
    )
