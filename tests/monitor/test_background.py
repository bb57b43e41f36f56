"""Test measuring on a worker: the same records and training, bounds on queue and time."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rankmon
from oracles import mlp
from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, read_jsonl
from rankmon.probes.base import Measurement
from refusals import refused, warned
from small_probes import Light

PATIENCE = 60.0


def setup():
    """A small float32 network, its problem, and a train step that donates the parameters."""
    apply, params = mlp((3, 3, 2))
    params = jax.tree.map(lambda a: jnp.asarray(a.astype(np.float32)), params)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 3)).astype(np.float32)
    y = rng.standard_normal((8, 2)).astype(np.float32)

    @partial(jax.jit, donate_argnums=0)
    def train_step(params):
        def loss(params):
            return jnp.mean(jnp.sum((apply(params, x) - y) ** 2, -1))

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda a, g: a - 0.1 * g, params, gradient), value

    return Problem(apply, loss="mse", inputs=x, targets=y), params, train_step


@pytest.fixture(scope="module")
def ready():
    """One problem for all tests: its programs are compiled once."""
    return setup()


def copied(params):
    return jax.tree.map(jnp.copy, params)


class Gate(Light):
    """Holds every measurement until it is opened."""

    def __init__(self):
        self.arrived, self.opened = threading.Event(), threading.Event()

    def measure(self, snapshot, state):
        self.arrived.set()
        assert self.opened.wait(PATIENCE)
        return super().measure(snapshot, state)


class Counting(Light):
    """Counts in its state."""

    name = "counting"

    def placeholder_state(self, problem):
        return self.initial_state()

    def initial_state(self):
        return {"measured": np.zeros(())}

    def measure(self, snapshot, state):
        time.sleep(0.02)  # so that there is something to wait for
        return Measurement({}), {"measured": state["measured"] + 1}


class Failing(Light):
    """Fails at odd steps."""

    name = "failing"

    def measure(self, snapshot, state):
        if snapshot.step % 2:
            raise RuntimeError(f"no probe at {snapshot.step}")
        return Measurement({}), state


def eventually(condition):
    """Whether the condition becomes true in time."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


# What is measured, and training


def trained(start, train_step, steps, monitor=None):
    params, loss = copied(start), jnp.float32(0)
    for step in range(steps):
        if monitor is not None:
            monitor(step, params, scalars={"train/loss": loss})
        params, loss = train_step(params)
    return params


def without_queue(texts):
    """A record's texts, but for the row of the card that only a worker's run has."""
    return {
        tag: [line for line in text.splitlines() if "`monitor/skipped`" not in line]
        for tag, text in texts.items()
    }


def test_records_are_those_of_the_loops_own_thread(ready, tmp_path):
    problem, start, _ = ready
    train_step = setup()[2]
    before = dict(jax.config.values)
    plain = trained(start, train_step, 25)
    records = {}
    for background in (False, True):
        memory, folder = MemoryWriter(), tmp_path / str(background)
        monitor = RankMonitor(
            problem, logdir=folder, every=4, writers=[memory], background=background
        )
        watched = trained(start, train_step, 25, monitor)
        last = monitor.close(25, watched)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(watched), strict=True):
            assert np.array_equal(a, b)
        assert [r.step for r in read_jsonl(folder / "rankmon.jsonl")] == [*range(0, 25, 4), 25]
        records[background] = memory.records
        assert last is memory.records[-1]
    assert train_step._cache_size() == 1
    assert dict(jax.config.values) == before
    for a, b in zip(records[False], records[True], strict=True):
        assert (a.step, a.attempt) == (b.step, b.attempt)
        assert without_queue(a.texts) == without_queue(b.texts)
        own = {tag for tag in b.scalars if tag.startswith("monitor/")}
        assert b.scalars.keys() - a.scalars.keys() == {"monitor/skipped", "monitor/blocked"}
        for tag in b.scalars.keys() - own:
            assert a.scalars[tag] == b.scalars[tag] or np.isnan(a.scalars[tag]), tag
        np.testing.assert_equal(dict(a.arrays), dict(b.arrays))
    assert records[True][1].scalars["train/loss"] != records[True][2].scalars["train/loss"]


