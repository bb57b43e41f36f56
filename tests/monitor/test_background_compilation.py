"""Test that a background monitor compiles on its worker, and what its first call still refuses."""

import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interrupts import Interrupt

from oracles import mlp
from rankmon import HessianProbe, MemoryWriter, Problem, RankMonitor, read_jsonl
from rankmon._util.warnings import warn_user
from rankmon.probes.base import CheckableProbe
from refusals import refused, warned
from small_probes import Light, Remembering

TEXT = "expected a program, got none; take another network"

COMPILED = "/jax/core/compile/backend_compile_duration"
threads: list[threading.Thread] = []


@jax.monitoring.register_event_duration_secs_listener
def note(event, seconds, **_):
    if event == COMPILED:
        threads.append(threading.current_thread())


def stated(widths=(5, 7, 3), apply=None, loss="mse"):
    """A small float32 network with ReLUs, its problem and its parameters."""
    network, params = mlp(widths, jax.nn.relu)
    params = jax.tree.map(lambda a: np.asarray(a, np.float32), params)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, widths[0])).astype(np.float32)
    y = rng.standard_normal((9, widths[-1])).astype(np.float32)
    return Problem(apply or network, loss=loss, inputs=x, targets=y), params


def records_of(problem, params, **options):
    memory = MemoryWriter()
    with RankMonitor(problem, every=1, writers=[memory], **options) as monitor:
        monitor(0, params)
    return memory.records


class Later(Light):
    """A probe that does in `prepare` what a test asks for."""

    name = "later"

    def __init__(self, action=lambda: None):
        self.action = action

    def checked_state(self, flat):
        return self.initial_state()

    def prepare(self, flat):
        self.action()
        return self


def raising(error):
    def action():
        raise error

    return action


def test_all_programs_are_compiled_on_the_worker():
    problem, params = stated((5, 13, 4))
    monitor = RankMonitor(problem, every=1, background=True)
    threads.clear()
    monitor(0, params)
    monitor.flush()
    assert threads
    assert threading.main_thread() not in threads
    threads.clear()
    monitor(1, params)
    monitor.close()
    assert not threads


def test_the_records_are_those_of_a_monitor_that_compiles_first():
    problem, params = stated()
    want, got = (
        records_of(problem, params, background=background)[0] for background in (False, True)
    )
    own = {tag for tag in got.scalars if tag.startswith("monitor/")}
    counts = {"monitor/skipped", "monitor/blocked"}
    assert list(want.scalars) == [tag for tag in got.scalars if tag not in counts]
    for tag in want.scalars.keys() - own:
        np.testing.assert_equal(got.scalars[tag], want.scalars[tag])


def unused(params, x):
    return jnp.tile(x, 2)[:, :3]


def without_derivatives(params, x):
    shape = jax.ShapeDtypeStruct((9, 3), x.dtype)
    return jax.pure_callback(lambda w: np.ones((9, 3), w.dtype), shape, params[0]["w"])


