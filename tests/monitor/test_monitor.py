"""Test the monitor in training loops: measurements, unchanged training, and failures."""

import gc
import sqlite3
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rankmon
from oracles import mlp
from rankmon import (
    JsonlWriter,
    MemoryWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    Record,
    hessian_ranks,
    read_jsonl,
)
from rankmon._util.errors import ErrorPolicy
from rankmon.monitor.fanout import MOST_WAITING, Fanout
from rankmon.probes.base import Measurement
from rankmon.runs.read import read_runs
from reading import legacy_events
from refusals import refused, warned
from small_probes import Light, Remembering

DIMS = (3, 3, 3, 3)


def setup(seed=0):
    """A small float32 network, its problem, and a jitted train step."""
    apply, params = mlp(DIMS, seed=seed)
    params = jax.tree.map(lambda a: jnp.asarray(a.astype(np.float32)), params)
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 12, 3)).astype(np.float32)
    optimizer = optax.sgd(0.05)

    def loss(params):
        return 0.5 * jnp.mean(jnp.sum((apply(params, x) - y) ** 2, -1))

    @jax.jit
    def train_step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    return problem, params, optimizer.init(params), train_step


@pytest.fixture(scope="module")
def ready():
    """One problem for all tests that do not care which: its programs are compiled once."""
    return setup()


def test_training_is_bit_identical_and_the_configuration_unchanged(ready, tmp_path):
    problem, start, state, _ = ready
    train_step = setup()[-1]
    before = dict(jax.config.values)
    params, opt_state = start, state
    for _ in range(30):
        params, opt_state = train_step(params, opt_state)
    plain = params
    compiled = train_step._cache_size()

    params, opt_state = start, state
    seen = {}
    with RankMonitor(problem, logdir=tmp_path, every=10) as monitor:
        for step in range(30):
            record = monitor(step, params)
            if record:
                seen[step] = record, jax.tree.map(np.asarray, params)
            params, opt_state = train_step(params, opt_state)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert np.array_equal(a, b)
    assert dict(jax.config.values) == before
    assert train_step._cache_size() == compiled
    assert sorted(seen) == [0, 10, 20]
    for record, weights in seen.values():
        double = jax.tree.map(lambda a: a.astype(np.float64), weights)
        for part, rank in hessian_ranks(problem, double).items():
            assert record.scalars[f"rank/{part}"] == rank.rank
            assert record.scalars[f"rank_low/{part}"] == rank.low
        assert all(isinstance(a, np.ndarray) for a in record.arrays.values())


def test_files_say_what_the_records_say(ready, tmp_path):
    problem, params, state, train_step = ready
    memory = MemoryWriter()
    with RankMonitor(problem, logdir=tmp_path, every=4, writers=[memory]) as monitor:
        for step in range(10):
            monitor(step, params, scalars={"train/loss": jnp.float32(step)})
            params, state = train_step(params, state)
    assert [record.step for record in memory.records] == [0, 4, 8, 9]
    events = legacy_events(tmp_path)
    for tag, value in memory.records[-1].scalars.items():
        written = events.Scalars(tag)
        assert [event.step for event in written] == [0, 4, 8, 9]
        np.testing.assert_equal(np.float32(written[-1].value), np.float32(value))
    assert {"rank/H_L", "rank_theory/H_L", "rank/Omega", "loss", "rank_self/H_f"} <= set(
        events.Tags()["scalars"]
    )
    parts, families = ("H_L", "H_o", "H_f", "H_f_fixed"), ("spectrum", "spectrum_negative")
    assert {f"{family}/{part}" for family in families for part in parts} == set(
        events.Tags()["histograms"]
    )
    card = "".join(t.decode() for t in events.Tensors("rankmon/card")[0].tensor_proto.string_val)
    assert "deep linear network 3-3-3-3" in card
    lines = read_jsonl(tmp_path / "rankmon.jsonl")
    for line, record in zip(lines, memory.records, strict=True):
        np.testing.assert_equal(dict(line.scalars), dict(record.scalars))
        np.testing.assert_equal(dict(line.arrays), dict(record.arrays))