def test_a_call_returns_nothing_and_close_the_last_record(ready):
    problem, params, _ = ready
    monitor = RankMonitor(problem, every=2, probes=[Light()], background=True)
    assert [monitor(step, params) for step in range(3)] == [None] * 3
    assert monitor.close().step == 2
    assert monitor.close() is None
    with pytest.warns(RankmonWarning, match="after close"):
        assert monitor(4, params) is None


def test_the_last_parameters_are_measured_at_close(ready):
    problem, params, _ = ready
    with RankMonitor(problem, every=9, probes=[Light()], background=True) as monitor:
        monitor(0, params)
        monitor(1, params)
        assert monitor.close().step == 1


def test_an_exception_in_the_loop_measures_what_waits_and_nothing_more(ready):
    problem, params, _ = ready
    memory = MemoryWriter()
    options = {"every": 2, "probes": [Counting()], "writers": [memory], "background": True}
    with pytest.raises(ZeroDivisionError):
        with RankMonitor(problem, **options) as monitor:
            for step in range(6):
                monitor(step, params)
            1 / 0  # noqa: B018
    assert [record.step for record in memory.records] == [0, 2, 4]


def test_the_first_call_refuses_what_cannot_be_measured(ready):
    problem, params, _ = ready
    monitor = RankMonitor(problem, every=1, memory_limit=1000, background=True)
    with refused(MemoryError, "p = 15", "memory_limit"):
        monitor(0, params)
    with refused(TypeError, "parameters", "str"):
        monitor(0, "weights")


def test_a_changed_structure_is_an_error_of_the_probe(ready):
    problem, params, _ = ready
    memory = MemoryWriter()
    options = {"every": 1, "probes": [Light()], "writers": [memory], "background": True}
    with RankMonitor(problem, **options) as monitor:
        monitor(0, params)
        with warned("parameters", "1/w", "one monitor"):
            monitor(1, params[:1])
        monitor(2, params)
    assert ["light" in record.scalars for record in memory.records] == [True, False, True]


# Copies


@jax.jit
def busy(a, rounds):
    """Some work, so that what waits for it is dispatched and not run at once."""
    return jax.lax.fori_loop(0, rounds, lambda i, b: 0.01 * (b @ b), a)


def held_back(opened):
    """A number of the device's that comes once the event is set."""
    here = []

    def value(_):
        if threading.current_thread() is threading.main_thread():
            here.append(1)  # the work was done before: nothing may wait
        else:
            assert opened.wait(PATIENCE)
        return np.float32(2)

    @jax.jit
    def late(a):
        return jax.pure_callback(value, jax.ShapeDtypeStruct((), jnp.float32), a[0, 0])

    large = np.ones((300, 300), np.float32)
    busy(large, 1).block_until_ready()
    for doublings in range(10):  # a loaded machine may let this thread wait longer than the work
        found = late(busy(large, 100 * 2**doublings))
        if not here:
            return found
        here.clear()
    return pytest.fail("expected a computation that waits, got one that ran at once 10 times")


