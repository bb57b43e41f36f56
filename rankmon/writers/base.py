"""A record, and the protocol of a writer of records."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np

from rankmon._util.files import WholeFile
from rankmon._util.hparams import Hparam

# How training ended.
Outcome = Literal["success", "failure", "unknown"]


@dataclass(frozen=True, eq=False)
class Record:
    """One measurement: tagged numbers at one training step.

    Attributes:
      step: the training step.
      attempt: the attempt of the training loop that it comes from, 1 for the first.
      wall_time: when it was made, in seconds since the epoch.
      scalars: tag -> number.
      arrays: tag -> array of real numbers.
      texts: tag -> Markdown.
      hparams: name -> number, string or bool; in the first record of an attempt, if anywhere.
    """

    step: int
    attempt: int
    wall_time: float
    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, str] = field(default_factory=dict)
    hparams: Mapping[str, Hparam] = field(default_factory=dict)


class Writer(Protocol):
    """The protocol of what takes records."""

    def start(self, step: int) -> None:
        """Begin an attempt: what was written for steps >= step is superseded."""
        ...

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def flush(self) -> None:
        """Hand everything taken so far to the operating system."""
        ...

    def close(self) -> None:
        """Flush and take nothing more; a second call has no effect."""
        ...


@runtime_checkable
class SessionWriter(Writer, Protocol):
    """A writer that also takes how training ended."""

    def end_session(self, outcome: Outcome) -> None:
        """Take the outcome of training; `close` comes next."""
        ...


class ClosingWriter(ABC):
    """A `Writer` that is a context manager and closes on the way out."""

    @abstractmethod
    def close(self) -> None:
        """Close as `Writer` says."""

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the writer."""
        self.close()


def lost_file(lost: WholeFile, file: WholeFile, *, whole: bool) -> str:
    """Return the warning that a file was lost and another goes on, with all that it held or not."""
    held = "all that it held" if whole else "no earlier record: they cannot be read any more"
    return (
        f"expected {lost.path} to stay while it is written to, got one that was removed, moved, "
        f"replaced or cut; {file.path.name} goes on with {held}. Remove a run folder after close()"
    )
