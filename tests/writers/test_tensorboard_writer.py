"""Event files, read back with TensorBoard's own readers and its server."""

import errno
import os
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE as BLOB_SEQUENCE
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from full_disk import files_limited_to
from rankmon.writers.base import Record
from rankmon.writers.events import BUCKETS
from rankmon.writers.jsonl import JsonlWriter, read_jsonl
from rankmon.writers.layout import custom_scalars_layout
from rankmon.writers.tensorboard import TensorBoardWriter
from reading import event_files, legacy_events, scalar_steps, server_events
from refusals import refused
from run_records import blank_png
from tensorboard_process import fetch, fetch_until, tensorboard_server

NAN, INF = float("nan"), float("inf")
LAYOUT = custom_scalars_layout()


def record(step: int, *, rank: float = 12.0, size: int = 5) -> Record:
    return Record(
        step=step,
        attempt=1,
        wall_time=1.7e9 + step / 3,
        scalars={"rank/H_L": rank, "loss": 0.1 * step},
        arrays={"spectrum/H_L": np.linspace(1.0, -8.0, size) - step},
        texts={"rankmon/card": f"**step** {step}"},
    )


# TensorBoard


def test_scalars_histograms_tensors_and_texts_read_back(tmp_path):
    with TensorBoardWriter(tmp_path, layout=LAYOUT) as writer:
        writer.start(0)
        for step in (0, 10):
            writer.write(record(step))
    events = legacy_events(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (10, 1.0)]
    assert events.Scalars("loss")[1].wall_time == 1.7e9 + 10 / 3

    histogram = events.Histograms("spectrum/H_L")[1].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (5, -18.0, -9.0)
    assert sum(histogram.bucket) == 5

    tensors = events.Tensors("spectrum/H_L/values")
    values = tensor_util.make_ndarray(tensors[1].tensor_proto)
    np.testing.assert_array_equal(
        values, (np.linspace(1.0, -8.0, 5) - 10).astype(np.float32), strict=True
    )
    assert events.summary_metadata["spectrum/H_L/values"].plugin_data.plugin_name == "rankmon"

    text = tensor_util.make_ndarray(events.Tensors("rankmon/card")[0].tensor_proto)
    assert text.item() == b"**step** 0"
    assert events.summary_metadata["rankmon/card"].plugin_data.plugin_name == "text"

    (layout,) = events.Tensors("custom_scalars__config__")
    read = layout_pb2.Layout.FromString(tensor_util.make_ndarray(layout.tensor_proto).item())
    assert read == LAYOUT


def test_pictures_read_back(tmp_path):
    png = blank_png(7, 5)
    with TensorBoardWriter(tmp_path) as writer:
        writer.write_image(3, "figures/S8", png)
        with refused(ValueError, "PNG", "3 bytes"):
            writer.write_image(4, "figures/S8", b"GIF")
    events = legacy_events(tmp_path)
    (event,) = events.Tensors("figures/S8")
    assert event.step == 3
    assert tensor_util.make_ndarray(event.tensor_proto).tolist() == [b"7", b"5", png]
    metadata = events.summary_metadata["figures/S8"]
    assert metadata.plugin_data.plugin_name == "images"
    assert server_events(tmp_path).summary_metadata["figures/S8"].data_class == BLOB_SEQUENCE


