"""Read the runs in a log folder, live or finished, as series over steps.

`rankmon.jsonl` has all digits and is read if it exists. Otherwise, TensorBoard's own reader reads
all steps of the event files. Both leave out records that a restart superseded, and an incomplete
last record: its writer is still writing it or was killed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing import io_wrapper
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from rankmon._util.files import LOCK_NAME, PathLike, check_no_pipe
from rankmon._util.tags import is_rankmons, natural_order
from rankmon._util.text import counted, listed
from rankmon._util.warnings import warn_user
from rankmon.runs.series import ArraySeries, RunSeries, ScalarSeries
from rankmon.writers.base import Record
from rankmon.writers.jsonl import JSONL_NAME, read_jsonl

# The reasons for a run without a record.
_BLANK = (
    "its first measurement has not ended yet, or its first call raised an error, which the "
    "training program has shown"
)
_Steps = dict[int, Any]  # step -> the value that was logged last


def read_runs(logdir: PathLike) -> list[RunSeries]:
    """Return all of rankmon's runs in a log folder, in natural order of their names.

    The runs have the names that TensorBoard gives them. Runs of other programs are left out.

    Args:
      logdir: the folder that is passed to TensorBoard as --logdir: a run folder, or one above it.

    Raises:
      FileNotFoundError: if the folder does not exist.
      NotADirectoryError: if it is a file.
      ValueError: if it has no runs of rankmon, or if a rankmon.jsonl holds something other than
        records.
      OSError: if a file cannot be read.
    """
    top = Path(logdir).expanduser()
    if not top.exists():
        raise FileNotFoundError(
            f"expected a log folder, got {str(top)!r}, which does not exist; pass the "
            "logdir of a RankMonitor, or a folder above it"
        )
    if not top.is_dir():
        raise NotADirectoryError(
            f"expected a log folder, got the file {str(top)!r}; pass the folder that contains it"
        )
    folders = list(_folders(top))
    found = [_run(folder, name, logs) for folder, name, logs in folders]
    runs = sorted(
        (run for run in found if is_rankmons((*run.scalars, *run.arrays, *run.texts))),
        key=lambda run: natural_order(run.name),
    )
    blank = [
        run.name for run, (folder, *_) in zip(found, folders, strict=True) if _is_blank(run, folder)
    ]
    if not runs and (blank or any(top.rglob(LOCK_NAME))):
        raise ValueError(
            f"expected runs of rankmon in {str(top)!r}, got a run without any record; {_BLANK}"
        )
    if blank:
        names = listed(sorted(blank, key=natural_order))
        warn_user(f"expected records in each run, got none in {names}; {_BLANK}")
    if not runs:
        others = (
            f"none in {counted(len(folders), 'folder')} of logs" if folders else "no logs at all"
        )
        raise ValueError(
            f"expected runs of rankmon in {str(top)!r}, got {others}; train with "
            "RankMonitor(..., logdir=...) first, or pass another folder"
        )
    return runs


def _is_blank(run: RunSeries, folder: Path) -> bool:
    """Return whether a monitor began a run in this folder and wrote no record."""
    return not (run.scalars or run.arrays or run.texts) and (folder / JSONL_NAME).is_file()


def read_several(folders: Sequence[PathLike]) -> list[RunSeries]:
    """Return the runs in several folders, each run once, named by paths below a common folder.

    Args:
      folders: run folders, or folders above run folders.

    Raises:
      OSError, ValueError: as in `read_runs`.
    """
    runs = {
        (Path(folder).expanduser() / run.name).resolve(): run
        for folder in folders
        for run in read_runs(folder)
    }
    shared = os.path.commonpath([path.parent for path in runs])
    return [replace(run, name=path.relative_to(shared).as_posix()) for path, run in runs.items()]


def _folders(top: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """Yield each folder that holds a run, its name, and the names of its logs."""
    for folder, below, names in os.walk(top, followlinks=True):
        here = Path(folder)
        logs = [n for n in names if n == JSONL_NAME or io_wrapper.IsSummaryEventsFile(n)]
        if logs:
            yield here, here.relative_to(top).as_posix(), logs
        # Do not follow a link to a folder above: the walk would not end.
        below[:] = [n for n in below if not here.resolve().is_relative_to((here / n).resolve())]


def _run(folder: Path, name: str, logs: Sequence[str]) -> RunSeries:
    """Read one run: from `rankmon.jsonl` if it has records, otherwise from the event files."""
    pipes = {log for log in logs if _is_pipe(folder / log)}
    if JSONL_NAME in set(logs) - pipes:
        records = read_jsonl(folder / JSONL_NAME)
        # A file without records belongs to a run that has just begun, or that crashed.
        if records:
            return _from_records(name, records)
    # TensorBoard's reader would wait for data from a pipe forever.
    return RunSeries(name) if pipes - {JSONL_NAME} else _from_events(name, folder)


def _is_pipe(path: Path) -> bool:
    """Return whether the file is a pipe, which would block a reader; warn if so."""
    try:
        check_no_pipe(path)
    except OSError as error:
        warn_user(f"{error.strerror}: {path} is left out")
        return True
    return False


def _from_records(name: str, records: Iterable[Record]) -> RunSeries:
    """Collect records into series; at a repeated step, the last record with a tag counts."""
    scalars: dict[str, _Steps] = {}
    arrays: dict[str, _Steps] = {}
    texts: dict[str, _Steps] = {}
    for record in records:
        logged = ((scalars, record.scalars), (arrays, record.arrays), (texts, record.texts))
        for into, values in logged:
            for tag, value in values.items():
                into.setdefault(tag, {})[record.step] = value
    return _series(name, scalars, arrays, texts)


def _from_events(name: str, folder: Path) -> RunSeries:
    """Read all steps of a run's event files (a size guidance of 0 turns thinning off)."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    scalars: dict[str, _Steps] = {}
    arrays: dict[str, _Steps] = {}
    texts: dict[str, _Steps] = {}
    for tag in events.Tags()["tensors"]:
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        into = {"scalars": scalars, "rankmon": arrays, "text": texts}.get(plugin)
        if into is None:
            continue
        steps = {event.step: make_ndarray(event.tensor_proto) for event in events.Tensors(tag)}
        if plugin == "rankmon":
            into[tag.removesuffix("/values")] = steps
        elif all(array.size == 1 for array in steps.values()):  # as rankmon writes them
            into[tag] = {step: array.item() for step, array in steps.items()}
    return _series(name, scalars, arrays, texts)


def _series(
    name: str,
    scalars: Mapping[str, _Steps],
    arrays: Mapping[str, _Steps],
    texts: Mapping[str, _Steps],
) -> RunSeries:
    """Return a run with the values in the order of their steps."""
    return RunSeries(
        name=name,
        scalars={tag: _scalar_series(steps) for tag, steps in scalars.items()},
        arrays={tag: _array_series(steps) for tag, steps in arrays.items()},
        texts={
            tag: {step: _text(steps[step]) for step in sorted(steps)}
            for tag, steps in texts.items()
        },
    )


def _scalar_series(values: _Steps) -> ScalarSeries:
    steps = sorted(values)
    return ScalarSeries(
        np.array(steps, np.int64), np.array([values[step] for step in steps], np.float64)
    )


def _array_series(values: _Steps) -> ArraySeries:
    steps = sorted(values)
    vectors = tuple(np.asarray(values[step], np.float64).ravel() for step in steps)
    return ArraySeries(np.array(steps, np.int64), vectors)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
