"""Test resumed runs: in another folder, without their state, with the state of another batch."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from tensorboard.backend.event_processing import io_wrapper

import rankmon
from hparams_page import page_of, values
from rankmon import (
    JsonlWriter,
    Problem,
    RankMonitor,
    Record,
    TensorBoardWriter,
    read_jsonl,
)
from rankmon.monitor.alerts import NonFinite, RankBelow
from reading import scalar_steps
from refusals import refused, warned
from small_probes import Light, Remembering

RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 2))
WEIGHTS = RNG.standard_normal((3, 2))


def problem_of(x=X, y=Y, weights=None) -> Problem:
    return Problem(lambda W, x: x @ W, loss="mse", inputs=x, targets=y, weights=weights)


PROBLEM = problem_of()
REMEMBERS = (Remembering(), Light())


def monitor_of(folder, problem=PROBLEM, **options) -> RankMonitor:
    return RankMonitor(problem, **({"logdir": folder, "every": 1, "probes": REMEMBERS} | options))


def run(folder, steps, **options):
    """One attempt; its state at the end."""
    with monitor_of(folder, **options) as monitor:
        for step in steps:
            monitor(step, WEIGHTS)
    return monitor.state


# Another working directory


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    home, away = tmp_path / "home", tmp_path / "away"
    for folder in (home, away):
        folder.mkdir()
    monkeypatch.chdir(home)
    state = run("run", [0, 1], hparams={"lr": 1})
    monitor = monitor_of("run", hparams={"lr": 2}, state=state, alerts=[NonFinite()])
    seeds = rankmon.SeedsMonitor(PROBLEM, seeds=1, logdir="seeds", every=1, probes=["weights"])
    memory = [JsonlWriter("lines/a.jsonl"), TensorBoardWriter("events")]
    monkeypatch.chdir(away)
    monitor(2, WEIGHTS)
    monitor.close()
    seeds(0, WEIGHTS[None])
    seeds.close()
    for writer in memory:
        writer.write(Record(0, 1, 0.0, {"light": 1.0}, {}, hparams={"lr": 1}))
        shutil.rmtree(home / "lines", ignore_errors=True)
        shutil.rmtree(home / "events", ignore_errors=True)
        with warned("removed"):
            writer.write(Record(1, 1, 0.0, {"light": 1.0}, {}))
        writer.close()
    assert not list(away.iterdir())
    assert [record.step for record in read_jsonl(home / "run" / "rankmon.jsonl")] == [0, 1, 2]
    assert scalar_steps(home / "run", "light") == [0, 1, 2]
    (group,) = page_of(home / "run").groups.values()
    assert values(group)["lr"] == 2
    assert (home / "seeds" / "median" / "rankmon.jsonl").exists()


def test_a_relative_folder_below_one_that_was_removed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with refused(FileNotFoundError, "working directory", "logdir"):
        monitor_of("run")


# A kill


def test_no_temporary_file_is_read_as_an_event_file(tmp_path, monkeypatch):
    """What is there while a file is replaced is what a kill would leave."""
    state = run(tmp_path / "run", [0], hparams={"lr": 1})
    rename, kills = os.replace, []

    def replace(source, target):
        shutil.copytree(tmp_path / "run", tmp_path / f"killed_{len(kills)}")
        kills.append(os.path.basename(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    state = run(tmp_path / "run", [1], hparams={"lr": 2}, state=state)
    monkeypatch.undo()
    assert len(kills) == 2  # a session that has begun, and its end
    assert not any(map(io_wrapper.IsSummaryEventsFile, kills))
    for number in range(2):
        folder = tmp_path / f"killed_{number}"
        run(folder, [1, 2], hparams={"lr": 3}, state=state)
        (group,) = page_of(folder).groups.values()
        assert values(group)["lr"] == 3


def test_the_temporary_file_that_an_earlier_version_left_is_removed(tmp_path):
    state = run(tmp_path, [0], hparams={"lr": 1})
    run(tmp_path, [1], hparams={"lr": 2}, state=state)
    session = tmp_path / "events.out.tfevents.0000000000.session"
    shutil.copy(session, tmp_path / f".{session.name}.4321")
    run(tmp_path, [1], hparams={"lr": 3}, state=state)
    (group,) = page_of(tmp_path).groups.values()
    assert values(group)["lr"] == 3


# Without the state


@pytest.mark.parametrize("first", [1, 2, 7], ids=["earlier", "next", "later"])
def test_a_resume_without_the_state_is_said_once_and_marked(tmp_path, first):
    run(tmp_path, [0, 1])
    with warned("state=", "step 1", "logdir") as caught:
        run(tmp_path, [first, first + 1])
    assert len(caught) == 1
    texts = {record.step: record.texts for record in read_jsonl(tmp_path / "rankmon.jsonl")}
    marked = {
        step: text["rankmon/alerts"] for step, text in texts.items() if "rankmon/alerts" in text
    }
    assert marked.keys() == {first}
    assert "remembering" in marked[first]
    assert "H_f_fixed" in marked[first]


def test_the_mark_is_at_the_record_that_is_measured_and_not_at_a_report(tmp_path):
    run(tmp_path, [0, 1])
    with warned("state="), monitor_of(tmp_path) as monitor:
        monitor.report(5, {"mine": 1.0})
        monitor(6, WEIGHTS)
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [r.step for r in records if "rankmon/alerts" in r.texts] == [6]


def test_a_resume_without_state_and_lines_is_marked_too(tmp_path):
    run(tmp_path, [0, 1])
    (tmp_path / "rankmon.jsonl").unlink()
    with warned("state=", "logdir") as caught:
        run(tmp_path, [2, 3])
    assert len(caught) == 2  # that the lines are missing, too
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [r.step for r in records if "rankmon/alerts" in r.texts] == [2]


def test_what_remembers_nothing_or_supersedes_all_is_not_marked(tmp_path):
    for name, steps, probes in (("a", [3], [Light()]), ("b", [0, 1], REMEMBERS)):
        run(tmp_path / name, [0, 1], probes=probes)
        with warned("state=") as caught:
            run(tmp_path / name, steps, probes=probes)
        assert ("H_f_fixed" in str(caught[0].message)) == (probes is REMEMBERS)
        records = read_jsonl(tmp_path / name / "rankmon.jsonl")
        assert not any("rankmon/alerts" in record.texts for record in records)


def test_a_new_folder_and_a_resume_with_the_state_are_not_marked(tmp_path):
    state = run(tmp_path, [0, 1])
    run(tmp_path, [2, 3], state=state)
    resumed = monitor_of(tmp_path)
    resumed.restore(state)
    resumed(2, WEIGHTS)
    resumed.close()
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 1, 2]
    assert {record.scalars["first"] for record in records} == {0}
    assert not any("rankmon/alerts" in record.texts for record in records)


# The state of another probe batch


OTHERS = {
    "inputs": (X + 1e-3, Y, None),
    "targets": (X, -Y, None),
    "order": (X[::-1], Y[::-1], None),
    "weights": (X, Y, np.arange(1.0, 7.0)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_state_of_another_batch_is_refused(tmp_path, other):
    state = run(tmp_path, [0])
    with refused(ValueError, "probe batch", "state="):
        monitor_of(None, problem_of(*other), state=state)
    monitor = monitor_of(None, problem_of(*other))
    with refused(ValueError, "probe batch"):
        monitor.restore(state)
    monitor(0, WEIGHTS)
    monitor_of(tmp_path, state=state).close()  # the folder is free


def test_the_same_batch_in_another_dtype_is_the_same():
    same = (X.astype(np.float32), jnp.asarray(Y)), (np.asfortranarray(X), list(Y)), (X * 1.0, Y)
    labels = [np.arange(6) % 2 for _ in range(2)]
    state = run(None, [0])
    for x, y in same:
        monitor_of(None, problem_of(x, np.asarray(y)), state=state)
    for kind in (np.int32, np.uint8, np.int64):
        problems = [
            Problem(lambda W, x: x @ W, loss="cross_entropy", inputs=X, targets=one)
            for one in (labels[0], labels[1].astype(kind))
        ]
        state = run(None, [0], problem=problems[0])
        monitor_of(None, problems[1], state=state)


def test_states_without_a_digest_and_of_what_remembers_nothing_are_taken():
    state = run(None, [0])
    other = problem_of(X + 1, Y)
    bare = run(None, [0], probes=[Light()])
    monitor_of(None, other, probes=[Light()], state=bare)
    del state["monitor"]["batch"]
    monitor_of(None, other, state=state)
    del state["monitor"]["last_report"]
    monitor_of(None, other, state=state)


def test_the_seeds_states_have_digests_too():
    options = {"seeds": 2, "every": 1, "probes": list(REMEMBERS)}
    with rankmon.SeedsMonitor(PROBLEM, **options) as monitor:
        monitor(0, np.stack([WEIGHTS, WEIGHTS]))
    rankmon.SeedsMonitor(PROBLEM, **options, state=monitor.state)
    with refused(ValueError, "probe batch"):
        rankmon.SeedsMonitor(problem_of(2 * X, Y), **options, state=monitor.state)
    for state in (7, {"seed_0": monitor.state["seed_0"]}):
        with refused(ValueError, "seeds=2", "state"):
            rankmon.SeedsMonitor(PROBLEM, **options, state=state)


# States as checkpointers give them back


def flattened(state):
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(state))


def leaves_only(state):
    """By their paths, as most home-made checkpoints."""
    again: dict = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        *names, last = [key.key for key in path]
        folder = again
        for name in names:
            folder = folder.setdefault(name, {})
        folder[last] = jnp.asarray(leaf)
    return again


def nones(state):
    return {name: values or None for name, values in state.items()}


def msgpack(state):
    return serialization.msgpack_restore(serialization.msgpack_serialize(state))


@pytest.mark.parametrize("kept", [flattened, leaves_only, nones, msgpack])
def test_empty_entries_of_a_state_are_optional(tmp_path, kept):
    state = run(tmp_path, [0, 1])
    assert state["light"] == {}
    with monitor_of(tmp_path, state=kept(state)) as monitor:
        assert monitor(2, WEIGHTS).scalars["first"] == 0
    assert jax.tree.structure(monitor.state) == jax.tree.structure(state)
    bare = run(None, [0], probes=[Light()])
    monitor_of(None, probes=[Light()], state=kept(bare))


@pytest.mark.parametrize("state", [7, [1], {"monitor": 3}, "state"], ids=str)
def test_what_is_no_state_is_refused(state):
    with refused(TypeError, "state", "mapping"):
        monitor_of(None, state=state)


def test_a_state_without_what_is_remembered_is_refused():
    state = run(None, [0])
    state["remembering"] = {}
    with refused(ValueError, "remembering", "probes"):
        monitor_of(None, state=state)


# Alerts


def weights_of_rank(rank):
    return {"W": np.diag([1.0] * rank + [0.0] * (4 - rank))}


RANKED = Problem(lambda p, x: x @ p["W"], loss="mse", inputs=np.eye(4), targets=np.ones((4, 4)))


def alarms_at(folder, ranks, *, first=0, state=None, alerts=None, check=None):
    """The steps at which it is told that the rank fell, and the state at the end."""
    steps = []
    alerts = [RankBelow(0.75, action=lambda alarm: steps.append(alarm.step))]
    with RankMonitor(
        RANKED, logdir=folder, every=1, probes=["weights"], alerts=alerts, state=state
    ) as monitor:
        for step, rank in enumerate(ranks, first):
            monitor(step, weights_of_rank(rank))
    return steps, monitor.state


def test_an_alert_that_holds_is_not_told_again_after_a_restart(tmp_path):
    steps, state = alarms_at(tmp_path, [4, 4, 1, 1, 1])
    assert steps == [2]
    assert alarms_at(tmp_path, [1, 1, 4, 1], first=5, state=state)[0] == [8]


def test_an_alert_that_was_superseded_is_told_again(tmp_path):
    _, state = alarms_at(tmp_path, [4, 4])
    assert alarms_at(tmp_path, [1, 1], first=2, state=state)[0] == [2]
    assert alarms_at(tmp_path, [1, 1], first=2, state=state)[0] == [2]


def test_an_alert_that_holds_is_not_told_again_without_the_state(tmp_path):
    alarms_at(tmp_path, [4, 1])
    with warned("state="):
        assert alarms_at(tmp_path, [1, 4, 1], first=2)[0] == [4]


def test_an_alert_of_a_report_is_not_told_again(tmp_path):
    steps, state = [], None
    for first in (0, 2):
        with RankMonitor(
            RANKED,
            logdir=tmp_path,
            every=1,
            probes=["weights"],
            alerts=[RankBelow(0.5, "mine", action=lambda alarm: steps.append(alarm.step))],
            state=state,
        ) as monitor:
            for step in (first, first + 1):
                monitor.report(step, {"mine": 9.0 if step == 0 else 1.0})
                monitor(step, weights_of_rank(4))
        state = monitor.state
    assert steps == [1]


def test_an_alert_is_told_again_after_a_restore_to_before_it(tmp_path):
    steps = []
    monitor = RankMonitor(
        RANKED,
        logdir=tmp_path,
        every=1,
        probes=["weights"],
        alerts=[RankBelow(0.75, action=lambda alarm: steps.append(alarm.step))],
    )
    monitor(0, weights_of_rank(4))
    saved = monitor.state
    monitor(1, weights_of_rank(1))
    monitor.restore(saved)
    monitor(1, weights_of_rank(1))
    later = monitor.state
    monitor(2, weights_of_rank(1))
    monitor.restore(later)
    monitor(2, weights_of_rank(1))
    monitor.close()
    assert steps == [1, 1]
