"""Test run folders that are removed, filled, damaged or blocked during or between uses."""

import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from full_disk import files_limited_to
from hparams_page import page_of, values
from rankmon import (
    JsonlWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    Record,
    TensorBoardWriter,
    read_jsonl,
)
from rankmon._util.files import RunLock
from rankmon.cli.main import main
from rankmon.runs.read import read_runs
from reading import event_files, legacy_events, scalar_steps, server_events
from refusals import refused, warned
from small_probes import Light, Remembering

PROBLEM = Problem(lambda W, x: x @ W, loss="mse", inputs=np.eye(2), targets=np.ones((2, 2)))
WEIGHTS = np.eye(2)
WRITERS = ("TensorBoardWriter", "JsonlWriter")


def monitor_of(folder, **options) -> RankMonitor:
    return RankMonitor(PROBLEM, **({"logdir": folder, "every": 1, "probes": [Light()]} | options))


def steps_in(folder: Path) -> list[int]:
    """The steps that all readers show."""
    steps = scalar_steps(folder, "light")
    assert steps == [record.step for record in read_jsonl(folder / "rankmon.jsonl")]
    return steps


# Removed while training runs


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("trash"))


def remove_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def replace_files(folder: Path) -> None:
    """As editors and tools that synchronize folders do."""
    for path in folder.glob("[!.]*"):
        copy = shutil.copy(path, folder / ".copy")
        os.replace(copy, path)


LOSSES = [remove_folder, move_folder, remove_files, replace_files]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_run_whose_files_are_lost_goes_on_with_all_records(tmp_path, lose):
    folder = tmp_path / "run"
    monitor = monitor_of(folder)
    for step in range(3):
        monitor(step, WEIGHTS)
    lose(folder)
    with warned(str(folder / "rankmon.jsonl"), "removed") as caught:
        monitor(3, WEIGHTS)
        monitor(4, WEIGHTS)
    assert len(caught) == 2  # for the lines and for the events, once each
    assert steps_in(folder) == [0, 1, 2, 3, 4]
    with refused(BlockingIOError, "this process"):
        RunLock(folder)
    monitor.close()
    assert steps_in(folder) == [0, 1, 2, 3, 4]
    with monitor_of(folder, state=monitor.state) as resumed:
        resumed(5, WEIGHTS)
    assert steps_in(folder) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_reader_that_had_read_the_lost_file_shows_each_step_once(tmp_path, lose):
    folder = tmp_path / "run"
    with TensorBoardWriter(folder) as writer:
        for step in (0, 1):
            writer.write(Record(step, 1, 0.0, {"light": 1.0}, {}))
        legacy, server = legacy_events(folder), server_events(folder)
        lose(folder)
        with warned("removed"):
            writer.write(Record(2, 1, 0.0, {"light": 1.0}, {}))
    assert [event.step for event in legacy.Reload().Scalars("light")] == [0, 1, 2]
    assert [event.step for event in server.Reload().Tensors("light")] == [0, 1, 2]


def test_files_that_were_cut_go_on_with_what_comes(tmp_path):
    monitor = monitor_of(tmp_path)
    monitor(0, WEIGHTS)
    for path in [tmp_path / "rankmon.jsonl", *event_files(tmp_path)]:
        os.truncate(path, path.stat().st_size - 3)
    with warned(str(tmp_path / "rankmon.jsonl"), "cut"):
        monitor(1, WEIGHTS)
        monitor(2, WEIGHTS)
    monitor.close()
    assert steps_in(tmp_path) == [1, 2]


@pytest.mark.parametrize("ends", [RankMonitor.flush, RankMonitor.close], ids=["flush", "close"])
def test_files_that_are_lost_after_the_last_record_come_back(tmp_path, ends):
    monitor = monitor_of(tmp_path / "run")
    monitor(0, WEIGHTS)
    shutil.rmtree(tmp_path / "run")
    with warned("rankmon.jsonl", "removed"):
        ends(monitor)
    assert steps_in(tmp_path / "run") == [0]
    monitor.close()