def test_first_and_last_are_measured_and_jumps_are_safe(ready):
    problem, params, *_ = ready
    memory = MemoryWriter()
    with RankMonitor(problem, every=100, probes=[Light()], writers=[memory]) as monitor:
        assert monitor(7, params) is not None
        assert monitor(95, params) is None
        assert monitor(205, params) is not None
        assert monitor(205, params) is None
        assert monitor(np.int64(250), params) is None
    assert [record.step for record in memory.records] == [7, 205, 250]


def test_a_call_that_is_not_due_touches_nothing(ready):
    problem, params, *_ = ready
    with RankMonitor(problem, every=100, probes=[Light()]) as monitor:
        monitor(0, params)
        assert monitor(1, object()) is None
        monitor(2, params)


def test_donated_last_parameters(ready):
    problem, start, *_ = ready
    halve = jax.jit(lambda p: jax.tree.map(lambda a: a / 2, p), donate_argnums=0)
    params = jax.tree.map(jnp.copy, start)
    memory = MemoryWriter()
    monitor = RankMonitor(problem, every=100, probes=[Light()], writers=[memory])
    for step in range(3):
        monitor(step, params)
        params = halve(params)
    with pytest.warns(RankmonWarning, match="close"):
        monitor.close()
    assert [record.step for record in memory.records] == [0]

    monitor = RankMonitor(problem, every=100, probes=[Light()], writers=[memory])
    monitor(0, params)
    last = monitor.close(3, params)
    assert last.step == 3
    assert monitor.close() is None


def test_nonfinite_weights_are_data(ready, tmp_path):
    problem, params, *_ = ready
    broken = [{"w": np.array(layer["w"])} for layer in params]
    for layer in broken:
        layer["w"][0, 0] = np.nan
    monitor = RankMonitor(
        problem,
        logdir=tmp_path,
        every=1,
        probes=["hessian", "weights", rankmon.Lemma8Probe(0.1)],
    )
    monitor(0, params)
    with pytest.warns(RankmonWarning, match="step 1: 3 NaN or infinite parameters") as caught:
        for step in (1, 2, 3):
            record = monitor(step, broken)
    assert len(caught) == 1
    assert record.scalars["monitor/nonfinite"] == 3
    assert np.isnan(record.scalars["rank/H_L"])
    assert np.isnan(record.scalars["rank_weights/0/w"])
    assert record.scalars["monitor/errors"] == 0
    assert monitor(4, params).scalars["rank/H_L"] > 0
    monitor.close()
    assert len(read_jsonl(tmp_path / "rankmon.jsonl")) == 5


class Failing(Light):
    name = "failing"

    def measure(self, snapshot, state):
        if snapshot.step:
            raise RuntimeError("the probe is broken")
        return Measurement({}), state


def test_a_failing_probe_warns_once_and_training_goes_on(ready):
    problem, params, *_ = ready
    memory = MemoryWriter()
    monitor = RankMonitor(problem, every=1, probes=[Failing(), Light()], writers=[memory])
    with pytest.warns(RankmonWarning, match="'failing' at step 1") as caught:
        for step in range(4):
            monitor(step, params)
    monitor.close()
    assert len(caught) == 1
    assert [r.scalars["monitor/errors"] for r in memory.records] == [0, 1, 2, 3]
    assert all("light" in r.scalars for r in memory.records)


def test_warnings_made_errors_do_not_end_training(ready):
    problem, params, *_ = ready
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with RankMonitor(problem, every=1, probes=[Failing(), Light()]) as monitor:
            for step in range(3):
                assert monitor(step, params) is not None


def test_errors_raise_if_asked_to(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, probes=[Failing()], on_error="raise")
    monitor(0, params)
    with pytest.raises(RuntimeError, match="the probe is broken"):
        monitor(1, params)


class Flaky(MemoryWriter):
    """Refuses the second and third write."""

    calls = 0

    def write(self, record):
        self.calls += 1
        if self.calls in (2, 3):
            raise OSError("disk full")
        super().write(record)


def test_records_of_a_failing_writer_are_kept_and_written_later(ready):
    problem, params, *_ = ready
    flaky, sound = Flaky(), MemoryWriter()
    monitor = RankMonitor(problem, every=1, probes=[Light()], writers=[flaky, sound])
    with pytest.warns(RankmonWarning, match="Flaky.*disk full"):
        for step in range(4):
            monitor(step, params)
    monitor.close()
    assert [r.step for r in flaky.records] == [r.step for r in sound.records] == [0, 1, 2, 3]


