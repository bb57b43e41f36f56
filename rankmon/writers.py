"""Where records go: TensorBoard events without TensorFlow, JSONL, memory; measures nothing.

An attempt is one go of the training loop. It begins with `start(step)`, which supersedes whatever
earlier attempts wrote for that step and later ones: nothing is deleted, readers leave it out. A
`write` before any `start` begins an attempt at the record's step. Writers hand each record to the
operating system before `write` returns, and errors surface there; a record whose write failed
left nothing behind and can be written again. A file that is removed while it is written to goes on
as a new one, with a warning and all that it held. Only one writer of each kind may write to a run
folder at a time: hold a `RunLock`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankmon import _jsonl
from rankmon._events import Outcome
from rankmon._files import PathLike, RunLock, WholeFile, made_folder
from rankmon._tensorboard_writer import TensorBoardWriter
from rankmon._warnings import warn_user
from rankmon._writer import ClosingWriter, Record, SessionWriter, Writer, lost_file

__all__ = [
    "JsonlWriter",
    "MemoryWriter",
    "Outcome",
    "Record",
    "RunLock",
    "ScalarsWriter",
    "SessionWriter",
    "TensorBoardWriter",
    "Writer",
    "read_jsonl",
]


class JsonlWriter(ClosingWriter):
    """Appends one JSON object a line, in full precision; `read_jsonl` reads them back.

    A record is {"step", "attempt", "wall_time", "scalars", "arrays", "texts"}, perhaps with
    "hparams", the beginning of an attempt {"start": step, "attempt": attempt}. Attempts are counted
    in the file, from 1, whatever the record says. JSON has no non-finite numbers: they are the
    strings "NaN", "Infinity" and "-Infinity".
    """

    def __init__(self, path: PathLike, *, warn: Callable[[str], None] = warn_user) -> None:
        """Opens the file, and creates it and its folder where they are missing.

        Args:
          path: of the file.
          warn: is told of damaged lines, and when the file was removed while it was written to.

        Raises:
          ValueError: for a URL, or where the file holds something else than records.
          OSError: where the file cannot be written.
        """
        path = Path(made_folder(Path(path).parent), Path(path).name)
        self._path, self._warn = path, warn
        self._file = WholeFile(path, mode="ab")
        try:
            entries = _jsonl.entries(path, warn=warn)
            self._attempt = max((entry["attempt"] for entry in entries), default=0)
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
        """See `Writer`: each line has been handed over, to a file that may be gone."""
        self._regain()

    def close(self) -> None:
        """See `Writer`."""
        self._file.close()

    def _regain(self) -> None:
        """Goes on in a new file, or in one that has taken its place, if the old one is lost."""
        lost = self._file
        lost.keep_lock()
        if not lost.is_lost():
            return
        made_folder(self._path.parent)
        file = WholeFile(self._path, mode="ab")
        whole = file.size == 0 and lost.is_whole()
        try:
            if whole:
                file.append_all_of(lost)
            self._needs_newline = not _jsonl.ends_a_line(self._path)
        except BaseException:
            file.close()
            raise
        self._file = file
        lost.close()
        self._warn(lost_file(lost, file, whole=whole))

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._regain()
        line = _jsonl.line(entry)
        # A line torn by a crash is ended first, so that this one stands alone.
        self._file.write(b"\n" + line if self._needs_newline else line)
        self._needs_newline = False


def read_jsonl(path: PathLike, *, superseded: bool = False) -> list[Record]:
    """The records of a `JsonlWriter`'s file, in the order of their steps.

    A line that a crash left torn is left out, and with a warning whatever else is damaged.

    Args:
      path: the file.
      superseded: also the records that a later attempt superseded, each before those of later
        attempts at the same step.

    Returns:
      Records whose arrays are float64.

    Raises:
      OSError: where the file cannot be read.
      ValueError: where it holds no record, but something else.
    """
    path = Path(path).expanduser()
    records: list[Record] = []
    damaged: list[str] = []
    for entry in _jsonl.entries(path):
        if "start" not in entry:
            fields, names = _jsonl.readable_fields(entry)
            records.append(Record(**fields))
            damaged += [f"{name} at step {entry['step']}" for name in names]
        elif not superseded:
            records = [record for record in records if record.step < entry["start"]]
    if damaged:
        first, more = ", ".join(damaged[: _jsonl.MOST_NAMED]), len(damaged) - _jsonl.MOST_NAMED
        warn_user(
            f"expected numbers and texts in each record of {path}, got something else as {first}"
            f"{f' and {more} more' if more > 0 else ''}; the others are read: restore the file "
            "from a copy if you have one"
        )
    return sorted(records, key=lambda record: record.step)


class MemoryWriter(ClosingWriter):
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


class ScalarsWriter(ClosingWriter):
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
