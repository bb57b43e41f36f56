"""Test records in memory: all of them, and those that are not superseded."""

from rankmon.writers.memory import MemoryWriter
from run_records import record


def test_memory_keeps_what_is_in_force_and_all():
    with MemoryWriter() as writer:
        writer.start(0)
        written = [record(step) for step in (0, 10, 20)]
        for one in written:
            writer.write(one)
        writer.start(10)
        last = record(15)
        writer.write(last)
        writer.flush()
    assert writer.records == [written[0], last]
    assert writer.all_records == [*written, last]