class Database:
    """A connection, which SQLite refuses to every thread but the one that opened it."""

    def __init__(self):
        self.connection = sqlite3.connect(":memory:")
        self.connection.execute("create table records (step)")
        self.steps = None

    def start(self, step):
        self.connection.execute("delete from records where step >= ?", (step,))

    def write(self, record):
        self.write_scalars(record.step, record.scalars)

    def write_scalars(self, step, scalars):
        self.connection.execute("insert into records values (?)", (step,))

    def flush(self):
        self.connection.commit()

    def close(self):
        self.steps = [step for (step,) in self.connection.execute("select step from records")]
        self.connection.close()


def test_a_users_writer_is_called_on_the_thread_of_the_loop(ready):
    problem, params, *_ = ready
    database, scalars = Database(), Database()
    others = [database, rankmon.writers.ScalarsWriter(scalars)]
    with RankMonitor(problem, every=1, probes=[Light()], writers=others) as monitor:
        for step in range(3):
            monitor(step, params)
        with pytest.warns(RankmonWarning, match="superseded"):
            monitor(1, params)
        monitor.flush()
    scalars.close()
    assert (database.steps, scalars.steps) == ([0, 1], [0, 1, 2, 1])


def test_an_exception_in_the_loop_passes_and_closes(ready, tmp_path):
    problem, params, *_ = ready
    with pytest.raises(ZeroDivisionError):
        with RankMonitor(problem, logdir=tmp_path, every=9, probes=[Light()]) as monitor:
            monitor(0, params)
            monitor(1, params)
            1 / 0  # noqa: B018
    assert [r.step for r in read_jsonl(tmp_path / "rankmon.jsonl")] == [0]
    with pytest.warns(RankmonWarning, match="after close"):
        assert monitor(9, params) is None


def test_a_changed_structure_is_an_error_of_the_probe_not_of_training(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, probes=[Light()])
    monitor(0, params)
    with warned("parameters", "2/w", "one monitor"):
        record = monitor(1, params[:2])
    assert record.scalars["monitor/errors"] == 1


# Restart


def msgpack(state):
    from flax import serialization

    return serialization.from_bytes(None, serialization.to_bytes(state))


def device(state):
    """What a checkpointer that returns jax.Arrays gives, with x64 off."""
    return jax.tree.map(jnp.asarray, state)


def run(ready, folder, *, at=None, first=0, saved=None, until=10, checkpointer=None, save_at=None):
    """A run that is measured every third step; what a checkpoint after one step holds."""
    problem, params, state, train_step = ready
    params, state = at or (params, state)
    probes, checkpoint = ["hessian", rankmon.Lemma8Probe(0.05)], None
    with RankMonitor(problem, logdir=folder, every=3, probes=probes, state=saved) as monitor:
        for step in range(first, until):
            monitor(step, params)
            params, state = train_step(params, state)
            if step == save_at:
                checkpoint = (params, state), checkpointer(monitor.state)
    return checkpoint


