"""Test Ctrl-C at any place in a call: the step is measured and its record written, or neither."""

import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rankmon
from rankmon import MemoryWriter, Problem, RankMonitor, SeedsMonitor, read_jsonl
from rankmon.probes.base import Measurement

PLACES = 60  # of the interrupt in one call, spread over all instructions


def setup():
    w = jnp.asarray([[1.0, 2.0], [3.0, 4.0]], jnp.float32)
    x = np.eye(2, dtype=np.float32)
    return Problem(lambda w, x: x @ w, loss="mse", inputs=x, targets=x), w


@pytest.fixture(scope="module")
def ready():
    return setup()


class Counting:
    """Counts in its state how often it measured."""

    name = "counting"

    def placeholder_state(self, problem):
        return self.initial_state()

    def prepare(self, flat):
        return self

    def initial_state(self):
        return {"measured": np.zeros(())}

    def measure(self, snapshot, state):
        measured = state["measured"] + 1
        return Measurement({"measured": float(measured)}), {"measured": measured}

    def describe(self):
        return rankmon.measurement.Description()


class Interrupt:
    """Counts the instructions of this thread in our code and what it calls; interrupts at one."""

    def __init__(self, at=None):
        self.at, self.count = at, 0

    def __call__(self, frame, event, arg):
        path = frame.f_code.co_filename
        if not any(name in path for name in ("rankmon/", "contextlib", "jax/_src/config.py")):
            return None
        frame.f_trace_opcodes = True
        return self._each

    def _each(self, frame, event, arg):
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self._each

    def __enter__(self):
        self._outer = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(self._outer)


def thread_settings():
    names = ("enable_x64", "disable_jit", "numpy_dtype_promotion", "numpy_rank_promotion")
    names += ("default_matmul_precision", "debug_nans", "debug_infs")
    names += ("transfer_guard_host_to_device", "transfer_guard_device_to_host")
    return [getattr(jax.config, f"jax_{name}") for name in names]


def interrupted(ready, folder, background, at):
    """A run whose second due call is interrupted once; how many instructions that call has."""
    problem, w = ready
    memory = MemoryWriter()
    options = {"logdir": folder, "every": 2, "writers": [memory], "background": background}
    monitor = RankMonitor(problem, probes=[Counting()], queue=0, **options)
    monitor(0, w)
    settings = thread_settings()
    with Interrupt(at) as interrupt:
        try:
            monitor(2, w)
        except KeyboardInterrupt:
            pass
    assert thread_settings() == settings
    monitor(2, w)
    monitor(3, w)
    monitor(4, w)
    monitor.close()
    for records in (memory.all_records, read_jsonl(folder / "rankmon.jsonl", superseded=True)):
        assert [(r.step, r.attempt) for r in records] == [(0, 1), (2, 1), (4, 1)]
        assert [r.scalars["measured"] for r in records] == [1, 2, 3]
    return interrupt.count


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_an_interrupt_at_any_instruction_loses_nothing_and_repeats_nothing(
    ready, tmp_path, background
):
    alive = threading.active_count()
    count = interrupted(ready, tmp_path / "count", background, None)
    places = np.unique(np.linspace(1, count, PLACES).astype(int))
    assert len(places) == PLACES
    for at in places:
        interrupted(ready, tmp_path / str(at), background, int(at))
    assert threading.active_count() == alive


def test_an_interrupt_among_several_seeds_leaves_none_behind(ready, tmp_path):
    """Where the call is not repeated, the next one or `close` measures what is left."""
    problem, w = ready
    seeds = jnp.stack([w, 2 * w, 3 * w])

    def run(folder, at, then):
        monitor = SeedsMonitor(problem, seeds=3, logdir=folder, every=2, probes=[Counting()])
        monitor(0, seeds)
        with Interrupt(at) as interrupt:
            try:
                monitor(2, seeds)
            except KeyboardInterrupt:
                pass
        for step in then:
            monitor(step, seeds)
        monitor.close()
        runs = []
        for tag in ("measured", "measured", "measured", "measured/median"):
            name = "median" if "/" in tag else f"seed_{len(runs)}"
            records = read_jsonl(folder / name / "rankmon.jsonl", superseded=True)
            assert [r.scalars[tag] for r in records] == list(range(1, len(records) + 1))
            runs.append([(r.step, r.attempt) for r in records])
        assert runs == 4 * [runs[0]]
        return interrupt.count, [step for step, _ in runs[0]]

    count, steps = run(tmp_path / "count", None, [3, 4])
    assert steps == [0, 2, 4]
    for i, at in enumerate(np.linspace(1, count, PLACES // 2).astype(int)):
        _, steps = run(tmp_path / str(i), int(at), ([2, 3, 4], [4], [])[i % 3])
        # The first instructions are before the parameters were looked at.
        assert steps in ([[0, 2, 4]], [[0, 2, 4], [0, 4]], [[0, 2], [0]])[i % 3]
