"""Where records go: TensorBoard events without TensorFlow, JSONL, memory; measures nothing.

An attempt is one go of the training loop. It begins with `start(step)`, which supersedes whatever
earlier attempts wrote for that step and later ones: nothing is deleted, readers leave it out. A
`write` before any `start` begins an attempt at the record's step. Writers hand each record to the
operating system before `write` returns, and errors surface there; a record whose write failed
left nothing behind and can be written again. Only one writer of each kind may write to a run
folder at a time: hold a `RunLock`.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from rankmon import _events, _jsonl
from rankmon._files import PathLike, RunLock, WholeFile, made_folder

__all__ = [
    "JsonlWriter",
    "MemoryWriter",
    "Record",
    "RunLock",
    "ScalarsWriter",
    "TensorBoardWriter",
    "Writer",
    "read_jsonl",
]


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
    """

    step: int
    attempt: int
    wall_time: float
    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, str] = field(default_factory=dict)


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


class _ClosingWriter(ABC):
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


class TensorBoardWriter(_ClosingWriter):
    """Writes a new TensorBoard event file in the run folder.

    Numbers are kept as float32, as TensorBoard keeps them (`JsonlWriter` keeps all digits). Each
    array becomes a histogram at its tag, and a tensor of plugin "rankmon" at tag + "/values".

    Give rankmon a folder of its own: TensorBoard reads the files of a folder one after the other,
    and a new attempt supersedes what any of them said of later steps.
    """

    def __init__(self, logdir: PathLike, *, layout: layout_pb2.Layout | None = None) -> None:
        """Creates the folder where it is missing, and the file.

        Args:
          logdir: the run folder.
          layout: charts for TensorBoard's "Custom Scalars" page; None for none.

        Raises:
          ValueError: for a URL.
          OSError: where the folder or the file cannot be created.
        """
        folder = made_folder(logdir)
        names = _event_file_names(folder)
        self._file = _new_event_file(folder, names)
        self._records = RecordWriter(self._file)
        self._layout = layout
        self._started = False
        # The first attempt of a folder supersedes nothing: a START would only purge the records
        # that a training loop's own event files in the same folder have for these steps.
        self._has_predecessor = any(name.endswith(_SUFFIX) for name in names)
        self._write(_events.version_event(time.time()))

    def start(self, step: int) -> None:
        """See `Writer`. Also writes the layout, which a restart at step 0 would purge."""
        now = time.time()
        if self._has_predecessor:
            # TensorBoard's server takes a run's first START for its beginning and purges nothing.
            self._write(_events.start_event(step, now))
            self._write(_events.start_event(step, now))
        if self._layout is not None:
            self._write(_events.layout_event(self._layout, step, now))
        self._started = self._has_predecessor = True

    def write(self, record: Record) -> None:
        """See `Writer`.

        Raises:
          OSError: where the file cannot be written.
          ValueError: after `close`.
        """
        if not self._started:
            self.start(record.step)
        event = _events.record_event(
            record.step,
            record.wall_time,
            scalars=record.scalars,
            arrays=record.arrays,
            texts=record.texts,
        )
        self._write(event)

    def write_image(self, step: int, tag: str, png: bytes) -> None:
        """Writes a picture for TensorBoard's "Images" page.

        Args:
          step: the step that it shows.
          tag: its name.
          png: the bytes of a PNG file.

        Raises:
          OSError: where the file cannot be written.
          ValueError: for bytes that are no PNG, and after `close`.
        """
        event = _events.image_event(tag, png, step, time.time())
        if not self._started:
            self.start(step)
        self._write(event)

    def flush(self) -> None:
        """Nothing: each record has been handed over."""

    def close(self) -> None:
        """See `Writer`."""
        self._records.close()

    def _write(self, event: event_pb2.Event) -> None:
        self._records.write(event.SerializeToString())


_PREFIX, _SUFFIX = "events.out.tfevents.", ".rankmon"


def _event_file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(_PREFIX)]


def _new_event_file(folder: Path, names: Iterable[str]) -> WholeFile:
    """A file whose name comes after those of all event files in the folder."""
    matches = [re.match(r"\d{10}", name.removeprefix(_PREFIX)) for name in names]
    # TensorBoard reads in the order of the names, and a START must come after what it supersedes.
    second = max([int(time.time()), *(int(match[0]) + 1 for match in matches if match)])
    while True:
        try:
            return WholeFile(folder / f"{_PREFIX}{second:010d}{_SUFFIX}", mode="xb")
        except FileExistsError:
            second += 1