@pytest.fixture(scope="module")
def straight(ready, tmp_path_factory):
    """The records of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("straight")
    run(ready, folder)
    return read_jsonl(folder / "rankmon.jsonl")


@pytest.mark.parametrize(
    ("stop", "checkpointer"),
    [(0, msgpack), (1, device), (2, msgpack), (3, msgpack), (3, device)],
    ids=["0-msgpack", "1-jax arrays", "2-msgpack", "3-msgpack", "3-jax arrays"],
)
def test_a_resumed_run_gives_the_same_curves(ready, straight, tmp_path, stop, checkpointer):
    # The run goes on for some steps after its checkpoint, so that records have to be superseded.
    at, saved = run(
        ready,
        tmp_path,
        until=max(9, 3 * stop + 1),
        checkpointer=checkpointer,
        save_at=3 * stop,
    )
    run(ready, tmp_path, at=at, first=3 * stop + 1, saved=saved)

    resumed = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [r.step for r in straight] == [r.step for r in resumed] == [0, 3, 6, 9]
    for a, b in zip(straight, resumed, strict=True):
        for tag in a.scalars:
            if not tag.startswith("monitor/"):
                np.testing.assert_equal(a.scalars[tag], b.scalars[tag], err_msg=tag)
        np.testing.assert_array_equal(
            a.arrays["spectrum/H_f_fixed"], b.arrays["spectrum/H_f_fixed"]
        )
    events = legacy_events(tmp_path)
    assert [e.step for e in events.Scalars("rank/H_f_fixed")] == [0, 3, 6, 9]
    superseded = read_jsonl(tmp_path / "rankmon.jsonl", superseded=True)
    assert len(superseded) > len(resumed) or stop == 3


def test_state_has_one_structure_from_construction_on(ready, tmp_path):
    import orbax.checkpoint as ocp

    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, params=params)
    before = monitor.state
    monitor(0, params)
    after = monitor.state
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert [a.shape for a in jax.tree.leaves(before)] == [a.shape for a in jax.tree.leaves(after)]
    bare = RankMonitor(problem, every=1).state
    assert jax.tree.structure(bare) == jax.tree.structure(before)
    with ocp.StandardCheckpointer() as checkpointer:
        for name, state in (("before", before), ("after", after)):
            checkpointer.save(tmp_path / name, state)
            checkpointer.wait_until_finished()
            again = checkpointer.restore(tmp_path / name, state)
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
                np.testing.assert_array_equal(a, b)
    fresh = RankMonitor(problem, every=1, state=before)
    assert fresh(0, params) is not None


def test_restoring_what_does_not_fit_is_explained(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1)
    with refused(ValueError, "'hessian'", "last_step", "probes"):
        monitor.restore({"monitor": {"last_step": np.zeros(2, np.uint32)}})
    state = monitor.state
    state["hessian"]["reference"] = np.zeros((3, 2))
    with refused(ValueError, "hessian/reference", "uint32", "(3, 2)"):
        monitor.restore(state)


def test_going_back_starts_a_new_attempt(ready, tmp_path):
    problem, params, *_ = ready
    with RankMonitor(problem, logdir=tmp_path, every=10, probes=[Light()]) as monitor:
        with pytest.warns(RankmonWarning, match="step 5 .*step 20") as caught:
            for step in (0, 10, 20, 5, 15, 3):
                monitor(step, params)
    assert len(caught) == 1
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [(r.step, r.attempt) for r in records] == [(0, 1), (3, 3)]
    assert len(read_jsonl(tmp_path / "rankmon.jsonl", superseded=True)) == 6


def test_two_live_monitors_on_one_folder_are_refused(ready, tmp_path):
    problem, params, *_ = ready
    with RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()]):
        with refused(OSError, str(tmp_path)):
            RankMonitor(problem, logdir=tmp_path, every=1)
    RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()]).close()


# Bad input


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "dropped"])
def test_a_rejected_first_call_leaves_no_run(ready, tmp_path, closes):
    problem, params, *_ = ready
    folder = tmp_path / "run"

    def begin(params):
        monitor = RankMonitor(problem, logdir=folder, every=1, probes=["weights"])
        try:
            monitor(0, params)
        finally:
            if closes:
                monitor.close()

    def visible():
        return {path.name for path in folder.iterdir() if path.name != ".rankmon.lock"}

    with refused(TypeError, "str"):
        begin({"W": "no array"})
    gc.collect()
    assert visible() == set()
    with refused(ValueError, "a run without any record", "first call raised an error"):
        read_runs(tmp_path)
    begin(params)
    gc.collect()
    before = visible()
    assert len(before) == 2
    with refused(TypeError, "str"):  # nor does it touch the records of an earlier run
        begin({"W": "no array"})
    gc.collect()
    assert visible() == before
    assert [run.name for run in read_runs(tmp_path)] == ["run"]


def test_bad_arguments_are_explained(ready, tmp_path):
    problem, params, *_ = ready
    for options, *keys in (
        ({}, "every", "schedule"),
        ({"every": 0}, "at least 1", "0"),
        ({"every": 1, "probes": ["hesian"]}, "probe", "'hesian'"),
        ({"every": 1, "probes": ["lemma8"]}, "Lemma8Probe(learning_rate)"),
        ({"every": 1, "probes": []}, "one or more", "probes"),
        ({"every": 1, "on_error": "ignore"}, "on_error", "'ignore'"),
        ({"every": 1, "oversize": "skip"}, "oversize", "'skip'"),
    ):
        with refused(ValueError, *keys):
            RankMonitor(problem, **options)
    with refused(TypeError, "rankmon.Problem", "function"):
        RankMonitor(lambda params: params, every=1)
    file = tmp_path / "file"
    file.write_text("")
    with refused(OSError, str(file)):
        RankMonitor(problem, every=1, logdir=file / "run")
    monitor = RankMonitor(problem, every=1, probes=[Light()])
    with refused(TypeError, "step", "jax.Array", "int(step)"):
        monitor(jnp.asarray(3), params)
    with refused(TypeError, "step", "integer", "float"):
        monitor(0.5, params)


def test_parameters_are_checked_before_anything_is_computed(ready):
    problem, params, *_ = ready
    vectors = Problem(
        lambda p, x: x * p["scale"], loss="mse", inputs=np.ones((3, 2)), targets=np.ones((3, 2))
    )
    with refused(ValueError, "matrix", "'scale'", "probes=['hessian']"):
        RankMonitor(vectors, every=1, probes=["weights", "hessian"])(
            0, {"scale": np.ones(2, np.float32)}
        )
    with refused(ValueError, "Lemma 8", "activations"):
        RankMonitor(
            Problem(
                lambda p, x: jnp.tanh(x @ p),
                loss="mse",
                inputs=np.ones((3, 2)),
                targets=np.ones((3, 2)),
            ),
            every=1,
            params=np.eye(2, dtype=np.float32),
            probes=[rankmon.Lemma8Probe(0.1)],
        )


def test_too_many_parameters_for_dense_matrices(ready):
    problem, params, *_ = ready
    with refused(MemoryError, "p = 27", "memory_limit", "oversize='weights'"):
        RankMonitor(problem, every=1, memory_limit=1000, params=params)
    with pytest.warns(RankmonWarning, match="hessian: left out"):
        monitor = RankMonitor(
            problem, every=1, memory_limit=1000, params=params, oversize="weights"
        )
    record = monitor(0, params)
    assert record.scalars["rank_weights/0/w"] == 3
    assert "rank/H_L" not in record.scalars


# What users hand over: scalars, schedules, probes


class Deleted:
    """A number that is gone, as a donated jax.Array is."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Array has been deleted")


