"""`JsonlWriter`: records as lines of JSON at full precision, and read back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankmon._util.files import PathLike, WholeFile, made_folder
from rankmon._util.strict_json import json_numbers
from rankmon._util.warnings import warn_user
from rankmon.writers import jsonl_lines
from rankmon.writers.base import ClosingWriter, Record, lost_file


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
            entries = jsonl_lines.entries(path, warn=warn)
            self._attempt = max((entry["attempt"] for entry in entries), default=0)
            self._needs_newline = not jsonl_lines.ends_a_line(path)
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
            "scalars": {tag: json_numbers(value) for tag, value in record.scalars.items()},
            "arrays": {tag: json_numbers(value) for tag, value in record.arrays.items()},
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
            self._needs_newline = not jsonl_lines.ends_a_line(self._path)
        except BaseException:
            file.close()
            raise
        self._file = file
        lost.close()
        self._warn(lost_file(lost, file, whole=whole))

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._regain()
        line = jsonl_lines.line(entry)
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
    for entry in jsonl_lines.entries(path):
        if "start" not in entry:
            fields, names = jsonl_lines.readable_fields(entry)
            records.append(Record(**fields))
            damaged += [f"{name} at step {entry['step']}" for name in names]
        elif not superseded:
            records = [record for record in records if record.step < entry["start"]]
    if damaged:
        first, more = (
            ", ".join(damaged[: jsonl_lines.MOST_NAMED]),
            len(damaged) - jsonl_lines.MOST_NAMED,
        )
        warn_user(
            f"expected numbers and texts in each record of {path}, got something else as {first}"
            f"{f' and {more} more' if more > 0 else ''}; the others are read: restore the file "
            "from a copy if you have one"
        )
    return sorted(records, key=lambda record: record.step)
