"""Test reading of runs against TensorBoard's readers: complete, live, restarted or torn."""

import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util import tensor_util

from paths import REFERENCE
from rankmon import JsonlWriter, Problem, RankMonitor, Record, TensorBoardWriter
from rankmon.runs.read import read_runs, read_several
from rankmon.runs.series import ArraySeries, RunSeries
from reading import legacy_events
from refusals import refused, warned
from run_records import NAMES, record, small_record, write_both


def events_only(folder: Path) -> Path:
    (folder / "rankmon.jsonl").unlink()
    return folder


def lines_only(folder: Path) -> Path:
    for path in folder.glob("*tfevents*"):
        path.unlink()
    return folder


SOURCES = pytest.mark.parametrize("reduced", [events_only, lines_only], ids=["events", "jsonl"])


def monitored(folder: Path) -> list[Record]:
    """The records of a monitor over ten steps of a network."""
    rng = np.random.default_rng(0)
    problem = Problem(
        lambda w, x: jnp.tanh(x @ w["a/b"]) @ w["c"],
        loss="mse",
        inputs=rng.standard_normal((6, 3)),
        targets=rng.standard_normal((6, 2)),
    )
    first, second = rng.standard_normal((3, 3)), rng.standard_normal((3, 2))
    records = []
    with RankMonitor(problem, logdir=folder, every=3) as monitor:
        for step in range(10):
            measured = monitor(step, {"a/b": jnp.asarray(first * (1 + step)), "c": second})
            records += [] if measured is None else [measured]
    return records


def test_a_monitors_run_at_full_precision(tmp_path):
    records = monitored(tmp_path)
    (run,) = read_runs(tmp_path)
    assert run.name == "."
    assert set(run.scalars) == set(records[0].scalars)
    for tag, series in run.scalars.items():
        assert series.steps.tolist() == [0, 3, 6, 9]
        np.testing.assert_array_equal(series.values, [one.scalars[tag] for one in records], tag)
    for tag, series in run.arrays.items():
        for values, one in zip(series.values, records, strict=True):
            np.testing.assert_array_equal(values, one.arrays[tag])
    assert run.texts == {"rankmon/card": {0: records[0].texts["rankmon/card"]}}


def test_without_its_jsonl_it_is_what_tensorboard_reads(tmp_path):
    monitored(tmp_path)
    (run,) = read_runs(events_only(tmp_path))
    events = legacy_events(tmp_path)
    assert set(run.scalars) == set(events.Tags()["scalars"])
    for tag, series in run.scalars.items():
        logged = events.Scalars(tag)
        assert series.steps.tolist() == [event.step for event in logged]
        np.testing.assert_array_equal(series.values, [event.value for event in logged])
    assert {f"{tag}/values" for tag in run.arrays} == {
        tag
        for tag, metadata in events.summary_metadata.items()
        if metadata.plugin_data.plugin_name == "rankmon"
    }
    for tag, series in run.arrays.items():
        for values, event in zip(series.values, events.Tensors(f"{tag}/values"), strict=True):
            np.testing.assert_array_equal(values, tensor_util.make_ndarray(event.tensor_proto))
    (card,) = events.Tensors("rankmon/card")
    text = tensor_util.make_ndarray(card.tensor_proto).item().decode()
    assert run.texts == {"rankmon/card": {0: text}}


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    """The folder of a run with more records than TensorBoard keeps of the plugin's tensors."""
    folder = tmp_path_factory.mktemp("long")
    write_both(folder, *(small_record(step) for step in range(1010)))
    return folder


@SOURCES
def test_no_step_is_left_out(long_run, tmp_path, reduced):
    folder = shutil.copytree(long_run, tmp_path / "run")
    (run,) = read_runs(reduced(folder))
    assert run.scalars["loss"].steps.tolist() == list(range(1010))
    assert run.arrays["spectrum/H_L"].steps.tolist() == list(range(1010))
    assert list(run.texts["rankmon/alerts"]) == list(range(1, 1010, 2))


@SOURCES
def test_what_a_restart_superseded_is_left_out(tmp_path, reduced):
    write_both(tmp_path, *(record(step, rank=5.0) for step in (0, 10, 20, 30)))
    write_both(tmp_path, *(record(step, rank=7.0) for step in (20, 25)))
    (run,) = read_runs(reduced(tmp_path))
    assert run.scalars["rank/H_L"].steps.tolist() == [0, 10, 20, 25]
    assert run.scalars["rank/H_L"].values.tolist() == [5.0, 5.0, 7.0, 7.0]


