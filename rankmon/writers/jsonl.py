"""`JsonlWriter` and `read_jsonl`: records as lines of JSON at full precision.

Each line is a JSON object: either a record, with the keys of `_KEYS` and perhaps "hparams", or the
beginning of an attempt, {"start": step, "attempt": attempt}.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankmon._util.closing import ClosesOnExit
from rankmon._util.files import PathLike, WholeFile, check_no_pipe, made_folder
from rankmon._util.hparams import as_hparams
from rankmon._util.strict_json import json_numbers
from rankmon._util.warnings import warn_user
from rankmon.writers.base import Record, lost_file

JSONL_NAME = "rankmon.jsonl"  # the file's name in every run folder
_KEYS = frozenset({"step", "attempt", "wall_time", "scalars", "arrays", "texts"})
_MOST_NAMED = 5
_NOT_READABLE = (TypeError, ValueError, OverflowError, RecursionError)


class JsonlWriter(ClosesOnExit):
    """Appends records to a file, each as one line of JSON at full precision.

    A record is an object {"step", "attempt", "wall_time", "scalars", "arrays", "texts"}, perhaps
    with "hparams". An attempt begins with a line {"start": step, "attempt": attempt}. The writer
    numbers the attempts in the file from 1, and ignores `Record.attempt`. JSON has no non-finite
    numbers: they are written as the strings "NaN", "Infinity" and "-Infinity". `read_jsonl` reads
    the records back.
    """

    def __init__(self, path: PathLike, *, warn: Callable[[str], None] = warn_user) -> None:
        """Open the file; create it and its folder if they are missing.

        Args:
          path: the path of the file.
          warn: called with a warning if lines are damaged, or if the file is removed while in use.

        Raises:
          ValueError: for a URL, or if the file holds something other than records.
          OSError: if the file cannot be written.
        """
        path = Path(made_folder(Path(path).parent), Path(path).name)
        self._path, self._warn = path, warn
        self._is_new = not path.exists()
        self._file = WholeFile(path, mode="ab")
        try:
            entries = jsonl_entries(path, warn=warn)
            self._attempt = max((entry["attempt"] for entry in entries), default=0)
            self._needs_newline = not _ends_a_line(path)
        except BaseException:
            self._file.close()
            raise
        self._started = False

    def start(self, step: int) -> None:
        """Begin an attempt."""
        attempt = self._attempt + 1
        self._write({"start": int(step), "attempt": attempt})
        self._attempt, self._started = attempt, True

    def write(self, record: Record) -> None:
        """Append one record.

        Raises:
          OSError: if the file cannot be written.
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
        """Continue in a new file if the old one is lost; written lines need no flushing."""
        self._regain()

    def discard_blank(self) -> None:
        """Remove the file if this writer created it and wrote nothing."""
        file = self._file
        if not (file.closed or file.is_lost()) and self._is_new and file.size == 0:
            file.discard()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _regain(self) -> None:
        """Continue in the file now at the path, or in a new one, if the old file is lost."""
        lost = self._file
        lost.keep_lock()
        if not lost.is_lost():
            return
        made_folder(self._path.parent)
        file = WholeFile(self._path, mode="ab")
        # Another program may have put a file there: only an empty one gets the old lines.
        whole = file.size == 0 and lost.is_whole()
        try:
            if whole:
                file.append_all_of(lost)
            self._needs_newline = not _ends_a_line(self._path)
        except BaseException:
            file.close()
            raise
        self._file = file
        lost.close()
        self._warn(lost_file(lost, file, whole=whole))

    def _write(self, entry: Mapping[str, Any]) -> None:
        """Append an object as a line."""
        self._regain()
        line = _line(entry)
        # A crash may have left an incomplete line: end it first.
        self._file.write(b"\n" + line if self._needs_newline else line)
        self._needs_newline = False