def test_a_call_does_not_wait_for_the_parameters(ready, monkeypatch):
    problem, params, _ = ready
    opened, clock = threading.Event(), {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    memory = MemoryWriter()
    options = {"every": 1, "probes": [Light()], "writers": [memory], "background": True}
    with RankMonitor(problem, **options) as monitor:
        monitor(0, params)
        monitor.flush()
        late = held_back(opened)
        later = jax.tree.map(lambda a: a + late, params)
        monitor(1, later, scalars={"late": late})
        assert not late.is_ready()
        time.sleep(0.02)  # the worker waits now
        clock["now"] += 1000  # the wait for the device is no cost of the probe
        opened.set()
    seen = memory.records[1].scalars
    assert seen["late"] == 2
    assert seen["light"] == float(jax.tree.leaves(later)[0][0, 0])
    assert seen["monitor/seconds"] == 0


def test_what_changes_in_place_was_copied(ready):
    problem, params, _ = ready
    gate, memory = Gate(), MemoryWriter()
    options = {"every": 1, "probes": [gate], "writers": [memory], "background": True}
    params, loss = jax.tree.map(np.array, params), np.array(3.0)
    first = float(jax.tree.leaves(params)[0][0, 0])
    with RankMonitor(problem, **options) as monitor:
        monitor(0, params, scalars={"loss": loss})
        monitor(1, params, scalars={"loss": loss})
        for leaf in [*jax.tree.leaves(params), loss]:
            leaf += 1
        gate.opened.set()
    assert [r.scalars["light"] for r in memory.records] == [first, first]
    assert [r.scalars["loss"] for r in memory.records] == [3.0, 3.0]


class Settings(Light):
    """What the measuring thread would compute in and on."""

    def __init__(self):
        self.seen = []

    def measure(self, snapshot, state):
        self.seen.append((jnp.asarray(np.ones(1)).dtype, jax.config.jax_default_device))
        return Measurement({}), state


@pytest.mark.parametrize("x64", [False, True])
def test_the_worker_has_the_settings_of_the_calling_thread(ready, x64):
    problem, params, _ = ready
    device, probe = jax.devices()[0], Settings()
    with RankMonitor(problem, every=1, probes=[probe], background=True) as monitor:
        with jax.enable_x64(x64), jax.default_device(device):
            monitor(0, params)
        monitor(1, params)
    assert probe.seen == [
        (np.float64 if x64 else np.float32, device),
        (np.float32, None),
    ]


@pytest.mark.parametrize("x64", [False, True])
def test_a_network_that_only_runs_in_the_users_precision(x64):
    """Bits of the parameters' own dtype: measured in it, as on the loop's own thread."""
    with jax.enable_x64(x64):
        start = jnp.asarray(np.eye(2))
        bits = jnp.int64 if x64 else jnp.int32

        def apply(w, x):
            w = w + 0 * jax.lax.bitcast_convert_type(w, bits)  # another dtype has others
            z = x.astype(start.dtype) @ w
            return z.astype(jnp.float32) if x64 else z

        records = {}
        for background in (False, True):
            problem = Problem(apply, loss="mse", inputs=np.ones((3, 2)), targets=np.ones((3, 2)))
            memory = MemoryWriter()
            with pytest.warns(RankmonWarning):
                with RankMonitor(
                    problem,
                    every=1,
                    probes=["hessian"],
                    writers=[memory],
                    background=background,
                ) as monitor:
                    monitor(0, start)
                    monitor(1, 2 * start)
            records[background] = memory.records
        for a, b in zip(records[False], records[True], strict=True):
            assert b.scalars["monitor/errors"] == 0
            assert b.scalars["rank/H_L"] == a.scalars["rank/H_L"]
            np.testing.assert_array_equal(a.arrays["spectrum/H_L"], b.arrays["spectrum/H_L"])


def test_guarded_transfers(ready):
    problem, start, train_step = ready
    memory = MemoryWriter()
    options = {"every": 1, "writers": [memory], "background": True}
    params, _ = train_step(copied(start))
    with RankMonitor(problem, **options) as monitor:
        with jax.transfer_guard("disallow"):
            for step in range(3):
                monitor(step, params, scalars={"entry": params[0]["w"].sum()})
                params, _ = train_step(params)
    assert [record.scalars["monitor/errors"] for record in memory.records] == [0, 0, 0]
    assert all(record.scalars["rank/H_o"] > 0 for record in memory.records)


# The queue


def test_a_full_queue_blocks_and_counts(ready):
    problem, params, _ = ready
    gate, memory = Gate(), MemoryWriter()
    monitor = RankMonitor(
        problem, every=1, probes=[gate], writers=[memory], background=True, queue=1
    )

    def open_once_blocked():
        assert eventually(lambda: monitor._dispatcher.worker.counts()["monitor/blocked"] == 1)
        gate.opened.set()

    monitor(0, params)
    monitor(1, params)
    opener = threading.Thread(target=open_once_blocked)
    opener.start()
    monitor(2, params)
    opener.join()
    monitor.close()
    assert [r.step for r in memory.records] == [0, 1, 2]
    assert [r.scalars["monitor/blocked"] for r in memory.records] == [0, 0, 1]
    assert [r.scalars["monitor/skipped"] for r in memory.records] == [0, 0, 0]


def test_a_full_queue_skips_the_point_and_counts(ready):
    problem, params, _ = ready
    gate, memory = Gate(), MemoryWriter()
    options = {"background": True, "queue": 1, "when_full": "skip"}
    monitor = RankMonitor(problem, every=2, probes=[gate], writers=[memory], **options)
    for step in range(5):  # 0 is under way, 2 waits, 4 is skipped
        monitor(step, params)
    gate.opened.set()
    monitor.flush()
    monitor(5, params)
    monitor(6, params)
    monitor.close()
    assert [r.step for r in memory.records] == [0, 2, 6]
    assert [r.scalars["monitor/skipped"] for r in memory.records] == [0, 0, 1]
    assert [r.scalars["monitor/blocked"] for r in memory.records] == [0, 0, 0]


@pytest.mark.parametrize("explicit", [False, True])
def test_a_last_step_that_was_skipped_is_measured_at_close(ready, explicit):
    problem, params, _ = ready
    gate = Gate()
    options = {"background": True, "queue": 0, "when_full": "skip"}
    monitor = RankMonitor(problem, every=1, probes=[gate], **options)
    monitor(0, params)
    monitor(1, params)
    gate.opened.set()
    last = monitor.close(1, params) if explicit else monitor.close()
    assert (last.step, last.scalars["monitor/skipped"]) == (1, 1)


def test_going_back_is_never_skipped(ready, tmp_path):
    problem, params, _ = ready
    gate = Gate()
    options = {"background": True, "queue": 0, "when_full": "skip", "overhead": 1e-9}
    monitor = RankMonitor(problem, logdir=tmp_path, every=1, probes=[gate], **options)
    monitor(7, params)
    threading.Timer(0.2, gate.opened.set).start()
    monitor(3, params)
    with pytest.warns(RankmonWarning, match="step 3 .*step 7"):
        monitor.close()
    assert [(r.step, r.attempt) for r in read_jsonl(tmp_path / "rankmon.jsonl")] == [(3, 2)]


# State


def test_a_saved_state_is_that_of_the_last_step_submitted(ready):
    problem, params, _ = ready
    probes = ["hessian", Counting()]
    inline = RankMonitor(problem, every=3, probes=probes)
    monitor = RankMonitor(problem, every=3, probes=probes, background=True)
    for step in range(7):
        inline(step, params)
        monitor(step, params)
        if step % 3 == 0:
            np.testing.assert_equal(monitor.state, inline.state)
    saved = monitor.state
    monitor(9, params)
    monitor.restore(saved)
    np.testing.assert_equal(monitor.state, saved)
    monitor(8, params)
    assert monitor.close().step == 8


def test_a_resumed_run_supersedes_what_came_after_its_checkpoint(ready, tmp_path):
    problem, params, _ = ready
    options = {"logdir": tmp_path, "every": 2, "probes": [Counting()], "background": True}
    with RankMonitor(problem, **options) as monitor:
        for step in range(7):
            monitor(step, params)
            if step == 3:
                saved = monitor.state
    with RankMonitor(problem, **options, state=saved) as monitor:
        monitor(4, params)
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [(r.step, r.attempt) for r in records] == [(0, 1), (2, 1), (4, 2)]


# Trouble


def test_warnings_of_the_worker_point_at_the_users_line(ready):
    problem, params, _ = ready
    memory = MemoryWriter()
    options = {"probes": [Failing(), Light()], "writers": [memory], "background": True}
    with pytest.warns(RankmonWarning, match="'failing' at step 1") as caught:
        monitor = RankMonitor(problem, every=1, **options)
        for step in range(4):
            monitor(step, params)
        monitor.close()
    assert [warning.filename for warning in caught] == [__file__]
    assert [r.scalars["monitor/errors"] for r in memory.records] == [0, 1, 1, 2]
    assert all("light" in record.scalars for record in memory.records)


def test_warnings_made_errors_end_neither_training_nor_the_worker(ready):
    problem, params, _ = ready
    memory = MemoryWriter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"probes": [Failing()], "writers": [memory], "background": True}
        with RankMonitor(problem, every=1, **options) as monitor:
            for step in range(4):
                monitor(step, params)
                monitor.flush()
    assert [record.step for record in memory.records] == [0, 1, 2, 3]


