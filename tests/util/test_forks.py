"""Test forked processes: they must not use or write with objects of their parent."""

import json
import os
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import rankmon
from rankmon import JsonlWriter, MemoryWriter, Problem, RankMonitor, Record, TensorBoardWriter
from rankmon.writers.jsonl import read_jsonl
from reading import scalar_steps
from refusals import assert_explains
from small_probes import Light

PROBLEM = Problem(lambda W, x: x @ W, loss="mse", inputs=np.eye(2), targets=np.ones((2, 2)))
WEIGHTS = np.eye(2)


def in_a_fork(action) -> list[str]:
    """What the action says in a forked process: its warnings, and its error at the end."""
    ready, done = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads and forks do not go together, as JAX says
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                action()
                error = []
            except BaseException as one:  # noqa: BLE001  nothing may go on in a copy of pytest
                error = [f"{type(one).__name__}: {one}"]
        os.write(done, json.dumps([str(w.message) for w in caught] + error).encode())
        os._exit(0)
    os.close(done)
    with os.fdopen(ready) as said:
        text = said.read()
    assert os.waitpid(child, 0)[1] == 0, "the fork hangs"
    return json.loads(text)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Gate(MemoryWriter):
    """Holds up the second record until it is opened."""

    def __init__(self):
        super().__init__()
        self.reached, self.opened = threading.Event(), threading.Event()

    def write(self, record):
        super().write(record)
        if len(self.all_records) == 2:
            self.reached.set()
            self.opened.wait(30)


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_fork_that_calls_its_parents_monitor_is_refused_once_and_writes_nothing(
    tmp_path, background
):
    gate = Gate()
    monitor = RankMonitor(
        PROBLEM,
        logdir=tmp_path,
        every=1,
        probes=[Light()],
        hparams={"lr": 1},
        writers=[gate],
        background=background,
    )
    monitor(0, WEIGHTS)
    monitor.flush()
    if background:  # the worker holds the recorder's lock while the process forks
        monitor(1, WEIGHTS)
        assert gate.reached.wait(30)
    before = contents(tmp_path)

    def uses_all():
        with monitor:
            assert monitor(5, WEIGHTS, scalars={"mine": 1}) is None
            assert not monitor.is_due(6)
            monitor.report(6, {"mine": 1})
            monitor.restore(monitor.state)
            monitor.flush()
            raise ZeroDivisionError  # the loop's own error is the one that comes out

    first, *others = in_a_fork(uses_all)
    assert_explains(first, str(os.getpid()), "logdir")
    assert others == ["ZeroDivisionError: "]
    assert contents(tmp_path) == before
    gate.opened.set()
    monitor(2, WEIGHTS)
    monitor.close()
    steps = [0, 1, 2] if background else [0, 2]
    assert scalar_steps(tmp_path, "light") == steps
    assert [record.step for record in read_jsonl(tmp_path / "rankmon.jsonl")] == steps


def test_a_fork_that_calls_its_parents_monitor_of_seeds(tmp_path):
    monitor = rankmon.SeedsMonitor(PROBLEM, seeds=2, logdir=tmp_path, every=1, probes=["weights"])
    stacked = np.stack([WEIGHTS, WEIGHTS])
    monitor(0, stacked)
    before = contents(tmp_path)

    def uses_all():
        assert monitor(1, stacked) is None
        monitor.flush()
        assert monitor.close(2, stacked) == []

    (said,) = in_a_fork(uses_all)
    assert_explains(said, "logdir")
    assert contents(tmp_path) == before
    monitor.close()
    assert scalar_steps(tmp_path / "median", "rank_weights/params/median") == [0]


@pytest.mark.parametrize("kind", [TensorBoardWriter, lambda f: JsonlWriter(f / "lines")])
def test_a_fork_that_uses_its_parents_writer_is_refused(tmp_path, kind):
    writer = kind(tmp_path)
    writer.write(Record(0, 1, 0.0, {"light": 1.0}, {}, hparams={"lr": 1}))
    before = contents(tmp_path)
    later = Record(1, 1, 0.0, {"light": 1.0}, {})
    for action in (lambda: writer.write(later), lambda: writer.start(0), writer.flush):
        (said,) = in_a_fork(action)
        assert said.startswith("ValueError")
        assert_explains(said, "closed", "fork", "logdir")
    assert in_a_fork(writer.close) == []
    assert contents(tmp_path) == before
    writer.write(later)
    writer.close()
