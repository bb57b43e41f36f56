"""Test the gradients probe against NumPy and Optax, and training with it against training alone."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from scipy.linalg import hadamard

from rankmon import (
    GradientsProbe,
    MemoryWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    SeedsMonitor,
    WeightsProbe,
)
from refusals import refused, unwarned, warned
from small_probes import measured_by

RNG = np.random.default_rng(0)
N, D, H, K = 40, 6, 5, 3
X, Y = RNG.standard_normal((N, D)), RNG.standard_normal((N, K))
TX = optax.adam(1e-2)
FAMILIES = {
    "norm_gradient",
    "rank_gradient",
    "rank_low/gradient",
    "rank_high/gradient",
    "tolerance/gradient",
    "stable_rank_gradient",
    "gradient_to_weight",
    "gradient_alignment",
}


def network(params, x):
    return jnp.tanh(x @ params["W"] + params["b"]) @ params["V"]


def parameters(seed=1, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "W": jnp.asarray(rng.standard_normal((D, H)), dtype),
        "b": jnp.asarray(rng.standard_normal(H), dtype),
        "V": jnp.asarray(rng.standard_normal((H, K)), dtype),
    }


PROBLEM = Problem(network, loss="mse", inputs=X, targets=Y)
PARAMS = parameters()


def gradient_of(params):
    """The gradient of the mean loss by hand, in float64: delta back through the layers."""
    p = {name: np.asarray(a, np.float64) for name, a in params.items()}
    hidden = np.tanh(X @ p["W"] + p["b"])
    delta = (hidden @ p["V"] - Y) / N
    back = (delta @ p["V"].T) * (1 - hidden**2)
    return {"W": X.T @ back, "b": back.sum(0), "V": hidden.T @ delta}


def norm(array):
    return float(np.sqrt(np.sum(np.asarray(array, np.float64) ** 2)))


def cosine(a, b):
    return float(np.sum(a * b) / (norm(a) * norm(b)))


def memory_of(problem, calls, **options):
    """The records of a monitor with this probe that gets these calls."""
    memory = MemoryWriter()
    options = {"every": 1, "probes": ["gradients"], **options}
    with RankMonitor(problem, writers=[memory], **options) as monitor:
        for step, params, rest in calls:
            monitor(step, params, **rest)
    return memory.records


def family(record, name):
    prefix = f"{name}/"
    return {t.removeprefix(prefix): v for t, v in record.scalars.items() if t.startswith(prefix)}


# One gradient


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_each_number_is_what_numpy_says(dtype):
    params = parameters(dtype=dtype)
    prepared = GradientsProbe(vectors=True).prepare(PROBLEM.flat(params))
    found, _ = measured_by(prepared, PROBLEM, params)
    for name, gradient in gradient_of(params).items():
        said = {f: found.scalars.get(f"{f}/{name}") for f in FAMILIES}
        assert said["norm_gradient"] == pytest.approx(norm(gradient), rel=1e-11)
        weight = norm(params[name])
        assert said["gradient_to_weight"] == pytest.approx(norm(gradient) / weight, rel=1e-11)
        assert math.isnan(said["gradient_alignment"])
        if name == "b":
            assert said["rank_gradient"] is said["stable_rank_gradient"] is None
            continue
        values = np.linalg.svd(gradient, compute_uv=False)
        stable = np.sum(values**2) / values[0] ** 2
        assert said["stable_rank_gradient"] == pytest.approx(stable, rel=1e-10)
        assert said["rank_gradient"] == said["rank_low/gradient"] == len(values)
        assert 1e-17 < said["tolerance/gradient"] / values[0] < 1e-12
    assert not any(tag.startswith("update_to_weight") for tag in found.scalars)
    assert not found.warnings


def test_without_vectors_the_matrices_are_those_of_the_weights_probe():
    for options in ({}, {"views": {"*": ((1,), (0,))}}):
        found, _ = measured_by(
            GradientsProbe(**options).prepare(PROBLEM.flat(PARAMS)), PROBLEM, PARAMS
        )
        weights, _ = measured_by(
            WeightsProbe(**options).prepare(PROBLEM.flat(PARAMS)), PROBLEM, PARAMS
        )
        named = {tag.split("/")[1] for tag in weights.scalars if tag.startswith("rank_weights/")}
        assert {tag.removeprefix(f"{f}/") for f in FAMILIES for tag in found.scalars} >= named
        assert set(found.scalars) == {f"{f}/{name}" for f in FAMILIES for name in named}


def test_layers_that_are_stacked_in_one_leaf():
    def apply(params, x):
        layer = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.scan(layer, x, params["W"])[0]

    rng = np.random.default_rng(3)
    stack = {"W": rng.standard_normal((3, D, D))}
    targets = rng.standard_normal((N, D))
    problem = Problem(apply, loss="mse", inputs=X, targets=targets)
    prepared, points = GradientsProbe().prepare(problem.flat(stack)), (stack, {"W": 2 * stack["W"]})
    one, state = measured_by(prepared, problem, points[0], step=0)
    two, _ = measured_by(prepared, problem, points[1], state, step=1)
    with jax.enable_x64(True):
        slope = jax.grad(lambda p: jnp.sum((apply(p, X) - targets) ** 2) / 2 / N)
        a, b = (np.asarray(slope({"W": jnp.asarray(p["W"])})["W"]) for p in points)
    for i in range(3):
        assert one.scalars[f"norm_gradient/W/{i}"] == pytest.approx(norm(a[i]), rel=1e-11)
        got = two.scalars[f"gradient_alignment/W/{i}"]
        assert got == pytest.approx(cosine(a[i], b[i]), abs=1e-7)
        assert two.scalars[f"update_to_weight/W/{i}"] == pytest.approx(1, rel=1e-12)


def test_few_examples_give_a_low_rank():
    problem = Problem(network, loss="mse", inputs=X[:2], targets=Y[:2])
    found, _ = measured_by(GradientsProbe().prepare(problem.flat(PARAMS)), problem, PARAMS)
    assert found.scalars["rank_gradient/W"] == found.scalars["rank_gradient/V"] == 2


@pytest.mark.parametrize("interpolates", [True, False], ids=["interpolated", "stationary"])
def test_a_gradient_of_rounding_errors_has_rank_zero(interpolates):
    """With a cut relative to its own norm, its rank would be positive."""
    rng = np.random.default_rng(2)
    columns = hadamard(64)
    x, orthogonal = columns[:, :D].astype(float), columns[:, D:]
    W, R = rng.integers(-9, 10, (D, K)), rng.integers(-3, 4, (orthogonal.shape[1], K))
    y = (x @ W + (0 if interpolates else orthogonal @ R)) / 3
    problem = Problem(lambda W, x: x @ W, loss="mse", inputs=x, targets=y)
    found, _ = measured_by(GradientsProbe().prepare(problem.flat(W / 3)), problem, W / 3)
    assert 0 < found.scalars["norm_gradient/params"] < 1e-14
    assert found.scalars["rank_gradient/params"] == found.scalars["rank_low/gradient/params"] == 0


def test_zero_weights_and_zero_gradients():
    zero = {**PARAMS, "V": jnp.zeros((H, K)), "W": jnp.zeros((D, H)), "b": jnp.zeros(H)}
    prepared = GradientsProbe(vectors=True).prepare(PROBLEM.flat(zero))
    one, state = measured_by(prepared, PROBLEM, zero, step=0)
    two, _ = measured_by(prepared, PROBLEM, PARAMS, state, step=1)
    # tanh(0) = 0 and V = 0: all gradients are zero.
    for name in zero:
        assert one.scalars[f"norm_gradient/{name}"] == 0
        assert math.isnan(one.scalars[f"gradient_to_weight/{name}"])
        assert math.isnan(two.scalars[f"gradient_alignment/{name}"])
        assert two.scalars[f"update_to_weight/{name}"] == math.inf
    for name in ("W", "V"):
        assert one.scalars[f"rank_gradient/{name}"] == 0
        assert math.isnan(one.scalars[f"stable_rank_gradient/{name}"])
    flat = {**PARAMS, "V": jnp.zeros((H, K))}  # only V has a gradient
    found, _ = measured_by(prepared, PROBLEM, flat)
    assert found.scalars["gradient_to_weight/W"] == 0
    assert found.scalars["gradient_to_weight/V"] == math.inf


def test_snapshots_that_are_not_finite_are_nan_and_no_reference():
    broken = {**PARAMS, "b": PARAMS["b"].at[0].set(jnp.nan)}
    calls = [(0, PARAMS, {}), (1, broken, {}), (2, PARAMS, {}), (3, PARAMS, {})]
    with pytest.warns(RankmonWarning, match="NaN"):
        first, nan, after, last = memory_of(PROBLEM, calls)
    for name in (*FAMILIES, "update_to_weight"):
        got = family(nan, name)
        assert got.keys() == {"W", "V"}
        assert all(map(math.isnan, got.values())), name
    assert all(map(math.isnan, family(after, "gradient_alignment").values()))
    assert not family(after, "update_to_weight")
    assert family(after, "norm_gradient") == family(first, "norm_gradient")
    assert family(last, "gradient_alignment") == pytest.approx({"W": 1, "V": 1}, abs=1e-12)
    assert family(last, "update_to_weight") == {"W": 0, "V": 0}


def test_a_network_that_is_measured_in_its_own_dtype():
    start = parameters()["W"][:, :H]

    def apply(w, x):
        w = w + 0 * jax.lax.bitcast_convert_type(w, jnp.int32)  # float64 has other bits
        return x.astype(jnp.float32) @ w

    problem = Problem(apply, loss="mse", inputs=X, targets=RNG.standard_normal((N, H)))
    memory = MemoryWriter()
    with pytest.warns(RankmonWarning, match="its own dtype"):
        with RankMonitor(
            problem, every=1, probes=["gradients"], writers=[memory], on_error="raise"
        ) as monitor:
            for step in range(2):
                monitor(step, start)
    delta = X @ np.asarray(start, np.float64) - problem.targets
    gradient = X.T @ delta / N
    said = memory.records[1].scalars
    assert said["norm_gradient/params"] == pytest.approx(norm(gradient), rel=1e-5)
    assert said["rank_gradient/params"] == H
    assert said["update_to_weight/params"] == 0
    assert said["tolerance/gradient/params"] > 1e-8


def test_frozen_leaves_have_no_curves():
    problem = Problem(network, loss="mse", inputs=X, targets=Y, exclude=["W"])
    found, _ = measured_by(
        GradientsProbe(vectors=True).prepare(problem.flat(PARAMS)), problem, PARAMS
    )
    assert family(found, "norm_gradient") == pytest.approx(
        {name: norm(gradient_of(PARAMS)[name]) for name in ("b", "V")}, rel=1e-11
    )
    only = Problem(network, loss="mse", inputs=X, targets=Y, include=["b"])
    with refused(ValueError, "matrix", "vectors=True"):
        GradientsProbe().prepare(only.flat(PARAMS))
    assert GradientsProbe(vectors=True).prepare(only.flat(PARAMS))


@pytest.mark.parametrize(
    ("options", "kind", "key"),
    [
        ({"optimizer": 0.1}, TypeError, "float"),
        ({"optimizer": TX.init}, TypeError, "update"),
        ({"largest": 2.5}, TypeError, "largest"),
        ({"tolerance": 1e-3}, TypeError, "Tolerance"),
        ({"vectors": 1}, TypeError, "vectors"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused(options, kind, key):
    with refused(kind, key):
        GradientsProbe(**options)


# Two gradients


def path(steps, tx=TX, params=PARAMS):
    """The parameters before each step of training, with the optimizer's state."""
    state, points = tx.init(params), []
    for _ in range(steps):
        points.append((params, state))
        gradient = jax.tree.map(jnp.float32, gradient_of(params))
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return points