@pytest.mark.parametrize("where", ["call", "call that is not due", "flush", "close"])
def test_an_error_is_raised_once_and_later_records_come(ready, where):
    problem, params, _ = ready
    memory = MemoryWriter()
    options = {"writers": [memory], "background": True, "on_error": "raise"}
    schedule = rankmon.schedule.at_steps([0, 1, 2, 4])
    monitor = RankMonitor(problem, schedule=schedule, probes=[Failing()], **options)
    monitor(0, params)
    monitor(1, params)
    monitor(2, params) if where != "call that is not due" else None
    assert monitor.state  # waits, and raises nothing
    raising = {
        "call": lambda: monitor(4, params),
        "call that is not due": lambda: monitor(1, params),
        "flush": monitor.flush,
        "close": monitor.close,
    }[where]
    with pytest.raises(RuntimeError, match="no probe at 1"):
        raising()
    monitor(4, params) if where != "close" else None
    monitor.close()
    expected = {"call that is not due": [0, 4], "close": [0, 2]}.get(where, [0, 2, 4])
    assert [record.step for record in memory.records] == expected


# Without close


class Asking(MemoryWriter):
    """A writer that asks the monitor for its state, and may close it."""

    def __init__(self, closes=False):
        super().__init__()
        self.closes, self.states, self.monitor = closes, [], None

    def write(self, record):
        super().write(record)
        self.states.append(self.monitor.state)
        if self.closes:
            self.monitor.close()


