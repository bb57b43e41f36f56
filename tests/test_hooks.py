"""Weights watched from inside compiled code: NumPy's counts, untouched training, nothing lost."""

import gc
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, read_jsonl, weight_ranks
from rankmon.compiled_weights import weight_scalars
from rankmon.hooks import report_weights, watch_weights

X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)


def apply(params, x):
    return jnp.tanh(x @ params["W1"] + params["b"]) @ params["W2"]


PROBLEM = Problem(apply, loss="mse", inputs=X, targets=Y)


def initial(seed=0):
    init, (a, b) = jax.nn.initializers.glorot_normal(), jax.random.split(jax.random.key(seed))
    return {"W1": init(a, (5, 4)), "W2": init(b, (4, 3)), "b": jnp.zeros(4)}


def loss(params):
    return jnp.mean((apply(params, X) - Y) ** 2)


def train(tx, params, steps, **given):
    """A plain loop over a jitted step; the states after every update."""

    @jax.jit
    def step(params, state, i):
        extra = {"step": i} if given.get("passes_step") else {}
        updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    state, states = tx.init(params), []
    for i in range(steps):
        params, state = step(params, state, i + given.get("first", 0))
        states.append(state)
    return params, states


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def of_rank(rng, m, n, rank, *, square_root_gap=3.0):
    """A matrix of prescribed singular values, `rank` of them from 1 down to 1 / square_root_gap."""
    left, _ = np.linalg.qr(rng.standard_normal((m, m)))
    right, _ = np.linalg.qr(rng.standard_normal((n, n)))
    values = np.geomspace(1, 1 / square_root_gap, rank) if rank else []
    return (left[:, :rank] * values) @ right[:rank]


# The numbers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_prescribed_ranks_are_counted_in_the_stored_precision(dtype):
    rng = np.random.default_rng(0)
    params = {
        f"{m}x{n}, {rank}": jnp.asarray(of_rank(rng, m, n, rank), dtype)
        for m, n in ((6, 6), (40, 12), (12, 40), (64, 64))
        for rank in (0, 1, 3, 6)
    }
    scalars = jax.jit(weight_scalars)(params)
    assert {value.dtype for value in scalars.values()} == {jnp.dtype("float32")}
    for name, rank in weight_ranks(params).items():
        assert float(scalars[f"rank_weights/{name}"]) == int(name.split()[-1])
        assert float(scalars[f"rank_low/{name}"]) == rank.low
        if dtype == "float32":  # in narrower dtypes a tenth of the cut is the noise of storing
            assert float(scalars[f"rank_high/{name}"]) == rank.rank
        for tag in ("stable_rank", "effective_rank"):
            np.testing.assert_allclose(scalars[f"{tag}/{name}"], getattr(rank, tag), rtol=1e-4)
        if 0 < rank.rank < rank.size:
            below = np.linalg.svd(np.asarray(params[name], np.float64), compute_uv=False)
            gap = below[rank.rank - 1] / below[rank.rank]
            assert 1 < scalars[f"gap/{name}"] < np.inf
            assert below[rank.rank] < scalars[f"tolerance/{name}"] < below[rank.rank - 1]
            if dtype != "float32":  # there the smaller value is the arithmetic's own rounding
                np.testing.assert_allclose(scalars[f"gap/{name}"], gap, rtol=1e-2)


def test_determinants_and_what_is_not_finite():
    rng = np.random.default_rng(1)
    square = rng.standard_normal((5, 5)).astype(np.float32)
    params = {"square": square, "nan": np.full((3, 2), np.nan, np.float32), "bias": np.ones(3)}
    params["inf"] = np.array([[1, np.inf], [0, 1]], np.float32)
    scalars = weight_scalars(params)
    sign, log_abs = np.linalg.slogdet(square.astype(np.float64))
    assert scalars["det_sign/square"] == sign
    np.testing.assert_allclose(scalars["log_abs_det/square"], log_abs, rtol=1e-5)
    assert not any(tag.endswith("/bias") for tag in scalars)
    for tag, value in scalars.items():
        assert bool(np.isnan(value)) == tag.endswith(("/nan", "/inf")), tag


