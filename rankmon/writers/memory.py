"""`MemoryWriter`: keep records in memory."""

from rankmon._util.closing import ClosesOnExit
from rankmon.writers.base import Record


class MemoryWriter(ClosesOnExit):
    """Keeps records in memory.

    Attributes:
      all_records: every record, in the order in which they were written.
    """

    def __init__(self) -> None:
        self.all_records: list[Record] = []
        self._in_force: list[Record] = []

    @property
    def records(self) -> list[Record]:
        """The records that were not superseded by a later attempt, in the order of their steps."""
        return sorted(self._in_force, key=lambda record: record.step)

    def start(self, step: int) -> None:
        """Begin an attempt: drop the records of steps >= step from `records`."""
        self._in_force = [record for record in self._in_force if record.step < step]

    def write(self, record: Record) -> None:
        """Keep one record."""
        self.all_records.append(record)
        self._in_force.append(record)

    def flush(self) -> None:
        """Do nothing: records are in memory already."""

    def close(self) -> None:
        """Do nothing: the records stay available."""
