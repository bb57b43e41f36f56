"""`Fanout`: send every record to every writer of a run, with a backlog for each writer.

An entry (a record, or the beginning of an attempt) that a writer failed to write stays first in its
backlog. It is tried again with the next record, at `flush` and at `close`. A backlog holds at most
`MOST_WAITING` records; beyond that the oldest are dropped. `Fanout` also locks the run folder.
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
from rankmon._util.text import counted
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
    """A writer and the entries that it has not written yet, in order.

    Args:
      writer: writes records and starts.

    Attributes:
      dropped: the number of records that were dropped from a full backlog.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer, self.name = writer, type(writer).__name__
        self.dropped = 0
        self._waiting: deque[Record | _Start] = deque()
        self._holder: dict[str, int] = {}

    @property
    def records(self) -> int:
        """The number of records in the backlog."""
        return sum(isinstance(entry, Record) for entry in tuple(self._waiting))

    def append(self, entry: Record | _Start) -> None:
        """Append an entry to the backlog."""
        self._waiting.append(entry)

    def keep_the_newest(self, count_of_records: int) -> bool:
        """Drop the oldest records beyond the limit; return whether any were dropped.

        Starts are kept, because they supersede records that were written earlier.
        """
        before = self.dropped
        # Entries are removed only by the thread that may write them.
        with self._mine() as is_mine:
            while is_mine and self.records > count_of_records:
                kinds = (isinstance(entry, Record) for entry in self._waiting)
                del self._waiting[next(compress(count(), kinds))]
                self.dropped += 1
        return self.dropped > before

    def deliver(self) -> None:
        """Write all entries; each stays in the backlog until it is written.

        Return at once if another thread is doing this: it will write the newest entry too.
        """
        with self._mine() as is_mine:
            while is_mine and self._waiting:
                entry = self._waiting[0]
                if isinstance(entry, _Start):
                    self.writer.start(entry.step)
                else:
                    self.writer.write(entry)
                # A re-entrant call by the writer may have removed the entry already.
                if self._waiting and self._waiting[0] is entry:
                    self._waiting.popleft()

    @property
    def is_here(self) -> bool:
        """Whether the caller is this writer while it writes an entry (a re-entrant call)."""
        return self._holder.get("thread") == threading.get_ident()

    @contextmanager
    def _mine(self) -> Iterator[bool]:
        """Yield whether this thread has the sole right to write entries in this block.

        This is not a lock: if an interrupt leaves the mark set, the same thread can claim it again.
        """
        here = threading.get_ident()
        try:
            # `setdefault` is atomic: only one thread can store its identity.
            yield self._holder.setdefault("thread", here) == here
        finally:
            if self.is_here:
                self._holder.clear()


