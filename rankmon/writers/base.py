"""What writers take and do: `Record`, and the protocols of a writer; writes none."""

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
      attempt: which go of the training loop it comes from, 1 for the first.
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
    """What takes records."""

    def start(self, step: int) -> None:
        """A new attempt begins: what was written for steps >= step is superseded."""
        ...

    def write(self, record: Record) -> None:
        """Takes one record."""
        ...

    def flush(self) -> None:
        """Hands all that was taken to the operating system."""
        ...

    def close(self) -> None:
        """Flushes and takes nothing more; a second time does nothing."""
        ...


@runtime_checkable
class SessionWriter(Writer, Protocol):
    """A writer that also takes how training ended."""

    def end_session(self, outcome: Outcome) -> None:
        """Training ended so; `close` comes next."""
        ...


class ClosingWriter(ABC):
    """A `Writer` that is a context manager and closes on the way out."""

    @abstractmethod
    def close(self) -> None:
        """See `Writer`."""

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        self.close()


def lost_file(lost: WholeFile, file: WholeFile, *, whole: bool) -> str:
    """Return the warning that a file was lost and another goes on, with all that it held or not."""
    held = "all that it held" if whole else "no earlier record: they cannot be read any more"
    return (
        f"expected {lost.path} to stay while it is written to, got one that was removed, moved, "
        f"replaced or cut; {file.path.name} goes on with {held}. Remove a run folder after close()"
    )
