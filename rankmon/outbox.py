"""Records on their way to the writers of a run: attempts, what waits to be written, the lock.

A record that a writer refused stays in that writer's backlog and is tried again with the next one,
at `flush` and at `close`. Measures nothing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rankmon.layout import custom_scalars_layout
from rankmon.writers import JsonlWriter, Record, RunLock, TensorBoardWriter, Writer

# Runs an action under the monitor's error policy: guard(what, action, *arguments).
Guard = Callable[..., Any]


class Outbox:
    """The writers of one run.

    Args:
      logdir: run folder for TensorBoard events and rankmon.jsonl, locked while open; None for none.
      writers: more writers.
      guard: what each action on a writer is run by; it decides what an error does.

    Raises:
      OSError: where logdir cannot be written or has another live writer.
    """

    def __init__(self, logdir: str | Path | None, writers: Sequence[Writer], *, guard: Guard):
        self.attempt = 0
        self._guard = guard
        self._lock = None if logdir is None else RunLock(logdir)
        try:
            self._writers = [*_folder_writers(logdir), *writers]
        except BaseException:
            self._release()
            raise
        self._backlog: list[deque[Record]] = [deque() for _ in self._writers]

    def start(self, step: int) -> None:
        """A new attempt begins: records of `step` and later steps are superseded."""
        self.attempt += 1
        for writer in self._writers:
            self._guard(_name(writer), writer.start, step)

    def write(self, record: Record) -> None:
        """Hands the record, and what waits before it, to every writer."""
        for backlog in self._backlog:
            backlog.append(record)
        self._deliver()

    def flush(self) -> None:
        """Tries what waits once more, and flushes."""
        self._deliver()
        for writer in self._writers:
            self._guard(f"flush of {_name(writer)}", writer.flush)

    def close(self) -> None:
        """Tries what waits once more, closes the writers and gives the run folder back."""
        try:
            self._deliver()
            for writer in self._writers:
                self._guard(f"close of {_name(writer)}", writer.close)
        finally:
            self._release()

    def _deliver(self) -> None:
        for writer, backlog in zip(self._writers, self._backlog, strict=True):
            self._guard(_name(writer), _write_all, writer, backlog)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _write_all(writer: Writer, backlog: deque[Record]) -> None:
    while backlog:
        writer.write(backlog[0])
        backlog.popleft()


def _name(writer: Writer) -> str:
    return type(writer).__name__


def _folder_writers(logdir: str | Path | None) -> list[Writer]:
    if logdir is None:
        return []
    folder = Path(logdir)
    return [
        TensorBoardWriter(folder, layout=custom_scalars_layout()),
        JsonlWriter(folder / "rankmon.jsonl"),
    ]
