"""Test that writers get records and starts of attempts in order, even if some writes fail."""

from contextlib import contextmanager
from functools import partial

import pytest

from full_disk import files_limited_to
from rankmon import RankmonWarning, Record, read_jsonl
from rankmon._util.errors import ErrorPolicy
from rankmon.monitor.fanout import MOST_WAITING, Fanout
from reading import legacy_events


def record(step, attempt=1):
    return Record(step, attempt, 1.7e9 + step, {"rank/H_L": float(step)}, {})


class Custom:
    """A writer of somebody else's that fails while it is `broken`, in some of its methods."""

    def __init__(self, *fails_at):
        self.taken, self.broken, self._fails_at = [], False, fails_at

    def start(self, step):
        self._take("start", step)

    def write(self, record):
        self._take("write", record.step)

    def _take(self, what, step):
        if self.broken and what in self._fails_at:
            raise ConnectionError("the service is away")
        self.taken.append((what, step))

    def flush(self):
        pass

    def close(self):
        pass


def go_back(fanout, broken):
    """Steps 0 to 7, and back to 2; from 5 on, until the training is at 4 again, nothing works."""
    fanout.start(0)
    for step in range(5):
        fanout.write(record(step))
    with broken():
        for step in range(5, 8):
            fanout.write(record(step))
        fanout.start(2)
        for step in (2, 3):
            fanout.write(record(step, 2))
    for step in range(4, 8):
        fanout.write(record(step, 2))


def test_going_back_on_a_full_disk_keeps_the_order_of_attempts(tmp_path):
    fanout = Fanout(tmp_path, [], errors=ErrorPolicy("warn"))
    with pytest.warns(RankmonWarning, match="large"):
        go_back(fanout, partial(files_limited_to, 1))
    fanout.close()
    events = legacy_events(tmp_path).Scalars("rank/H_L")
    assert [event.step for event in events] == list(range(8))
    assert [(r.step, r.attempt) for r in read_jsonl(tmp_path / "rankmon.jsonl")] == [
        (step, 1 if step < 2 else 2) for step in range(8)
    ]
    assert len(read_jsonl(tmp_path / "rankmon.jsonl", superseded=True)) == 14


@pytest.mark.parametrize("fails_at", [("start",), ("write",), ("start", "write")])
def test_a_writer_of_somebody_elses_gets_all_in_order(fails_at):
    sound, writer = Custom(), Custom(*fails_at)
    fanout = Fanout(None, [writer, sound], errors=ErrorPolicy("warn"))

    @contextmanager
    def broken():
        writer.broken = True
        yield
        writer.broken = False

    with pytest.warns(RankmonWarning, match="Custom failed .*away"):
        go_back(fanout, broken)
    fanout.close()
    assert writer.taken == sound.taken
    assert [entry for entry in sound.taken if entry[0] == "start"] == [("start", 0), ("start", 2)]


def test_a_beginning_that_nothing_follows_is_tried_again_at_the_flush_and_at_the_close():
    writer = Custom("start")
    fanout = Fanout(None, [writer], errors=ErrorPolicy("warn"))
    fanout.start(3)
    writer.broken = True
    with pytest.warns(RankmonWarning, match="away"):
        fanout.flush()
    writer.broken = False
    fanout.flush()
    fanout.start(1)
    fanout.close()
    fanout.close()
    assert writer.taken == [("start", 3), ("start", 1)]


def test_what_is_dropped_of_a_long_backlog_are_records_alone():
    writer = Custom("start", "write")
    fanout = Fanout(None, [writer], errors=ErrorPolicy("warn"))
    writer.broken = True
    with pytest.warns(RankmonWarning):
        for attempt in (1, 2, 3):
            fanout.start(0)
            for step in range(MOST_WAITING // 2):
                fanout.write(record(step, attempt))
    writer.broken = False
    with pytest.warns(RankmonWarning, match=f"did not write {MOST_WAITING // 2} records"):
        fanout.close()
    kept = [("start", 0), *(("write", step) for step in range(MOST_WAITING // 2))]
    assert writer.taken == [("start", 0), *kept, *kept]


def test_an_error_that_is_raised_loses_neither_the_beginning_nor_the_record():
    writer = Custom("start")
    fanout = Fanout(None, [writer], errors=ErrorPolicy("raise"))
    writer.broken = True
    fanout.start(0)
    for step in (0, 1):
        with pytest.raises(ConnectionError, match="away"):
            fanout.write(record(step))
    writer.broken = False
    fanout.write(record(2))
    assert writer.taken == [("start", 0), *(("write", step) for step in range(3))]
