"""The lines of a JSONL log: numbers as strict JSON, torn lines left out; knows no records.

A line is a JSON object: a record with the keys `KEYS`, and perhaps "hparams", or
{"start": step, "attempt": attempt}.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAME = "rankmon.jsonl"  # in every run folder
KEYS = frozenset({"step", "attempt", "wall_time", "scalars", "arrays", "texts"})


def line(entry: Mapping[str, Any]) -> bytes:
    """The object as one line, newline included; its floats read back as the same floats."""
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def numbers(values: Any) -> Any:
    """A number or array as nested lists of floats, the non-finite ones as strings."""
    array = np.asarray(values, np.float64)
    if np.all(np.isfinite(array)):
        return array.tolist()
    names = array.astype(object)
    names[np.isnan(array)] = "NaN"
    names[np.isposinf(array)] = "Infinity"
    names[np.isneginf(array)] = "-Infinity"
    return names.tolist()


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, line by line.

    A crash tears at most the last line of an attempt: lines that are no JSON are left out at the
    end of the file and before a start.

    Raises:
      OSError: where the file cannot be read.
      ValueError: where a line is neither a record nor a start.
    """
    torn: int | None = None
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                entry = json.loads(text)
            except ValueError:
                torn = torn or number
                continue
            keys = entry.keys() if isinstance(entry, dict) else set()
            if not keys >= {"start", "attempt"}:
                if torn or not keys >= KEYS:
                    raise _not_a_record(path, torn or number)
            torn = None
            yield entry


def ends_a_line(path: Path) -> bool:
    """Whether the file is empty or its last character is a newline."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")


def _not_a_record(path: Path, number: int) -> ValueError:
    return ValueError(
        f"expected a record of rankmon in each line of {path}, got something else in line "
        f"{number}; remove that line, or choose another file"
    )
