"""What the scripts of the supplement's figures share: options, data, runs that resume; no drawing.

A run holds one record for each value of the swept variable, which takes the place of the step. What
a stopped script has written is read back, and only what is missing is measured.
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
    """The command line that all these scripts have; `figure` becomes a list."""
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
    # A run that tries something out leaves the full one's records alone.
    options.logdir = options.logdir or Path("logs") / f"{name}{'-quick' * options.quick}"
    options.heading = "Small stand-in, on digits, for figure" if options.quick else "Figure"
    options.figure = figures if "all" in options.figure else list(dict.fromkeys(options.figure))
    return options


def images(
    name: str, side: int, n: int, options: argparse.Namespace
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"]]:
    """The first n standardized images of a data set at side x side pixels, and their labels."""
    # Here, since it takes two seconds, as long as the figures that need no data.
    from datasets import load, standardize_pixels

    npz = options.cifar_npz if name == "cifar10" else None
    if options.quick and npz is None:
        name = "digits"
    pixels, labels = load(
        name, side=side, n=n, seed=options.seed, data_dir=options.data_dir, npz=npz
    )
    return standardize_pixels(pixels), labels


def source(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Where a data set comes from, as a part of a run's settings."""
    from_file = name == "cifar10" and options.cifar_npz is not None
    return {"dataset": name} | ({"file": options.cifar_npz.name} if from_file else {})


def rank_scalars(ranks: Mapping[str, NumericalRank], suffix: str = "") -> dict[str, float]:
    """Each count and its margin, under tags like those of the monitor."""
    return {
        f"rank{margin}{suffix}/{part}": count
        for part, rank in ranks.items()
        for margin, count in (("", rank.rank), ("_low", rank.low), ("_high", rank.high))
    }


@dataclass(frozen=True)
class Sweep:
    """One run: what its measurements depend on, and the values of the swept variable, ascending."""

    settings: Mapping[str, Any]
    values: Sequence[int]


@dataclass(frozen=True)
class Task:
    """One measurement: for which panel of which figure, at which value."""

    figure: str
    panel: str
    value: int
    options: argparse.Namespace


def swept(
    sweeps: Mapping[Key, Sweep], measure: Callable[[Task], Measured], options: argparse.Namespace
) -> dict[Key, list[Record]]:
    """The records of every run; what an earlier go has not measured is measured now."""
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
    """The records of one run folder over a swept variable; goes on where it was stopped.

    Args:
        folder: of the run.
        settings: what the measurements depend on beside the swept variable; with other settings
            the run begins anew, and what was there is superseded, not lost.
        values: of the swept variable, ascending integers.
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
        """The values still to be measured."""
        return self.values[len(self.records) :]

    @cached_property
    def _writers(self) -> list[TensorBoardWriter | JsonlWriter]:
        board = TensorBoardWriter(self.folder, layout=custom_scalars_layout())
        # The file that is read back comes last: what it holds, TensorBoard has too.
        writers = [board, JsonlWriter(self.folder / "rankmon.jsonl")]
        for writer in writers:
            self._open.enter_context(writer)
            # What is there of other settings or values is superseded, all of it.
            writer.start(min([self.missing[0], *(record.step for record in self._others)]))
        return writers

    def write(self, measured: Measured) -> None:
        """Takes what was measured at the first of the missing values."""
        scalars, arrays = measured
        texts = {"settings": self._settings}
        record = Record(self.missing[0], 1, time.time(), scalars, arrays, texts)
        for writer in self._writers:
            writer.write(record)
        self.records.append(record)


def show(folder: Path, png: Path) -> None:
    """Puts a figure's picture beside its runs, for TensorBoard's "Images" page."""
    # In a run of its own: an attempt begins at a step, and supersedes what is there.
    with RunLock(folder), TensorBoardWriter(folder) as writer:
        writer.write_image(0, png.stem, png.read_bytes())


def _measured(
    measure: Callable[[Task], Measured], tasks: Sequence[Task], jobs: int
) -> Iterator[Measured]:
    """measure(task) for each of the tasks, in order, by so many processes."""
    if jobs == 1 or len(tasks) < 2:
        yield from map(measure, tasks)
        return
    # Threads of several BLAS at once would wait for one another.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    # Spawned: a forked process inherits locks of JAX's threads, and not the threads.
    # An interrupt ends the workers at once: what they had begun is begun again another time.
    interrupted = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(jobs, get_context("spawn"), **interrupted) as pool:
        yield from pool.map(measure, tasks)
