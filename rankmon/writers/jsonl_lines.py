"""The lines of a JSONL log: numbers as strict JSON, what is damaged left out; knows no records.

A line is a JSON object: a record with the keys `KEYS`, and perhaps "hparams", or
{"start": step, "attempt": attempt}.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankmon._util.files import check_no_pipe
from rankmon._util.hparams import as_hparams
from rankmon._util.warnings import warn_user

NAME = "rankmon.jsonl"  # in every run folder
KEYS = frozenset({"step", "attempt", "wall_time", "scalars", "arrays", "texts"})
MOST_NAMED = 5
_NOT_READABLE = (TypeError, ValueError, OverflowError, RecursionError)


def line(entry: Mapping[str, Any]) -> bytes:
    """The object as one line, newline included; its floats read back as the same floats."""
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def entries(path: Path, *, warn: Callable[[str], None] = warn_user) -> Iterator[dict[str, Any]]:
    """The objects of a file, line by line; of a damaged file those that can be read.

    A crash tears at most the last line of an attempt: lines that are no JSON are left out without a
    word at the end of the file and before a start.

    Args:
      path: of the file.
      warn: is told which other lines were left out.

    Raises:
      OSError: where the file cannot be read.
      ValueError: where no line is a record or a start, but something else.
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
            if not is_start:
                damaged += torn
            torn = []
            if is_start or (_has(entry, ("step", "attempt")) and entry.keys() >= KEYS):
                is_a_log = True
                yield entry
            else:
                damaged.append(number)
    if damaged:
        expected = f"expected a record of rankmon in each line of {path}, got something else in"
        if not is_a_log:
            raise ValueError(f"{expected} line {damaged[0]}; choose another file or folder")
        lines = ", ".join(map(str, damaged[:MOST_NAMED]))
        more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
        warn(
            f"{expected} line {lines}{more}; the others are read: restore the file from a copy if "
            "you have one"
        )


def _has(entry: Any, steps: tuple[str, ...]) -> bool:
    """Whether the entry has these keys, with integers that NumPy can hold."""
    return isinstance(entry, dict) and all(
        type(entry.get(key)) is int and abs(entry[key]) < 2**63 for key in steps
    )


def readable_scalars(entry: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a record, without what is none."""
    return _readable("scalars", entry["scalars"], _scalar, [])


def readable_fields(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a record as Python's and NumPy's values, and the names of what is damaged.

    What is damaged is left out.
    """
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
    """The text, without halves of characters, which no file can be written with."""
    if not isinstance(value, str):
        raise TypeError
    return value.encode(errors="replace").decode()


def _same(value: Any) -> Any:
    return value


def ends_a_line(path: Path) -> bool:
    """Whether the file is empty or its last character is a newline."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")
