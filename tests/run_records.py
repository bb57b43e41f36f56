"""Records, run folders and series that tests write by hand."""

import struct
import zlib
from pathlib import Path

import numpy as np

from rankmon import JsonlWriter, Record, TensorBoardWriter
from rankmon.runs.series import ScalarSeries

# Odd names of runs, and a plain one.
NAMES = [
    "plain",
    "läuft/日本語",
    'a <b>bold</b> & "quoted"',
    "it's; $HOME `id`",
    "<script>alert(1)</script>/x",
    "with\nnewline",
]


def record(step: int, *, rank: float = 12.0, **scalars: float) -> Record:
    return Record(
        step=step,
        attempt=1,
        wall_time=1.7e9 + step,
        scalars={"rank/H_L": rank, "loss": 0.1 * step, **scalars},
        arrays={"spectrum/H_L": np.linspace(1.0, -8.0, 5) - step},
        texts={"rankmon/alerts": f"* step {step}"} if step % 2 else {},
    )


def small_record(step: int) -> Record:
    """Return a record with little data, for tests that write many: checksums are slow."""
    texts = {"rankmon/alerts": "*"} if step % 2 else {}
    return Record(step, 1, 1.7e9, {"loss": 0.1}, {"spectrum/H_L": np.array([1.0])}, texts)


def write_both(folder: Path, *records: Record) -> None:
    with TensorBoardWriter(folder) as events, JsonlWriter(folder / "rankmon.jsonl") as lines:
        for one in records:
            events.write(one)
            lines.write(one)


def series(values, steps=None) -> ScalarSeries:
    steps = np.arange(len(values)) * 10 if steps is None else np.array(steps)
    return ScalarSeries(steps.astype(np.int64), np.array(values, np.float64))


def blank_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 3 * width) * height))  # a filter byte, then RGB, a row
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
