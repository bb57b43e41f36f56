"""Test alerts: conditions, one alarm for each, actions, and unchanged training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.util import tensor_util

from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, read_jsonl
from rankmon.monitor.alerts import (
    Alarm,
    DeadUnits,
    EffectiveRankDrop,
    NonFinite,
    RankBelow,
    StopTraining,
    Watch,
)
from reading import legacy_events
from refusals import refused, warned

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 5)), RNG.standard_normal((12, 3))


def relu(params, x):
    return jax.nn.relu(x @ params["W1"]) @ params["W2"]


PROBLEM = Problem(relu, loss="mse", inputs=X, targets=Y)


def of_rank(rank):
    """Weights whose first matrix has this rank."""
    rng = np.random.default_rng(1)
    return {
        "W1": rng.standard_normal((5, rank)) @ rng.standard_normal((rank, 4)),
        "W2": rng.standard_normal((4, 3)),
    }


def watched(alerts, ranks, **options):
    """The monitor after a run in which the first weight has these ranks."""
    memory = MemoryWriter()
    options = {"probes": ["weights"], "writers": [memory]} | options
    with RankMonitor(PROBLEM, every=1, alerts=alerts, **options) as monitor:
        for step, rank in enumerate(ranks):
            monitor(step, of_rank(rank))
    return memory.records


def test_a_rank_that_falls_is_told_once_until_it_has_recovered():
    alarms = []
    watched([RankBelow(0.75, action=alarms.append)], [4, 3, 2, 1, 4, 2])
    tag = "rank_weights/W1"
    assert alarms == [Alarm(step, tag, alarms[0].message) for step in (2, 5)]
    assert all(word in alarms[0].message for word in (f"{tag} is 2", "0.75", "4"))


def test_it_warns_at_the_users_line_and_is_written_as_a_text(tmp_path):
    with pytest.warns(RankmonWarning, match="step 1: rank_weights/W1 is 1") as caught:
        watched([RankBelow(0.5)], [4, 1, 1], logdir=tmp_path)
    assert [warning.filename for warning in caught] == [__file__]
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert ["rankmon/alerts" in record.texts for record in records] == [False, True, False]
    events = legacy_events(tmp_path)
    (event,) = events.Tensors("rankmon/alerts")
    assert event.step == 1
    (text,) = tensor_util.make_ndarray(event.tensor_proto).ravel()
    assert text.decode().startswith("* rank_weights/W1 is 1")


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_it_stops_the_loop_with_its_record_written(background):
    memory = MemoryWriter()
    steps = []
    with pytest.raises(StopTraining, match="step 2: rank_weights/W1") as stopped:  # noqa: SIM117
        with RankMonitor(
            PROBLEM,
            every=1,
            probes=["weights"],
            writers=[memory],
            alerts=[RankBelow(0.5, action="stop")],
            background=background,
        ) as monitor:
            for step, rank in enumerate([4, 4, 1, 1, 1]):
                steps.append(step)
                monitor(step, of_rank(rank))
                monitor.flush()
    assert stopped.value.alarm.step == 2
    assert steps == [0, 1, 2]
    assert [record.step for record in memory.records] == [0, 1, 2]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("stable_rank/*", {"stable_rank/W"}),
        (["*_rank/*", "loss"], {"stable_rank/W", "effective_rank/W"}),
        ("stable_rank/H_*", {"stable_rank/H_f"}),
        (["effective_rank/*", "effective_rank/H_f"], {"effective_rank/W", "effective_rank/H_f"}),
    ],
    ids=["weights", "both soft ranks", "parts", "weights and a part"],
)
def test_the_soft_ranks_of_weights_are_not_those_of_the_hessian(tags, found):
    """The Hessian's fall in every network that learns: a run would be stopped."""
    kinds = ("stable_rank/W", "stable_rank/H_f", "effective_rank/W", "effective_rank/H_f")
    first = dict.fromkeys(kinds, 10.0)
    assert RankBelow(0.5, tags=tags).found(dict.fromkeys(kinds, 1.0), first).keys() == found


