"""Trackers, offline and with the real packages: what they hold is what rankmon.jsonl holds."""

import json
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, read_jsonl
from rankmon.probes.base import Measurement
from rankmon.writers import MLflowWriter, ScalarsWriter, WandbWriter
from refusals import refused
from small_probes import Light
from wandb_files import wandb_records, wandb_rows

HPARAMS = {"lr": 0.1, "name": "small", "nesterov": True}
PROBLEM = Problem(lambda w, x: x @ w, loss="mse", inputs=np.eye(2), targets=np.eye(2))
PARAMS = jnp.eye(2)


class Odd(Light):
    """A probe of numbers that stores and JSON treat in ways of their own."""

    def measure(self, snapshot, state):
        step = snapshot.step
        scalars = {
            "rank/H_L": 12.0 - step,
            "loss": 1 / (3 + step),
            "odd/nan": math.nan if step == 4 else 0.1,
            "odd/a.b[0] 'c'": 1e-300 * (1 + step),
            "odd/a.b(0) 'c'": 2.0,
        }
        return Measurement(scalars, {"spectrum/H_L": np.array([3.0, -1.0, 0.1 * step])}), state


def train(folder, *writers, first=0, until=7, state=None, problem=PROBLEM, **hparams):
    """Measure every second step, with an alert at step 4."""
    alert = SimpleNamespace(
        found=lambda scalars, _: {"rank/H_L": "too low"} if scalars["rank/H_L"] < 9 else {},
        action=lambda alarm: None,
    )
    with RankMonitor(
        problem, logdir=folder, every=2, probes=[Odd()], writers=list(writers),
        state=state, alerts=[alert], hparams={**HPARAMS, **hparams},
    ) as monitor:  # fmt: skip
        for step in range(first, until):
            monitor(step, PARAMS)
        saved = monitor.state
        monitor.close(until, PARAMS)
    return saved, read_jsonl(folder / "rankmon.jsonl")


def same(got, want):
    """Return whether two numbers are the same bits, or both NaN."""
    return got == want or (math.isnan(got) and math.isnan(want))


# wandb


