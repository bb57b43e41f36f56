"""`TensorBoardWriter`: records as TensorBoard events without TensorFlow.

`events` has the events, `event_files` the names and the order of the files.
"""

import time
from collections.abc import Callable

from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from rankmon._util.files import PathLike, WholeFile, made_folder
from rankmon._util.warnings import warn_user
from rankmon.writers import events
from rankmon.writers.base import ClosingWriter, Outcome, Record, lost_file
from rankmon.writers.event_files import (
    Session,
    event_file_names,
    is_own,
    new_event_file,
    prepare_session,
)


class TensorBoardWriter(ClosingWriter):
    """Writes a new TensorBoard event file in the run folder.

    Numbers are kept as float32, as TensorBoard keeps them (`JsonlWriter` keeps all digits). Each
    array becomes a histogram at its tag, and a tensor of plugin "rankmon" at tag + "/values".

    Give rankmon a folder of its own: TensorBoard reads the files of a folder one after the other,
    and a new attempt supersedes what any of them said of later steps.
    """

    def __init__(
        self,
        logdir: PathLike,
        *,
        layout: layout_pb2.Layout | None = None,
        warn: Callable[[str], None] = warn_user,
    ) -> None:
        """Create the event file, and the folder if it is missing.

        Args:
          logdir: the run folder.
          layout: charts for TensorBoard's "Custom Scalars" page, if any.
          warn: called with a warning if the file was removed while in use.

        Raises:
          ValueError: for a URL.
          OSError: if the folder or the file cannot be created.
        """
        folder = made_folder(logdir)
        prepare_session(folder)
        names = event_file_names(folder)
        self._folder, self._layout, self._warn = folder, layout, warn
        self._started = False
        self._session: Session | None = None
        self._last_step = 0
        self._first_start: int | None = None
        # The first attempt of a folder supersedes nothing: a START would only purge the records
        # that a training loop's own event files in the same folder have for these steps.
        self._resumes = any(map(is_own, names))
        self._has_predecessor = self._resumes
        self._file, self._records = _begun(new_event_file(folder, names))

    def start(self, step: int) -> None:
        """Begin an attempt, and write the layout, which a restart at step 0 would purge."""
        self._regain()
        now = time.time()
        if self._has_predecessor:
            _supersede(self._records, step, now)
        if self._layout is not None:
            self._write(events.layout_event(self._layout, step, now))
        self._first_start = step if self._first_start is None else min(step, self._first_start)
        self._started = self._has_predecessor = True

    def write(self, record: Record) -> None:
        """Write one record.

        Raises:
          OSError: if the file cannot be written.
          ValueError: after `close`.
        """
        self._regain()
        if not self._started:
            self.start(record.step)
        if record.hparams:
            self._session = Session(record.hparams, record.wall_time)
            self._supersede("unknown", record.wall_time)
        event = events.record_event(
            record.step,
            record.wall_time,
            scalars=record.scalars,
            arrays=record.arrays,
            texts=record.texts,
            hparams=record.hparams,
        )
        self._write(event)
        self._last_step = record.step

    def end_session(self, outcome: Outcome) -> None:
        """Write the outcome, if a record had hyperparameters."""
        if self._session is not None:
            self._regain()
            now = time.time()
            self._write(events.session_end_event(outcome, self._last_step, now))
            self._supersede(outcome, now)

    def _supersede(self, outcome: Outcome, now: float) -> None:
        if self._resumes and self._session is not None:
            self._session.supersede(self._folder, outcome, now)

    def write_image(self, step: int, tag: str, png: bytes) -> None:
        """Write a picture for TensorBoard's "Images" page.

        Args:
          step: the step that it shows.
          tag: its name.
          png: the bytes of a PNG file.

        Raises:
          OSError: if the file cannot be written.
          ValueError: for bytes that are no PNG, and after `close`.
        """
        event = events.image_event(tag, png, step, time.time())
        self._regain()
        if not self._started:
            self.start(step)
        self._write(event)

    def flush(self) -> None:
        """Go on in a new file if the old one is lost; records are handed over as written."""
        self._regain()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: event_pb2.Event) -> None:
        _put(self._records, event)

    def _regain(self) -> None:
        """Put a lost file back in its place, and go on in a new one.

        Of TensorBoard's readers some read on at the old file's path, others keep the file open that
        has none any more: both take up what is in a new file.
        """
        lost = self._file
        lost.keep_lock()
        if not lost.is_lost():
            return
        made_folder(self._folder)
        whole, is_replaced = lost.is_whole(), lost.path.exists()
        if whole and not is_replaced:
            lost.put_back()
        names = [*event_file_names(self._folder), lost.path.name]
        file, records = _begun(new_event_file(self._folder, names))
        try:
            if whole and is_replaced:
                if self._first_start is not None:
                    _supersede(records, self._first_start, time.time())
                file.append_all_of(lost)
        except BaseException:
            file.discard()
            raise
        self._file, self._records = file, records
        self._started = self._started and whole
        lost.close()
        self._warn(lost_file(lost, file, whole=whole))
        if self._session is not None:
            self._supersede("unknown", time.time())


def _begun(file: WholeFile) -> tuple[WholeFile, RecordWriter]:
    """Return a new event file with its first event; leave none behind if it cannot be written."""
    records = RecordWriter(file)
    try:
        _put(records, events.version_event(time.time()))
    except BaseException:
        file.discard()
        raise
    return file, records


def _supersede(records: RecordWriter, step: int, now: float) -> None:
    # TensorBoard's server takes a run's first START for its beginning and purges nothing.
    for _ in range(2):
        _put(records, events.start_event(step, now))


def _put(records: RecordWriter, event: event_pb2.Event) -> None:
    records.write(event.SerializeToString())