def test_every_record_is_in_the_file_as_soon_as_write_returns(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    try:
        for step in (0, 1, 2):
            writer.write(record(step))
            assert scalar_steps(tmp_path) == list(range(step + 1))
    finally:
        writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(record(3))


def test_non_finite_and_huge_scalars(tmp_path):
    values = [NAN, INF, -INF, 1e300]
    with TensorBoardWriter(tmp_path) as writer:
        for step, value in enumerate(values):
            writer.write(record(step, rank=value))
    read = [event.value for event in legacy_events(tmp_path).Scalars("rank/H_L")]
    np.testing.assert_array_equal(read, [NAN, INF, -INF, INF])


@pytest.mark.parametrize(
    ("array", "finite"),
    [
        (np.zeros(0), []),
        (np.array([NAN, INF, -INF]), []),
        (np.array([1.0, NAN, 3.0, -INF]), [1.0, 3.0]),
        (np.array([2.5, 2.5, 2.5]), [2.5] * 3),
        (np.array([1.0, 1.0 + 2**-52]), [1.0, 1.0 + 2**-52]),
        (np.array([-1.7e308, 1.7e308]), [-1.7e308, 1.7e308]),
        (np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (np.array(7.0), [7.0]),
    ],
    ids=["empty", "none finite", "some finite", "equal", "an ulp apart", "huge", "matrix", "0-d"],
)
def test_arrays_of_every_kind(tmp_path, array, finite):
    one = Record(step=3, attempt=1, wall_time=0.0, scalars={}, arrays={"a": array})
    with TensorBoardWriter(tmp_path) as writer:
        writer.write(one)
    with np.errstate(over="ignore"):  # TensorBoard's reader multiplies bucket widths by 1e4
        events = legacy_events(tmp_path)
    histogram = events.Histograms("a")[0].histogram_value
    assert histogram.num == sum(histogram.bucket) == len(finite)
    if finite:
        assert (histogram.min, histogram.max) == (min(finite), max(finite))
        assert len(histogram.bucket) == BUCKETS
        assert histogram.bucket_limit == sorted(histogram.bucket_limit)
        assert histogram.bucket_limit[-1] == max(finite)
        np.testing.assert_allclose(histogram.sum, sum(finite), rtol=1e-15)
    tensor = tensor_util.make_ndarray(events.Tensors("a/values")[0].tensor_proto)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(tensor, np.asarray(array, np.float32), strict=True)


def test_the_histogram_counts_what_lies_in_each_bucket(tmp_path):
    values = np.random.default_rng(0).normal(size=200)
    with TensorBoardWriter(tmp_path) as writer:
        writer.write(Record(step=0, attempt=1, wall_time=0.0, scalars={}, arrays={"a": values}))
    histogram = legacy_events(tmp_path).Histograms("a")[0].histogram_value
    upto = np.cumsum(histogram.bucket)
    for limit, count in zip(histogram.bucket_limit[:-1], upto[:-1], strict=True):
        assert count == np.sum(values < limit)
    assert upto[-1] == 200
    np.testing.assert_allclose(histogram.sum_squares, np.sum(values**2), rtol=1e-12)


@pytest.mark.parametrize("restart", [0, 1, 15, 20, 31])
def test_a_restart_supersedes_later_steps_and_each_shows_once(tmp_path, restart):
    with TensorBoardWriter(tmp_path, layout=LAYOUT) as writer:
        writer.start(0)
        for step in (0, 10, 20, 30):
            writer.write(record(step, rank=1))
    again = [step for step in (0, 10, 20, 30, 40) if step >= restart]
    with TensorBoardWriter(tmp_path, layout=LAYOUT) as writer:
        writer.start(restart)
        for step in again:
            writer.write(record(step, rank=2))
    assert scalar_steps(tmp_path) == [0, 10, 20, 30, 40]
    ranks = [event.value for event in legacy_events(tmp_path).Scalars("rank/H_L")]
    assert ranks == [1.0] * (5 - len(again)) + [2.0] * len(again)
    histograms = legacy_events(tmp_path).Histograms("spectrum/H_L")
    assert [event.step for event in histograms] == [0, 10, 20, 30, 40]
    server = server_events(tmp_path)
    for tag in ("spectrum/H_L/values", "rankmon/card"):
        assert [event.step for event in server.Tensors(tag)] == [0, 10, 20, 30, 40]
    assert server.Tensors("custom_scalars__config__")


def test_going_back_within_one_writer(tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        for step in (0, 10, 20):
            writer.write(record(step))
        writer.start(5)
        writer.write(record(5))
    assert scalar_steps(tmp_path) == [0, 5]


def test_writing_without_start_supersedes_from_the_first_record_on(tmp_path):
    for steps in ((0, 10, 20), (15, 25)):
        with TensorBoardWriter(tmp_path) as writer:
            for step in steps:
                writer.write(record(step))
    assert scalar_steps(tmp_path) == [0, 10, 15, 25]


def test_the_first_attempt_leaves_the_events_of_a_training_loop_alone(tmp_path):
    with TensorBoardWriter(tmp_path) as other:
        other.write(record(0))
    (file,) = event_files(tmp_path)
    file.rename(file.with_name(file.name.replace(".rankmon", ".host.1.0")))
    with TensorBoardWriter(tmp_path) as writer:
        writer.start(0)
        writer.write(record(0))
    assert scalar_steps(tmp_path) == [0, 0]


def test_files_of_one_second_sort_in_the_order_of_their_creation(tmp_path):
    later = f"events.out.tfevents.{int(time.time()) + 1000}.zzz.v2"
    (tmp_path / later).touch()
    created = []
    for _ in range(4):
        known = set(event_files(tmp_path))
        TensorBoardWriter(tmp_path).close()
        created += set(event_files(tmp_path)) - known
    assert [later, *(path.name for path in created)] == sorted(os.listdir(tmp_path))


def test_a_file_of_the_same_second_from_another_process_is_left_alone(tmp_path, monkeypatch):
    TensorBoardWriter(tmp_path).close()
    (first,) = event_files(tmp_path)
    content = first.read_bytes()
    with monkeypatch.context() as patch:
        # It appears between the look at the folder and the creation of the new file.
        patch.setattr(Path, "iterdir", lambda folder: iter(()))
        patch.setattr(time, "time", lambda: int(first.name.split(".")[3]))
        TensorBoardWriter(tmp_path).close()
    assert event_files(tmp_path)[0] == first
    assert len(event_files(tmp_path)) == 2
    assert first.read_bytes() == content


def test_a_torn_event_file_loses_its_last_record_only(tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        for step in (0, 10, 20):
            writer.write(record(step))
    (file,) = event_files(tmp_path)
    os.truncate(file, file.stat().st_size - 7)
    assert scalar_steps(tmp_path) == [0, 10]
    with TensorBoardWriter(tmp_path) as writer:
        writer.start(11)
        writer.write(record(20))
    assert scalar_steps(tmp_path) == [0, 10, 20]


# TensorBoard's server


@pytest.mark.slow
@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_the_server_shows_the_run(tmp_path, load_fast):
    folder = tmp_path / "logs" / "run"
    for first, steps in ((0, (0, 10, 20, 30)), (15, (15, 25, 35))):
        with TensorBoardWriter(folder, layout=LAYOUT) as writer:
            writer.start(first)
            for step in steps:
                writer.write(record(step, rank=NAN if step == 25 else 100 + step, size=step))
            writer.write_image(first, "figures/S8", blank_png(7, 5))
    with tensorboard_server(tmp_path / "logs", f"--load_fast={load_fast}") as address:
        one = {"run": "run", "tag": "rank/H_L"}
        fetch_until(address, "scalars/tags", lambda tags: "rank/H_L" in tags.get("run", {}))
        points = fetch_until(address, "scalars/scalars", lambda p: p[-1][1] == 35, **one)
        assert set(fetch(address, "scalars/tags")["run"]) == {"rank/H_L", "loss"}
        layout = fetch(address, "custom_scalars/layout")
        pattern = layout["category"][0]["chart"][0]["multiline"]["tag"][0]
        chart = fetch(address, "custom_scalars/scalars", run="run", tag=pattern)
        histograms = fetch(address, "histograms/tags")
        spectra = fetch(address, "histograms/histograms", run="run", tag="spectrum/H_L")
        texts = fetch(address, "text/text", run="run", tag="rankmon/card")
        assert fetch(address, "text/tags") == {"run": ["rankmon/card"]}
        assert list(fetch(address, "images/tags")["run"]) == ["figures/S8"]
        pictures = fetch(address, "images/images", run="run", tag="figures/S8", sample=0)
        key = f"{address}data/plugin/images/individualImage?{pictures[-1]['query']}"
        with urllib.request.urlopen(key, timeout=30) as response:
            assert response.read() == blank_png(7, 5)
    assert [picture["step"] for picture in pictures] == [0, 15]
    assert [(step, rank) for _, step, rank in points] == [
        (0, 100.0), (10, 110.0), (15, 115.0), (25, "NaN"), (35, 135.0)
    ]  # fmt: skip
    assert [c["title"] for c in layout["category"]] == [c.title for c in LAYOUT.category]
    assert list(chart["tag_to_events"]) == ["rank/H_L"]
    assert list(histograms["run"]) == ["spectrum/H_L"]
    assert [step for _, step, _ in spectra] == [0, 10, 15, 25, 35]
    assert [sum(count for _, _, count in buckets) for _, _, buckets in spectra] == [
        0, 10, 15, 25, 35
    ]  # fmt: skip
    assert "<strong>step</strong> 15" in " ".join(text["text"] for text in texts)


# Trouble with the file system


def test_a_full_disk_surfaces_and_tears_nothing(tmp_path):
    path = tmp_path / "rankmon.jsonl"
    with TensorBoardWriter(tmp_path) as events, JsonlWriter(path) as lines:
        for writer in (events, lines):
            writer.write(record(0))
        (file,) = event_files(tmp_path)
        for writer, target in ((events, file), (lines, path)):
            size = target.stat().st_size
            with files_limited_to(size + 100), pytest.raises(OSError, match="large") as caught:
                writer.write(record(10))
            assert caught.value.errno == errno.EFBIG
            assert target.stat().st_size == size
            writer.write(record(10))
            writer.write(record(20))
    assert scalar_steps(tmp_path) == [0, 10, 20]
    assert [r.step for r in read_jsonl(path)] == [0, 10, 20]