def test_alignment_is_with_the_last_probe_also_after_some_steps():
    points = path(7)
    records = memory_of(PROBLEM, [(s, p, {}) for s, (p, _) in enumerate(points)], every=3)
    assert [record.step for record in records] == [0, 3, 6]
    for record, last, now in zip(records[1:], (0, 3), (3, 6), strict=True):
        a, b = (gradient_of(points[step][0]) for step in (last, now))
        want = {name: cosine(a[name], b[name]) for name in ("W", "V")}
        assert family(record, "gradient_alignment") == pytest.approx(want, abs=1e-7)
        assert not family(record, "update_to_weight")


def test_going_back_has_no_last_probe():
    calls = [(0, PARAMS, {}), (1, PARAMS, {}), (0, PARAMS, {})]
    with pytest.warns(RankmonWarning, match="superseded"):
        records = memory_of(PROBLEM, calls)
    assert all(map(math.isnan, family(records[-1], "gradient_alignment").values()))


def test_a_resumed_run_has_the_numbers_of_an_unbroken_one():
    calls = [(s, p, {}) for s, (p, _) in enumerate(path(6))]
    whole = memory_of(PROBLEM, calls)
    first, second = MemoryWriter(), MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=1, probes=["gradients"], writers=[first])
    structure = jax.tree.structure(monitor.state)
    for step, params, _ in calls[:3]:
        monitor(step, params)
    state = jax.tree.map(np.array, monitor.state)
    monitor.close()
    assert jax.tree.structure(state) == structure
    with RankMonitor(
        PROBLEM, every=1, probes=["gradients"], writers=[second], state=state
    ) as monitor:
        for step, params, _ in calls[3:]:
            monitor(step, params)
    assert not family(whole[0], "update_to_weight")
    for one, other in zip(whole, [*first.records, *second.records], strict=True):
        for name in (*FAMILIES, "update_to_weight"):
            a, b = family(one, name), family(other, name)
            assert a.keys() == b.keys()
            np.testing.assert_array_equal(list(a.values()), list(b.values()))


