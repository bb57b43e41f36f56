"""Options, data and resumable runs, shared by the scripts of the supplement's figures.

A run holds one record for each value of the swept variable, which takes the place of the step. A
script that was stopped reads its records and measures only the values that are missing.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from rankmon import JsonlWriter, NumericalRank, Record, TensorBoardWriter, read_jsonl
from rankmon._util.files import RunLock
from rankmon.writers.layout import custom_scalars_layout

Measured = tuple[dict[str, float], dict[str, np.ndarray]]  # scalars and arrays by tag
Key = tuple[str, str]  # figure and panel


def parse_options(doc: str, name: str, figures: Iterable[str]) -> argparse.Namespace:
    """Parse the command line that all these scripts share; `figure` becomes a list."""
    figures = list(figures)
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--figure", choices=[*figures, "all"], nargs="+", default=["all"])
    parser.add_argument("--quick", action="store_true", help="small, scikit-learn's digits")
    parser.add_argument("--logdir", type=Path, help=f"default: logs/{name}, or logs/{name}-quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps its data")
    parser.add_argument("--cifar-npz", type=Path, help="read CIFAR-10 from this file instead")
    parser.add_argument("--jobs", type=int, default=2, help="processes, 2 GiB each")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"expected at least 1 of --jobs, got {options.jobs}")
    # Quick runs have their own folder, so that they never overwrite records of full ones.
    options.logdir = options.logdir or Path("logs") / f"{name}{'-quick' * options.quick}"
    options.heading = "Small stand-in, on digits, for figure" if options.quick else "Figure"
    options.figure = figures if "all" in options.figure else list(dict.fromkeys(options.figure))
    return options


def images(
    name: str, side: int, n: int, options: argparse.Namespace
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """Load n standardized images of a data set at side x side pixels, and their labels."""
    # Imported here, because it takes two seconds and some figures need no data.
    from datasets import load, standardize_pixels

    npz = options.cifar_npz if name == "cifar10" else None
    if options.quick and npz is None:
        name = "digits"
    pixels, labels = load(
        name, side=side, n=n, seed=options.seed, data_dir=options.data_dir, npz=npz
    )
    return standardize_pixels(pixels), labels


def source(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Return the source of a data set, as a part of a run's settings."""
    from_file = name == "cifar10" and options.cifar_npz is not None
    return {"dataset": name} | ({"file": options.cifar_npz.name} if from_file else {})


def rank_scalars(ranks: Mapping[str, NumericalRank], suffix: str = "") -> dict[str, float]:
    """Return each rank and its margin, under tags like those of the monitor."""
    return {
        f"rank{margin}{suffix}/{part}": count
        for part, rank in ranks.items()
        for margin, count in (("", rank.rank), ("_low", rank.low), ("_high", rank.high))
    }


@dataclass(frozen=True)
class Sweep:
    """One run: the settings of its measurements, and the ascending values of the swept variable."""

    settings: Mapping[str, Any]
    values: Sequence[int]


@dataclass(frozen=True)
class Task:
    """One measurement: a figure, one of its panels, and a value of the swept variable."""

    figure: str
    panel: str
    value: int
    options: argparse.Namespace


def swept(
    sweeps: Mapping[Key, Sweep], measure: Callable[[Task], Measured], options: argparse.Namespace
) -> dict[Key, list[Record]]:
    """Return the records of every run; measure those that no earlier call has measured."""
    common = {
        "seed": options.seed,
        "quick": options.quick,
        "pixels": "standardized one by one",
    }
    with ExitStack() as stack:
        runs = {}
        for (figure, panel), sweep in sweeps.items():
            settings = {**sweep.settings, **common}
            run = Run(options.logdir / figure / panel, settings, sweep.values)
            runs[figure, panel] = stack.enter_context(run)
        tasks = [Task(*key, value, options) for key, run in runs.items() for value in run.missing]
        found = _measured(measure, tasks, options.jobs)
        for task, measured in zip(tqdm(tasks, "measured", mininterval=1), found, strict=True):
            runs[task.figure, task.panel].write(measured)
        return {key: run.records for key, run in runs.items()}


class Run:
    """The records of one run folder over a swept variable; continues a run that was stopped.

    Args:
        folder: the folder of the run.
        settings: everything that the measurements depend on except the swept variable. If the
            settings have changed, the run starts again and supersedes the old records.
        values: the values of the swept variable, ascending integers.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], values: Sequence[int]) -> None:
        self.folder, self.values = folder, list(values)
        self._settings = json.dumps(dict(settings), sort_keys=True)
        self._open = ExitStack()
        self._others: list[Record] = []
        self.records: list[Record] = []

    def __enter__(self) -> Self:
        self._open.enter_context(RunLock(self.folder))
        path = self.folder / "rankmon.jsonl"
        known = read_jsonl(path) if path.exists() else []
        for record, value in zip(known, self.values, strict=False):
            if record.step != value or record.texts.get("settings") != self._settings:
                break
            self.records.append(record)
        self._others = known[len(self.records) :]
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def missing(self) -> list[int]:
        """The values that are not measured yet."""
        return self.values[len(self.records) :]

    @cached_property
    def _writers(self) -> list[TensorBoardWriter | JsonlWriter]:
        board = TensorBoardWriter(self.folder, layout=custom_scalars_layout())
        # The file that is read back is written last, so that TensorBoard has all of its records.
        writers = [board, JsonlWriter(self.folder / "rankmon.jsonl")]
        for writer in writers:
            self._open.enter_context(writer)
            # Supersede all records of other settings or values.
            writer.start(min([self.missing[0], *(record.step for record in self._others)]))
        return writers

    def write(self, measured: Measured) -> None:
        """Write a record of the measurement at the first missing value."""
        scalars, arrays = measured
        texts = {"settings": self._settings}
        record = Record(self.missing[0], 1, time.time(), scalars, arrays, texts)
        for writer in self._writers:
            writer.write(record)
        self.records.append(record)


def show(folder: Path, png: Path) -> None:
    """Write a figure's picture as a run, for TensorBoard's "Images" page."""
    # In a run of its own: step 0 of an existing run would supersede all of its records.
    with RunLock(folder), TensorBoardWriter(folder) as writer:
        writer.write_image(0, png.stem, png.read_bytes())


def _measured(
    measure: Callable[[Task], Measured], tasks: Sequence[Task], jobs: int
) -> Iterator[Measured]:
    """Yield measure(task) for each of the tasks, in order, from this many processes."""
    if jobs == 1 or len(tasks) < 2:
        yield from map(measure, tasks)
        return
    # BLAS threads of several processes would wait for one another.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    # Spawned, because a forked process inherits the locks of JAX's threads without the threads.
    # An interrupt ends the workers at once; the next call repeats their unfinished measurements.
    interrupted = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(jobs, get_context("spawn"), **interrupted) as pool:
        yield from pool.map(measure, tasks)