def test_a_lost_folder_on_a_full_disk_comes_back_once_there_is_space(tmp_path):
    folder = tmp_path / "run"
    monitor = monitor_of(folder)
    for step in range(3):
        monitor(step, WEIGHTS)
    size = (folder / "rankmon.jsonl").stat().st_size
    shutil.rmtree(folder)
    with warned(str(folder), "free some space"):
        for room in (0, 30, size // 2):
            with files_limited_to(room):
                monitor.flush()
    with warned("rankmon.jsonl", "removed"):
        monitor(3, WEIGHTS)
    monitor.close()
    assert steps_in(folder) == [0, 1, 2, 3]


def test_a_lost_folder_comes_back_with_the_session_of_a_restart(tmp_path):
    folder = tmp_path / "run"
    with monitor_of(folder, hparams={"lr": 1}) as monitor:
        monitor(0, WEIGHTS)
    resumed = monitor_of(folder, hparams={"lr": 2}, state=monitor.state)
    resumed(1, WEIGHTS)
    shutil.rmtree(folder)
    with warned("rankmon.jsonl", "removed"):
        resumed(2, WEIGHTS)
    resumed.close()
    (group,) = page_of(tmp_path).groups.values()
    assert values(group)["lr"] == 2
    assert [record.step for record in read_jsonl(folder / "rankmon.jsonl")] == [0, 1, 2]
    assert scalar_steps(folder, "light") == [1, 2]  # the first attempt's file was not open


def test_a_lost_folder_that_another_run_has_taken_is_left_to_it(tmp_path):
    folder = tmp_path / "run"
    old = monitor_of(folder)
    old(0, WEIGHTS)
    shutil.rmtree(folder)
    new = monitor_of(folder)
    new(10, WEIGHTS)
    with warned("this process", "logdir"):
        old(1, WEIGHTS)
    new.close()
    with pytest.warns(RankmonWarning) as caught:
        old.close()
    said = [str(warning.message) for warning in caught]
    assert all(any(f"{kind} did not write 1 record" in text for text in said) for kind in WRITERS)
    assert steps_in(folder) == [10]


def test_a_lock_that_somebody_removed_is_taken_again(tmp_path):
    monitor = monitor_of(tmp_path)
    (tmp_path / ".rankmon.lock").unlink()
    monitor(0, WEIGHTS)
    with refused(BlockingIOError, "this process"):
        RunLock(tmp_path)
    monitor.close()
    RunLock(tmp_path).release()


# Removed between two attempts


def remove_lines(folder: Path) -> None:
    (folder / "rankmon.jsonl").unlink()


def remove_events(folder: Path) -> None:
    for path in event_files(folder):
        path.unlink()


@pytest.mark.parametrize(
    ("remove", "key"), [(remove_lines, "read_jsonl"), (remove_events, "TensorBoard")]
)
def test_a_resumed_run_without_its_older_files_says_so(tmp_path, remove, key):
    with monitor_of(tmp_path) as monitor:
        monitor(0, WEIGHTS)
    remove(tmp_path)
    with warned("rankmon.jsonl", key, "new records only") as caught:
        with monitor_of(tmp_path, state=monitor.state) as resumed:
            resumed(1, WEIGHTS)
    assert len(caught) == 1


# A full disk at construction


def test_a_full_disk_at_construction_is_explained_and_leaves_the_folder_free(tmp_path):
    for folder in (tmp_path, tmp_path / "new"):
        with files_limited_to(0), refused(OSError, str(folder), "free some space", "logdir"):
            monitor_of(folder)
        assert not event_files(folder)
        monitor_of(folder).close()
        shutil.rmtree(folder)


def test_a_full_disk_is_explained_by_writers(tmp_path):
    with files_limited_to(0), refused(OSError, str(tmp_path), "free some space"):
        TensorBoardWriter(tmp_path)
    with JsonlWriter(tmp_path / "lines") as writer:
        with files_limited_to(0), refused(OSError, str(tmp_path / "lines"), "free some space"):
            writer.start(0)
        writer.write(Record(3, 1, 0.0, {}, {}))
    assert [record.step for record in read_jsonl(tmp_path / "lines")] == [3]


# What blocks


@pytest.mark.parametrize(
    "name", ["rankmon.jsonl", ".rankmon.lock", "events.out.tfevents.0000000000.session"]
)
def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with refused(OSError, str(tmp_path / name), "pipe", "remove"):
        monitor_of(tmp_path, hparams={})
    (tmp_path / name).unlink()
    monitor_of(tmp_path).close()


def test_a_socket_in_the_place_of_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # addresses of sockets are short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("rankmon.jsonl")
        for opening in (JsonlWriter, read_jsonl):
            with refused(OSError, "rankmon.jsonl", "socket"):
                opening("rankmon.jsonl")


@pytest.mark.parametrize("name", ["rankmon.jsonl", "events.out.tfevents.9999999999.other"])
def test_a_run_with_a_pipe_among_its_files_does_not_block_the_others(tmp_path, name):
    for run in ("a", "b"):
        with TensorBoardWriter(tmp_path / run) as writer:
            writer.write(Record(0, 1, 0.0, {"rank/H_L": 3.0}, {}))
    os.mkfifo(tmp_path / "a" / name)
    with warned(str(tmp_path / "a" / name), "pipe"):
        runs = read_runs(tmp_path)
    # TensorBoard's reader reads all event files of a folder, or none.
    assert [run.name for run in runs] == (["a", "b"] if name == "rankmon.jsonl" else ["b"])


# Damaged by hand


def line_of(at: int, **change) -> str:
    entry = {
        "step": at,
        "attempt": 1,
        "wall_time": 5.0,
        "scalars": {"rank/H_L": 3.0, "loss": 0.5},
        "arrays": {"spectrum/H_L": [1.0, 0.0]},
        "texts": {"rankmon/card": "a card", "rankmon/alerts": "* an alert"},
    }
    return json.dumps(entry | change)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


LINES = {
    "nested": nested(100_000),
    "torn": line_of(1)[:40],
    "other": '{"a": 1}',
    "a list": "[1, 2]",
    "step: text": line_of(1, step="a"),
    "step: fraction": line_of(1, step=1.5),
    "step: bool": line_of(1, step=True),
    "step: none": line_of(1, step=None),
    "step: huge": line_of(1, step=10**30),
    "attempt": line_of(1, attempt="1"),
    "start": '{"start": "a", "attempt": 2}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_that_is_no_record_is_left_out_and_said(tmp_path, line):
    path = tmp_path / "rankmon.jsonl"
    start = '{"start": 0, "attempt": 1}'
    path.write_text("\n".join([start, line_of(0), line, line_of(2)]) + "\n")
    with warned(str(path), "line 3", "copy"):
        assert [record.step for record in read_jsonl(path)] == [0, 2]
    with warned(str(path), "line 3"), JsonlWriter(path) as writer:
        writer.start(2)
        writer.write(Record(2, 1, 0.0, {"loss": 0.25}, {}))
    with warned(str(path), "line 3"):
        records = read_jsonl(path)
    assert [(record.step, record.attempt) for record in records] == [(0, 1), (2, 2)]


FIELDS = {
    "scalars": ({"scalars": [1]}, "scalars"),
    "scalar": ({"scalars": {"rank/H_L": "many", "loss": 0.5}}, "rank/H_L"),
    "scalar: list": ({"scalars": {"rank/H_L": [1], "loss": 0.5}}, "rank/H_L"),
    "scalar: bool": ({"scalars": {"rank/H_L": True, "loss": 0.5}}, "rank/H_L"),
    "scalar: huge": ({"scalars": {"rank/H_L": 10**400, "loss": 0.5}}, "rank/H_L"),
    "array": ({"arrays": {"spectrum/H_L": ["x"]}}, "spectrum/H_L"),
    "array: ragged": ({"arrays": {"spectrum/H_L": [[1], [1, 2]]}}, "spectrum/H_L"),
    "array: nested": ({"arrays": {"spectrum/H_L": json.loads(nested(90))}}, "spectrum/H_L"),
    "arrays": ({"arrays": None}, "arrays"),
    "wall_time": ({"wall_time": None}, "wall_time"),
    "texts": ({"texts": 3}, "texts"),
    "card": ({"texts": {"rankmon/card": 3}}, "rankmon/card"),
    "alerts": ({"texts": {"rankmon/alerts": ["x"]}}, "rankmon/alerts"),
    "hparams": ({"hparams": {"lr": [1], "seed": 2}}, "lr"),
}


@pytest.mark.parametrize(("change", "name"), FIELDS.values(), ids=FIELDS)
def test_what_is_damaged_in_a_record_is_left_out_and_said(tmp_path, capsys, change, name):
    path = tmp_path / "rankmon.jsonl"
    path.write_text("\n".join([line_of(0), line_of(1, **change), line_of(2)]) + "\n")
    with warned(str(path), name, "step 1", "copy"):
        first, second, third = read_jsonl(path)
    assert first.scalars == third.scalars == {"rank/H_L": 3.0, "loss": 0.5}
    assert second.step == 1
    assert "lr" not in second.hparams
    assert all(isinstance(value, float) for value in second.scalars.values())
    assert all(isinstance(text, str) for text in second.texts.values())
    html = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--html", str(html), "--tables"]) == 0
    said = capsys.readouterr()
    assert name in said.err
    assert "Traceback" not in said.err
    assert "rank/" in said.out
    assert html.read_text().endswith("</html>\n")


def test_halves_of_characters_in_texts_and_tags_break_no_page(tmp_path, capsys):
    change = {"texts": {"rankmon/alerts": "* \ud800"}, "scalars": {"rank/\udfff": 2.0}}
    (tmp_path / "rankmon.jsonl").write_text(line_of(0, **change) + "\n")
    for kind in ("html", "csv", "json"):
        assert (
            main(["report", str(tmp_path), f"--{kind}", str(tmp_path / "report"), "--tables"]) == 0
        )
        assert "step 0" in capsys.readouterr().out


def test_a_text_of_numbers_in_an_event_file_breaks_no_table(tmp_path, capsys):
    with TensorBoardWriter(tmp_path) as writer:
        writer.write(Record(0, 1, 0.0, {"rank/H_L": 3.0}, {}))
    value = summary_pb2.Summary.Value(
        tag="rankmon/alerts",
        metadata=text_metadata.create_summary_metadata("rankmon/alerts", None),
        tensor=make_tensor_proto(np.float32(7)),
    )
    with (tmp_path / "events.out.tfevents.9999999999.other").open("wb") as file:
        records = RecordWriter(file)
        for event in (
            event_pb2.Event(file_version="brain.Event:2"),
            event_pb2.Event(step=1, summary=summary_pb2.Summary(value=[value])),
        ):
            records.write(event.SerializeToString())
    assert main(["report", str(tmp_path)]) == 0
    assert "7.0" in capsys.readouterr().out


@pytest.mark.parametrize("line", [LINES["nested"], LINES["step: text"], LINES["start"]])
def test_a_run_with_a_damaged_log_resumes(tmp_path, line):
    with monitor_of(tmp_path, probes=[Remembering(), Light()]) as monitor:
        monitor(0, WEIGHTS)
        monitor(1, WEIGHTS)
    path = tmp_path / "rankmon.jsonl"
    start, first, second = path.read_text().splitlines()
    path.write_text("\n".join([start, line, first, second]) + "\n")
    with warned(str(path), "line 2") as caught:
        with monitor_of(tmp_path, probes=[Remembering(), Light()], state=monitor.state) as resumed:
            assert resumed(2, WEIGHTS).scalars["first"] == 0
    assert len(caught) == 1
    with warned(str(path), "line 2"):
        assert steps_in(tmp_path) == [0, 1, 2]
