"""JSONL logs, read back by `read_jsonl` and by the standard library's strict JSON."""

import json
import os

import numpy as np
import pytest

from rankmon.writers.base import Record
from rankmon.writers.jsonl import JsonlWriter, read_jsonl
from refusals import refused

NAN, INF = float("nan"), float("inf")


def record(step: int) -> Record:
    spectrum = np.linspace(1.0, -8.0, 5) - step
    return Record(step, 1, 1.7e9 + step, {"loss": 0.1 * step}, {"spectrum/H_L": spectrum})


def test_jsonl_reads_back_to_the_last_bit(tmp_path):
    path = tmp_path / "new" / "rankmon.jsonl"
    rng = np.random.default_rng(1)
    original = Record(
        step=7,
        attempt=1,
        wall_time=1700000000.123456789,
        scalars={"a": rng.normal(), "b": 1 / 3, "tiny": 5e-324, "n": 12, "nan": NAN, "inf": -INF},
        arrays={
            "vector": rng.normal(size=9) * 1e-200,
            "matrix": rng.normal(size=(2, 3)),
            "holes": np.array([[NAN, 1.0], [INF, -INF]]),
            "empty": np.zeros(0),
            "point": np.array(2.0),
        },
        texts={"card": 'two\nlines, "quoted" \u03a9'},
    )
    with JsonlWriter(path) as writer:
        writer.write(original)
    (read,) = read_jsonl(path)
    assert (read.step, read.attempt, read.wall_time) == (7, 1, original.wall_time)
    np.testing.assert_equal(dict(read.scalars), dict(original.scalars))
    assert read.arrays.keys() == original.arrays.keys()
    for tag, array in original.arrays.items():
        np.testing.assert_array_equal(read.arrays[tag], array, strict=True)
    assert read.texts == original.texts


def test_jsonl_is_strict_json(tmp_path):
    path = tmp_path / "rankmon.jsonl"
    with JsonlWriter(path) as writer:
        writer.start(0)
        writer.write(
            Record(0, 9, 1.0, {"s": NAN}, {"a": np.array([INF, -INF, 0.5], np.float32)}, {})
        )

    def refuse(constant):
        raise AssertionError(constant)

    lines = [
        json.loads(line, parse_constant=refuse) for line in path.read_text("ascii").splitlines()
    ]
    assert lines == [
        {"start": 0, "attempt": 1},
        {
            "step": 0,
            "attempt": 1,
            "wall_time": 1.0,
            "scalars": {"s": "NaN"},
            "arrays": {"a": ["Infinity", "-Infinity", 0.5]},
            "texts": {},
        },
    ]


def test_jsonl_attempts(tmp_path):
    path = tmp_path / "rankmon.jsonl"
    for steps in ((0, 10, 20, 30), (15, 25), (20,)):
        with JsonlWriter(path) as writer:
            writer.start(steps[0])
            for step in steps:
                writer.write(record(step))
    in_force = [(r.step, r.attempt) for r in read_jsonl(path)]
    assert in_force == [(0, 1), (10, 1), (15, 2), (20, 3)]
    everything = [(r.step, r.attempt) for r in read_jsonl(path, superseded=True)]
    assert everything == [(0, 1), (10, 1), (15, 2), (20, 1), (20, 3), (25, 2), (30, 1)]


def test_jsonl_without_start_begins_an_attempt(tmp_path):
    path = tmp_path / "rankmon.jsonl"
    for steps in ((0, 10, 20), (10, 30)):
        with JsonlWriter(path) as writer:
            for step in steps:
                writer.write(record(step))
    assert [(r.step, r.attempt) for r in read_jsonl(path)] == [(0, 1), (10, 2), (30, 2)]


@pytest.mark.parametrize("lost", [1, 2, 40, 10_000])
def test_a_torn_last_line_is_left_out_and_ended_by_the_next_attempt(tmp_path, lost):
    path = tmp_path / "rankmon.jsonl"
    with JsonlWriter(path) as writer:
        writer.write(record(0))
        size = path.stat().st_size
        writer.write(record(10))
    os.truncate(path, max(path.stat().st_size - lost, size + 1))
    whole = [0, 10] if lost == 1 else [0]  # without its newline alone, the line is whole
    assert [r.step for r in read_jsonl(path)] == whole
    for attempt in (2, 3):
        with JsonlWriter(path) as writer:
            writer.start(20 * attempt)
            writer.write(record(20 * attempt))
    assert [(r.step, r.attempt) for r in read_jsonl(path)] == [
        *((step, 1) for step in whole), (40, 2), (60, 3)
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["{}", "[1, 2]", "3", "not JSON\n{}", '{"step": 1}'])
def test_a_file_of_something_else_is_refused(tmp_path, line):
    path = tmp_path / "other.jsonl"
    path.write_text(line + "\n")
    for opening in (read_jsonl, JsonlWriter):
        with refused(ValueError, "record", "line 1"):
            opening(path)
    assert path.read_text() == line + "\n"
