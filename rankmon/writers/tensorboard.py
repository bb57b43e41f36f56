"""`TensorBoardWriter`: write records as TensorBoard events, without TensorFlow.

`events` builds the events; `event_files` explains the names and the order of the files.
"""

import time
from collections.abc import Callable, Sequence

from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from rankmon._util.closing import ClosesOnExit
from rankmon._util.files import PathLike, WholeFile, made_folder
from rankmon._util.tags import BATCHES, LAYERS
from rankmon._util.validate import as_layers
from rankmon._util.warnings import warn_user
from rankmon.writers import events
from rankmon.writers.base import Outcome, Record, lost_file
from rankmon.writers.condense import condensed, layers_text
from rankmon.writers.event_files import (
    Session,
    event_file_names,
    is_own,
    new_event_file,
    prepare_session,
)


class TensorBoardWriter(ClosesOnExit):
    """Writes records to a new TensorBoard event file in the run folder.

    Numbers are written as float32, as TensorBoard stores them; `JsonlWriter` keeps all digits. An
    array is written as a histogram at its tag, and as a tensor of the plugin "rankmon" at
    tag + "/values".

    If a network has more than 24 layers, its layers have no curves: each of their families is
    written as an array `layers/<family>`. The text `rankmon/layers` gives the order of the layers.

    Use a folder for rankmon alone: TensorBoard reads the files of a folder one after the other, and
    a new attempt also discards the later steps of event files that other programs wrote there.
    """

    def __init__(
        self,
        logdir: PathLike,
        *,
        layout: layout_pb2.Layout | None = None,
        layers: str | Sequence[str] | None = None,
        warn: Callable[[str], None] = warn_user,
    ) -> None:
        """Create the event file, and the folder if it is missing.

        Args:
          logdir: the run folder.
          layout: charts for TensorBoard's "Custom Scalars" page, if any.
          layers: globs over the names of the layers that have curves; by default all layers of a
            network with at most 24 layers, and no layer of a larger one.
          warn: called with a warning if the file is removed while in use, or if `layers` matches
            none.

        Raises:
          TypeError: for layers that are not strings.
          ValueError: for a URL.
          OSError: if the folder or the file cannot be created.
        """
        self._layers = as_layers(layers)
        self._warned = False  # of globs that match no layer
        self._order = ""  # the text that was written last about the order of layers
        folder = made_folder(logdir)
        prepare_session(folder)
        names = event_file_names(folder)
        self._folder, self._layout, self._warn = folder, layout, warn
        self._started = False
        self._session: Session | None = None
        self._last_step = 0
        self._first_start: int | None = None
        # The first attempt in a folder writes no START: it would only discard these steps from
        # event files that the training loop itself has written to the same folder.
        self._resumes = any(map(is_own, names))
        self._has_predecessor = self._resumes
        self._file, self._records = _begun(new_event_file(folder, names))
        self._blank = self._file.size

    def start(self, step: int) -> None:
        """Begin an attempt: supersede earlier records from this step on, and write the layout.

        The layout is written each time, because a restart at step 0 discards the earlier one.
        """
        self._regain()
        now = time.time()
        if self._has_predecessor:
            _supersede(self._records, step, now)
        if self._layout is not None:
            self._write(events.layout_event(self._layout, step, now))
        self._first_start = step if self._first_start is None else min(step, self._first_start)
        self._order = ""  # a restart discards the text, too
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
        shown = condensed(record.scalars, self._layers)
        if shown.unmatched and not self._warned:
            self._warn(
                f"expected layers to match the name of a layer, got {self._layers}; no layer has a "
                "curve in TensorBoard"
            )
            self._warned = True
        order = layers_text(shown.layers)
        texts = {LAYERS: order} if order and order != self._order else {}
        # Without the few values of each batch, whose median and range are scalars.
        own = {tag: array for tag, array in record.arrays.items() if not tag.startswith(BATCHES)}
        event = events.record_event(
            record.step,
            record.wall_time,
            scalars=shown.scalars,
            arrays={**own, **shown.arrays},
            texts={**record.texts, **texts},
            hparams=record.hparams,
        )
        self._write(event)
        self._order = order or self._order
        self._last_step = record.step

    def end_session(self, outcome: Outcome) -> None:
        """Write the outcome, if a record had hyperparameters and thus began a session."""
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
          step: the training step of the picture.
          tag: the name of the picture.
          png: the bytes of a PNG file.

        Raises:
          OSError: if the file cannot be written.
          ValueError: if the bytes are not a PNG file, and after `close`.
        """
        event = events.image_event(tag, png, step, time.time())
        self._regain()
        if not self._started:
            self.start(step)
        self._write(event)

    def flush(self) -> None:
        """Continue in a new file if the old one is lost; written records need no flushing."""
        self._regain()

    def discard_blank(self) -> None:
        """Remove the file if nothing was written: TensorBoard would show a run without data."""
        file = self._file
        if not (file.closed or file.is_lost()) and file.size == self._blank:
            file.discard()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: event_pb2.Event) -> None:
        _put(self._records, event)

    def _regain(self) -> None:
        """Continue in a new file if the old one is lost; put a removed one back first.

        A running TensorBoard either reads the old file by its path, or keeps the removed file open.
        In both cases it also reads a new file.
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
    """Write the first event of a new event file; discard the file if that fails."""
    records = RecordWriter(file)
    try:
        _put(records, events.version_event(time.time()))
    except BaseException:
        file.discard()
        raise
    return file, records


def _supersede(records: RecordWriter, step: int, now: float) -> None:
    # TensorBoard takes the first START of a run for its beginning, and discards nothing.
    for _ in range(2):
        _put(records, events.start_event(step, now))


def _put(records: RecordWriter, event: event_pb2.Event) -> None:
    records.write(event.SerializeToString())