@pytest.mark.parametrize(
    "value",
    [None, np.ones(2), jnp.ones((1, 1)), 1 + 2j, jnp.complex64(1), "high", Deleted()],
    ids=["None", "vector", "matrix", "complex", "jax complex", "text", "deleted"],
)
def test_a_user_scalar_that_is_no_number_is_nan_and_one_warning(ready, value):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=2, probes=[Light()])
    with pytest.warns(RankmonWarning, match="'l' at step 0") as caught:
        first = monitor(0, params, scalars={"l": value, "sound": jnp.bfloat16(2)})
        monitor(1, params, scalars={"l": value})
        last = monitor.close()
    assert len(caught) == 1
    assert first.scalars["sound"] == 2.0
    for record, errors in ((first, 1), (last, 2)):
        assert np.isnan(record.scalars["l"])
        assert record.scalars["light"] == float(params[0]["w"][0, 0])
        assert record.scalars["monitor/errors"] == errors


def test_user_scalars_that_are_no_mapping_do_not_end_training(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, probes=[Light()])
    with pytest.warns(RankmonWarning, match="scalars at step 0"):
        record = monitor(0, params, scalars=jnp.ones(3))
    assert "light" in record.scalars


def test_a_user_scalar_never_replaces_one_of_the_monitor(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, probes=[Light(), Failing()])
    with pytest.warns(RankmonWarning, match="'light'.*'user/light'"):
        record = monitor(0, params, scalars={"light": 7, "monitor/errors": 9, "mine": 1})
    assert record.scalars["light"] == float(params[0]["w"][0, 0])
    assert record.scalars["monitor/errors"] == 0
    own = {tag: value for tag, value in record.scalars.items() if tag.startswith(("user", "mine"))}
    assert own == {"user/light": 7.0, "user/monitor/errors": 9.0, "mine": 1.0}