class JsonlWriter(_ClosingWriter):
    """Appends one JSON object a line, in full precision; `read_jsonl` reads them back.

    A record is {"step", "attempt", "wall_time", "scalars", "arrays", "texts"}, the beginning of an
    attempt {"start": step, "attempt": attempt}. Attempts are counted in the file, from 1, whatever
    the record says. JSON has no non-finite numbers: they are the strings "NaN", "Infinity" and
    "-Infinity".
    """

    def __init__(self, path: PathLike) -> None:
        """Opens the file, and creates it and its folder where they are missing.

        Raises:
          ValueError: for a URL, or where the file holds something else than records.
          OSError: where the file cannot be written.
        """
        path = Path(made_folder(Path(path).parent), Path(path).name)
        self._file = WholeFile(path, mode="ab")
        try:
            self._attempt = max((entry["attempt"] for entry in _jsonl.entries(path)), default=0)
            self._needs_newline = not _jsonl.ends_a_line(path)
        except BaseException:
            self._file.close()
            raise
        self._started = False

    def start(self, step: int) -> None:
        """See `Writer`."""
        attempt = self._attempt + 1
        self._write({"start": int(step), "attempt": attempt})
        self._attempt, self._started = attempt, True

    def write(self, record: Record) -> None:
        """See `Writer`.

        Raises:
          OSError: where the file cannot be written.
          ValueError: after `close`.
        """
        if not self._started:
            self.start(record.step)
        self._write(
            {
                "step": int(record.step),
                "attempt": self._attempt,
                "wall_time": record.wall_time,
                "scalars": {tag: _jsonl.numbers(value) for tag, value in record.scalars.items()},
                "arrays": {tag: _jsonl.numbers(value) for tag, value in record.arrays.items()},
                "texts": dict(record.texts),
            }
        )

    def flush(self) -> None:
        """Nothing: each line has been handed over."""

    def close(self) -> None:
        """See `Writer`."""
        self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        line = _jsonl.line(entry)
        # A line torn by a crash is ended first, so that this one stands alone.
        self._file.write(b"\n" + line if self._needs_newline else line)
        self._needs_newline = False


def read_jsonl(path: PathLike, *, superseded: bool = False) -> list[Record]:
    """The records of a `JsonlWriter`'s file, in the order of their steps.

    A line that a crash left torn is left out.

    Args:
      path: the file.
      superseded: also the records that a later attempt superseded, each before those of later
        attempts at the same step.

    Returns:
      Records whose arrays are float64.

    Raises:
      OSError: where the file cannot be read.
      ValueError: where it holds something else than records.
    """
    records: list[Record] = []
    for entry in _jsonl.entries(Path(path).expanduser()):
        try:
            if "start" not in entry:
                records.append(_record(entry))
            elif not superseded:
                start = int(entry["start"])
                records = [record for record in records if record.step < start]
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"expected numbers in each record of {path}, got something else ({error}); restore "
                "the file from a copy, or move it away"
            ) from error
    return sorted(records, key=lambda record: record.step)


class MemoryWriter(_ClosingWriter):
    """Keeps records in memory.

    Attributes:
      all_records: every record, in the order in which they were written.
    """

    def __init__(self) -> None:
        self.all_records: list[Record] = []
        self._in_force: list[Record] = []

    @property
    def records(self) -> list[Record]:
        """The records that no later attempt superseded, in the order of their steps."""
        return sorted(self._in_force, key=lambda record: record.step)

    def start(self, step: int) -> None:
        """See `Writer`."""
        self._in_force = [record for record in self._in_force if record.step < step]

    def write(self, record: Record) -> None:
        """See `Writer`."""
        self.all_records.append(record)
        self._in_force.append(record)

    def flush(self) -> None:
        """Nothing: records are kept as they are."""

    def close(self) -> None:
        """Nothing: the records stay."""


class ScalarsWriter(_ClosingWriter):
    """Hands scalars to any object with `write_scalars(step, {tag: value})`, as CLU's writers have.

    The object stays its owner's: it is flushed where it can be, and never closed. It is not told of
    attempts, which it does not know.
    """

    def __init__(self, writer: Any) -> None:
        """Keeps the object that takes the scalars."""
        self._writer = writer

    def start(self, step: int) -> None:
        """Nothing."""

    def write(self, record: Record) -> None:
        """See `Writer`."""
        self._writer.write_scalars(record.step, dict(record.scalars))

    def flush(self) -> None:
        """Flushes the object, where it can be."""
        getattr(self._writer, "flush", _nothing)()

    def close(self) -> None:
        """Flushes."""
        self.flush()


def _nothing() -> None:
    pass


def _record(entry: Mapping[str, Any]) -> Record:
    return Record(
        step=int(entry["step"]),
        attempt=int(entry["attempt"]),
        wall_time=float(entry["wall_time"]),
        scalars={tag: float(value) for tag, value in entry["scalars"].items()},
        arrays={tag: np.asarray(value, np.float64) for tag, value in entry["arrays"].items()},
        texts=dict(entry["texts"]),
    )