def test_a_collapse_that_training_fills_is_found_by_the_effective_rank():
    """A layer is projected to rank 5 and trained on: its numerical rank is full again."""
    rng = np.random.default_rng(2)
    x, y = (rng.standard_normal((32, n)).astype(np.float32) for n in (64, 10))
    shapes = {"W1": (64, 64), "W2": (64, 10)}
    params = {k: rng.standard_normal(s).astype(np.float32) / 8 for k, s in shapes.items()}
    optimizer, alarms, silent, memory = optax.adamw(1e-4), [], [], MemoryWriter()

    @jax.jit
    def train(params, state):
        loss = lambda params: jnp.mean((relu(params, x) - y) ** 2)  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    problem = Problem(relu, loss="mse", inputs=x, targets=y)
    alerts = [EffectiveRankDrop(action=alarms.append), RankBelow(0.9, action=silent.append)]
    options = {"probes": ["weights"], "writers": [memory], "alerts": alerts}
    with RankMonitor(problem, every=30, **options) as monitor:
        state = optimizer.init(params)
        for step in range(121):
            if step == 61:
                u, s, vt = np.linalg.svd(params["W1"])
                params["W1"] = jnp.asarray((u[:, :5] * s[:5]) @ vt[:5])
            monitor(step, params)
            params, state = train(params, state)
    ranks = [record.scalars["rank_weights/W1"] for record in memory.records]
    assert ranks == [64] * 5
    assert silent == []
    assert [(alarm.step, alarm.tag) for alarm in alarms] == [(90, "effective_rank/W1")]


def test_an_effective_rank_that_falls_further_or_again_is_told_again():
    watch = Watch([EffectiveRankDrop(0.5, tags="stable_rank/*")])
    values = [39, 40, 19, 18, 16, 9, 5, 30, 25, 14, float("nan"), 14, 6]
    tag = "stable_rank/W"
    found = [step for step, value in enumerate(values) if watch.look(step, {tag: value})]
    assert found == [2, 5, 9, 12]  # below 40 / 2, 19 / 2, 30 / 2 and 14 / 2
    watch.resume([(step, {tag: value}) for step, value in enumerate(values[:5])])
    (found,) = watch.look(5, {tag: 9, "stable_rank/H_L": 1})
    assert found[1].tag == tag
    assert "9, below 0.5 times" in found[1].message


def test_what_is_not_finite_and_dead_units():
    alarms = []
    alerts = [NonFinite(action=alarms.append), DeadUnits(0.5, action=alarms.append)]
    memory = MemoryWriter()
    params = of_rank(4)
    dead = {"W1": params["W1"] * [0, 0, 0, 1], "W2": params["W2"]}
    with RankMonitor(
        PROBLEM, every=1, probes=["features"], writers=[memory], alerts=alerts
    ) as monitor:
        monitor(0, params)
        monitor(1, dead)
        with pytest.warns(RankmonWarning, match="NaN"):
            monitor(2, {"W1": params["W1"], "W2": params["W2"] * np.nan})
    assert [(alarm.step, alarm.tag) for alarm in alarms] == [
        (1, "dead_share/W1"),
        (2, "monitor/nonfinite"),
    ]
    assert alarms[0].message.startswith("75%")
    assert "W1" in alarms[0].message
    assert alarms[1].message.startswith("12 NaN or infinite parameters")


def test_a_loss_that_is_not_finite():
    alert = NonFinite()
    assert alert.found({"loss": 1.0}, {}) == {}
    for text in ("inf", "nan"):
        found = alert.found({"loss": float(text)}, {})
        assert set(found) == {"loss"}
        assert found["loss"].endswith(text)


def test_the_users_own_scalars_and_reports_are_looked_at_too():
    alarms = []
    alerts = [RankBelow(0.5, tags="mine", action=alarms.append)]
    with RankMonitor(PROBLEM, every=1, probes=["weights"], alerts=alerts) as monitor:
        monitor(0, of_rank(4), scalars={"mine": 10})
        monitor.report(1, {"mine": 4.0})
        monitor.flush()
        monitor.report(2, {"other": 4.0})  # says nothing of mine
        monitor.report(3, {"mine": 3.0})
    assert [alarm.step for alarm in alarms] == [1]