class Fickle(Light):
    """Measures at step 0 only."""

    def measure(self, snapshot, state):
        if snapshot.step:
            raise RuntimeError("no more")
        return Measurement({"fickle": 1.0}), state


def test_a_tag_stays_the_monitors_where_its_probe_fails(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, probes=[Fickle()])
    monitor(0, params)
    with pytest.warns(RankmonWarning):
        record = monitor(1, params, scalars={"fickle": 5})
    assert "fickle" not in record.scalars
    assert record.scalars["user/fickle"] == 5


class Speechless(Light):
    name = "speechless"

    def describe(self):
        raise RuntimeError("no words")


class Verbose(Light):
    name = "verbose"

    def describe(self):
        return "* many words"


@pytest.mark.parametrize(
    ("probe", "told"),
    [(Speechless(), "no words"), (Verbose(), "Description, got str")],
    ids=["speechless", "verbose"],
)
def test_a_probe_that_cannot_describe_itself(ready, probe, told):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, probes=[probe, Light()])
    with pytest.warns(RankmonWarning, match=f"card.*'{probe.name}'.*{told}"):
        record = monitor(0, params)
    assert "| light | the first entry |" in record.texts["rankmon/card"]
    assert record.scalars["monitor/errors"] == 1


class Odd(Light):
    name = "odd"

    def measure(self, snapshot, state):
        return Measurement({"odd": 1.0})


def test_a_probe_that_returns_something_else_spoils_no_other(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=1, probes=[Odd(), Light()])
    with pytest.warns(RankmonWarning, match="'odd' at step 0"):
        record = monitor(0, params)
    assert "light" in record.scalars


class BrokenSchedule:
    def due(self, step, last):
        if step == 1:
            raise RuntimeError("no schedule today")
        return np.ones(2) if step == 2 else step != 3


def test_an_error_of_the_schedule_does_not_end_training(ready):
    problem, params, *_ = ready
    memory = MemoryWriter()
    monitor = RankMonitor(problem, schedule=BrokenSchedule(), probes=[Light()], writers=[memory])
    with pytest.warns(RankmonWarning, match="schedule.*no schedule today") as caught:
        for step in range(4):
            monitor(step, params)
        monitor.close()
    assert len(caught) == 1
    assert [(r.step, r.scalars["monitor/errors"]) for r in memory.records] == [(0, 0), (3, 2)]


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"schedule": 100}, ["due(step, last)", "int", "every=100"]),
        ({"schedule": rankmon.schedule.EveryN}, ["the class EveryN"]),
        ({"memory_limit": "4G"}, ["memory_limit", "integer", "str", "4 * 2**30"]),
        ({"memory_limit": 4e9}, ["memory_limit", "integer", "float"]),
        ({"writers": MemoryWriter()}, ["MemoryWriter", "writers=[writer]"]),
        ({"writers": None}, ["NoneType"]),
        ({"writers": [MemoryWriter]}, ["the class MemoryWriter"]),
        ({"writers": ["logs"]}, ["writers", "str", "logdir"]),
        ({"tolerance": 1e-8}, ["rankmon.Tolerance", "float"]),
    ],
    ids=[
        "schedule: number",
        "schedule: class",
        "memory_limit: text",
        "memory_limit: float",
        "writers: one",
        "writers: None",
        "writers: class",
        "writers: text",
        "tolerance: number",
    ],
)
def test_options_of_the_wrong_type_are_explained(ready, options, keys):
    with refused(TypeError, *keys):
        RankMonitor(ready[0], **({} if "schedule" in options else {"every": 1}), **options)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_memory_limit_of_nothing_is_explained(ready, limit):
    with refused(ValueError, "memory_limit", str(limit)):
        RankMonitor(ready[0], every=1, memory_limit=limit)


# Interruptions


class Interrupted(Light):
    name = "interrupted"

    def __init__(self, at):
        self.at = at

    def measure(self, snapshot, state):
        if snapshot.step == self.at:
            self.at = None
            raise KeyboardInterrupt
        return Measurement({}), state


