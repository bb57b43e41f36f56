"""Test the limit on the share of the wall time, with a clock that the tests set."""

import time
import warnings

import numpy as np
import pytest

from rankmon import Problem, RankMonitor
from rankmon.measurement import Description, Measurement
from rankmon.monitor.overhead import Overhead
from small_probes import Light


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


def measured_loop(overhead, clock, *, probe, training, probes):
    """A run of probes with training between them; the first one takes a minute to compile."""
    spent(overhead, clock, probe, preparing=60.0)
    for _ in range(probes):
        clock.now += training
        spent(overhead, clock, probe)


@pytest.mark.parametrize(
    ("probe", "training", "probes", "share"),
    [
        pytest.param(15.0, 15.0, 3, "50%", id="half of the time"),
        pytest.param(21.0, 79.0, 3, "21%", id="just above a fifth"),
        pytest.param(19.0, 81.0, 30, None, id="just below a fifth"),
        pytest.param(30.0, 1.0, 2, None, id="two probes after the first"),
        pytest.param(0.9, 0.1, 30, None, id="27 seconds altogether"),
        pytest.param(0.9, 0.1, 40, "90%", id="36 seconds altogether"),
    ],
)
def test_advice_is_given_above_a_fifth_of_the_time(probe, training, probes, share):
    clock = Clock()
    overhead = Overhead(None, clock=clock)
    measured_loop(overhead, clock, probe=probe, training=training, probes=probes)
    advice = overhead.advice()
    if share is None:
        assert advice is None
    else:
        assert share in advice
        assert "background=True, overhead=0.05" in advice


def test_advice_names_what_is_missing():
    clock = Clock()
    overhead = Overhead(None, background=True, clock=clock)
    measured_loop(overhead, clock, probe=15.0, training=15.0, probes=3)
    assert "add overhead=0.05" in overhead.advice()


def test_no_advice_for_who_has_set_a_limit():
    clock = Clock()
    overhead = Overhead(0.9, clock=clock)
    measured_loop(overhead, clock, probe=15.0, training=15.0, probes=3)
    assert overhead.advice() is None


class Slow(Light):
    """A probe that takes ten seconds of the clock."""

    name = "slow"

    def __init__(self, clock):
        self.clock = clock

    def measure(self, snapshot, state):
        self.clock.now += 10.0
        return Measurement({"slow": 1.0}), state

    def describe(self):
        return Description([])


@pytest.mark.parametrize("background", [False, True])
def test_the_user_is_warned_once_in_a_run(monkeypatch, background):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    problem = Problem(lambda W, x: x @ W, loss="mse", inputs=np.eye(3), targets=np.ones((3, 2)))
    params = np.ones((3, 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with RankMonitor(problem, every=1, probes=[Slow(clock)], background=background) as monitor:
            for step in range(12):
                monitor(step, params)
    assert len(caught) == 1
    assert "overhead=0.05" in str(caught[0].message)
    assert caught[0].filename == __file__


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