def test_first_values_outlive_a_restart(tmp_path):
    alarms = []
    alerts = [RankBelow(0.75, action=alarms.append)]
    with RankMonitor(PROBLEM, logdir=tmp_path, every=1, probes=["weights"]) as monitor:
        monitor(0, of_rank(4))
        state = monitor.state
    with RankMonitor(
        PROBLEM, logdir=tmp_path, every=1, probes=["weights"], alerts=alerts, state=state
    ) as monitor:
        monitor(1, of_rank(2))
    assert [alarm.step for alarm in alarms] == [1]


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_callback_may_checkpoint_flush_and_measure(background):
    seen = []

    def saves(alarm):
        seen.append((alarm.step, "monitor" in monitor.state))
        monitor.flush()
        monitor.report(alarm.step, {"mine": 1.0})

    memory = MemoryWriter()
    monitor = RankMonitor(
        PROBLEM,
        every=1,
        probes=["weights"],
        writers=[memory],
        alerts=[RankBelow(0.5, ("rank_weights/*", "low"), action=saves)],
        background=background,
    )
    monitor(0, of_rank(4), scalars={"low": 9})
    monitor.flush()
    monitor.report(0, {"low": 1.0})
    monitor(1, of_rank(1))
    monitor.close(2, of_rank(1))
    assert sorted(seen) == [(0, True), (1, True)]
    assert sum("mine" in record.scalars for record in memory.records) == 2


def test_a_stop_from_a_report_is_raised_at_close():
    monitor = RankMonitor(
        PROBLEM, every=1, probes=["weights"], alerts=[RankBelow(0.5, "mine", action="stop")]
    )
    monitor(0, of_rank(4), scalars={"mine": 4.0})
    monitor.report(1, {"mine": 1.0})
    with pytest.raises(StopTraining, match="step 1: mine"):
        monitor.close()


def test_a_callback_on_a_report_cannot_close_the_monitor_and_leaves_it_whole(tmp_path):
    monitor = RankMonitor(
        PROBLEM,
        logdir=tmp_path,
        every=1,
        probes=["weights"],
        alerts=[RankBelow(0.5, "mine", action=lambda alarm: monitor.close())],
    )
    monitor(0, of_rank(4), scalars={"mine": 4.0})
    monitor.report(1, {"mine": 1.0})
    with warned("close", "training thread"):
        monitor.close()
    RankMonitor(PROBLEM, logdir=tmp_path, every=1, probes=["weights"]).close()  # it is unlocked


def test_first_values_outlive_a_restore_without_a_folder():
    alarms = []
    monitor = RankMonitor(
        PROBLEM, every=1, probes=["weights"], alerts=[RankBelow(0.75, action=alarms.append)]
    )
    monitor(0, of_rank(4))
    monitor.restore(monitor.state)
    monitor(1, of_rank(2))
    monitor.close()
    assert [alarm.step for alarm in alarms] == [1]


def test_a_callback_that_fails_ends_nothing():
    def fails(alarm):
        raise OSError("no mail today")

    with pytest.warns(RankmonWarning, match="alert.*no mail today"):
        records = watched([RankBelow(0.5, action=fails)], [4, 1, 1])
    assert len(records) == 3


@pytest.mark.parametrize(
    ("build", "error", "keys"),
    [
        (lambda: RankBelow(0), ValueError, ["share", "(0, 1]", "got 0"]),
        (lambda: DeadUnits("half"), TypeError, ["share", "number", "str"]),
        (lambda: NonFinite(action="mail"), ValueError, ["action", "'mail'"]),
        (
            lambda: RankMonitor(PROBLEM, every=1, alerts=RankBelow(0.5)),
            TypeError,
            ["alerts", "RankBelow", "alerts=[alert]"],
        ),
        (
            lambda: RankMonitor(PROBLEM, every=1, alerts=[RankBelow]),
            TypeError,
            ["the class RankBelow"],
        ),
    ],
    ids=["share", "text", "action", "alone", "class"],
)
def test_wrong_input_is_refused(build, error, keys):
    with refused(error, *keys):
        build()
