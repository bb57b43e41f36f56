"""Test hyperparameters, read back by TensorBoard's HPARAMS backend, and refusals."""

import json
import time
import urllib.request
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import (
    api_pb2,
    metadata,
)

from hparams_page import FAILURE, SUCCESS, UNKNOWN, metrics, page_of, status, values
from rankmon import (
    HessianProbe,
    MemoryWriter,
    Problem,
    RankMonitor,
    SeedsMonitor,
    TensorBoardWriter,
    alerts,
    read_jsonl,
)
from rankmon.monitor.hooks import watch_weights
from rankmon.runs.read import read_runs
from rankmon.writers.event_files import SESSION_NAME
from refusals import refused
from tensorboard_process import tensorboard_server

DIMS = (4, 5, 3)


def apply(params, x):
    return x @ params["W1"] @ params["W2"]


def problem_of(loss="mse"):
    rng = np.random.default_rng(0)
    return Problem(
        apply, loss=loss, inputs=rng.standard_normal((20, 4)), targets=rng.standard_normal((20, 3))
    )


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"W{i}": jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for i, shape in enumerate(zip(DIMS, DIMS[1:], strict=False), 1)
    }


PROBLEM, PARAMS = problem_of(), weights()


# As TensorBoard shows them


def test_a_run_comes_back_with_its_values_metrics_and_status(tmp_path):
    hparams = {"lr": 0.1, "width": 25, "optimizer": "adam", "decay": False, "loss": "mine"}
    with RankMonitor(PROBLEM, logdir=tmp_path / "run", every=2, hparams=hparams) as monitor:
        for step in range(4):
            monitor(step, PARAMS)
        record = monitor.close()
    page = page_of(tmp_path)
    (name,) = page.groups
    group = page.groups[name]
    assert [session.name for session in group.sessions] == ["run"]
    assert values(group) == {
        **hparams,
        "parameters": 35,
        "examples": 20,
        "outputs": 3,
        "widths": "4-5-3",
        "input_rank": 4,
        "bottleneck": 3,
        "engine": "deep_linear",
        "eps": np.finfo(np.float64).eps,
    }
    assert page.columns.keys() == values(group).keys()
    assert page.columns["lr"] == page.columns["width"] == api_pb2.DATA_TYPE_FLOAT64
    assert page.columns["optimizer"] == api_pb2.DATA_TYPE_STRING
    assert page.columns["decay"] == api_pb2.DATA_TYPE_BOOL
    assert {"rank/H_L", "loss", "rank_weights/W1"} <= page.metrics
    assert metrics(group)["rank/H_L"] == record.scalars["rank/H_L"]
    assert metrics(group)["loss"] == pytest.approx(record.scalars["loss"], rel=1e-6)
    assert status(group) == SUCCESS
    (session,) = group.sessions
    assert session.start_time_secs <= session.end_time_secs
    assert session.start_time_secs > 1e9


def test_runs_in_one_folder_are_rows_of_their_own(tmp_path):
    for name, hparams in (("a", {"lr": 0.1}), ("b", {"lr": 0.1}), ("c", {"lr": 1, "wide": True})):
        with RankMonitor(
            PROBLEM, logdir=tmp_path / name, every=1, hparams=hparams, probes=["weights"]
        ) as monitor:
            monitor(0, PARAMS)
    page = page_of(tmp_path)
    rows = {group.sessions[0].name: values(group) for group in page.groups.values()}
    assert {name: row["lr"] for name, row in rows.items()} == {"a": 0.1, "b": 0.1, "c": 1}
    assert rows["c"]["wide"] is True
    assert {"lr", "wide", "loss", "parameters"} <= page.columns.keys()
    assert "engine" not in page.columns  # the Hessian was not measured


def test_a_part_of_the_parameters_is_told_apart_from_all(tmp_path):
    probes = [HessianProbe(include="W2")]
    with RankMonitor(PROBLEM, logdir=tmp_path, every=1, hparams={}, probes=probes) as monitor:
        monitor(0, PARAMS)
    (group,) = page_of(tmp_path).groups.values()
    row = values(group)
    assert (row["parameters"], row["differentiated"], row["engine"]) == (35, 15, "dense")
    assert "widths" not in row


def test_without_hparams_there_is_no_session_and_with_none_of_ones_own_there_is(tmp_path):
    for name, hparams in (("without", None), ("facts", {})):
        with RankMonitor(PROBLEM, logdir=tmp_path / name, every=1, hparams=hparams) as monitor:
            monitor(0, PARAMS)
    (group,) = page_of(tmp_path).groups.values()
    assert [session.name for session in group.sessions] == ["facts"]
    assert values(group)["widths"] == "4-5-3"