def test_a_live_run_grows(tmp_path):
    with TensorBoardWriter(tmp_path) as events, JsonlWriter(tmp_path / "rankmon.jsonl") as lines:
        with refused(ValueError, "runs of rankmon"):
            read_runs(tmp_path)
        for step in range(3):
            events.write(record(step))
            lines.write(record(step))
            (run,) = read_runs(tmp_path)
            assert run.scalars["loss"].steps.tolist() == list(range(step + 1))


@SOURCES
def test_a_last_record_that_is_half_there(tmp_path, reduced):
    write_both(tmp_path, *(record(step) for step in range(4)))
    (path,) = [path for path in reduced(tmp_path).iterdir() if path.is_file()]
    path.write_bytes(path.read_bytes()[:-20])
    (run,) = read_runs(tmp_path)
    assert run.scalars["loss"].steps.tolist() == [0, 1, 2]


def test_records_of_one_step_are_one(tmp_path):
    """As the reports from inside a compiled loop come: in any order, some tags at a time."""
    with JsonlWriter(tmp_path / "rankmon.jsonl") as writer:
        writer.start(0)
        writer.write(record(4, rank=1.0))
        writer.write(record(2, mine=3.0))
        writer.write(record(4, rank=2.0))
    (run,) = read_runs(tmp_path)
    assert run.scalars["rank/H_L"].steps.tolist() == [2, 4]
    assert run.scalars["rank/H_L"].values.tolist() == [12.0, 2.0]
    assert run.scalars["mine"].steps.tolist() == [2]


def test_non_finite_values(tmp_path):
    ranks = [float("nan"), float("inf"), 3.0]
    write_both(tmp_path, *(record(step, rank=rank) for step, rank in enumerate(ranks)))
    np.testing.assert_array_equal(read_runs(tmp_path)[0].scalars["rank/H_L"].values, ranks)
    events_only(tmp_path)
    np.testing.assert_array_equal(read_runs(tmp_path)[0].scalars["rank/H_L"].values, ranks)


def test_names_are_tensorboards(tmp_path):
    for name in NAMES:
        write_both(tmp_path / name, record(0))
    names = [run.name for run in read_runs(tmp_path)]
    assert sorted(names) == sorted(EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Runs())
    assert sorted(names) == sorted(NAMES)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_but_not_in_circles(tmp_path):
    write_both(tmp_path / "run", record(0))
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "up").symlink_to(tmp_path)
    assert [run.name for run in read_runs(tmp_path)] == ["latest", "run"]


def test_numbers_in_names_count(tmp_path):
    for name in ("seed_10", "seed_2", "²", "1", "median", "seed_1"):
        write_both(tmp_path / name, record(0))
    names = [run.name for run in read_runs(tmp_path)]
    assert names == ["1", "median", "seed_1", "seed_2", "seed_10", "²"]


@pytest.mark.parametrize("part", ["supplement", pytest.param(".", marks=pytest.mark.slow)])
def test_the_reference_runs(part):
    top = REFERENCE / part
    folders = {path.parent for path in top.rglob("*tfevents*")}
    pictures_only = {REFERENCE / "supplement" / "S22", REFERENCE / "supplement" / "S30"}
    expected = {folder.relative_to(top).as_posix() for folder in folders - pictures_only}
    assert {run.name for run in read_runs(top)} == expected


def test_a_reference_run_is_what_tensorboard_reads():
    (run,) = read_runs(REFERENCE / "linear_teacher")
    events = legacy_events(REFERENCE / "linear_teacher")
    for event, step, value in zip(
        events.Scalars("rank/H_L"), *vars(run.scalars["rank/H_L"]).values(), strict=True
    ):
        assert (event.step, event.value) == (step, value)


def test_other_programs_runs_are_left_out(tmp_path):
    with TensorBoardWriter(tmp_path / "other") as writer:
        writer.write(Record(0, 1, 0.0, {"accuracy": 0.5, "ranking/ndcg": 0.1}, {}))
    with refused(ValueError, "runs of rankmon", "1 folder"):
        read_runs(tmp_path)
    write_both(tmp_path / "mine", record(0))
    assert [run.name for run in read_runs(tmp_path)] == ["mine"]