@pytest.mark.parametrize("at", [0, 2], ids=["first call", "later"])
def test_an_interrupted_measurement_never_happened(ready, tmp_path, at):
    problem, params, *_ = ready
    probes = [Remembering(), Interrupted(at)]
    monitor = RankMonitor(problem, logdir=tmp_path, every=2, probes=probes)
    for step in range(at):
        monitor(step, params)
    before = monitor.state
    with pytest.raises(KeyboardInterrupt):
        monitor(at, params)
    np.testing.assert_equal(monitor.state, before)
    assert monitor(at + 1, params).scalars["first"] == (0 if at else 1)
    monitor.close()
    entries = read_jsonl(tmp_path / "rankmon.jsonl", superseded=True)
    assert [(r.step, r.attempt) for r in entries] == ([(0, 1), (3, 1)] if at else [(1, 1)])


def test_an_interrupted_measurement_keeps_the_place_to_resume_from(ready, tmp_path):
    problem, params, *_ = ready
    with RankMonitor(problem, logdir=tmp_path, every=2, probes=[Interrupted(None)]) as monitor:
        monitor(0, params)
        saved = monitor.state
        monitor(2, params)
        monitor(4, params)
    resumed = RankMonitor(problem, logdir=tmp_path, every=2, probes=[Interrupted(2)], state=saved)
    with pytest.raises(KeyboardInterrupt):
        resumed(2, params)
    resumed(4, params)
    resumed.close()
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [(r.step, r.attempt) for r in records] == [(0, 1), (4, 2)]


def test_a_state_that_does_not_fit_is_refused_every_time(ready):
    problem, params, *_ = ready
    saved = RankMonitor(problem, every=1, probes=[Remembering()], params=params)
    saved(0, params)
    state = saved.state
    state["remembering"]["first"] = np.zeros((3, 2), np.uint32)
    monitor = RankMonitor(problem, every=1, probes=[Remembering()], state=state)
    for _ in range(2):
        with refused(ValueError, "remembering/first", "(2,)", "(3,)"):
            monitor(1, params)
    before = saved.state
    with refused(ValueError, "remembering/first", "(2,)", "(3,)"):
        saved.restore(state)
    np.testing.assert_equal(saved.state, before)


# The run folder


def test_a_monitor_that_is_dropped_gives_its_folder_back(ready, tmp_path):
    problem, params, *_ = ready
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor = RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()])
            monitor(0, params)
            monitor = RankMonitor(problem, every=1, probes=[Light()])
            RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()]).close()
    finally:
        gc.enable()
    assert not caught
    assert len(read_jsonl(tmp_path / "rankmon.jsonl")) == 1
    monitor.close()


def test_an_open_monitor_of_this_process_is_named(ready, tmp_path):
    problem, *_ = ready
    with RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()]):
        with refused(BlockingIOError, "this process", "close()"):
            RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()])


def test_a_folder_that_is_refused_gets_no_event_file(ready, tmp_path):
    problem, *_ = ready
    (tmp_path / "rankmon.jsonl").write_text('{"not": "a record"}\n')
    with refused(ValueError, "a record of rankmon"):
        RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()])
    assert not list(tmp_path.glob("events.out.tfevents.*"))
    (tmp_path / "rankmon.jsonl").unlink()
    RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()]).close()


class Broken(MemoryWriter):
    """Refuses every record until it is mended."""

    broken = True

    def write(self, record):
        if self.broken:
            raise OSError("disk full")
        super().write(record)


@pytest.mark.parametrize("mended", [True, False], ids=["mended", "never mended"])
def test_what_waits_for_a_broken_writer_is_bounded(ready, mended):
    broken, sound = Broken(), MemoryWriter()
    monitor = RankMonitor(ready[0], every=1, probes=[Light()], writers=[broken, sound])
    count = MOST_WAITING + 3
    with pytest.warns(RankmonWarning) as caught:
        for step in range(count):
            monitor.report(step, {"mine": 1.0})
        monitor.flush()
        broken.broken = not mended
        monitor.close()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 3
    lost = f"{3 if mended else count:,}"
    for message, what in zip(messages, ("disk full", f"{MOST_WAITING} records", lost), strict=True):
        assert "Broken" in message
        assert str(what) in message
    assert [r.step for r in broken.records] == (list(range(3, count)) if mended else [])
    assert len(sound.records) == count


