"""`ScalarsWriter`: scalars handed on to any writer in the style of CLU."""

from typing import Any

from rankmon.writers.base import ClosingWriter, Record


class ScalarsWriter(ClosingWriter):
    """Hands scalars to any object with `write_scalars(step, {tag: value})`, as CLU's writers have.

    Hyperparameters too, if it has `write_hparams({name: value})`.

    The object belongs to its owner: it is flushed if it can be, and never closed. It does not learn
    of attempts, which CLU does not have.
    """

    def __init__(self, writer: Any) -> None:
        """Keep the object that takes the scalars."""
        self._writer = writer

    def start(self, step: int) -> None:
        """Do nothing: CLU's writers have no attempts."""

    def write(self, record: Record) -> None:
        """Hand over the record's scalars, and its hyperparameters if the object takes them."""
        if record.hparams:
            getattr(self._writer, "write_hparams", _nothing)(dict(record.hparams))
        self._writer.write_scalars(record.step, dict(record.scalars))

    def flush(self) -> None:
        """Flush the object, if it has a `flush`."""
        getattr(self._writer, "flush", _nothing)()

    def close(self) -> None:
        """Flush the object, which its owner closes."""
        self.flush()


def _nothing(*_: Any) -> None:
    pass