def test_the_state_of_a_run_without_this_probe_is_continued():
    with RankMonitor(PROBLEM, every=1, probes=["weights"]) as monitor:
        monitor(0, PARAMS)
    memory = MemoryWriter()
    with RankMonitor(
        PROBLEM,
        every=1,
        probes=["weights", "gradients"],
        state=monitor.state,
        writers=[memory],
        on_error="raise",
    ) as monitor:
        for step in (1, 2):
            monitor(step, PARAMS)
    first, second = memory.records
    assert all(map(math.isnan, family(first, "gradient_alignment").values()))
    assert not family(first, "update_to_weight")
    assert family(second, "gradient_alignment") == pytest.approx({"W": 1, "V": 1}, abs=1e-12)
    assert family(second, "update_to_weight") == {"W": 0, "V": 0}


# Updates


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_change_in_one_step(dtype):
    points = [parameters(seed, dtype) for seed in range(3)]
    problem = Problem(network, loss="mse", inputs=X, targets=Y)
    records = memory_of(problem, [(s, p, {}) for s, p in enumerate(points)])
    assert not family(records[0], "update_to_weight")
    for record, before, after in zip(records[1:], points, points[1:], strict=False):
        wide = {name: np.asarray(after[name], np.float64) for name in ("W", "V")}
        then = {name: np.asarray(before[name], np.float64) for name in ("W", "V")}
        want = {name: norm(wide[name] - then[name]) / norm(then[name]) for name in wide}
        assert family(record, "update_to_weight") == pytest.approx(want, rel=1e-12)