def test_a_writer_may_ask_for_the_state_on_the_worker(ready):
    problem, params, _ = ready
    writer = Asking()
    with RankMonitor(
        problem, every=1, probes=[Light()], writers=[writer], background=True
    ) as monitor:
        writer.monitor = monitor
        monitor(0, params)
        monitor.flush()
        assert len(writer.states) == 1


def test_a_writer_that_closes_the_monitor_is_told_and_nothing_hangs(ready):
    problem, params, _ = ready
    writer = Asking(closes=True)
    monitor = RankMonitor(problem, every=1, probes=[Light()], writers=[writer], background=True)
    writer.monitor = monitor
    with warned("close", "training thread"):
        monitor(0, params)
        monitor.flush()


def test_the_loops_own_exception_is_the_one_that_is_raised(ready):
    problem, params, _ = ready
    options = {"probes": [Failing()], "background": True, "on_error": "raise"}
    with pytest.raises(KeyError, match="mine") as caught:  # noqa: SIM117
        with RankMonitor(problem, every=1, **options) as monitor:
            monitor(1, params)
            raise KeyError("mine")
    assert any("RuntimeError: no probe at 1" in note for note in caught.value.__notes__)


def test_the_network_is_traced_under_the_settings_of_the_users_thread():
    """A mesh or a default PRNG belongs to a thread; the worker must not see another network."""

    def apply(params, x):
        noise = jax.random.uniform(jax.random.key(0), (3, 2), x.dtype)
        return x @ (params["w"] + noise)

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
    losses = []
    for background in (False, True):
        problem = Problem(apply, loss="mse", inputs=x, targets=y)
        writer = MemoryWriter()
        with jax.default_prng_impl("rbg"):
            monitor = RankMonitor(
                problem, every=1, probes=["hessian"], writers=[writer], background=background
            )
            monitor(0, {"w": x[:3, :2]})
            monitor.close()
        losses.append(writer.records[0].scalars["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_monitor_that_is_dropped_finishes_and_gives_its_folder_back(
    ready, tmp_path, caplog, on_error
):
    problem, params, _ = ready
    gate, alive = Gate(), threading.active_count()
    probes = [gate, Failing()]
    gc.disable()
    try:
        options = {"logdir": tmp_path, "every": 1, "background": True, "on_error": on_error}
        monitor = RankMonitor(problem, probes=probes, **options)
        for step in range(3):
            monitor(step, params)
        del monitor
        gate.opened.set()
        assert eventually(lambda: threading.active_count() == alive)
        RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()]).close()
    finally:
        gc.enable()
    steps = [record.step for record in read_jsonl(tmp_path / "rankmon.jsonl")]
    assert steps == ([0, 1, 2] if on_error == "warn" else [0, 2])
    assert "no probe at 1" in caplog.text


