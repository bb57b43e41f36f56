"""Writers in the style of CLU, which take scalars alone."""

from typing import Any

from rankmon.writers.base import ClosingWriter, Record


class ScalarsWriter(ClosingWriter):
    """Hands scalars to any object with `write_scalars(step, {tag: value})`, as CLU's writers have.

    Hyperparameters too, where it has `write_hparams({name: value})`.

    The object stays its owner's: it is flushed where it can be, and never closed. It is not told of
    attempts, which it does not know.
    """

    def __init__(self, writer: Any) -> None:
        """Keeps the object that takes the scalars."""
        self._writer = writer

    def start(self, step: int) -> None:
        """Nothing."""

    def write(self, record: Record) -> None:
        """See `Writer`."""
        if record.hparams:
            getattr(self._writer, "write_hparams", _nothing)(dict(record.hparams))
        self._writer.write_scalars(record.step, dict(record.scalars))

    def flush(self) -> None:
        """Flushes the object, where it can be."""
        getattr(self._writer, "flush", _nothing)()

    def close(self) -> None:
        """Flushes."""
        self.flush()


def _nothing(*_: Any) -> None:
    pass