@pytest.fixture
def wandb_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    settings = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True
    )
    with wandb.init(mode="offline", project="p", dir=str(tmp_path), settings=settings) as run:
        yield run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_holds_the_numbers_of_the_run(wandb_run, tmp_path):
    saved, _ = train(tmp_path / "run", WandbWriter(wandb_run))
    with MemoryWriter() as memory:
        train(tmp_path / "run", WandbWriter(wandb_run), memory, first=4, until=9, state=saved)
    wandb_run.log({"loss": 7.0})
    wandb_run.finish()
    records = wandb_records(tmp_path)
    rows = wandb_rows(records)
    steps = [row["rankmon_step"] for row in rows]
    assert steps == [0, 2, 4, 6, 7, *(record.step for record in memory.all_records)]
    assert [row["rankmon_attempt"] for row in rows] == [1] * 5 + [2] * (len(rows) - 5)
    assert rows[-1]["loss"] == 7.0  # the user's own is not replaced
    last = {row["rankmon_step"]: row for row in rows}
    for record in read_jsonl(tmp_path / "run" / "rankmon.jsonl"):
        row = last[record.step]
        for tag, value in record.scalars.items():
            assert same(float(row[f"rankmon/{tag}"]), value), tag
        assert row["rankmon/spectrum/H_L/_type"] == "histogram"
        assert sum(row["rankmon/spectrum/H_L/values"]) == 3
    configs = [json.loads(u.value_json) for r in records for u in r.config.update
               if u.key == "rankmon"]  # fmt: skip
    assert configs[0].items() >= HPARAMS.items()
    alerts = [record.alert for record in records if record.HasField("alert")]
    assert (alerts[0].title, alerts[0].text) == ("rankmon, step 4", "* too low")
    assert last[4]["rankmon/alerts/_type"] == "html-file"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rows_of_wandb_stay_those_of_the_user(wandb_run, tmp_path):
    with RankMonitor(PROBLEM, every=2, probes=[Odd()], writers=[WandbWriter(wandb_run)]) as monitor:
        for step in range(5):
            monitor(step, PARAMS)
            wandb_run.log({"mine": float(step)})
    wandb_run.finish()
    rows = wandb_rows(wandb_records(tmp_path))
    assert [(row["mine"], row["_step"], row.get("rankmon_step")) for row in rows] == [
        (0, 0, 0), (1, 1, None), (2, 2, 2), (3, 3, None), (4, 4, 4)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_finished_run_of_wandb_ends_no_training(wandb_run, tmp_path):
    writer = WandbWriter(wandb_run)
    wandb_run.finish()
    with pytest.warns(RankmonWarning, match="WandbWriter"):
        _, records = train(tmp_path / "run", writer)
    assert [record.step for record in records] == [0, 2, 4, 6, 7]


# trackio


@pytest.fixture(scope="module")
def trackio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        yield pytest.importorskip("trackio")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trackio_holds_the_numbers_of_the_run(trackio, tmp_path, capsys):
    from trackio.sqlite_storage import SQLiteStorage

    run = trackio.init(project="p", name="r", config={"own": 1}, embed=False)
    _, records = train(tmp_path, WandbWriter(run))
    trackio.log({"loss": 7.0}, step=0)
    trackio.finish()
    capsys.readouterr()
    rows = [row for row in SQLiteStorage.get_logs("p", "r") if "rankmon_step" in row]
    assert [row["step"] for row in rows] == [row["rankmon_step"] for row in rows] == [0, 2, 4, 6, 7]
    for record, row in zip(records, rows, strict=True):
        for tag, value in record.scalars.items():
            assert same(float(row[f"rankmon/{tag}"]), value), tag
        assert sum(row["rankmon/spectrum/H_L"]["values"]) == 3
    assert "| lr | 0.1 |" in rows[0]["rankmon/hparams"]["_value"]
    assert rows[2]["rankmon/alerts"]["_value"] == "* too low"
    (alert,) = SQLiteStorage.get_alerts("p", "r")
    assert (alert["text"], alert["step"]) == ("* too low", 4)
    config = SQLiteStorage.get_run_config("p", "r")
    assert config["own"] == 1
    assert config["rankmon"].items() >= HPARAMS.items()


@pytest.mark.parametrize("run", [None, math, MemoryWriter()], ids=["none", "module", "writer"])
def test_only_runs_are_written_to(run):
    with refused(TypeError, "wandb.init", "trackio.init"):
        WandbWriter(run)
    with refused(TypeError, "mlflow.start_run"):
        MLflowWriter(run, client=object())


# MLflow


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_numbers_of_the_run(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment)
    at = run.info.run_id
    client.log_metric(at, "loss", 7.0, step=0)
    saved, _ = train(tmp_path / "run", MLflowWriter(run, client=client))
    _, records = train(
        tmp_path / "run", MLflowWriter(at, client=client), first=4, until=9, state=saved, lr=0.2
    )

    def last(name):
        """The last point of each step."""
        points = sorted(client.get_metric_history(at, name), key=lambda point: point.timestamp)
        return {point.step: point.value for point in points}

    assert last("loss") == {0: 7.0}
    names = client.get_run(at).data.metrics
    odd = sorted(name for name in names if "odd/a" in name)
    assert len(odd) == 2  # tags that differ in brackets alone
    for tag in ("rank/H_L", "loss", "odd/nan", "monitor/seconds"):
        points = last(f"rankmon/{tag}")
        for record in records:
            assert same(points[record.step], record.scalars[tag]), tag
    assert {1e-300, 2.0} == {last(name)[0] for name in odd}
    assert last("rankmon_attempt") == {0: 1, 2: 1, 4: 2, 6: 2, 7: 1, 8: 2, 9: 2}
    data = client.get_run(at).data
    assert data.params["rankmon/lr"] == "0.1"
    assert data.tags["rankmon/lr"] == "0.2"
    assert data.tags["rankmon.alert"] == "step 4: * too low"
    arrays = json.loads(
        (tmp_path / "artifacts" / at / "artifacts/rankmon/arrays/step_0000000004.json").read_text()
    )
    np.testing.assert_array_equal(arrays["spectrum/H_L"], records[2].arrays["spectrum/H_L"])
    text = tmp_path / "artifacts" / at / "artifacts/rankmon/texts/alerts/step_0000000004.md"
    assert text.read_text() == "* too low"


# Interfaces for scalars


class Backend:
    """The interface of metrax: a listener of jax.monitoring."""

    def __init__(self):
        self.logged = []

    def log_scalar(self, event, value, **kwargs):
        self.logged.append((event, value, kwargs))

    def close(self):
        raise AssertionError("closed")


def test_an_object_with_log_scalar_is_a_writer(tmp_path):
    backend = Backend()
    _, records = train(tmp_path, backend)
    want = [(tag, record.step) for record in records for tag in record.scalars]
    assert [(tag, given["step"]) for tag, _, given in backend.logged] == want


@pytest.mark.filterwarnings("ignore")
def test_metrax_holds_the_numbers_of_the_run(tmp_path):
    logging = pytest.importorskip("metrax.logging")
    from reading import legacy_events

    backend = logging.TensorboardBackend(str(tmp_path / "metrax"))
    _, records = train(tmp_path / "run", backend)
    backend.close()
    events = legacy_events(tmp_path / "metrax")
    for tag in ("rank/H_L", "loss", "odd/nan"):
        points = {event.step: event.value for event in events.Scalars(tag)}
        for record in records:
            assert same(points[record.step], float(np.float32(record.scalars[tag]))), tag


def test_an_object_with_methods_of_clu_gets_all_parts(tmp_path):
    calls = []
    clu = SimpleNamespace(
        write_scalars=lambda step, scalars: calls.append(("scalars", step)),
        write_histograms=lambda step, arrays: calls.append(("histograms", step, *arrays)),
        write_texts=lambda step, texts: calls.append(("texts", step, *texts)),
        write_hparams=lambda hparams: calls.append(("hparams", hparams["lr"])),
        flush=lambda: None,
    )
    train(tmp_path, ScalarsWriter(clu))
    assert calls[0] == ("hparams", 0.1)
    assert ("histograms", 4, "spectrum/H_L") in calls
    assert ("texts", 4, "rankmon/alerts") in [call[:3] for call in calls]
    assert [call[1] for call in calls if call[0] == "scalars"] == [0, 2, 4, 6, 7]


class Broken:
    def log_scalar(self, *_, **__):
        raise ConnectionError("no network")


def test_a_tracker_that_fails_ends_no_training(tmp_path):
    with pytest.warns(RankmonWarning, match="no network"), pytest.warns(match="not write 5 rec"):
        _, records = train(tmp_path, Broken())
    assert [record.step for record in records] == [0, 2, 4, 6, 7]