class Fanout:
    """The writers of one run.

    If it is dropped without `close`, the files in logdir are closed and its lock is released. Files
    without a record, as after a first call that raised an error, are removed at the end.

    Args:
      logdir: run folder for TensorBoard events and rankmon.jsonl, locked while open; None to write
        no files.
      writers: additional writers.
      errors: the error policy, applied to errors of the writers.
      layout: charts for the run folder; by default those of `custom_scalars_layout`.
      layers: the layers that have curves in TensorBoard, as for `TensorBoardWriter`.

    Attributes:
      attempt: the number of attempts so far.
      has_lost_lines: whether the folder's earlier records are only in its event files.

    Raises:
      OSError: if logdir cannot be written or has another live writer.
      ValueError: if logdir is a URL, or if its rankmon.jsonl contains anything but records.
    """

    def __init__(
        self,
        logdir: str | Path | None,
        writers: Sequence[Writer],
        *,
        errors: ErrorPolicy,
        layout: layout_pb2.Layout | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        self.attempt = 0
        self._errors = errors
        folder = self._folder = None if logdir is None else absolute_folder(logdir)
        lock = None if folder is None else RunLock(folder)
        self.has_lost_lines = False
        try:
            if folder is not None:
                self.has_lost_lines = self._look_for_earlier_files(folder)
            own = _folder_writers(folder, layout or custom_scalars_layout(), layers, errors.warn)
        except BaseException:
            _give_back([], lock)
            raise
        self._own = own
        self._give_back = weakref.finalize(self, _give_back, own, lock)
        self._backlogs = [_Backlog(writer) for writer in (*own, *writers)]
        self._closed = False

    def _look_for_earlier_files(self, folder: Path) -> bool:
        """Warn if the folder has one kind of file only; return whether its JSON lines are lost."""
        path = folder / JSONL_NAME
        has_events, has_lines = any(map(is_own, event_file_names(folder))), path.exists()
        if has_events and not has_lines:
            what, shows = f"{path} next to the event files of earlier attempts", "read_jsonl"
        elif path.is_file() and path.stat().st_size and not has_events:
            what, shows = f"event files next to {path}", "TensorBoard"
        else:
            return False
        self._errors.warn(
            f"expected {what}, got none; {shows} will show the new records only. If you have a "
            "copy of the missing files, restore them before you continue"
        )
        return not has_lines

    def earlier(self) -> list[tuple[int, Mapping[str, float]]] | None:
        """Return step and scalars of the run folder's records that are not superseded, by step.

        Return None without a folder.
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
        """Begin a new attempt: its first record supersedes those of `step` and later steps."""
        self.attempt += 1
        for backlog in self._backlogs:
            backlog.append(_Start(step))

    def write(self, record: Record) -> None:
        """Write the record, and the backlog before it, with every writer."""
        self.append(record)
        self.deliver()

    def append(self, record: Record) -> None:
        """Append a record to every backlog, for the next `deliver`."""
        for backlog in self._backlogs:
            backlog.append(record)
        for backlog in self._backlogs:
            if backlog.keep_the_newest(MOST_WAITING):
                self._errors.warn(
                    f"{backlog.name} has {MOST_WAITING} records waiting; from now on, the oldest "
                    "are dropped",
                    key=f"backlog of {backlog.name}",
                )

    def deliver(self) -> None:
        """Write the backlog of every writer."""
        for backlog in self._backlogs:
            self._errors.guard(backlog.name, backlog.deliver)

    @property
    def is_here(self) -> bool:
        """Whether the caller is a writer that is writing (a re-entrant call)."""
        return any(backlog.is_here for backlog in self._backlogs)

    def flush(self) -> None:
        """Try to write the backlogs once more, and flush the writers."""
        self.deliver()
        for backlog in self._backlogs:
            self._errors.guard(f"flush of {backlog.name}", backlog.writer.flush)

    def close(self, outcome: Outcome = "success") -> None:
        """Try to write the backlogs once more, close the writers and unlock the run folder.

        A second call has no effect.

        Args:
          outcome: how training ended.
        """
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:  # runs all callbacks in reverse order, even if one raises
            stack.callback(self._give_back)
            for backlog in reversed(self._backlogs):
                writer = backlog.writer
                stack.callback(self._errors.guard, f"close of {backlog.name}", writer.close)
                if isinstance(writer, SessionWriter):
                    what = f"the end of {backlog.name}'s session"
                    stack.callback(self._errors.guard, what, writer.end_session, outcome)
            for each in self._own:
                name = type(each).__name__
                stack.callback(self._errors.guard, f"close of {name}", each.discard_blank)
            stack.callback(self._report_losses)
            self.flush()

    def _report_losses(self) -> None:
        for backlog in self._backlogs:
            if lost := backlog.records + backlog.dropped:
                self._errors.warn(f"{backlog.name} did not write {counted(lost, 'record')}")


def _folder_writers(
    folder: Path | None,
    layout: layout_pb2.Layout,
    layers: Sequence[str] | None,
    warn: Callable[[str], None],
) -> list[TensorBoardWriter | JsonlWriter]:
    """Open the writers of a run folder; return an empty list without a folder."""
    if folder is None:
        return []
    # First the writer that may refuse the folder: the other one creates a file as it opens.
    jsonl = JsonlWriter(folder / JSONL_NAME, warn=warn)
    try:
        return [TensorBoardWriter(folder, layout=layout, layers=layers, warn=warn), jsonl]
    except BaseException:
        jsonl.close()
        raise


def _give_back(writers: Sequence[TensorBoardWriter | JsonlWriter], lock: RunLock | None) -> None:
    """Close the files and release the lock without warnings, often during garbage collection."""
    for writer in writers:
        with suppress(Exception):
            writer.discard_blank()
        with suppress(Exception):
            writer.close()
    if lock is not None:
        lock.release()