def expected_updates(tx, state, params):
    gradient = jax.tree.map(jnp.float32, gradient_of(params))
    updates, _ = tx.update(gradient, state, params)
    return {name: norm(updates[name]) / norm(params[name]) for name in ("W", "V")}


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.1, momentum=0.9)),
    "adamw": optax.adamw(1e-2),
}


@pytest.mark.parametrize("background", [False, True], ids=["now", "background"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_that_the_optimizer_would_make(name, background):
    tx = OPTIMIZERS[name]
    points = path(4, tx)
    calls = [(3 * s, p, {"opt_state": state}) for s, (p, state) in enumerate(points)]
    records = memory_of(
        PROBLEM, calls, probes=[GradientsProbe(optimizer=tx)], background=background
    )
    for record, (params, state) in zip(records, points, strict=True):
        want = expected_updates(tx, state, params)
        assert family(record, "update_to_weight") == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with-step"])
def test_a_train_state_has_it_all(alone):
    state = TrainState.create(apply_fn=network, params=PARAMS, tx=TX)
    state = state.apply_gradients(grads=jax.tree.map(jnp.float32, gradient_of(PARAMS)))
    memory = MemoryWriter()
    with RankMonitor(PROBLEM, every=1, probes=["gradients"], writers=[memory]) as monitor:
        monitor(*([state] if alone else [1, state]))
    want = expected_updates(TX, state.opt_state, state.params)
    assert family(memory.records[0], "update_to_weight") == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("passes", [True, False], ids=["passed", "seen"])
def test_close_measures_the_optimizer_too(passes):
    points = path(3)
    memory = MemoryWriter()
    probe = GradientsProbe(optimizer=TX)
    monitor = RankMonitor(PROBLEM, every=10, probes=[probe], writers=[memory])
    for step, (params, state) in enumerate(points[:2] if passes else points):
        monitor(step, params, opt_state=state)
    params, state = points[2]
    record = monitor.close(2, params, opt_state=state) if passes else monitor.close()
    assert record.step == 2
    want = expected_updates(TX, state, params)
    assert family(record, "update_to_weight") == pytest.approx(want, rel=1e-5)


def test_inside_scan_with_a_train_state():
    def step_fn(state, _):
        gradient = jax.grad(lambda p: jnp.sum((network(p, X) - Y) ** 2) / 2 / N)(state.params)
        return state.apply_gradients(grads=gradient), None

    state = TrainState.create(apply_fn=network, params=PARAMS, tx=TX)
    memory = MemoryWriter()
    with RankMonitor(PROBLEM, every=2, probes=["gradients"], writers=[memory]) as monitor:
        last, _ = monitor.scan(step_fn, state, 4, params_of=lambda carry: carry)
    assert [record.step for record in memory.records] == [0, 2, 4]
    want = expected_updates(TX, last.opt_state, last.params)
    assert family(memory.records[-1], "update_to_weight") == pytest.approx(want, rel=1e-4)


def test_seeds_have_optimizers_of_their_own():
    points = [path(3, params=parameters(seed))[2] for seed in range(2)]
    params, state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    probe = GradientsProbe(optimizer=TX)
    with SeedsMonitor(PROBLEM, seeds=2, every=1, probes=[probe]) as monitor:
        records = monitor(0, params, opt_state=state)
        last = monitor.close(1, params, opt_state=state)
    for record, (own, its) in zip([*records, *last], points * 2, strict=True):
        want = expected_updates(TX, its, own)
        assert family(record, "update_to_weight") == pytest.approx(want, rel=1e-4)
    both = TrainState(jnp.arange(2) * 0, network, params, TX, state)
    with SeedsMonitor(PROBLEM, seeds=2, every=1, probes=["gradients"]) as monitor:
        records = monitor(both)
    for record, (own, its) in zip(records, points, strict=True):
        want = expected_updates(TX, its, own)
        assert family(record, "update_to_weight") == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("state", "key"),
    [(None, "no state"), (optax.sgd(0.1, momentum=0.9).init({"W": PARAMS["W"]}), "opt_state=")],
    ids=["none", "other-structure"],
)
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_state_that_does_not_fit_is_one_warning_and_nan(state, key, on_error):
    calls = [(s, PARAMS, {"opt_state": state}) for s in range(3)]
    with warned(key, "GradientsProbe(optimizer=tx)", "update_to_weight") as caught:
        records = memory_of(
            PROBLEM, calls, probes=[GradientsProbe(optimizer=TX)], on_error=on_error
        )
    assert len(caught) == 1
    for record in records:
        got = family(record, "update_to_weight")
        assert got.keys() == {"W", "V"}
        assert all(map(math.isnan, got.values()))
        assert record.scalars["monitor/errors"] == 0
    assert family(records[1], "gradient_alignment") == pytest.approx({"W": 1, "V": 1}, abs=1e-12)


def test_traced_states_are_refused():
    monitor = RankMonitor(PROBLEM, every=1, probes=[GradientsProbe(optimizer=TX)])
    with refused(TypeError, "traced"):
        jax.jit(lambda s: monitor(0, PARAMS, opt_state=s))(TX.init(PARAMS))
    monitor.close()


def test_a_state_that_no_probe_wants_is_not_read():
    class Unreadable:
        dtype = property(lambda self: 1 / 0)

    with unwarned():
        records = memory_of(PROBLEM, [(0, PARAMS, {"opt_state": Unreadable()})], probes=["weights"])
    assert records[0].scalars["rank_weights/W"] == H


# Training


def trained(monitor=None):
    """Train with donated parameters and states."""

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.mean((network(p, X) - Y) ** 2))(params)

    update = jax.jit(TX.update)
    apply = jax.jit(optax.apply_updates, donate_argnums=0)
    donate = jax.jit(lambda s: jax.tree.map(lambda a: a + 0, s), donate_argnums=0)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = TX.init(params)
    for step in range(5):
        if monitor is not None:
            monitor(step, params, opt_state=state)
        updates, new = update(gradient(params), state, params)
        state, _ = new, donate(state)
        params = apply(params, updates)
    if monitor is not None:
        monitor.close(5, params, opt_state=state)
    return params, state


