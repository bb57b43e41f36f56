"""Read the records of an offline run of wandb, whose file has LevelDB's log format."""

import json
import struct
import time
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _PREAMBLE = 32768, 7, 7  # bytes


def wandb_records(folder: Path) -> list[Any]:
    """Return the protocol buffers of the only offline run below the folder, once it has ended."""
    (path,) = folder.rglob("run-*.wandb")
    for _ in range(200):  # wandb's own process writes the file
        records = _records(path.read_bytes())
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def _records(data: bytes) -> list[Any]:
    from wandb.proto import wandb_internal_pb2

    at, pending, found = _PREAMBLE, b"", []
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # a block ends in padding
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        pending += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(pending))
            pending = b""
    return found


def wandb_rows(records: list[Any]) -> list[dict[str, Any]]:
    """Return the rows of the history, as name -> value; members of media as <name>/<member>."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json)
         for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]  # fmt: skip
