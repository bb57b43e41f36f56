"""The event files of a run folder: their names, and the file of the session.

TensorBoard reads the files in the order of their names. The file of a new attempt has to come
last: its START event discards superseded records only if they were read before. The file of the
session (hyperparameters and outcome, for the HPARAMS page) has to come first: TensorBoard keeps the
first that it reads, and would otherwise show those of an earlier attempt, perhaps of a failed one.
"""

import io
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tensorboard.summary.writer.record_writer import RecordWriter

from rankmon._util.files import WholeFile, check_no_pipe, replace_file
from rankmon._util.hparams import Hparam
from rankmon.writers import events
from rankmon.writers.base import Outcome

PREFIX, SUFFIX = "events.out.tfevents.", ".rankmon"
SESSION_NAME = f"{PREFIX}0000000000.session"
_STEP = 0  # never later than the START events of other files, which discard later steps


def event_file_names(folder: Path) -> list[str]:
    """Return the names of all event files in the folder."""
    return [path.name for path in folder.iterdir() if path.name.startswith(PREFIX)]


def is_own(name: str) -> bool:
    """Return whether this is the name of an event file with the records of an attempt."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def prepare_session(folder: Path) -> None:
    """Check the session's file, and remove temporary ones that earlier versions may have left.

    Raises:
      OSError: if there is a pipe in place of the session's file.
    """
    check_no_pipe(folder / SESSION_NAME)
    for path in folder.glob(f".{SESSION_NAME}.*"):
        with suppress(OSError):
            path.unlink()


def new_event_file(folder: Path, names: Iterable[str]) -> WholeFile:
    """Create an event file whose name sorts after all of these."""
    matches = [re.match(r"\d{10}", name.removeprefix(PREFIX)) for name in names]
    second = max([int(time.time()), *(int(match[0]) + 1 for match in matches if match)])
    while True:
        try:
            return WholeFile(folder / f"{PREFIX}{second:010d}{SUFFIX}", mode="xb")
        except FileExistsError:
            second += 1


@dataclass(frozen=True)
class Session:
    """An attempt's entry on TensorBoard's HPARAMS page.

    Attributes:
      hparams: name -> value.
      began: the start of the attempt, in seconds since the epoch.
    """

    hparams: Mapping[str, Hparam]
    began: float

    def supersede(self, folder: Path, outcome: Outcome, now: float) -> None:
        """Replace the run's session file by one with this session and this outcome.

        Raises:
          OSError: if the file cannot be written.
        """
        data = io.BytesIO()
        records = RecordWriter(data)
        for event in (
            events.version_event(self.began),
            events.session_start_event(self.hparams, _STEP, self.began),
            events.session_end_event(outcome, _STEP, now),
        ):
            records.write(event.SerializeToString())
        replace_file(folder / SESSION_NAME, data.getvalue())