REFUSED = {
    "structure": (TypeError, {}, {}, "weights"),
    "memory": (MemoryError, {}, {"memory_limit": 1000}, None),
    "unused parameters": (ValueError, {"apply": unused}, {}, None),
    "no derivatives": (ValueError, {"apply": without_derivatives}, {}, None),
    "engine": (ValueError, {}, {"probes": [HessianProbe(engine="deep_linear")]}, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_first_call_refuses_with_the_same_words(name):
    kind, network, options, params = REFUSED[name]
    problem, good = stated(**network)
    texts = []
    for background in (False, True):
        monitor = RankMonitor(problem, every=1, background=background, **options)
        with pytest.raises(kind) as caught:
            monitor(0, good if params is None else params)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_the_first_call_refuses_a_state_of_other_shapes():
    problem, params = stated()
    with RankMonitor(problem, every=1, params=params) as other:
        other(0, params)
        state = other.state
    state["hessian"]["reference"] = state["hessian"]["reference"][:, :2]
    monitor = RankMonitor(problem, every=1, state=state, background=True)
    with refused(ValueError, "hessian/reference", "(9, 3)", "(9, 2)"):
        monitor(1, params)


@pytest.mark.parametrize("where", ["call", "flush", "close"])
@pytest.mark.parametrize("kind", [ValueError, MemoryError])
def test_an_error_of_the_compilation_is_raised_once(where, kind):
    problem, params = stated()
    memory = MemoryWriter()
    probes = [Later(raising(kind(TEXT))), Remembering()]
    options = {"probes": probes, "writers": [memory], "on_error": "raise"}
    monitor = RankMonitor(problem, every=1, background=True, **options)
    monitor(0, params)
    assert monitor.state  # waits
    ending = {"call": lambda: monitor(1, params), "flush": monitor.flush, "close": monitor.close}
    with refused(kind) as caught:
        ending[where]()
    assert str(caught.value) == TEXT
    if where != "close":
        monitor(2, params)
        monitor.close()
    assert [record.step for record in memory.records] == [0] + [2] * (where != "close")
    assert all("light" not in record.scalars for record in memory.records)
    assert all(record.scalars["first"] == 0 for record in memory.records)


def test_an_error_of_the_compilation_warns_once():
    problem, params = stated()
    probes = [Later(raising(ValueError(TEXT))), Remembering()]
    memory = MemoryWriter()
    monitor = RankMonitor(problem, every=1, background=True, probes=probes, writers=[memory])
    monitor(0, params)
    with warned("'later'", "left out", f"ValueError: {TEXT}"):
        monitor.flush()
    monitor(1, params)
    monitor.close()
    assert [record.scalars["first"] for record in memory.records] == [0, 0]
    assert memory.records[0].scalars["monitor/errors"] == 1


def test_a_probe_that_does_not_fit_is_left_out():
    problem, params = stated()
    probes = [Later(raising(MemoryError(TEXT))), Remembering()]
    options = {"probes": probes, "oversize": "weights", "on_error": "raise"}
    monitor = RankMonitor(problem, every=1, background=True, **options)
    monitor(0, params)
    with warned("later: left out", TEXT):
        monitor.flush()
    monitor.close()


def test_warnings_of_the_preparation_reach_the_user():
    problem, params = stated()
    probe = Later(lambda: warn_user(TEXT))
    monitor = RankMonitor(problem, every=1, background=True, probes=[probe])
    monitor(0, params)
    with warned(TEXT) as caught:
        monitor.flush()
    assert caught[0].filename == __file__
    monitor.close()


def test_the_preparation_counts_as_overhead_and_not_as_measuring():
    problem, params = stated()
    probe = Later(lambda: time.sleep(0.5))
    (record,) = records_of(problem, params, background=True, probes=[probe])
    assert record.scalars["monitor/seconds"] < 0.4
    assert record.scalars["monitor/overhead"] > 0.4


def test_a_network_that_depends_on_the_thread_is_compiled_on_the_users():
    here = threading.local()
    here.scale = 2.0
    network, _ = mlp((5, 7, 3), jax.nn.relu)
    problem, params = stated(
        apply=lambda params, x: getattr(here, "scale", 1.0) * network(params, x)
    )
    want, got = (
        records_of(problem, params, background=background)[0].scalars
        for background in (False, True)
    )
    for tag in ("loss", "rank/H_L", "eigenvalue_max/H_L"):
        assert got[tag] == want[tag]


def test_a_probe_without_the_check_is_prepared_in_the_first_call():
    problem, params = stated()
    probe = Light()
    assert not isinstance(probe, CheckableProbe)
    assert isinstance(HessianProbe(), CheckableProbe)
    probe.prepare = lambda flat: raising(ValueError(TEXT))()
    monitor = RankMonitor(problem, every=1, background=True, probes=[probe])
    with refused(ValueError, TEXT):
        monitor(0, params)


SCRIPT = """
import sys
import numpy as np
import rankmon
problem = rankmon.Problem(
    lambda w, x: np.float32(1) * x @ w["a"] @ w["b"], loss="mse",
    inputs=np.eye(4, dtype="float32"), targets=np.ones((4, 3), "float32"),
)
params = {"a": np.ones((4, 5), "float32"), "b": np.ones((5, 3), "float32")}
monitor = rankmon.RankMonitor(problem, logdir=sys.argv[1], every=1, background=True)
monitor(0, params)
print("the loop is done")
"""


def test_an_exit_before_the_compilation_measures_all(tmp_path):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    (record,) = read_jsonl(tmp_path / "rankmon.jsonl")
    assert record.scalars["rank/H_o"] > 0


def test_an_interrupt_of_the_first_call_loses_nothing(tmp_path):
    """At any instruction: the step is measured once, with the same state, and training goes on."""

    class Counting(Later):
        name = "counting"

        def initial_state(self):
            return {"measured": np.zeros(())}

        def placeholder_state(self, problem):
            return self.initial_state()

        def measure(self, snapshot, state):
            measurement, _ = super().measure(snapshot, state)
            return measurement, {"measured": state["measured"] + 1}

    def run(at):
        problem, params = stated((3, 2))
        memory, probe = MemoryWriter(), Counting()
        options = {"probes": [probe], "writers": [memory], "background": True}
        monitor = RankMonitor(problem, every=2, **options)
        with Interrupt(at) as interrupt:
            try:
                monitor(0, params)
            except KeyboardInterrupt:
                pass
        monitor(0, params)
        monitor(2, params)
        state = monitor.state
        monitor.close()
        assert [(r.step, r.attempt) for r in memory.all_records] == [(0, 1), (2, 1)]
        assert np.ravel(state["counting"]["measured"]).tolist() == [0, 2**30]
        return interrupt.count

    count = run(None)
    for at in np.unique(np.linspace(1, count, 25).astype(int)):
        run(int(at))
