"""Test several seeds: each run against a monitor of its own, and the median against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from rankmon import Problem, RankMonitor, RankmonWarning, SeedsMonitor, read_jsonl
from reading import legacy_events
from refusals import refused

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 5)), RNG.standard_normal((12, 3))
SEEDS = 3


def apply(params, x):
    return x @ params["W1"] @ params["W2"]


PROBLEM = Problem(apply, loss="mse", inputs=X, targets=Y)


def stacked(scale=1.0):
    """Weights of the seeds; the first matrix has rank 2, 3, 4."""
    rng = np.random.default_rng(1)
    first = [rng.standard_normal((5, r)) @ rng.standard_normal((r, 4)) for r in (2, 3, 4)]
    return {
        "W1": jnp.asarray(scale * np.stack(first), jnp.float32),
        "W2": jnp.asarray(rng.standard_normal((SEEDS, 4, 3)), jnp.float32),
    }


def of_seed(params, i):
    return jax.tree.map(lambda a: a[i], params)


def test_each_seed_has_the_run_of_a_monitor_of_its_own(tmp_path):
    with SeedsMonitor(PROBLEM, seeds=SEEDS, logdir=tmp_path / "all", every=2) as monitor:
        for step in range(4):
            monitor(step, stacked(1 + step), scalars={"mine": np.arange(3.0), "ours": 7})
    for i in range(SEEDS):
        with RankMonitor(PROBLEM, logdir=tmp_path / f"alone_{i}", every=2) as monitor:
            for step in range(4):
                monitor(step, of_seed(stacked(1 + step), i), scalars={"mine": i, "ours": 7})
        together = read_jsonl(tmp_path / "all" / f"seed_{i}" / "rankmon.jsonl")
        alone = read_jsonl(tmp_path / f"alone_{i}" / "rankmon.jsonl")
        assert [record.step for record in together] == [0, 2, 3]
        for a, b in zip(together, alone, strict=True):
            assert set(a.scalars) == set(b.scalars)
            for tag, value in a.scalars.items():
                if not tag.startswith(("monitor/", "gap/")):
                    assert value == pytest.approx(b.scalars[tag], rel=1e-12, nan_ok=True), tag


def test_the_median_and_its_range(tmp_path):
    with SeedsMonitor(
        PROBLEM, seeds=SEEDS, logdir=tmp_path, every=1, probes=["weights"]
    ) as monitor:
        records = monitor(0, stacked())
    assert [record.scalars["rank_weights/W1"] for record in records] == [2, 3, 4]
    events = legacy_events(tmp_path / "median")

    def value(tag):
        (event,) = events.Scalars(tag)
        return event.value

    shown = [value(f"rank_weights/W1/{which}") for which in ("median", "low", "high")]
    assert shown == [3, 2, 4]
    stable = [record.scalars["stable_rank/W1"] for record in records]
    assert value("stable_rank/W1/median") == pytest.approx(np.median(stable), rel=1e-6)
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    (category,) = layout.category
    (chart,) = [c for c in category.chart if c.title.startswith("rank_weights/W1:")]
    (series,) = chart.margin.series
    tags = {series.value, series.lower, series.upper}
    assert tags <= set(events.Tags()["scalars"])


def test_programs_are_compiled_once_for_all_seeds():
    traced = []

    def counted(params, x):
        traced.append(1)
        return apply(params, x)

    def traces(seeds):
        traced.clear()
        params = jax.tree.map(lambda a: jnp.concatenate([a] * 3)[:seeds], stacked())
        problem = Problem(counted, loss="mse", inputs=X, targets=Y)
        with SeedsMonitor(problem, seeds=seeds, every=1) as monitor:
            monitor(0, params)
            monitor(1, params)
        return len(traced)

    assert traces(1) == traces(7)


TX = optax.adam(1e-2)


@jax.jit
@jax.vmap
def train_step(state):
    loss = jax.grad(lambda p: jnp.mean((apply(p, jnp.asarray(X)) - Y) ** 2))
    return state.apply_gradients(grads=loss(state.params))


def trained(monitor=None):
    state = jax.vmap(partial(TrainState.create, apply_fn=None, tx=TX))(params=stacked())
    for _ in range(5):
        if monitor is not None:
            monitor(state)
        state = train_step(state)
    if monitor is not None:
        monitor.close(state)
    return state.params


def test_vmapped_train_states_are_monitored_and_trained_alike(tmp_path):
    monitor = SeedsMonitor(PROBLEM, seeds=SEEDS, logdir=tmp_path, every=2)
    jax.tree.map(np.testing.assert_array_equal, trained(monitor), trained())
    records = read_jsonl(tmp_path / "median" / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 2, 4, 5]


def test_a_restart_goes_on_in_every_folder(tmp_path):
    with SeedsMonitor(PROBLEM, seeds=SEEDS, logdir=tmp_path, every=1) as monitor:
        monitor(0, stacked())
        state = monitor.state
        monitor(1, stacked(2))
        monitor(2, stacked(3))
    with SeedsMonitor(PROBLEM, seeds=SEEDS, logdir=tmp_path, every=1, state=state) as monitor:
        records = monitor(1, stacked(5))
    assert records[0].scalars["rank/H_f_fixed"] > 0
    for folder in ("seed_0", "seed_2", "median"):
        kept = read_jsonl(tmp_path / folder / "rankmon.jsonl")
        assert [record.step for record in kept] == [0, 1]


def test_the_median_goes_back_with_the_seeds_be_it_by_one_step(tmp_path):
    with SeedsMonitor(
        PROBLEM, seeds=SEEDS, logdir=tmp_path, every=1, probes=["weights"]
    ) as monitor:
        for step, scalar in ((0, 1.0), (1, 2.0), (2, 3.0), (1, 4.0)):
            monitor(step, stacked(), scalars={"mine": scalar})
    events = legacy_events(tmp_path / "median").Scalars("mine/median")
    assert [(event.step, event.value) for event in events] == [(0, 1.0), (1, 4.0)]


def test_the_last_parameters_are_measured_or_missed_aloud():
    with SeedsMonitor(PROBLEM, seeds=SEEDS, every=10, probes=["weights"]) as monitor:
        assert len(monitor(0, stacked())) == SEEDS
        assert monitor(3, stacked(2)) is None
        (record, *_) = monitor.close()
    assert record.step == 3
    monitor = SeedsMonitor(PROBLEM, seeds=SEEDS, every=10, probes=["weights"])
    monitor(0, stacked())
    monitor(3, jax.tree.map(np.asarray, stacked()))
    with pytest.warns(RankmonWarning, match="last step, 3"):
        assert monitor.close() == []


@pytest.mark.parametrize(
    ("use", "error", "keys"),
    [
        (lambda: SeedsMonitor(PROBLEM, seeds=0, every=1), ValueError, ["seeds", "at least 1", "0"]),
        (
            lambda: SeedsMonitor(PROBLEM, seeds=4, every=1)(0, stacked()),
            ValueError,
            ["leading axis", "length 4", "shape"],
        ),
        (
            lambda: SeedsMonitor(PROBLEM, seeds=3, every=1, background=True),
            TypeError,
            ["got background", "RankMonitor"],
        ),
    ],
    ids=["none", "axis", "option"],
)
def test_wrong_input_is_refused(use, error, keys):
    with refused(error, *keys):
        use()


def test_the_loops_own_exception_is_the_one_that_is_raised():
    class Fails:
        action = "warn"

        def found(self, scalars, first):
            raise OSError("no alert today")

    monitor = SeedsMonitor(
        PROBLEM, seeds=SEEDS, every=9, probes=["weights"], alerts=[Fails()], on_error="raise"
    )
    with pytest.raises(KeyError, match="mine"):  # noqa: SIM117
        with monitor:
            monitor._monitors[0].report(0, {"mine": 1.0})  # what goes wrong is told at close
            raise KeyError("mine")
