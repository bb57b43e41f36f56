"""The share of the wall time that probes take, and the limit on it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The share of the wall time from which on the user is warned, and the least number and seconds of
# probes before that: a run of a few minutes needs no advice, and neither the first probe, with all
# compilations, nor a single slow one shows how long probes take on average.
_HEAVY_SHARE = 0.2
_HEAVY_PROBES, _HEAVY_SECONDS = 3, 30.0


class Overhead:
    """The seconds that probes took since the first of them began.

    Another probe is affordable while

        spent + expected <= share * (wall + expected),

    where `expected` is the time of the last probe, multiplied by the number of unfinished probes
    plus one. One probe is measured at a time, on any thread. The time spent on the first probe
    includes its preparation, with all compilations.

    Args:
      share: the largest share of the wall time, in (0, 1]; None for no limit.
      background: whether probes are measured on a worker thread.
      clock: returns the time in seconds, from any origin.
    """

    def __init__(
        self,
        share: float | None,
        *,
        background: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._background = background
        self._clock = clock
        self._began: float | None = None
        self._in_calls = 0.0
        self._in_probes = 0.0
        self._last: float | None = None
        # At the end of the first probe: the time, and the seconds spent.
        self._settled: tuple[float, float] | None = None
        self._later_probes = 0

    def affords(self, under_way: int = 0) -> bool:
        """Return whether the limit allows another probe; the first one is always allowed.

        Args:
          under_way: the number of probes that are waiting or running.
        """
        if self._share is None or self._began is None:
            return True
        if self._last is None:  # the time of the first probe is not known yet: wait for it
            return not under_way
        expected = self._last * (under_way + 1)
        wall = self._clock() - self._began
        return self._spent + expected <= self._share * (wall + expected)

    def start(self) -> None:
        """Start the wall clock if it is not running yet."""
        if self._began is None:
            self._began = self._clock()

    def probe_ends(self, seconds: float) -> None:
        """Add the time of a probe that has finished or failed."""
        self._in_probes += seconds
        self._last = seconds
        if self._settled is None:
            self._settled = self._clock(), self._spent
        else:
            self._later_probes += 1

    def advice(self) -> str | None:
        """Return a warning if no limit is set and probes take much of the time since the first."""
        if self._share is not None or self._settled is None or self._later_probes < _HEAVY_PROBES:
            return None
        began, before = self._settled
        spent, wall = self._spent - before, self._clock() - began
        if spent < _HEAVY_SECONDS or spent <= _HEAVY_SHARE * wall:
            return None
        add = "overhead=0.05" if self._background else "background=True, overhead=0.05"
        return (
            f"probes have taken {spent / wall:.0%} of the wall time since the first one; add {add} "
            "to the RankMonitor, which keeps them to 5 %, or measure less often"
        )

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time spent in this block, on the training thread, as overhead."""
        began = self._clock()
        try:
            yield
        finally:
            self._in_calls += self._clock() - began

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count the time spent in this block, on the thread that measures, as overhead."""
        began = self._clock()
        try:
            yield
        finally:
            self._in_probes += self._clock() - began

    @property
    def _spent(self) -> float:
        return self._in_calls + self._in_probes

    def share_taken(self, running: float = 0.0) -> float:
        """Return the share of the wall time so far.

        Args:
          running: the seconds that an unfinished probe has taken until now.
        """
        if self._began is None:
            return 0.0
        return (self._spent + running) / max(self._clock() - self._began, 1e-9)
