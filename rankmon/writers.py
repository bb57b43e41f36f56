"""Where records go: TensorBoard events without TensorFlow, JSONL, memory; measures nothing.

An attempt is one go of the training loop. It begins with `start(step)`, which supersedes whatever
earlier attempts wrote for that step and later ones: nothing is deleted, readers leave it out. A
`write` before any `start` begins an attempt at the record's step. Writers hand each record to the
operating system before `write` returns, and errors surface there; a record whose write failed
left nothing behind and can be written again. Only one writer of each kind may write to a run
folder at a time: hold a `RunLock`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from rankmon import _events, _jsonl
from rankmon._event_files import SUFFIX, Session, event_file_names, new_event_file
from rankmon._events import Outcome
from rankmon._files import PathLike, RunLock, WholeFile, made_folder
from rankmon._hparams import Hparam, as_hparams

__all__ = [
    "JsonlWriter",
    "MemoryWriter",
    "Record",
    "RunLock",
    "ScalarsWriter",
    "SessionWriter",
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
        names = event_file_names(folder)
        self._file = new_event_file(folder, names)
        self._records = RecordWriter(self._file)
        self._folder, self._layout = folder, layout
        self._started = False
        self._session: Session | None = None
        self._last_step = 0
        # The first attempt of a folder supersedes nothing: a START would only purge the records
        # that a training loop's own event files in the same folder have for these steps.
        self._resumes = any(name.endswith(SUFFIX) for name in names)
        self._has_predecessor = self._resumes
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
        if record.hparams:
            self._session = Session(record.hparams, record.wall_time)
            self._supersede("unknown", record.wall_time)
        event = _events.record_event(
            record.step,
            record.wall_time,
            scalars=record.scalars,
            arrays=record.arrays,
            texts=record.texts,
            hparams=record.hparams,
        )
        self._write(event)
        self._last_step = record.step

    def end_session(self, outcome: Outcome) -> None:
        """See `SessionWriter`; nothing where no record had hyperparameters."""
        if self._session is not None:
            now = time.time()
            self._write(_events.session_end_event(outcome, self._last_step, now))
            self._supersede(outcome, now)

    def _supersede(self, outcome: Outcome, now: float) -> None:
        if self._resumes and self._session is not None:
            self._session.supersede(self._folder, outcome, now)

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


class JsonlWriter(_ClosingWriter):
    """Appends one JSON object a line, in full precision; `read_jsonl` reads them back.

    A record is {"step", "attempt", "wall_time", "scalars", "arrays", "texts"}, perhaps with
    "hparams", the beginning of an attempt {"start": step, "attempt": attempt}. Attempts are counted
    in the file, from 1, whatever the record says. JSON has no non-finite numbers: they are the
    strings "NaN", "Infinity" and "-Infinity".
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
        entry = {
            "step": int(record.step),
            "attempt": self._attempt,
            "wall_time": record.wall_time,
            "scalars": {tag: _jsonl.numbers(value) for tag, value in record.scalars.items()},
            "arrays": {tag: _jsonl.numbers(value) for tag, value in record.arrays.items()},
            "texts": dict(record.texts),
        }
        self._write(entry | ({"hparams": dict(record.hparams)} if record.hparams else {}))

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

    Hyperparameters too, where it has `write_hparams({name: value})`.

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
        if record.hparams:
            getattr(self._writer, "write_hparams", _nothing)(dict(record.hparams))
        self._writer.write_scalars(record.step, dict(record.scalars))

    def flush(self) -> None:
        """Flushes the object, where it can be."""
        getattr(self._writer, "flush", _nothing)()

    def close(self) -> None:
        """Flushes."""
        self.flush()


def _nothing(*_: Any) -> None:
    pass


def _record(entry: Mapping[str, Any]) -> Record:
    return Record(
        step=int(entry["step"]),
        attempt=int(entry["attempt"]),
        wall_time=float(entry["wall_time"]),
        scalars={tag: float(value) for tag, value in entry["scalars"].items()},
        arrays={tag: np.asarray(value, np.float64) for tag, value in entry["arrays"].items()},
        texts=dict(entry["texts"]),
        hparams=as_hparams(entry.get("hparams", {})),
    )