@pytest.mark.parametrize("background", [False, True], ids=["now", "background"])
def test_training_is_the_same_bit_by_bit_with_donated_buffers(background):
    bare = trained()
    memory = MemoryWriter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = RankMonitor(
            PROBLEM,
            every=1,
            probes=[GradientsProbe(optimizer=TX)],
            writers=[memory],
            background=background,
            on_error="raise",
        )
        watched = trained(monitor)
    for a, b in zip(jax.tree.leaves(bare), jax.tree.leaves(watched), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert [record.step for record in memory.records] == list(range(6))
    updates = [list(family(r, "update_to_weight").values()) for r in memory.records]
    assert np.all(np.isfinite(updates))


# The card


def test_the_card_says_what_was_measured():
    (record,) = memory_of(PROBLEM, [(0, PARAMS, {})])
    card = record.texts["rankmon/card"]
    for key in ("probe batch", "max(m, n) eps64", "TrainState", "actual change", "norm_gradient/"):
        assert key in card
    frozen = Problem(network, loss="mse", inputs=X, targets=Y, exclude=["b"])
    (record,) = memory_of(
        frozen,
        [(0, PARAMS, {"opt_state": TX.init(PARAMS)})],
        probes=[GradientsProbe(optimizer=TX)],
    )
    card = record.texts["rankmon/card"]
    assert "held fixed counts as zero" in card
    assert "actual change" not in card