@pytest.mark.parametrize("background", [False, True])
def test_an_exception_in_the_loop_is_a_failure(tmp_path, background):
    def loop():
        with RankMonitor(
            PROBLEM, logdir=tmp_path, every=1, hparams={}, background=background
        ) as monitor:
            monitor(0, PARAMS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    (group,) = page_of(tmp_path).groups.values()
    assert status(group) == FAILURE


def test_an_alert_that_stops_the_loop_is_a_failure_unless_it_is_caught_inside(tmp_path):
    def monitor_of(name):
        stop = alerts.RankBelow(1.0, action="stop")
        return RankMonitor(
            PROBLEM, logdir=tmp_path / name, every=1, hparams={}, alerts=[stop], probes=["weights"]
        )

    def train(monitor):
        monitor(0, PARAMS)
        monitor(1, {**PARAMS, "W1": 0 * PARAMS["W1"]})

    with pytest.raises(alerts.StopTraining), monitor_of("outside") as monitor:
        train(monitor)
    with monitor_of("inside") as monitor, pytest.raises(alerts.StopTraining):
        train(monitor)
    ended = {g.sessions[0].name: status(g) for g in page_of(tmp_path).groups.values()}
    assert ended == {"outside": FAILURE, "inside": SUCCESS}


def test_a_run_that_is_under_way_has_no_status_yet(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=1, hparams={"lr": 1}) as monitor:
        monitor(0, PARAMS)
        (group,) = page_of(tmp_path).groups.values()
        assert status(group) == UNKNOWN
        assert values(group)["lr"] == 1


# Restarts


def attempt(folder, steps, *, state=None, fails=False, lr=0.1):
    """One go of training; its monitor's state."""
    monitor = RankMonitor(PROBLEM, logdir=folder, every=1, hparams={"lr": lr}, state=state)
    try:
        with monitor:
            for step in steps:
                monitor(step, PARAMS)
            state = monitor.state
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    return state


def test_a_restart_is_the_same_session_with_its_newest_values_and_end(tmp_path):
    state = attempt(tmp_path / "run", range(4), fails=True)
    assert not (tmp_path / "run" / SESSION_NAME).exists()
    (group,) = page_of(tmp_path).groups.values()
    assert status(group) == FAILURE
    attempt(tmp_path / "run", range(4, 6), state=state, lr=0.01)
    page = page_of(tmp_path)
    (group,) = page.groups.values()
    (session,) = group.sessions
    assert session.name == "run"
    assert session.status == SUCCESS
    assert values(group)["lr"] == 0.01
    assert metrics(group)["rank/H_L"] > 0
    (metric,) = [m for m in group.metric_values if m.name.tag == "loss"]
    assert metric.training_step == 5


def test_a_restart_under_way_has_no_status_and_its_crash_leaves_it_so(tmp_path):
    attempt(tmp_path, range(2))
    monitor = RankMonitor(PROBLEM, logdir=tmp_path, every=1, hparams={"lr": 5})
    with pytest.warns(UserWarning, match="supersedes"):
        monitor(0, PARAMS)
    (group,) = page_of(tmp_path).groups.values()
    assert status(group) == UNKNOWN
    assert values(group)["lr"] == 5
    monitor.close()
    (group,) = page_of(tmp_path).groups.values()
    assert status(group) == SUCCESS


def test_training_that_goes_back_stays_one_session(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=1, hparams={"lr": 1}) as monitor:
        for step in (0, 1, 2):
            monitor(step, PARAMS)
        with pytest.warns(UserWarning, match="comes after"):
            monitor(0, PARAMS)
    (group,) = page_of(tmp_path).groups.values()
    assert status(group) == SUCCESS
    assert not (tmp_path / SESSION_NAME).exists()


@pytest.mark.slow
@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_the_server_shows_the_newest_attempt(tmp_path, load_fast):
    state = attempt(tmp_path / "logs" / "run", range(3), fails=True)
    attempt(tmp_path / "logs" / "run", range(2, 5), state=state, lr=0.01)
    attempt(tmp_path / "logs" / "other", range(2), lr=1)
    asked = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE"],
        "colParams": [{"hparam": "lr"}],
        "startIndex": 0,
        "sliceSize": 10,
    }

    def groups(address):
        request = urllib.request.Request(
            f"{address}data/plugin/hparams/session_groups",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["sessionGroups"]

    with tensorboard_server(tmp_path / "logs", f"--load_fast={load_fast}") as address:
        deadline = time.monotonic() + 30
        while len(found := groups(address)) < 2 or not all(g["metricValues"] for g in found):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
    rows = {group["sessions"][0]["name"]: group for group in found}
    assert {name: row["hparams"]["lr"] for name, row in rows.items()} == {"run": 0.01, "other": 1}
    assert {row["sessions"][0]["status"] for row in found} == {"STATUS_SUCCESS"}


# Seeds and other writers


def test_seeds_are_sessions_and_the_median_is_none(tmp_path):
    params = {name: jnp.stack([weights(s)[name] for s in range(3)]) for name in PARAMS}

    def loop():
        with SeedsMonitor(
            PROBLEM, seeds=3, logdir=tmp_path, every=1, hparams={"lr": 0.1}, probes=["weights"]
        ) as monitor:
            monitor(0, params)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    page = page_of(tmp_path)
    ended = {group.sessions[0].name: status(group) for group in page.groups.values()}
    assert ended == dict.fromkeys(("seed_0", "seed_1", "seed_2"), FAILURE)
    assert {values(group)["lr"] for group in page.groups.values()} == {0.1}
    with refused(TypeError, "got queue"):
        SeedsMonitor(PROBLEM, seeds=3, every=1, queue=2)


class CluWriter:
    """The methods of a CLU metric writer that count here."""

    def __init__(self):
        self.calls = []

    def write_scalars(self, step, scalars):
        self.calls.append(("scalars", step))

    def write_hparams(self, hparams):
        self.calls.append(("hparams", hparams))


def test_other_writers_keep_them(tmp_path):
    memory, clu = MemoryWriter(), CluWriter()
    hparams = {"lr": 0.1, "steps": 2**60 + 1, "name": "ä|b", "flag": True}
    with RankMonitor(
        PROBLEM,
        logdir=tmp_path,
        every=1,
        writers=[memory, clu],
        hparams=hparams,
        probes=["weights"],
    ) as monitor:
        monitor(0, PARAMS)
        monitor(1, PARAMS)
    lines = read_jsonl(tmp_path / "rankmon.jsonl")
    want = {**hparams, "loss": "mse", "parameters": 35, "examples": 20, "outputs": 3}
    for records in (memory.records, lines):
        assert [dict(record.hparams) for record in records] == [want, {}]
        assert [type(v) for v in records[0].hparams.values()] == [type(v) for v in want.values()]
    assert clu.calls == [("hparams", want), ("scalars", 0), ("scalars", 1)]
    (run,) = read_runs(tmp_path)
    assert list(run.scalars["rank_weights/W1"].steps) == [0, 1]
    (tmp_path / "rankmon.jsonl").unlink()
    (run,) = read_runs(tmp_path)
    assert not [tag for tag in (*run.scalars, *run.arrays, *run.texts) if "hparams" in tag]


def test_reports_open_the_session_too(tmp_path):
    with RankMonitor(
        PROBLEM, logdir=tmp_path, every=1, hparams={"lr": 0.1}, probes=["weights"]
    ) as monitor:
        transformation = watch_weights(1, reporter=monitor)
        jax.jit(transformation.update)(PARAMS, transformation.init(PARAMS), PARAMS)
        monitor.flush()
    (group,) = page_of(tmp_path).groups.values()
    assert values(group) == {"lr": 0.1}
    assert status(group) == SUCCESS


def test_a_writer_of_ones_own_folder_ends_its_session_too(tmp_path):
    with RankMonitor(
        PROBLEM,
        every=1,
        hparams={"lr": 1},
        writers=[TensorBoardWriter(tmp_path)],
        probes=["weights"],
    ) as monitor:
        monitor(0, PARAMS)
    (group,) = page_of(tmp_path).groups.values()
    assert status(group) == SUCCESS


# What is refused, before anything is computed


@pytest.mark.parametrize(
    ("hparams", "kind", "keys"),
    [
        ([("lr", 1)], TypeError, ["hparams", "got list"]),
        ({1: 2}, TypeError, ["names of hparams", "strings", "got 1"]),
        ({" ": 2}, ValueError, ["names of hparams", "' '"]),
        ({"a": None}, TypeError, ["hparams['a']", "number", "string", "bool", "got None"]),
        ({"a": [1, 2]}, TypeError, ["hparams['a']", "[1, 2]", "list"]),
        ({"a": np.ones(2)}, TypeError, ["hparams['a']", "array"]),
        ({"a": np.array(2)}, TypeError, ["hparams['a']", "float("]),
        ({"a": jnp.ones(())}, TypeError, ["hparams['a']", "float("]),
        ({"a": 1j}, TypeError, ["hparams['a']", "complex"]),
        ({"a": float("nan")}, ValueError, ["hparams['a']", "finite", "nan"]),
        ({"a": np.float32("inf")}, ValueError, ["hparams['a']", "finite"]),
        ({"a": 10**400}, ValueError, ["hparams['a']", "finite"]),
    ],
)
def test_what_is_refused(tmp_path, hparams, kind, keys):
    with refused(kind, *keys):
        RankMonitor(PROBLEM, logdir=tmp_path / "run", every=1, hparams=hparams)
    assert not (tmp_path / "run").exists()


def test_numpys_and_pythons_numbers_are_taken():
    given = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": np.str_("x"),
        "e": Fraction(1, 4),
        "f": np.float16(2),
    }
    memory = MemoryWriter()
    with RankMonitor(
        PROBLEM, every=1, hparams=given, writers=[memory], probes=["weights"]
    ) as monitor:
        monitor(0, PARAMS)
    taken = {name: memory.records[0].hparams[name] for name in given}
    assert taken == {"a": 0.5, "b": 3, "c": True, "d": "x", "e": 0.25, "f": 2.0}
    assert [type(v) for v in taken.values()] == [float, int, bool, str, float, float]


def test_the_tags_are_those_of_tensorboards_plugin(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=1, hparams={}) as monitor:
        monitor(0, PARAMS)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    tags = set(multiplexer.PluginRunToTagToContent(metadata.PLUGIN_NAME)["."])
    assert tags == {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}
