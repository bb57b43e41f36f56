"""`ScalarsWriter`: pass scalars on to a metric writer with CLU's interface."""

from typing import Any

from rankmon._util.closing import ClosesOnExit
from rankmon.writers.base import Record


class ScalarsWriter(ClosesOnExit):
    """Passes scalars on to any object with `write_scalars(step, {tag: value})`, as in CLU.

    Hyperparameters are passed on if the object has `write_hparams({name: value})`.

    The object is flushed if it has a `flush`, but never closed: whoever created it closes it. CLU
    has no notion of attempts, so restarts are not passed on.
    """

    def __init__(self, writer: Any) -> None:
        """Store the object that the scalars are passed to."""
        self._writer = writer

    def start(self, step: int) -> None:
        """Do nothing: CLU's writers have no attempts."""

    def write(self, record: Record) -> None:
        """Pass on the record's scalars, and its hyperparameters if the object accepts them."""
        if record.hparams:
            getattr(self._writer, "write_hparams", _nothing)(dict(record.hparams))
        self._writer.write_scalars(record.step, dict(record.scalars))

    def flush(self) -> None:
        """Flush the object, if it has a `flush`."""
        getattr(self._writer, "flush", _nothing)()

    def close(self) -> None:
        """Flush the object, but leave it open."""
        self.flush()


def _nothing(*_: Any) -> None:
    """Accept any arguments, in place of a method that the object lacks."""
