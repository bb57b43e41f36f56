"""Schedules against their sets of points, written out by brute force in exact arithmetic."""

import itertools

import numpy as np
import pytest

from rankmon.monitor.schedule import AtSteps, EveryN, LogSpaced, at_steps, every, log_spaced
from refusals import refused

LIMIT = 130


def rounded_power(i: int, k: int) -> int:
    """round(10^(i/k)): the least p with p + 1/2 >= 10^(i/k), in integers."""
    return next(p for p in itertools.count(1) if (2 * p + 1) ** k >= 2**k * 10**i)


def log_points(k: int) -> set[int]:
    powers = (rounded_power(i, k) for i in itertools.count())
    return {0, *itertools.takewhile(lambda point: point <= LIMIT, powers)}


CASES = {
    "every 1": (every(1), set(range(LIMIT + 1))),
    "every 7": (every(7), set(range(0, LIMIT + 1, 7))),
    "every 100": (every(100), {0, 100}),
    "log 1": (log_spaced(per_decade=1), log_points(1)),
    "log 3": (log_spaced(per_decade=3), log_points(3)),
    "log 10": (log_spaced(), log_points(10)),
    "log 50": (log_spaced(per_decade=50), log_points(50)),
    "steps": (at_steps([31, 0, 4, 4, 100]), {0, 4, 31, 100}),
    "steps without 0": (at_steps(range(20, 25)), set(range(20, 25))),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def test_the_points_of_log_spaced():
    assert sorted(log_points(3)) == [0, 1, 2, 5, 10, 22, 46, 100]
    assert log_points(10) >= {0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 63, 79, 100}


def test_due_if_a_point_lies_between_last_and_step(case):
    schedule, points = case
    for last, step in itertools.product(range(LIMIT + 1), repeat=2):
        expected = step < last or any(last < point <= step for point in points)
        assert schedule.due(step, last) is expected, (step, last)


def test_a_loop_of_single_steps_measures_the_first_step_and_the_points(case):
    schedule, points = case
    measured: list[int] = []
    for step in range(LIMIT + 1):
        if schedule.due(step, measured[-1] if measured else None):
            measured.append(step)
    assert measured == sorted({0} | points)


def test_the_first_call_is_due_wherever_training_starts(case):
    schedule, _ = case
    assert all(schedule.due(step, None) for step in range(LIMIT))


def test_a_jump_over_several_points_is_due_once():
    assert every(100).due(205, 95)
    assert not every(100).due(299, 205)
    assert at_steps([10, 20, 30]).due(25, 5)
    assert not at_steps([10, 20, 30]).due(29, 25)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("decade", [3, 6, 9])
def test_log_spaced_goes_on_without_end_and_hits_the_decades(k, decade):
    schedule = log_spaced(per_decade=k)
    step = 10**decade
    assert schedule.due(step, step - 1)
    assert not schedule.due(step + 1, step)
    assert not schedule.due(step - 1, step - 2)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: every(0), ValueError),
        (lambda: every(-5), ValueError),
        (lambda: every(10.0), TypeError),
        (lambda: every("10"), TypeError),
        (lambda: every(True), TypeError),
        (lambda: log_spaced(per_decade=0), ValueError),
        (lambda: log_spaced(per_decade=2.5), TypeError),
        (lambda: at_steps([]), ValueError),
        (lambda: at_steps([3, -1]), ValueError),
        (lambda: at_steps([1, 2.0]), TypeError),
        (lambda: EveryN(0), ValueError),
        (lambda: LogSpaced(0), ValueError),
        (lambda: AtSteps(()), ValueError),
    ],
)
def test_errors_say_what_was_expected_and_what_came(make, error):
    with refused(error):
        make()


def test_schedules_are_values():
    assert every(np.int64(10)) == every(10)
    assert type(every(np.int32(10)).n) is int
    assert at_steps([2, 1, 2]) == at_steps(iter((1, 2)))
    assert len({log_spaced(), log_spaced(per_decade=10)}) == 1


class Counted(int):
    """A step that counts how often it is compared."""

    def __new__(cls, step: int) -> "Counted":
        counted = super().__new__(cls, step)
        counted.comparisons = 0
        return counted

    def __lt__(self, other: int) -> bool:
        self.comparisons += 1
        return int(self) < other


def test_due_does_not_walk_through_its_points():
    step, last = Counted(100_123), Counted(100_120)
    assert at_steps(range(0, 150_000, 7)).due(step, last)
    assert 0 < step.comparisons + last.comparisons < 50
    far = 10**15
    assert every(1).due(far, far - 1)
    assert log_spaced(per_decade=1).due(far, 1)