def test_a_monitor_without_the_hessian_is_rankmons(tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        writer.write(Record(0, 1, 0.0, {"rank_weights/W": 3.0}, {}))
    assert [run.name for run in read_runs(tmp_path)] == ["."]


def test_a_run_without_any_record_is_named(tmp_path):
    write_both(tmp_path / "run", record(0))
    for name in ("m10", "m2"):  # as a killed process leaves them
        TensorBoardWriter(tmp_path / name).close()
        JsonlWriter(tmp_path / name / "rankmon.jsonl").close()
    with warned("got none in m2, m10", "first call raised an error"):
        (run,) = read_runs(tmp_path)
    assert run.name == "run"
    with refused(ValueError, "m2", "a run without any record"):
        read_runs(tmp_path / "m2")


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_runs(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with refused(NotADirectoryError, "the file", str(tmp_path / "file")):
        read_runs(tmp_path / "file")
    with refused(ValueError, "runs of rankmon", "no logs"):
        read_runs(tmp_path)


def test_a_jsonl_of_something_else_is_named(tmp_path):
    write_both(tmp_path, record(0))
    (tmp_path / "rankmon.jsonl").write_text('{"a": 1}\n')
    with refused(ValueError, "record", str(tmp_path / "rankmon.jsonl")):
        read_runs(tmp_path)


def test_several_folders(tmp_path, monkeypatch):
    for name in ("all/seed_0", "all/seed_1", "alone"):
        write_both(tmp_path / name, record(0))
    monkeypatch.chdir(tmp_path)
    named = [run.name for run in read_several(["alone", "all", Path("all") / ".." / "alone"])]
    assert named == ["alone", "all/seed_0", "all/seed_1"]
    assert [run.name for run in read_several(["all/seed_1", "all/seed_0"])] == ["seed_1", "seed_0"]
    assert [run.name for run in read_several([str(tmp_path / "alone")])] == ["alone"]
    shutil.rmtree("alone")
    with pytest.raises(FileNotFoundError):
        read_several(["all", "alone"])


# Signs


@pytest.mark.parametrize("reduced", [events_only, lines_only], ids=["events", "jsonl"])
def test_signs_are_read_back(tmp_path, reduced):
    """Of prescribed eigenvalues; event files hold float32, of which equal ones keep their signs."""
    eigenvalues = np.array([4.0, -4.0, -4.0, 3.0, -1e-3, -1e-9 * (1 + 1e-12), 1e-9])
    logs = np.log10(np.abs(eigenvalues))
    arrays = {"spectrum/H_L": logs, "spectrum_negative/H_L": logs[eigenvalues < 0]}
    write_both(tmp_path, Record(0, 1, 1.7e9, {"rank/H_L": 6.0}, arrays))
    (run,) = read_runs(reduced(tmp_path))
    found = run.eigenvalues("H_L")
    assert found.steps.tolist() == [0]
    rtol = 1e-14 if reduced is lines_only else 1e-5
    np.testing.assert_allclose(np.sort(found.values[0]), np.sort(eigenvalues), rtol=rtol)
    assert np.all(np.diff(np.abs(found.values[0])) <= 1e-12)


def test_every_record_file_and_step_keeps_the_signs(tmp_path):
    records = monitored(tmp_path)
    (run,) = read_runs(tmp_path)
    (from_events,) = read_runs(events_only(tmp_path))
    for part in ("H_L", "H_o", "H_f", "H_f_fixed"):
        for source, rtol in ((run, 1e-12), (from_events, 1e-5)):
            found = source.eigenvalues(part)
            assert found.steps.tolist() == [record.step for record in records]
            for one, values in zip(records, found.values, strict=True):
                logged = [one.scalars[f"eigenvalue_{end}/{part}"] for end in ("max", "min")]
                ends = [max(values.max(), 0), min(values.min(), 0)]
                zeros = one.scalars[f"spectrum_zeros/{part}"]
                np.testing.assert_allclose([max(logged[0], 0), min(logged[1], 0)], ends, rtol=rtol)
                assert len(values) + zeros == 15
                largest = np.abs(values).max()
                cut = one.scalars[f"tolerance/{part}"]
                assert np.sum(values < -cut) == one.scalars[f"negative/{part}"]
                trace = one.scalars[f"trace/{part}"]
                assert np.sum(values) == pytest.approx(trace, abs=100 * rtol * largest)


def test_a_run_without_signs_says_so():
    (run,) = read_runs(REFERENCE / "linear_teacher")
    assert run.eigenvalues("H_none") is None
    assert (
        RunSeries("run", arrays={"spectrum/H_L": ArraySeries(np.zeros(0), ())}).eigenvalues("H_L")
        is None
    )
