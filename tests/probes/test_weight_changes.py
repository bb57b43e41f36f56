"""Test the changes of weights since the start and since the last probe against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from rankmon import (
    HessianProbe,
    Problem,
    RankMonitor,
    SeedsMonitor,
    Tolerance,
    WeightsProbe,
    read_jsonl,
)
from refusals import refused, unwarned, warned
from small_probes import measured_by

BOTH = ("start", "last")
SINCE = ("since_start", "since_last")
FAMILIES = ("rank", "stable_rank", "effective_rank", "norm")
RNG = np.random.default_rng(7)
X, Y = RNG.standard_normal((6, 5)), RNG.standard_normal((6, 4))


def problem_of() -> Problem:
    def apply(params, x):
        hidden = jnp.tanh(x @ params["A"].astype(x.dtype))
        return hidden @ params["B"].astype(x.dtype)

    return Problem(apply, loss="mse", inputs=X.astype(np.float32), targets=Y)


PROBLEM = problem_of()
_SEED = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = _SEED


def params_of(dtype=np.float32, scale=1.0):
    return {
        "A": (scale * RNG.standard_normal((5, 7))).astype(dtype),
        "B": (scale * RNG.standard_normal((7, 4))).astype(dtype),
    }


def alone(track=BOTH, **options):
    return WeightsProbe(track=track, **options)


def measured(steps, track=BOTH, problem=PROBLEM, state=None, **options):
    """The scalars of the probe at each of these (step, params) pairs, and the last state."""
    found, probe = [], alone(track, **options)
    for step, params in steps:
        prepared = probe.prepare(problem.flat(params))
        measurement, state = measured_by(prepared, problem, params, state, step)
        found.append(measurement)
    return found, state


# Oracles: NumPy in float64, from the definitions


def soft(values):
    """Stable rank (Rudelson and Vershynin 2007), effective rank (Roy and Vetterli 2007)."""
    if not values.max() > 0:
        return np.nan, np.nan
    p = values / values.sum()
    entropy = -sum(x * np.log(x) for x in p if x > 0)
    return (values**2).sum() / values.max() ** 2, np.exp(entropy)


def assert_change(scalars, since, name, now, before, rank=None):
    D = np.asarray(now, np.float64) - np.asarray(before, np.float64)
    values = np.linalg.svd(D, compute_uv=False)
    stable, effective = soft(values)
    assert scalars[f"norm_{since}/{name}"] == pytest.approx(np.sqrt((D**2).sum()), rel=1e-12)
    assert scalars[f"stable_rank_{since}/{name}"] == pytest.approx(stable, rel=1e-9, nan_ok=True)
    assert scalars[f"effective_rank_{since}/{name}"] == pytest.approx(
        effective, rel=1e-9, nan_ok=True
    )
    cut = scalars[f"tolerance/{since}/{name}"]
    assert scalars[f"rank_{since}/{name}"] == np.sum(values > cut)
    assert scalars[f"rank_low/{since}/{name}"] == np.sum(values > 10 * cut)
    assert scalars[f"rank_high/{since}/{name}"] == np.sum(values > cut / 10)
    if rank is not None:
        assert scalars[f"rank_{since}/{name}"] == rank


def assert_unknown(scalars, since, name):
    for family in FAMILIES:
        assert np.isnan(scalars[f"{family}_{since}/{name}"])
    for family in ("tolerance", "rank_low", "rank_high", "gap"):
        assert np.isnan(scalars[f"{family}/{since}/{name}"])


# Values


def test_changes_are_differences_of_the_stored_weights():
    steps = [(step, params_of()) for step in (3, 5, 9)]
    found, _ = measured(steps)
    for name in "AB":
        first = found[0].scalars
        assert_unknown(first, "since_last", name)
        assert first[f"rank_since_start/{name}"] == first[f"norm_since_start/{name}"] == 0
        for at in (1, 2):
            (_, start), (_, last), (_, now) = steps[0], steps[at - 1], steps[at]
            scalars = found[at].scalars
            assert_change(
                scalars, "since_start", name, now[name], start[name], rank=4 + (name == "A")
            )
            assert_change(scalars, "since_last", name, now[name], last[name])
            assert scalars[f"norm/{name}"] == pytest.approx(np.sqrt((now[name] ** 2.0).sum()), 1e-6)


def test_every_probe_logs_the_same_tags():
    params = params_of()
    broken = {**params, "A": np.full((5, 7), np.nan, np.float32)}
    found, _ = measured([(0, params), (1, broken), (2, params), (3, params)], spectra=True)
    tags = [set(one.scalars) for one in found]
    assert tags[0] == tags[1] == tags[2] == tags[3]
    undefined = {tag for tag in tags[0] if tag.endswith("/A")}
    assert all(np.isnan(found[1].scalars[tag]) for tag in undefined)
    assert_unknown(found[2].scalars, "since_last", "A")
    assert found[2].scalars["rank_since_start/A"] == found[3].scalars["rank_since_last/A"] == 0


def test_the_start_is_the_first_measurement_with_finite_weights():
    params = params_of()
    broken = {**params, "B": np.full((7, 4), np.inf, np.float32)}
    later = params_of()
    found, _ = measured([(0, broken), (1, params), (2, later)], ("start",))
    assert_unknown(found[0].scalars, "since_start", "A")
    assert found[1].scalars["norm_since_start/A"] == 0
    assert_change(found[2].scalars, "since_start", "A", later["A"], params["A"])


def test_a_step_back_begins_again_and_is_no_change_since_the_last_probe():
    a, b, c, d = (params_of() for _ in range(4))
    found, _ = measured([(10, a), (20, b), (15, c), (10, d), (12, a)])
    assert_change(found[2].scalars, "since_start", "A", c["A"], a["A"])
    assert_unknown(found[2].scalars, "since_last", "A")
    assert found[3].scalars["norm_since_start/A"] == 0
    assert_unknown(found[3].scalars, "since_last", "A")
    assert_change(found[4].scalars, "since_start", "A", a["A"], d["A"])
    assert_change(found[4].scalars, "since_last", "A", a["A"], d["A"])


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, jnp.bfloat16], ids=lambda t: np.dtype(t).name
)
def test_the_state_has_the_stored_dtype(dtype):
    params, later = params_of(dtype), params_of(dtype)
    found, state = measured([(0, params), (1, later)], problem=problem_of())
    words = sum(-(-leaf.nbytes // 8) for leaf in params.values())
    assert state["start"].shape == state["last"].shape == (words,)
    bytes_ = b"".join(
        leaf.tobytes() + bytes(-leaf.nbytes % 8) for leaf in (params["A"], params["B"])
    )
    assert state["start"].tobytes() == bytes_
    assert_change(found[1].scalars, "since_start", "A", later["A"], params["A"])


# The cut


def by_steps(start, steps, rank, dtype, scale):
    """Weights after updates of this rank, each rounded to the dtype."""
    m, n = start.shape
    U, V = RNG.standard_normal((m, rank)), RNG.standard_normal((rank, n))
    W = start
    for _ in range(steps):
        update = scale * (U * RNG.standard_normal(rank)) @ V
        W = (W.astype(np.float64) + update).astype(dtype)
    return W


ONE_LAYER = Problem(
    lambda p, x: x @ p["W"].astype(x.dtype),
    loss="mse",
    inputs=np.ones((2, 48), np.float32),
    targets=np.ones((2, 32)),
)


def rank_since_start(before, now, steps=1, **options):
    pairs = [(0, {"W": before}), (steps, {"W": now})]
    return measured(pairs, ("start",), ONE_LAYER, **options)[0][1].scalars


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, jnp.bfloat16], ids=lambda t: np.dtype(t).name
)
@pytest.mark.parametrize("scale", [1.0, 2.0**-9], ids=["1", "2^-9"])
def test_weights_that_moved_by_rounding_have_rank_zero(dtype, scale):
    W = (scale * RNG.standard_normal((48, 32))).astype(dtype)
    up, down = (np.nextafter(W, np.asarray(end, dtype)) for end in (np.inf, -np.inf))
    sparse = np.where(RNG.random(W.shape) < 0.05, up, W)
    for moved in (up, np.where(RNG.random(W.shape) < 0.5, up, down), sparse):
        D = moved.astype(np.float64) - W.astype(np.float64)
        assert np.linalg.matrix_rank(D) > 20  # what a cut relative to the change says
        scalars = rank_since_start(W, moved)
        assert scalars["rank_since_start/W"] == 0
        assert scalars["norm_since_start/W"] > 0
    assert rank_since_start(W, W)["tolerance/since_start/W"] == 0


@pytest.mark.parametrize("steps", [1, 10, 100, 1000])
@pytest.mark.parametrize("column", [1.0, 50.0], ids=["even", "large column"])
def test_updates_of_low_rank_give_a_change_of_low_rank(steps, column):
    start = RNG.standard_normal((48, 32)) / 7
    start[:, 0] *= column
    start = start.astype(np.float32)
    for rank in (1, 3):
        scalars = rank_since_start(start, by_steps(start, steps, rank, np.float32, 0.01), steps)
        assert scalars["rank_since_start/W"] == rank


def test_gradient_descent_moves_a_first_layer_in_the_span_of_the_inputs():
    """Three examples: the rank of the change is at most 3, after any number of float32 steps."""
    x, y = RNG.standard_normal((3, 48)), RNG.standard_normal((3, 2))
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    first = (RNG.standard_normal((48, 32)) / 7).astype(np.float32)
    last = (RNG.standard_normal((32, 2)) / 6).astype(np.float32)

    def step(W, noise):
        def loss(W):
            return jnp.mean((jnp.tanh(x @ W) @ last - y - noise) ** 2)

        return W - jnp.float32(0.05) * jax.grad(loss)(W), None

    noises = jnp.asarray(RNG.standard_normal((2000, 3, 2)), jnp.float32)
    now = np.asarray(jax.jit(lambda W: jax.lax.scan(step, W, noises)[0])(first))
    scalars = rank_since_start(first, now, len(noises))
    assert scalars["rank_since_start/W"] == scalars["rank_low/since_start/W"] == 3
    assert rank_since_start(first, now, 1)["rank_since_start/W"] > 10  # with the cut of one step


def test_quantized_weights_change_by_whole_numbers():
    before = RNG.integers(-100, 100, (48, 32)).astype(np.int8)
    now = before + (RNG.integers(0, 2, (48, 1)) * RNG.integers(0, 2, (1, 32))).astype(np.int8)
    problem = Problem(
        lambda p, x: x @ (p["W"].astype(x.dtype) * p["s"]),
        loss="mse",
        inputs=np.ones((2, 48), np.float32),
        targets=np.ones((2, 32)),
    )
    pairs = [(step, {"W": w, "s": np.float32(0.1)}) for step, w in enumerate((before, now))]
    found, state = measured(pairs, problem=problem)
    assert state["start"].size == before.size // 8
    assert_change(found[1].scalars, "since_start", "W", now, before, rank=1)


def test_an_update_of_low_rank_is_seen_in_bfloat16():
    start = RNG.standard_normal((48, 32)).astype(jnp.bfloat16)
    scalars = rank_since_start(start, by_steps(start, 1, 2, jnp.bfloat16, 1.0))
    assert scalars["rank_since_start/W"] == 2


def test_entries_that_did_not_move_do_not_raise_the_cut():
    """A few rows of a large table, as a batch updates them."""
    table = RNG.standard_normal((48, 32)).astype(np.float32)
    table[4:] *= 1e4
    later = table.copy()
    later[:3] += np.float32(1e-3) * RNG.standard_normal((3, 32)).astype(np.float32)
    assert rank_since_start(table, later)["rank_since_start/W"] == 3


def test_weights_that_start_at_zero_have_the_rank_of_the_weights():
    zero = np.zeros((48, 32), np.float32)
    later = (RNG.standard_normal((48, 5)) @ RNG.standard_normal((5, 32))).astype(np.float32)
    scalars = rank_since_start(zero, later)
    assert scalars["rank_since_start/W"] == scalars["rank_weights/W"] == 5


def test_no_tolerance_counts_rounding_errors():
    W = RNG.standard_normal((48, 32)).astype(np.float32)
    moved = np.nextafter(W, np.float32(np.inf))
    for tolerance in (Tolerance(relative=1e-3), Tolerance(absolute=1e-30)):
        assert rank_since_start(W, moved, tolerance=tolerance)["rank_since_start/W"] == 0
    far = W + np.diag(np.full(48, 2.0**-3)).astype(np.float32)[:, :32]
    for tolerance, rank in ((Tolerance(absolute=0.25), 0), (Tolerance(absolute=1e-2), 32)):
        assert rank_since_start(W, far, tolerance=tolerance)["rank_since_start/W"] == rank


def test_the_changes_of_large_weights_get_a_rank_and_a_norm():
    W = RNG.standard_normal((48, 32)).astype(np.float32)
    now = by_steps(W, 1, 3, np.float32, 0.1)
    scalars = rank_since_start(W, now, largest=20)
    assert scalars["rank_since_start/W"] == 3
    assert scalars["norm_since_start/W"] > 0
    assert scalars["norm/W"] == pytest.approx(np.linalg.norm(now), rel=1e-6)
    assert not any(tag.startswith(("stable", "effective")) for tag in scalars)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300], ids=str)
def test_squares_of_weights_neither_overflow_nor_vanish(scale):
    W = RNG.standard_normal((48, 32))
    now = W + RNG.standard_normal((48, 2)) @ RNG.standard_normal((2, 32))
    got = rank_since_start(scale * W, scale * now)
    assert got["rank_since_start/W"] == 2
    expected = np.linalg.norm(now - W)
    assert got["norm_since_start/W"] / scale == pytest.approx(expected, rel=1e-9)


# Runs


def train(monitor, params, steps):
    """Descend, and measure before each step."""
    gradient = jax.jit(jax.grad(lambda p: jnp.mean((jnp.tanh(X @ p["A"]) @ p["B"] - Y) ** 2)))
    records = []
    for step in steps:
        records.append(monitor(step, params))
        params = jax.tree.map(lambda w, g: w - jnp.float32(0.1) * g, params, gradient(params))
    return params, records


def as_saved(state):
    """The state through a checkpoint file, as JAX arrays."""
    back = serialization.msgpack_restore(serialization.msgpack_serialize(state))
    return jax.tree.map(jnp.asarray, back)


START = jax.tree.map(jnp.asarray, params_of())
PROBES = [alone(spectra=True)]


def measurements(records):
    return [
        {tag: value for tag, value in record.scalars.items() if not tag.startswith("monitor/")}
        for record in records
    ]


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
@pytest.mark.parametrize("cut", [1, 4])
def test_a_restarted_run_continues_bit_by_bit(tmp_path, cut, background):
    for name, parts in (("whole", [range(8)]), ("parts", [range(cut), range(cut, 8)])):
        params, state = START, None
        for steps in parts:
            with RankMonitor(
                PROBLEM,
                logdir=tmp_path / name,
                every=1,
                probes=PROBES,
                state=state,
                background=background,
            ) as monitor:
                params, _ = train(monitor, params, steps)
            state = as_saved(monitor.state)
    whole, parts = (read_jsonl(tmp_path / name / "rankmon.jsonl") for name in ("whole", "parts"))
    assert [record.step for record in parts] == list(range(8))
    np.testing.assert_equal(measurements(parts), measurements(whole))
    for one, other in zip(whole, parts, strict=True):
        assert one.arrays.keys() == other.arrays.keys() == {f"singular_values/{n}" for n in "AB"}
        for tag in one.arrays:
            np.testing.assert_array_equal(one.arrays[tag], other.arrays[tag])


def test_training_is_bit_identical_with_and_without():
    with RankMonitor(PROBLEM, every=1, probes=PROBES) as monitor:
        watched, _ = train(monitor, START, range(6))
    alone_, _ = train(lambda *_: None, START, range(6))
    for name in "AB":
        assert np.asarray(watched[name]).tobytes() == np.asarray(alone_[name]).tobytes()


def test_the_state_has_the_same_keys_from_construction_on():
    monitor = RankMonitor(PROBLEM, every=1, probes=PROBES)
    before = jax.tree.structure(monitor.state)
    prepared = RankMonitor(PROBLEM, every=1, probes=PROBES, params=START)
    shapes = jax.tree.map(np.shape, prepared.state)
    with monitor:
        train(monitor, START, range(2))
    assert jax.tree.structure(monitor.state) == before
    assert jax.tree.map(np.shape, monitor.state) == shapes
    assert set(monitor.state["weights"]) == {"start", "start_step", "last", "last_step"}
    restored = RankMonitor(PROBLEM, every=1, probes=PROBES, params=START, state=monitor.state)
    np.testing.assert_equal(restored.state, monitor.state)


@pytest.mark.parametrize("given", ["empty", "missing", "prepared first"])
def test_an_older_state_gives_no_wrong_start(given):
    """A state without the weights of the start, as earlier versions saved it."""
    old = RankMonitor(PROBLEM, every=1, probes=["hessian", "weights"])
    with old:
        params, _ = train(old, START, range(3))
    state = old.state
    assert state["weights"] == {}
    if given == "missing":
        del state["weights"]
    probes = [HessianProbe(), alone()]
    early = {"params": params} if given == "prepared first" else {}
    monitor = RankMonitor(PROBLEM, every=1, probes=probes, state=state, **early)
    with warned("state=", "track='start'") as caught, monitor:
        _, records = train(monitor, params, range(3, 6))
    assert len(caught) == 1
    for record in records:
        assert_unknown(record.scalars, "since_start", "A")
    assert_unknown(records[0].scalars, "since_last", "A")
    assert records[1].scalars["rank_since_last/A"] > 0
    # And the loss stays known in later states, which other monitors accept.
    again = RankMonitor(PROBLEM, every=1, probes=probes, state=as_saved(monitor.state))
    with warned("state="), again:
        _, records = train(again, params, [6])
    assert_unknown(records[0].scalars, "since_start", "A")
    assert records[0].scalars["norm_since_last/A"] > 0


def test_an_older_state_that_is_saved_again_at_once_is_still_older():
    old = RankMonitor(PROBLEM, every=1, probes=["weights"])
    with old:
        train(old, START, range(2))
    first = RankMonitor(PROBLEM, every=1, probes=[alone()], state=old.state)
    second = RankMonitor(PROBLEM, every=1, probes=[alone()], state=as_saved(first.state))
    with warned("state="), second:
        _, records = train(second, START, [2])
    assert_unknown(records[0].scalars, "since_start", "A")


def test_an_older_state_from_before_the_first_probe_begins_as_a_new_run():
    state = RankMonitor(PROBLEM, every=1, probes=["weights"]).state
    with unwarned(), RankMonitor(PROBLEM, every=1, probes=[alone()], state=state) as monitor:
        _, records = train(monitor, START, range(2))
    assert records[0].scalars["norm_since_start/A"] == 0
    assert records[1].scalars["norm_since_start/A"] > 0


def test_the_state_of_other_weights_is_refused():
    with RankMonitor(PROBLEM, every=1, probes=[alone()]) as monitor:
        train(monitor, START, range(2))
    wide = {"A": jnp.ones((5, 9)), "B": jnp.ones((9, 4))}
    with refused(ValueError, "weights/start", "same problem"):
        RankMonitor(PROBLEM, every=1, probes=[alone()], params=wide, state=monitor.state)
    with refused(ValueError, "probes"):
        RankMonitor(PROBLEM, every=1, probes=["weights"], state=monitor.state)


def test_each_seed_has_its_own_start():
    seeds = {name: jnp.stack([leaf, 2 * leaf]) for name, leaf in START.items()}
    later = {name: leaf + jnp.asarray([1.0, 3.0])[:, None, None] for name, leaf in seeds.items()}
    options = {"seeds": 2, "every": 1, "probes": [alone()]}
    monitor = SeedsMonitor(PROBLEM, **options)
    with monitor:
        monitor(0, seeds)
        records = monitor(1, later)
    with SeedsMonitor(PROBLEM, **options, state=monitor.state) as resumed:
        again = resumed(2, later)
    for record, shift in zip(records, (1.0, 3.0), strict=True):
        assert record.scalars["norm_since_start/A"] == pytest.approx(shift * np.sqrt(35), rel=1e-6)
        assert record.scalars["rank_since_start/A"] == 1
    for record, other in zip(records, again, strict=True):
        assert other.scalars["norm_since_start/A"] == record.scalars["norm_since_start/A"]
        assert other.scalars["norm_since_last/A"] == 0
    old = SeedsMonitor(PROBLEM, seeds=2, every=1, probes=["weights"])
    with old:
        old(0, seeds)
    with warned("track='start'"), SeedsMonitor(PROBLEM, **options, state=old.state) as resumed:
        for record in resumed(1, later):
            assert_unknown(record.scalars, "since_start", "A")


# Options and names


def test_without_options_the_default_probe_is_as_before():
    found, state = measured([(0, params_of())], ())
    assert state == {}
    assert found[0].arrays == {}
    families = {tag.partition("/")[0] for tag in found[0].scalars}
    assert families == {
        *("rank_weights", "tolerance", "rank_low", "rank_high", "gap"),
        *("stable_rank", "effective_rank", "condition_number"),
    }


@pytest.mark.parametrize(
    ("track", "kind"),
    [("begin", ValueError), (["start", "end"], ValueError), (3, TypeError)],
    ids=["name", "names", "number"],
)
def test_other_changes_are_refused(track, kind):
    with refused(kind, "track", "start"):
        WeightsProbe(track=track)


def test_a_single_change_may_be_a_string():
    assert WeightsProbe(track="start").optional_state == {"start", "start_step"}


def test_a_leaf_named_like_the_tags_of_changes_keeps_its_own():
    params = {"W": np.eye(4, dtype=np.float32), "since_start/W": np.ones((4, 4), np.float32)}
    problem = Problem(
        lambda p, x: x @ p["W"] @ p["since_start/W"],
        loss="mse",
        inputs=np.ones((2, 4)),
        targets=np.ones((2, 4)),
    )
    found, _ = measured([(0, params)], ("start",), problem)
    assert found[0].scalars["rank_low/since_start/W"] == 0
    assert found[0].scalars["rank_low/params/since_start/W"] == 1