def test_the_tags_are_those_of_the_weights_probe():
    params = initial() | {"square": jnp.eye(4)}
    problem = Problem(lambda p, x: apply(p, x) + p["square"][0, 0], loss="mse", inputs=X, targets=Y)
    with RankMonitor(problem, every=1, probes=["weights"]) as monitor:
        record = monitor(0, params)
    own = {tag for tag in record.scalars if not tag.startswith("monitor/")}
    assert set(weight_scalars(params)) == own


def test_no_float64_enters_a_compiled_step():
    assert not jax.config.jax_enable_x64
    tx = optax.chain(watch_weights(2), optax.adam(1e-2))
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), initial())
    program = str(jax.make_jaxpr(lambda p, s: tx.update(p, s, p))(params, tx.init(params)))
    assert "f64" not in program
    assert "bf16" in program


# The Optax transformation


@pytest.mark.parametrize("passes_step", [False, True], ids=["own_count", "given_step"])
def test_a_chain_measures_where_due_and_trains_alike(passes_step):
    params = initial()
    watched, states = train(
        optax.chain(watch_weights(3), optax.adam(1e-2)), params, 8, passes_step=passes_step, first=1
    )
    bare, _ = train(optax.adam(1e-2), params, 8)
    assert_same_bits(watched, bare)
    first = int(passes_step)
    due = [i for i in range(first, first + 8) if i % 3 == 0]
    for i, state in enumerate(states, first):
        measured = [step for step in due if step <= i]
        assert int(state[0].step) == (measured[-1] if measured else -1)
        assert int(state[0].updates) == i - first + 1
        assert any(value != 0 for value in state[0].scalars.values()) == bool(measured)
    at, _ = train(optax.adam(1e-2), params, due[-1] - first)
    for name, rank in weight_ranks(at).items():
        assert float(states[-1][0].scalars[f"rank_weights/{name}"]) == rank.rank


def test_the_state_keeps_one_structure_and_survives_a_scan():
    tx = optax.chain(watch_weights(3), optax.sgd(1e-2))

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), state[0].step

    params = initial()
    (_, state), steps = jax.lax.scan(body, (params, tx.init(params)), length=7)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    np.testing.assert_array_equal(steps, [0, 0, 0, 3, 3, 3, 6])


def test_it_works_under_multi_steps_and_apply_if_finite():
    params = initial()
    tx = optax.MultiSteps(optax.chain(watch_weights(2), optax.sgd(1e-2)), every_k_schedule=3)
    watched, states = train(tx, params, 9)
    bare, _ = train(optax.MultiSteps(optax.sgd(1e-2), every_k_schedule=3), params, 9)
    assert_same_bits(watched, bare)
    inner = [state.inner_opt_state[0] for state in states]
    assert [int(s.updates) for s in inner] == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert [int(s.step) for s in inner] == [-1, -1, 0, 0, 0, 0, 0, 0, 2]

    tx = optax.apply_if_finite(optax.chain(watch_weights(1), optax.sgd(1e-2)), 3)
    state = tx.init(params)
    grads = jax.grad(loss)(params)
    _, state = jax.jit(tx.update)(grads, state, params)
    _, state = jax.jit(tx.update)(jax.tree.map(lambda g: g * jnp.nan, grads), state, params)
    assert int(state.inner_state[0].step) == 0
    assert int(state.notfinite_count) == 1


def test_filters_choose_the_weights():
    scalars = watch_weights(1, exclude="W2").init(initial()).scalars
    assert {tag.split("/")[-1] for tag in scalars} == {"W1"}


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: watch_weights(0), ValueError, "expected n, a number of steps, to be at least 1"),
        (lambda: watch_weights("3"), TypeError, "to be an integer"),
        (lambda: watch_weights(1).init({"b": jnp.ones(3)}), ValueError, "at least one matrix"),
        (
            lambda: watch_weights(1).update({}, watch_weights(1).init(initial())),
            ValueError,
            "got no params; watch_weights measures the parameters",
        ),
        (
            lambda: watch_weights(1, include="nothing").init(initial()),
            ValueError,
            "'nothing' to match a parameter",
        ),
    ],
    ids=["every", "text", "biases", "params", "filter"],
)
def test_wrong_input_is_refused(use, error, message):
    with pytest.raises(error, match=message):
        use()


