"""`ScalarsWriter`: pass records on to a metric writer with the interface of CLU or of metrax."""

from collections.abc import Mapping
from typing import Any

from rankmon._util.closing import ClosesOnExit
from rankmon.writers.base import Record


class ScalarsWriter(ClosesOnExit):
    """Passes records on to an object with `write_scalars` (CLU) or `log_scalar` (metrax).

    `write_scalars(step, {tag: value})` gets the scalars of a record at once;
    `log_scalar(tag, value, step=step)`, the interface of `metrax.logging.LoggingBackend`, gets them
    one by one. The other parts of a record are passed on as far as the object has CLU's methods:
    `write_histograms(step, {tag: array})`, `write_texts(step, {tag: Markdown})` and
    `write_hparams({name: value})`.

    The object is flushed if it has a `flush`, but never closed: whoever created it closes it. These
    interfaces have no notion of attempts, so restarts are not passed on: the object gets the steps
    after a restart a second time.
    """

    def __init__(self, writer: Any) -> None:
        """Store the object that the records are passed to."""
        self._writer = writer

    def start(self, step: int) -> None:
        """Do nothing: the object has no attempts."""

    def write(self, record: Record) -> None:
        """Pass on the record's scalars, and its other parts if the object accepts them."""
        if record.hparams:
            self._pass("write_hparams", dict(record.hparams))
        if record.arrays:
            self._pass("write_histograms", record.step, dict(record.arrays))
        if record.texts:
            self._pass("write_texts", record.step, dict(record.texts))
        self._write_scalars(record.step, record.scalars)

    def flush(self) -> None:
        """Flush the object, if it has a `flush`."""
        self._pass("flush")

    def close(self) -> None:
        """Flush the object, but leave it open."""
        self.flush()

    def _write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        if hasattr(self._writer, "write_scalars"):
            self._writer.write_scalars(step, dict(scalars))
            return
        for tag, value in scalars.items():
            self._writer.log_scalar(tag, value, step=step)

    def _pass(self, method: str, *arguments: Any) -> None:
        """Call a method of the object, if it has it."""
        call = getattr(self._writer, method, None)
        if call is not None:
            call(*arguments)
