"""Records on their way to the writers of a run: attempts, what waits to be written, the lock.

A record that a writer refused stays in that writer's backlog and is tried again with the next one,
at `flush` and at `close`. The backlog holds `MOST_WAITING` records; of more, the oldest are
dropped. Measures nothing.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from math import isfinite
from pathlib import Path

from tensorboard.plugins.custom_scalar import layout_pb2

from rankmon import _jsonl
from rankmon._trouble import Trouble
from rankmon.layout import custom_scalars_layout
from rankmon.writers import (
    JsonlWriter,
    Outcome,
    Record,
    RunLock,
    SessionWriter,
    TensorBoardWriter,
    Writer,
    read_jsonl,
)

MOST_WAITING = 1000


class Outbox:
    """The writers of one run.

    Where it is dropped without `close`, the files and the lock of logdir go with it.

    Args:
      logdir: run folder for TensorBoard events and rankmon.jsonl, locked while open; None for none.
      writers: more writers.
      trouble: decides what an error of a writer does.
      layout: charts for the run folder; those of `custom_scalars_layout` if not given.

    Raises:
      OSError: where logdir cannot be written or has another live writer.
      ValueError: where logdir is a URL, or its rankmon.jsonl holds something else than records.
    """

    def __init__(
        self,
        logdir: str | Path | None,
        writers: Sequence[Writer],
        *,
        trouble: Trouble,
        layout: layout_pb2.Layout | None = None,
    ) -> None:
        self.attempt = 0
        self._trouble = trouble
        self._logdir = logdir
        lock = None if logdir is None else RunLock(logdir)
        try:
            own = _folder_writers(logdir, layout or custom_scalars_layout())
        except BaseException:
            _give_back([], lock)
            raise
        self._give_back = weakref.finalize(self, _give_back, own, lock)
        self._writers = [*own, *writers]
        self._backlog: list[deque[Record]] = [deque() for _ in self._writers]
        self._dropped = [0] * len(self._writers)

    def last_step(self) -> int | None:
        """The last step that the run folder has a record of; None without any."""
        return None if self._logdir is None else _last_step(_jsonl_path(self._logdir))

    def first_scalars(self) -> dict[str, float]:
        """The first finite value of each tag in the run folder; none without a folder."""
        if self._logdir is None or not _jsonl_path(self._logdir).exists():
            return {}
        first: dict[str, float] = {}
        for record in read_jsonl(_jsonl_path(self._logdir)):
            for tag, value in record.scalars.items():
                if isfinite(value):
                    first.setdefault(tag, value)
        return first

    def start(self, step: int) -> None:
        """A new attempt begins: records of `step` and later steps are superseded."""
        self.attempt += 1
        for writer in self._writers:
            self._trouble.guard(_name(writer), writer.start, step)

    def write(self, record: Record) -> None:
        """Hands the record, and what waits before it, to every writer."""
        for index, backlog in enumerate(self._backlog):
            backlog.append(record)
            if len(backlog) > MOST_WAITING:
                self._drop_oldest(index)
        self._deliver()

    def flush(self) -> None:
        """Tries what waits once more, and flushes."""
        self._deliver()
        for writer in self._writers:
            self._trouble.guard(f"flush of {_name(writer)}", writer.flush)

    def close(self, outcome: Outcome = "success") -> None:
        """Tries what waits once more, closes the writers and gives the run folder back.

        Args:
          outcome: how training ended.
        """
        with ExitStack() as stack:
            stack.callback(self._give_back)
            for writer in reversed(self._writers):
                stack.callback(self._trouble.guard, f"close of {_name(writer)}", writer.close)
                if isinstance(writer, SessionWriter):
                    what = f"the end of {_name(writer)}'s session"
                    stack.callback(self._trouble.guard, what, writer.end_session, outcome)
            stack.callback(self._report_losses)
            self._deliver()

    def _deliver(self) -> None:
        for writer, backlog in zip(self._writers, self._backlog, strict=True):
            self._trouble.guard(_name(writer), _write_all, writer, backlog)

    def _drop_oldest(self, index: int) -> None:
        self._backlog[index].popleft()
        self._dropped[index] += 1
        name = _name(self._writers[index])
        self._trouble.warn(
            f"{name} has {MOST_WAITING} records waiting; the oldest are dropped from now on",
            key=f"backlog of {name}",
        )

    def _report_losses(self) -> None:
        for writer, backlog, dropped in zip(
            self._writers, self._backlog, self._dropped, strict=True
        ):
            if backlog or dropped:
                self._trouble.warn(f"{_name(writer)} never took {len(backlog) + dropped} records")


def _write_all(writer: Writer, backlog: deque[Record]) -> None:
    while backlog:
        writer.write(backlog[0])
        backlog.popleft()


def _name(writer: Writer) -> str:
    return type(writer).__name__


def _jsonl_path(logdir: str | Path) -> Path:
    return Path(logdir).expanduser() / _jsonl.NAME


def _last_step(path: Path) -> int | None:
    """The last step of the records in force."""
    steps: list[int] = []
    for entry in _jsonl.entries(path):
        if "start" in entry:
            steps = [step for step in steps if step < entry["start"]]
        else:
            steps.append(entry["step"])
    return max(steps, default=None)


def _folder_writers(logdir: str | Path | None, layout: layout_pb2.Layout) -> list[Writer]:
    if logdir is None:
        return []
    # First what may refuse the folder: the other leaves a new file behind.
    jsonl = JsonlWriter(_jsonl_path(logdir))
    try:
        return [TensorBoardWriter(logdir, layout=layout), jsonl]
    except BaseException:
        jsonl.close()
        raise


def _give_back(writers: Sequence[Writer], lock: RunLock | None) -> None:
    """Closes what is open without a word: the last chance, often in a garbage collection."""
    for writer in writers:
        with suppress(Exception):
            writer.close()
    if lock is not None:
        lock.release()
