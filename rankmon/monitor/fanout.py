"""`Fanout`: every record to every writer of a run, with a backlog each and the folder's lock.

A record or the beginning of an attempt that a writer refused stays in that writer's backlog, before
all that is newer, and is tried again with the next record, at `flush` and at `close`. The backlog
holds `MOST_WAITING` records; of more, the oldest are dropped.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import compress, count
from pathlib import Path

from tensorboard.plugins.custom_scalar import layout_pb2

from rankmon._util.errors import ErrorPolicy
from rankmon._util.files import RunLock, absolute_folder
from rankmon.writers.base import Outcome, Record, SessionWriter, Writer
from rankmon.writers.event_files import event_file_names, is_own
from rankmon.writers.jsonl import JSONL_NAME, JsonlWriter, jsonl_entries, readable_scalars
from rankmon.writers.layout import custom_scalars_layout
from rankmon.writers.tensorboard import TensorBoardWriter

MOST_WAITING = 1000


@dataclass(frozen=True)
class _Start:
    """The beginning of an attempt, which supersedes records of its step and later ones."""

    step: int


class _Backlog:
    """A writer, and the entries that it has not taken yet, in order.

    Args:
      writer: takes records and starts.

    Attributes:
      dropped: how many records no longer wait for it.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer, self.name = writer, type(writer).__name__
        self.dropped = 0
        self._waiting: deque[Record | _Start] = deque()
        self._holder: dict[str, int] = {}

    @property
    def records(self) -> int:
        """The number of records that wait."""
        return sum(isinstance(entry, Record) for entry in tuple(self._waiting))

    def append(self, entry: Record | _Start) -> None:
        """Take an entry, which waits behind all others."""
        self._waiting.append(entry)

    def keep_the_newest(self, count_of_records: int) -> bool:
        """Drop the oldest records beyond these, and return whether there were any.

        The starts before them stay, since they supersede others.
        """
        before = self.dropped
        with self._mine() as is_mine:
            while is_mine and self.records > count_of_records:
                kinds = (isinstance(entry, Record) for entry in self._waiting)
                del self._waiting[next(compress(count(), kinds))]
                self.dropped += 1
        return self.dropped > before

    def deliver(self) -> None:
        """Hand all to the writer; an entry stays until the writer has taken it.

        While another thread does it, nothing: that one comes to the newest entry.
        """
        with self._mine() as is_mine:
            while is_mine and self._waiting:
                entry = self._waiting[0]
                if isinstance(entry, _Start):
                    self.writer.start(entry.step)
                else:
                    self.writer.write(entry)
                if self._waiting and self._waiting[0] is entry:
                    self._waiting.popleft()

    @property
    def is_here(self) -> bool:
        """Whether the caller is this writer, while it takes an entry (a re-entrant call)."""
        return self._holder.get("thread") == threading.get_ident()

    @contextmanager
    def _mine(self) -> Iterator[bool]:
        """Give whether this thread alone takes entries out in the block.

        No lock: should an interrupt leave the holder behind, the same thread takes it again.
        """
        here = threading.get_ident()
        try:
            yield self._holder.setdefault("thread", here) == here
        finally:
            if self.is_here:
                self._holder.clear()


