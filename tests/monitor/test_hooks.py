"""Test weights measured in compiled code: NumPy's counts, unchanged training, no lost record."""

import gc
import threading
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, read_jsonl, weight_ranks
from rankmon.monitor.hooks import report_weights, watch_weights
from rankmon.weights.traced import weight_scalars
from reading import legacy_events
from refusals import refused

X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)


def apply(params, x):
    return x @ params["W"] + params["b"]


PROBLEM = Problem(apply, loss="mse", inputs=X, targets=Y)


def initial():
    """One matrix: each one more is a singular value decomposition in every program compiled."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((5, 3)).astype(np.float32)
    return {"W": jnp.asarray(weight), "b": jnp.zeros(3)}


def loss(params):
    return jnp.mean((apply(params, X) - Y) ** 2)


gradient = jax.jit(jax.grad(loss))


def train(tx, steps, *, first=None):
    """A plain loop over a jitted step, which is told its number where a first one is given.

    The parameters at the start and after every update, and the states after every update.
    """

    @jax.jit
    def step(params, state, i):
        extra = {} if first is None else {"step": i}
        updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    path, state, states = [initial()], tx.init(initial()), []
    for i in range(steps):
        params, state = step(path[-1], state, np.int32(i + (first or 0)))
        path.append(params)
        states.append(state)
    return path, states


SGD = optax.sgd(1e-2)


@cache
def bare(tx, steps=8):
    """The parameters of a loop that nothing watches."""
    return train(tx, steps)[0]


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def of_rank(rng, m, n, rank, *, square_root_gap=3.0):
    """A matrix of prescribed singular values, `rank` of them from 1 down to 1 / square_root_gap."""
    left, _ = np.linalg.qr(rng.standard_normal((m, m)))
    right, _ = np.linalg.qr(rng.standard_normal((n, n)))
    values = np.geomspace(1, 1 / square_root_gap, rank) if rank else []
    return (left[:, :rank] * values) @ right[:rank]


# The numbers

MATRICES = {
    "square": (6, 6, "float32"),
    "tall": (40, 12, "float32"),
    "wide, bfloat16": (12, 40, "bfloat16"),
    "tall, float16": (40, 12, "float16"),
}
# One program for all tests of the numbers.
measured = jax.jit(weight_scalars)


def matrices(rank):
    rng = np.random.default_rng(0)
    return {
        name: of_rank(rng, m, n, rank).astype(jnp.dtype(dtype))
        for name, (m, n, dtype) in MATRICES.items()
    }


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_prescribed_ranks_are_counted_in_the_stored_precision(count):
    params = matrices(count)
    scalars = measured(params)
    assert {value.dtype for value in scalars.values()} == {jnp.dtype("float32")}
    for name, rank in weight_ranks(params).items():
        single = params[name].dtype == np.float32
        assert float(scalars[f"rank_weights/{name}"]) == count
        assert float(scalars[f"rank_low/{name}"]) == rank.low
        if single:  # in narrower dtypes a tenth of the cut is the noise of storing
            assert float(scalars[f"rank_high/{name}"]) == rank.rank
        for tag in ("stable_rank", "effective_rank"):
            np.testing.assert_allclose(scalars[f"{tag}/{name}"], getattr(rank, tag), rtol=1e-4)
        if 0 < rank.rank < rank.size:
            below = np.linalg.svd(np.asarray(params[name], np.float64), compute_uv=False)
            gap = below[rank.rank - 1] / below[rank.rank]
            assert 1 < scalars[f"gap/{name}"] < np.inf
            assert below[rank.rank] < scalars[f"tolerance/{name}"] < below[rank.rank - 1]
            if not single:  # there the smaller value is the arithmetic's own rounding
                np.testing.assert_allclose(scalars[f"gap/{name}"], gap, rtol=1e-2)


def test_determinants_and_what_is_not_finite():
    square = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    params = matrices(6) | {"square": square}
    params["tall"][0, 1] = np.inf
    params["wide, bfloat16"][:] = np.nan
    scalars = measured(params)
    sign, log_abs = np.linalg.slogdet(square.astype(np.float64))
    assert scalars["det_sign/square"] == sign
    np.testing.assert_allclose(scalars["log_abs_det/square"], log_abs, rtol=1e-5)
    for tag, value in scalars.items():
        assert bool(np.isnan(value)) == tag.endswith(("/tall", "/wide, bfloat16")), tag


def test_a_singular_matrix_has_no_determinant_as_far_as_the_dtype_can_tell():
    rng = np.random.default_rng(1)
    factor = rng.integers(-3, 4, (18, 12))
    params = {
        "singular": (factor @ factor.T).astype(np.float32),
        "zeros": np.zeros((3, 3), np.float32),
        "regular": np.diag([3.0, 1.0, -1e-5]).astype(np.float32),
        "ones": jnp.ones((2, 2), jnp.bfloat16),
    }
    scalars = measured(params)
    for name in ("singular", "zeros", "ones"):
        assert (scalars[f"det_sign/{name}"], scalars[f"log_abs_det/{name}"]) == (0, -np.inf)
    assert scalars["det_sign/regular"] == -1
    np.testing.assert_allclose(scalars["log_abs_det/regular"], np.log(3e-5), rtol=1e-6)


def test_the_tags_are_those_of_the_weights_probe():
    params = initial() | {"square": jnp.eye(4)}
    problem = Problem(lambda p, x: apply(p, x) + p["square"][0, 0], loss="mse", inputs=X, targets=Y)
    with RankMonitor(problem, every=1, probes=["weights"]) as monitor:
        record = monitor(0, params)
    own = {tag for tag in record.scalars if not tag.startswith("monitor/")}
    assert set(jax.eval_shape(weight_scalars, params)) == own
    assert {tag.split("/")[-1] for tag in own} == {"W", "square"}  # b is no matrix


def test_no_float64_enters_a_compiled_step():
    assert not jax.config.jax_enable_x64
    tx = optax.chain(watch_weights(2), SGD)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), initial())
    state = jax.eval_shape(tx.init, params)
    program = str(jax.make_jaxpr(lambda p, s: tx.update(p, s, p))(params, state))
    assert "f64" not in program
    assert "bf16" in program


# The Optax transformation


@pytest.mark.parametrize("passes_step", [False, True], ids=["own_count", "given_step"])
def test_a_chain_measures_where_due_and_trains_alike(passes_step):
    first = int(passes_step)
    path, states = train(
        optax.chain(watch_weights(3), SGD), 8, first=first if passes_step else None
    )
    assert_same_bits(path, bare(SGD))
    due = [i for i in range(first, first + 8) if i % 3 == 0]
    for i, state in enumerate(states, first):
        seen = [step for step in due if step <= i]
        assert int(state[0].step) == (seen[-1] if seen else -1)
        assert int(state[0].updates) == i - first + 1
        assert any(value != 0 for value in state[0].scalars.values()) == bool(seen)
    for name, rank in weight_ranks(bare(SGD)[due[-1] - first]).items():
        assert float(states[-1][0].scalars[f"rank_weights/{name}"]) == rank.rank


def test_the_state_keeps_one_structure_and_survives_a_scan():
    tx = optax.chain(watch_weights(3), SGD)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), state[0].step

    params = initial()
    start = tx.init(params)
    (_, state), steps = jax.lax.scan(body, (params, start), length=7)
    assert jax.tree.structure(state) == jax.tree.structure(start)
    np.testing.assert_array_equal(steps, [0, 0, 0, 3, 3, 3, 6])


def test_it_works_under_multi_steps_and_apply_if_finite():
    tx = optax.MultiSteps(optax.chain(watch_weights(2), SGD), every_k_schedule=3)
    path, states = train(tx, 9)
    assert_same_bits(path, bare(optax.MultiSteps(SGD, every_k_schedule=3), 9))
    inner = [state.inner_opt_state[0] for state in states]
    assert [int(s.updates) for s in inner] == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert [int(s.step) for s in inner] == [-1, -1, 0, 0, 0, 0, 0, 0, 2]

    params = initial()
    tx = optax.apply_if_finite(optax.chain(watch_weights(1), SGD), 3)
    update, state, grads = jax.jit(tx.update), tx.init(params), gradient(params)
    _, state = update(grads, state, params)
    _, state = update(jax.tree.map(lambda g: np.full_like(g, np.nan), grads), state, params)
    assert int(state.inner_state[0].step) == 0
    assert int(state.notfinite_count) == 1


def test_filters_choose_the_weights():
    params = {"W1": np.ones((5, 4), np.float32), "W2": np.ones((4, 3), np.float32)}
    scalars = jax.eval_shape(watch_weights(1, exclude="W2").init, params).scalars
    assert {tag.split("/")[-1] for tag in scalars} == {"W1"}


@pytest.mark.parametrize(
    ("use", "error", "keys"),
    [
        (lambda: watch_weights(0), ValueError, ["number of steps", "at least 1"]),
        (lambda: watch_weights("3"), TypeError, ["integer", "str"]),
        (lambda: watch_weights(1).init({"b": jnp.ones(3)}), ValueError, ["matrix"]),
        (
            lambda: watch_weights(1).update({}, watch_weights(1).init(initial())),
            ValueError,
            ["update(updates, state, params)", "no params"],
        ),
        (lambda: watch_weights(1, include="nothing").init(initial()), ValueError, ["'nothing'"]),
    ],
    ids=["every", "text", "biases", "params", "filter"],
)
def test_wrong_input_is_refused(use, error, keys):
    with refused(error, *keys):
        use()


# Reports


class Relay:
    """What reports in one compiled program, to whichever monitor a test has."""

    monitor = None

    def report(self, step, scalars):
        self.monitor.report(step, scalars)


RELAY = Relay()
REPORTING = optax.chain(watch_weights(3, reporter=RELAY), SGD)


@jax.jit
def reporting_step(params, state):
    updates, state = REPORTING.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_what_a_chain_reports_is_written_beside_the_monitors_own(tmp_path, background):
    monitor = RankMonitor(PROBLEM, logdir=tmp_path, every=4, background=background)
    RELAY.monitor = monitor
    params = initial()
    state = REPORTING.init(params)
    for i in range(8):
        monitor(i, params)
        params, state = reporting_step(params, state)
    monitor.close(8, params)
    assert_same_bits(params, bare(SGD)[-1])
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    own = [r.step for r in records if "rank/H_L" in r.scalars]
    reported = [r.step for r in records if "rank/H_L" not in r.scalars]
    assert (own, reported) == ([0, 4, 8], [0, 3, 6])
    assert {r.attempt for r in records} == {1}
    assert ["rankmon/card" in r.texts for r in records if "rank/H_L" in r.scalars][0]
    events = legacy_events(tmp_path)
    steps = [event.step for event in events.Scalars("rank_weights/W")]
    assert sorted(steps) == [0, 0, 3, 4, 6, 8]


def test_a_users_own_scan_reports_while_it_runs():
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=100, writers=[memory])

    def unwatched(params, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)), None

    def body(params, i):
        report_weights(monitor, i, params, every=4)
        return unwatched(params, i)

    steps = np.arange(10)
    last, _ = jax.lax.scan(body, initial(), steps)
    want, _ = jax.lax.scan(unwatched, initial(), steps)
    monitor.flush()
    assert [record.step for record in memory.records] == [0, 4, 8]
    assert memory.records[0].scalars["rank_weights/W"] == 3
    assert_same_bits(last, want)
    monitor.close()


def test_a_long_chain_of_reports_cannot_block_the_loop():
    """The monitor waits for a program whose reports wait for nothing."""
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=1, probes=["hessian"], writers=[memory])
    RELAY.monitor = monitor
    params = initial()
    state = REPORTING.init(params)
    for i in range(60):
        params, state = reporting_step(params, state)
        monitor(i, params)
    monitor.close(60, params)
    reported = [r for r in memory.records if "rank/H_L" not in r.scalars]
    assert [r.step for r in reported] == list(range(0, 60, 3))


def test_reports_come_from_any_thread_and_in_any_order(tmp_path):
    monitor = RankMonitor(PROBLEM, logdir=tmp_path, every=10)
    monitor(0, initial())
    threads = [
        threading.Thread(target=monitor.report, args=(step, {"mine": step / 2}))
        for step in (7, 3, 5, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monitor.close()
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [(r.step, r.scalars["mine"]) for r in records[1:]] == [
        (1, 0.5), (3, 1.5), (5, 2.5), (7, 3.5),
    ]  # fmt: skip
    assert {r.attempt for r in records} == {1}


def test_a_restored_monitor_supersedes_later_reports(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=10) as monitor:
        monitor(0, initial())
        state = monitor.state
        monitor.report(4, {"mine": 1.0})
    with RankMonitor(PROBLEM, logdir=tmp_path, every=10, state=state) as monitor:
        monitor.report(4, {"mine": 2.0})
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [(r.step, r.scalars.get("mine")) for r in records] == [(0, None), (4, 2.0)]
    assert len(read_jsonl(tmp_path / "rankmon.jsonl", superseded=True)) == 3


def test_reports_before_a_checkpoint_stay_in_force(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=100) as monitor:
        monitor(0, initial())
        for step in (10, 20, 30):
            monitor.report(step, {"mine": 1.0})
        state = monitor.state
        monitor.report(40, {"mine": 1.0})
    with RankMonitor(PROBLEM, logdir=tmp_path, every=100, state=state) as monitor:
        monitor.report(35, {"mine": 2.0})
        monitor(100, initial())
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 10, 20, 30, 35, 100]


def test_a_state_from_before_reports_were_counted_is_taken():
    with RankMonitor(PROBLEM, every=100, probes=["weights"]) as monitor:
        monitor(7, initial())
        state = monitor.state
    del state["monitor"]["last_report"]
    with RankMonitor(PROBLEM, every=100, probes=["weights"], state=state) as monitor:
        assert monitor(8, initial()) is None
        assert monitor(100, initial()) is not None


def test_reports_and_flushes_from_two_threads_write_each_record_once():
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=10, probes=["weights"], writers=[memory])
    monitor(0, initial())

    def report():
        for step in range(1, 200):
            monitor.report(step, {"mine": step})

    thread = threading.Thread(target=report)
    thread.start()
    while thread.is_alive():
        monitor.flush()
    monitor.close()
    assert [record.step for record in memory.all_records] == list(range(200))


class AsksForTheState:
    """A writer that checkpoints the monitor with every record."""

    def __init__(self):
        self.monitor, self.steps = None, []

    def write_scalars(self, step, scalars):
        self.monitor.report(step, {"again": 1.0}) if step == 0 and "again" not in scalars else None
        assert "monitor" in self.monitor.state
        self.steps.append(step)


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_writer_may_ask_for_the_state_and_report(background):
    writer = AsksForTheState()
    monitor = RankMonitor(
        PROBLEM, every=1, probes=["weights"], writers=[writer], background=background
    )
    writer.monitor = monitor
    monitor(0, initial())
    monitor(1, initial())
    monitor.close()
    assert sorted(writer.steps) == [0, 0, 1]


def test_a_chain_under_strict_promotion_and_debug_nans():
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), initial())
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        tx = watch_weights(1)
        _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert float(state.scalars["rank_weights/W"]) == 3


def test_reports_alone_go_on_from_an_early_state(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=10) as monitor:
        for step in (0, 5):
            monitor.report(step, {"mine": 1.0})
        state = monitor.state
    with RankMonitor(PROBLEM, logdir=tmp_path, every=10, state=state) as monitor:
        monitor.report(10, {"mine": 2.0})
    assert [r.step for r in read_jsonl(tmp_path / "rankmon.jsonl")] == [0, 5, 10]


def test_a_report_after_close_is_told_and_ends_nothing():
    monitor = RankMonitor(PROBLEM, every=10)
    monitor.close()
    RELAY.monitor = monitor
    params = initial()
    jax.block_until_ready(reporting_step(params, REPORTING.init(params)))
    jax.effects_barrier()
    with refused(TypeError, "step", "integer"):
        monitor.report("3", {})
    with pytest.warns(RankmonWarning, match="after close"):
        monitor.flush()


# CLU


class CluWriter:
    """The part of CLU's MetricWriter that matters here."""

    def __init__(self):
        self.scalars, self.flushed, self.closed = {}, 0, False

    def write_scalars(self, step, scalars):
        self.scalars[step] = dict(scalars)

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


def test_hooks_and_writers_in_the_style_of_clu():
    writer, params = CluWriter(), initial()
    with RankMonitor(PROBLEM, every=2, writers=[writer]) as monitor:
        hooks = [monitor.hook(lambda: params)]
        for step in range(5):
            params = jax.tree.map(lambda p: np.float32(0.9) * np.asarray(p), params)
            for hook in hooks:
                hook(step)
    assert list(writer.scalars) == [0, 2, 4]
    assert writer.scalars[4]["rank_weights/W"] == 3
    assert writer.flushed
    assert not writer.closed  # it is the loop's


def test_a_writer_of_scalars_may_have_nothing_else():
    class Least:
        def write_scalars(self, step, scalars):
            seen.append(step)

    seen = []
    gc.freeze()  # what other tests left is not looked through
    with RankMonitor(PROBLEM, every=1, probes=["weights"], writers=[Least()]) as monitor:
        monitor(0, initial())
        monitor.flush()
    assert seen == [0]
    del monitor
    gc.collect()
    gc.unfreeze()