class Unclosable(MemoryWriter):
    def close(self):
        raise OSError("cannot close")


class Closing(MemoryWriter):
    closed = False

    def close(self):
        self.closed = True


def test_close_closes_every_writer_and_raises_if_asked_to(ready, tmp_path):
    problem, params, *_ = ready
    closing = Closing()
    monitor = RankMonitor(
        problem,
        logdir=tmp_path,
        every=1,
        probes=[Light()],
        writers=[Unclosable(), closing],
        on_error="raise",
    )
    with pytest.raises(OSError, match="cannot close"):
        monitor.close()
    assert closing.closed
    RankMonitor(problem, logdir=tmp_path, every=1, probes=[Light()]).close()


def test_a_fresh_run_over_older_records_says_so(ready, tmp_path):
    problem, params, *_ = ready
    with RankMonitor(problem, logdir=tmp_path, every=10, probes=[Light()]) as monitor:
        monitor(0, params)
        monitor(10, params)
        saved = monitor.state
    with pytest.warns(RankmonWarning, match="step 10.*state=") as caught:
        with RankMonitor(problem, logdir=tmp_path, every=10, probes=[Light()]) as monitor:
            monitor(5, params)
            monitor(10, params)
    assert len(caught) == 1
    with warnings.catch_warnings(record=True) as none:
        warnings.simplefilter("always")
        with RankMonitor(
            problem, logdir=tmp_path, every=10, probes=[Light()], state=saved
        ) as resumed:
            resumed(20, params)
    assert not none


# The last parameters


def test_after_close_nothing_is_held(ready):
    problem, params, *_ = ready
    monitor = RankMonitor(problem, every=100, probes=[Light()])
    monitor(0, params)
    monitor.close()
    held = Held()
    gone = weakref.ref(held)
    monitor(1, held)
    del held
    assert gone() is None


class Held:
    pass


def test_numpy_parameters_may_have_changed_by_the_close(ready):
    problem, params, *_ = ready
    params = jax.tree.map(np.array, params)
    memory = MemoryWriter()
    monitor = RankMonitor(problem, every=100, probes=[Light()], writers=[memory])
    monitor(0, params)
    monitor(1, params)
    for leaf in jax.tree.leaves(params):
        leaf += 1
    with pytest.warns(RankmonWarning, match="step, 1, .*NumPy.*close") as caught:
        assert monitor.close() is None
    assert len(caught) == 1
    assert [record.step for record in memory.records] == [0]


# Where warnings point


def test_warnings_point_at_the_line_of_the_loop(ready):
    problem, params, *_ = ready
    coarse = Problem(
        lambda p, x: (x.astype(jnp.bfloat16) @ p.astype(jnp.bfloat16)).astype(x.dtype),
        loss="mse",
        inputs=np.eye(2, dtype=np.float32),
        targets=np.ones((2, 2), np.float32),
    )
    with pytest.warns(RankmonWarning) as caught:
        RankMonitor(coarse, every=1)(0, jnp.eye(2))
        monitor = RankMonitor(problem, every=1, probes=[Failing()])
        monitor(0, params)
        monitor(1, params)
        with RankMonitor(problem, every=9, probes=[Failing()]) as monitor:
            monitor(0, params)
            monitor(1, params)
        RankMonitor(problem, every=1, memory_limit=1000, params=params, oversize="weights")
    found = ["computes in", "failing", "failing", "left out"]
    assert len(caught) == len(found)
    for warning, words in zip(caught, found, strict=True):
        assert words in str(warning.message)
        assert warning.filename == __file__


def test_a_run_that_ended_before_its_first_record_is_at_the_step_before(tmp_path):
    """An attempt supersedes from its START on, whether or not a record follows."""
    writer = JsonlWriter(tmp_path / "rankmon.jsonl")
    writer.start(0)
    for step in (0, 5, 10):
        writer.write(Record(step, 1, 0.0, {"loss": 1.0}, {}))
    writer.start(10)
    writer.close()
    fanout = Fanout(tmp_path, [], errors=ErrorPolicy("raise"))
    assert [step for step, _ in fanout.earlier()] == [0, 5]
    fanout.close()