SCRIPT = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import rankmon
from jax.sharding import NamedSharding, PartitionSpec as P
from rankmon.measurement import Measurement

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
)
mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, P("devices"))
w = jax.device_put(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), split)
step = jax.jit(lambda w: 0.9 * w, donate_argnums=0)
problem = rankmon.Problem(
    lambda w, x: x @ w, loss="mse", inputs=np.eye(4), targets=np.ones((4, 3))
)
monitor = rankmon.RankMonitor(problem, logdir=sys.argv[1], every=1, background=True, queue=9)
for i in range(6):
    monitor(i, w)
    w = step(w)
    if i == 1:
        monitor.flush()
        assert compiled, "expected JAX to tell of compilations"
        compiled.clear()
monitor.flush()
assert not compiled, compiled
assert len(w.sharding.device_set) == 2
assert step._cache_size() == 1

class Slow(rankmon.WeightsProbe):
    def prepare(self, flat):
        return SlowPrepared(super().prepare(flat))

class SlowPrepared:
    def __init__(self, inner):
        self.initial_state, self.describe = inner.initial_state, inner.describe
        self.inner = inner

    def measure(self, snapshot, state):
        time.sleep(0.1)
        if snapshot.step == 3:
            raise RuntimeError("no third")
        return self.inner.measure(snapshot, state)

last = rankmon.RankMonitor(
    problem, logdir=sys.argv[2], every=1, probes=[Slow()], background=True, queue=9
)
for i in range(4):
    last(i, w)
    w = step(w)
print("loop done")
"""


def test_an_exit_without_close_measures_all_and_does_not_hang(tmp_path):
    folders = [str(tmp_path / name) for name in ("sharded", "slow")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *folders],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    sharded, slow = (read_jsonl(f"{folder}/rankmon.jsonl") for folder in folders)
    assert [r.step for r in sharded] == list(range(6))
    assert all(r.scalars["rank_weights/params"] == 3 for r in sharded)
    assert [r.step for r in slow] == list(range(4))
    assert "no third" in done.stderr


# The share of the wall time


@pytest.mark.parametrize("background", [False, True])
def test_due_steps_wait_for_their_share(ready, background):
    problem, params, _ = ready
    options = {"probes": [Counting()], "background": background}
    memory = MemoryWriter()
    monitor = RankMonitor(problem, every=1, writers=[memory], overhead=0.1, **options)
    steps = 0
    # The second probe fits once the first one, of 20 ms at least, is a tenth.
    while len(memory.records) < 2:
        monitor(steps, params)
        steps += 1
        time.sleep(0.001)
    assert memory.records[1].step > 1
    assert 0 < memory.records[1].scalars["monitor/overhead"] <= 1
    monitor.close()  # gives None where that step happened to be due
    assert memory.records[-1].step == steps - 1


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("share", "count"), [(1.0, 5), (1e-9, 2)], ids=["all", "none"])
def test_a_share_of_all_or_nothing(ready, background, share, count):
    problem, params, _ = ready
    memory, options = MemoryWriter(), {"probes": [Light()], "background": background}
    with RankMonitor(problem, every=1, writers=[memory], overhead=share, **options) as monitor:
        for step in range(5):
            monitor(step, params)
            monitor.flush()
    assert len(memory.records) == count  # the first and the last one always
    assert memory.records[-1].step == 4


# Options


@pytest.mark.parametrize(
    ("options", "error", "keys"),
    [
        ({"background": 1}, TypeError, ["background", "True or False", "1"]),
        ({"queue": 2.0}, TypeError, ["queue", "integer", "float"]),
        ({"queue": -1}, ValueError, ["queue", "at least 0", "-1"]),
        ({"when_full": "drop"}, ValueError, ["when_full", "'drop'"]),
        ({"overhead": 0}, ValueError, ["overhead", "(0, 1]", "got 0"]),
        ({"overhead": 5}, ValueError, ["overhead", "(0, 1]", "got 5"]),
        ({"overhead": float("nan")}, ValueError, ["overhead", "(0, 1]", "nan"]),
        ({"overhead": "5%"}, TypeError, ["overhead", "number", "str"]),
        ({"overhead": True}, TypeError, ["overhead", "number", "bool"]),
    ],
)
def test_options_are_checked_at_construction(ready, options, error, keys):
    with refused(error, *keys):
        RankMonitor(ready[0], every=1, **options)
