"""The share of the wall time: when another probe fits, told by a clock that the tests turn."""

import numpy as np
import pytest

from rankmon import Problem, RankMonitor
from rankmon.monitor.overhead import Overhead


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def spent(overhead, clock, seconds, *, preparing=0.0):
    """A probe on the loop's own thread."""
    overhead.start()
    with overhead.spending():
        clock.now += preparing
    clock.now += seconds
    overhead.probe_ends(seconds)


def test_the_next_probe_waits_until_it_fits():
    clock = Clock()
    overhead = Overhead(0.1, clock=clock)
    assert overhead.affords()
    spent(overhead, clock, 2.0, preparing=3.0)
    assert overhead.share_taken() == 1.0
    # 5 s were spent and another 2 s are expected: affordable from (5 + 2) / 0.1 - 2 s on.
    clock.now = 100 + 67.99
    assert not overhead.affords()
    clock.now = 100 + 68.01
    assert overhead.affords()
    spent(overhead, clock, 2.0)
    assert overhead.share_taken() == pytest.approx(0.1, rel=1e-3)
    assert not overhead.affords()


def test_what_is_under_way_counts():
    clock = Clock()
    overhead = Overhead(0.5, clock=clock)
    overhead.start()
    clock.now += 1000
    assert not overhead.affords(1)  # nobody knows yet what a probe costs
    overhead.probe_ends(10.0)
    assert all(overhead.affords(under_way) for under_way in range(98))
    # 10 + 98 * 10 + 10 seconds of 1000 + 990 are more than half.
    assert not overhead.affords(98)


def test_without_a_share_everything_is_affordable():
    clock = Clock()
    overhead = Overhead(None, clock=clock)
    spent(overhead, clock, 1.0)
    assert overhead.affords()
    clock.now += 3.0
    assert overhead.share_taken() == 0.25
    assert overhead.share_taken(1.0) == 0.5


class Always:
    def due(self, step, last):
        return True


def test_the_same_step_again_keeps_to_the_limit():
    """Only a step before the last one is measured whatever it takes."""
    problem = Problem(lambda W, x: x @ W, loss="mse", inputs=np.eye(3), targets=np.ones((3, 2)))
    params = np.ones((3, 2))
    with RankMonitor(problem, schedule=Always(), overhead=1e-9, probes=["weights"]) as monitor:
        measured = [monitor(step, params) is not None for step in (5, 5, 6, 4)]
    assert measured == [True, False, False, True]