def _line(entry: Mapping[str, Any]) -> bytes:
    """Return the object as a line of JSON that reads back as exactly the same floats."""
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _ends_a_line(path: Path) -> bool:
    """Return whether the file is empty or its last character is a newline."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")


def read_jsonl(path: PathLike, *, superseded: bool = False) -> list[Record]:
    """Return the records in a file of a `JsonlWriter`, in the order of their steps.

    A line that a crash left incomplete is skipped silently; other damaged lines and values are
    skipped with a warning.

    Args:
      path: the file.
      superseded: whether to include records that a later attempt superseded; at the same step,
        those of earlier attempts come first.

    Returns:
      The records, with float64 arrays.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file holds other data but no record.
    """
    path = Path(path).expanduser()
    records: list[Record] = []
    damaged: list[str] = []
    for entry in jsonl_entries(path):
        if "start" not in entry:
            fields, names = _readable_fields(entry)
            records.append(Record(**fields))
            damaged += [f"{name} at step {entry['step']}" for name in names]
        elif not superseded:
            records = [record for record in records if record.step < entry["start"]]
    if damaged:
        first, more = (
            ", ".join(damaged[:_MOST_NAMED]),
            len(damaged) - _MOST_NAMED,
        )
        warn_user(
            f"expected numbers and texts in each record of {path}, got something else as {first}"
            f"{f' and {more} more' if more > 0 else ''}; the others are read: restore the file "
            "from a copy if you have one"
        )
    return sorted(records, key=lambda record: record.step)


def jsonl_entries(
    path: Path, *, warn: Callable[[str], None] = warn_user
) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file line by line, skipping damaged lines.

    A crash leaves at most the last line of an attempt incomplete. Lines that are not JSON are
    therefore skipped silently at the end of the file and before the beginning of an attempt.

    Args:
      path: the path of the file.
      warn: called with a warning that names the other lines that were skipped.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file has damaged lines and no valid one.
    """
    check_no_pipe(path)
    torn: list[int] = []
    damaged: list[int] = []
    is_a_log = False
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                entry = json.loads(text)
            except (ValueError, RecursionError):
                torn.append(number)
                continue
            is_start = _has(entry, ("start", "attempt"))
            # Only a restart explains an incomplete line before this one.
            if not is_start:
                damaged += torn
            torn = []
            if is_start or (_has(entry, ("step", "attempt")) and entry.keys() >= _KEYS):
                is_a_log = True
                yield entry
            else:
                damaged.append(number)
    if damaged:
        expected = f"expected a record of rankmon in each line of {path}, got something else in"
        if not is_a_log:
            raise ValueError(f"{expected} line {damaged[0]}; choose another file or folder")
        lines = ", ".join(map(str, damaged[:_MOST_NAMED]))
        more = f" and {len(damaged) - _MOST_NAMED} more" if len(damaged) > _MOST_NAMED else ""
        warn(
            f"{expected} line {lines}{more}; the others are read: restore the file from a copy if "
            "you have one"
        )


def _has(entry: Any, steps: tuple[str, ...]) -> bool:
    """Return whether the entry has these keys, with values that fit in int64."""
    return isinstance(entry, dict) and all(
        type(entry.get(key)) is int and abs(entry[key]) < 2**63 for key in steps
    )


def readable_scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a record, without those that cannot be read."""
    return _readable("scalars", entry["scalars"], _scalar, [])


def _readable_fields(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the readable fields of a record as Python and NumPy values, and the damaged names."""
    damaged: list[str] = []
    try:
        wall_time = _scalar(entry["wall_time"])
    except _NOT_READABLE:
        damaged.append("wall_time")
        wall_time = math.nan
    fields = {
        "step": entry["step"],
        "attempt": entry["attempt"],
        "wall_time": wall_time,
        "scalars": _readable("scalars", entry["scalars"], _scalar, damaged),
        "arrays": _readable("arrays", entry["arrays"], _array, damaged),
        "texts": _readable("texts", entry["texts"], _text, damaged),
        "hparams": {},
    }
    for name, value in _readable("hparams", entry.get("hparams", {}), _same, damaged).items():
        try:
            fields["hparams"] |= as_hparams({name: value})
        except (TypeError, ValueError):
            damaged.append(f"hparams {name!r}")
    return fields, damaged


def _readable(
    field: str, values: Any, convert: Callable[[Any], Any], damaged: list[str]
) -> dict[str, Any]:
    """Return the converted values of a record's field; append the names of the others."""
    if not isinstance(values, dict):
        damaged.append(field)
        return {}
    readable = {}
    for tag, value in values.items():
        try:
            readable[_text(tag)] = convert(value)
        except _NOT_READABLE:
            damaged.append(f"{field} {tag!r}")
    return readable


def _scalar(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


def _text(value: Any) -> str:
    """Return the text with lone surrogates replaced, because UTF-8 cannot encode them."""
    if not isinstance(value, str):
        raise TypeError
    return value.encode(errors="replace").decode()


def _same(value: Any) -> Any:
    return value