# Reports


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_what_a_chain_reports_is_written_beside_the_monitors_own(tmp_path, background):
    monitor = RankMonitor(PROBLEM, logdir=tmp_path, every=4, background=background)
    tx = optax.chain(watch_weights(3, reporter=monitor), optax.sgd(1e-2))
    params = initial()
    step = jax.jit(lambda p, s: (lambda u: (optax.apply_updates(p, u[0]), u[1]))(
        tx.update(jax.grad(loss)(p), s, p)
    ))  # fmt: skip
    state, bare = tx.init(params), params
    for i in range(8):
        monitor(i, params)
        params, state = step(params, state)
    monitor.close(8, params)
    bare, _ = train(optax.sgd(1e-2), bare, 8)
    assert_same_bits(params, bare)
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    own = [r.step for r in records if "rank/H_L" in r.scalars]
    reported = [r.step for r in records if "rank/H_L" not in r.scalars]
    assert (own, reported) == ([0, 4, 8], [0, 3, 6])
    assert {r.attempt for r in records} == {1}
    assert ["rankmon/card" in r.texts for r in records if "rank/H_L" in r.scalars][0]
    events = EventAccumulator(str(tmp_path)).Reload()
    steps = [event.step for event in events.Scalars("rank_weights/W1")]
    assert sorted(steps) == [0, 0, 3, 4, 6, 8]


def test_a_users_own_scan_reports_while_it_runs():
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=100, writers=[memory])

    def body(params, i):
        report_weights(monitor, i, params, every=4)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)), None

    def bare(params, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)), None

    steps = jnp.arange(10)
    last, _ = jax.jit(lambda p: jax.lax.scan(body, p, steps))(initial())
    want, _ = jax.jit(lambda p: jax.lax.scan(bare, p, steps))(initial())
    monitor.flush()
    assert [record.step for record in memory.records] == [0, 4, 8]
    assert memory.records[0].scalars["rank_weights/W1"] == 4
    assert_same_bits(last, want)
    monitor.close()


def test_a_long_chain_of_reports_cannot_block_the_loop():
    """The monitor waits for a program whose reports wait for nothing."""
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=1, writers=[memory])
    tx = watch_weights(1, reporter=monitor)
    update = jax.jit(tx.update)
    params = initial()
    state = tx.init(params)
    for i in range(30):
        params, state = update(params, state, params)
        monitor(i, params)
    monitor.close(30, params)
    assert [r.step for r in memory.records if "rank/H_L" not in r.scalars] == list(range(30))


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
    assert float(state.scalars["rank_weights/W1"]) == 4


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
    update = jax.jit(watch_weights(1, reporter=monitor).update)
    params = initial()
    jax.block_until_ready(update(params, watch_weights(1).init(params), params))
    jax.effects_barrier()
    with pytest.raises(TypeError, match="expected step to be an integer"):
        monitor.report("3", {})
    with pytest.warns(RankmonWarning, match="got a report after close"):
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
            params = jax.tree.map(lambda p: 0.9 * p, params)
            for hook in hooks:
                hook(step)
    assert list(writer.scalars) == [0, 2, 4]
    assert writer.scalars[4]["rank_weights/W1"] == 4
    assert writer.flushed
    assert not writer.closed  # it is the loop's


def test_a_writer_of_scalars_may_have_nothing_else():
    class Least:
        def write_scalars(self, step, scalars):
            seen.append(step)

    seen = []
    with RankMonitor(PROBLEM, every=1, probes=["weights"], writers=[Least()]) as monitor:
        monitor(0, initial())
        monitor.flush()
    assert seen == [0]
    gc.collect()
