"""Log messages about long loops, by a clock that the test turns."""

import logging

import pytest

from rankmon._util import expected_time
from rankmon._util.expected_time import OutOfTimeError, Pace


@pytest.fixture
def turn(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(expected_time.time, "monotonic", lambda: now[0])

    def turn(seconds):
        now[0] += seconds

    return turn


def test_a_loop_that_exceeds_its_limit_says_that_it_is_left_out(turn, caplog):
    caplog.set_level(logging.WARNING, "rankmon")
    with pytest.raises(OutOfTimeError):
        for _ in Pace(limit=5.0).over("the Jacobian", range(10)):
            turn(2.0)
    (message,) = caplog.messages
    assert message == (
        "rankmon: the Jacobian: expected to take about 20 s where it may take 5 s: it is left out"
    )


def test_a_long_loop_says_so_once(turn, caplog):
    caplog.set_level(logging.WARNING, "rankmon")
    pace = Pace()
    for _ in range(2):
        for _ in pace.over("H_o", range(10)):
            turn(1.0)
    (message,) = caplog.messages
    assert "H_o: expected to take about 10 s (a rough estimate)" in message