class Fanout:
    """The writers of one run.

    If it is dropped without `close`, the files of logdir are closed and its lock is released.

    Args:
      logdir: run folder for TensorBoard events and rankmon.jsonl, locked while open; None for none.
      writers: more writers.
      errors: decides what an error of a writer does.
      layout: charts for the run folder; those of `custom_scalars_layout` if not given.

    Attributes:
      attempt: how many attempts have begun.
      has_lost_lines: whether the folder's earlier records are in its event files only.

    Raises:
      OSError: if logdir cannot be written or has another live writer.
      ValueError: if logdir is a URL, or its rankmon.jsonl holds something else than records.
    """

    def __init__(
        self,
        logdir: str | Path | None,
        writers: Sequence[Writer],
        *,
        errors: ErrorPolicy,
        layout: layout_pb2.Layout | None = None,
    ) -> None:
        self.attempt = 0
        self._errors = errors
        folder = self._folder = None if logdir is None else absolute_folder(logdir)
        lock = None if folder is None else RunLock(folder)
        self.has_lost_lines = False
        try:
            if folder is not None:
                self.has_lost_lines = self._look_for_earlier_files(folder)
            own = _folder_writers(folder, layout or custom_scalars_layout(), errors.warn)
        except BaseException:
            _give_back([], lock)
            raise
        self._give_back = weakref.finalize(self, _give_back, own, lock)
        self._backlogs = [_Backlog(writer) for writer in (*own, *writers)]
        self._closed = False

    def _look_for_earlier_files(self, folder: Path) -> bool:
        """Warn if earlier attempts' files of one kind are missing; return whether the lines are."""
        path = folder / JSONL_NAME
        has_events, has_lines = any(map(is_own, event_file_names(folder))), path.exists()
        if has_events and not has_lines:
            what, shows = f"{path} beside the event files of earlier attempts", "read_jsonl"
        elif path.is_file() and path.stat().st_size and not has_events:
            what, shows = f"event files beside {path}", "TensorBoard"
        else:
            return False
        self._errors.warn(
            f"expected {what}, got none; {shows} will show the new records only: restore what was "
            "removed from a copy, if you have one, before you go on"
        )
        return not has_lines

    def earlier(self) -> list[tuple[int, Mapping[str, float]]] | None:
        """Return step and scalars of the records in force in the run folder, by their steps.

        None without a folder.
        """
        if self._folder is None:
            return None
        found: list[tuple[int, Mapping[str, float]]] = []
        for entry in jsonl_entries(self._folder / JSONL_NAME, warn=self._errors.warn):
            if "start" in entry:
                found = [record for record in found if record[0] < entry["start"]]
            else:
                found.append((entry["step"], readable_scalars(entry)))
        return sorted(found, key=lambda record: record[0])

    def start(self, step: int) -> None:
        """Begin a new attempt: with its first record, those of `step` and later are superseded."""
        self.attempt += 1
        for backlog in self._backlogs:
            backlog.append(_Start(step))

    def write(self, record: Record) -> None:
        """Hand the record, and the backlog before it, to every writer."""
        self.append(record)
        self.deliver()

    def append(self, record: Record) -> None:
        """Take a record for the next `deliver`."""
        for backlog in self._backlogs:
            backlog.append(record)
        for backlog in self._backlogs:
            if backlog.keep_the_newest(MOST_WAITING):
                self._errors.warn(
                    f"{backlog.name} has {MOST_WAITING} records waiting; the oldest are dropped "
                    "from now on",
                    key=f"backlog of {backlog.name}",
                )

    def deliver(self) -> None:
        """Hand its backlog to every writer."""
        for backlog in self._backlogs:
            self._errors.guard(backlog.name, backlog.deliver)

    @property
    def is_here(self) -> bool:
        """Whether the caller is a writer that takes a record."""
        return any(backlog.is_here for backlog in self._backlogs)

    def flush(self) -> None:
        """Try the backlogs once more, and flush the writers."""
        self.deliver()
        for backlog in self._backlogs:
            self._errors.guard(f"flush of {backlog.name}", backlog.writer.flush)

    def close(self, outcome: Outcome = "success") -> None:
        """Try the backlogs once more, close the writers and release the run folder.

        A second time does nothing.

        Args:
          outcome: how training ended.
        """
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:
            stack.callback(self._give_back)
            for backlog in reversed(self._backlogs):
                writer = backlog.writer
                stack.callback(self._errors.guard, f"close of {backlog.name}", writer.close)
                if isinstance(writer, SessionWriter):
                    what = f"the end of {backlog.name}'s session"
                    stack.callback(self._errors.guard, what, writer.end_session, outcome)
            stack.callback(self._report_losses)
            self.flush()

    def _report_losses(self) -> None:
        for backlog in self._backlogs:
            if lost := backlog.records + backlog.dropped:
                self._errors.warn(f"{backlog.name} never took {lost} records")


def _folder_writers(
    folder: Path | None, layout: layout_pb2.Layout, warn: Callable[[str], None]
) -> list[Writer]:
    if folder is None:
        return []
    # First what may refuse the folder: the other leaves a new file behind.
    jsonl = JsonlWriter(folder / JSONL_NAME, warn=warn)
    try:
        return [TensorBoardWriter(folder, layout=layout, warn=warn), jsonl]
    except BaseException:
        jsonl.close()
        raise


def _give_back(writers: Sequence[Writer], lock: RunLock | None) -> None:
    """Close files and lock without warnings: the last chance, often in a garbage collection."""
    for writer in writers:
        with suppress(Exception):
            writer.close()
    if lock is not None:
        lock.release()
