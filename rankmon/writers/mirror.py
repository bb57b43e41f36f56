"""`MirrorWriter`: copy a run folder to an object store, or to any other place, as training runs."""

import os
from pathlib import Path
from typing import Any

from rankmon._util.closing import ClosesOnExit
from rankmon._util.files import PathLike, absolute_folder
from rankmon.writers.base import Record


class MirrorWriter(ClosesOnExit):
    """Copies the files of a run folder to `gs://`, `s3://` or another path, at flush and close.

    Object stores cannot append to a file, so the monitor writes to a local folder, and this writer
    copies it: `RankMonitor(..., logdir="logs/mine", writers=[MirrorWriter("logs/mine",
    "gs://bucket/mine")])`. Each `monitor.flush()` and the end of training copy the files that have
    changed since, whole, and wait until they are copied. TensorBoard, `rankmon report` and
    `read_jsonl` read the local folder, or a copy of the mirror. Superseded records stay in the
    files, as in the local folder. Nothing in the mirror is ever removed.
    """

    def __init__(self, logdir: PathLike, to: PathLike) -> None:
        """Store both places.

        Args:
          logdir: the run folder of the monitor.
          to: where to copy it, a path that `etils.epath` supports.

        Raises:
          ModuleNotFoundError: if etils is not installed.
          ValueError: if `to` is inside logdir or the same, or logdir is a URL.
        """
        self._from, self._to = absolute_folder(logdir), _path(to)
        target = os.fspath(self._to)
        if "://" not in target and Path(target).absolute().is_relative_to(self._from):
            raise ValueError(
                f"expected a mirror outside of the run folder {self._from}, got {target}; choose "
                "another place"
            )
        self._copied: dict[Path, tuple[int, int]] = {}  # size and time of change

    def start(self, step: int) -> None:
        """Do nothing: the files say themselves which records are superseded."""

    def write(self, record: Record) -> None:
        """Do nothing: `flush` copies the files that have this record."""

    def flush(self) -> None:
        """Copy the files that have changed since the last copy.

        Raises:
          Exception: any error of the store; the next call copies the rest.
        """
        for path in sorted(self._from.rglob("*")):
            name = path.relative_to(self._from)
            # The lock and temporary files are hidden.
            if not path.is_file() or any(part.startswith(".") for part in name.parts):
                continue
            now = path.stat()
            state = now.st_size, now.st_mtime_ns
            if self._copied.get(name) != state:
                copy = self._to / name.as_posix()
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
                self._copied[name] = state

    def close(self) -> None:
        """Copy the files that have changed since the last copy."""
        self.flush()


def _path(path: PathLike) -> Any:
    """Return the path as one of epath, which knows object stores."""
    try:
        from etils import epath
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected etils for MirrorWriter, got none ({error}); run: "
            'pip install "rankmon[cloud]"'
        ) from None
    return epath.Path(path)
