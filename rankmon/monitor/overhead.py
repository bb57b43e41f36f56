"""The share of the wall time that probes take, and whether a limit allows another one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Overhead:
    """The seconds that probes took since the first of them began.

    Another probe is affordable while

        spent + expected <= share * (wall + expected),

    where `expected` is the cost of the last probe, once for each that is still under way and once
    for the one in question. One probe is measured at a time, on whichever thread. What was spent
    before the second probe includes preparing the first one, with all its compilations.

    Args:
      share: of the wall time, in (0, 1]; None for no limit.
      clock: seconds, from any origin.
    """

    def __init__(self, share: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._began: float | None = None
        self._in_calls = 0.0
        self._in_probes = 0.0
        self._last: float | None = None

    def affords(self, under_way: int = 0) -> bool:
        """Return whether another probe keeps to the share; the first one always does.

        Args:
          under_way: how many probes are waiting or running.
        """
        if self._share is None or self._began is None:
            return True
        if self._last is None:
            return not under_way
        expected = self._last * (under_way + 1)
        wall = self._clock() - self._began
        return self._spent + expected <= self._share * (wall + expected)

    def start(self) -> None:
        """Count the wall time from now on, if this is the first call."""
        if self._began is None:
            self._began = self._clock()

    def probe_ends(self, seconds: float) -> None:
        """Add the time of a probe that is done, or has failed."""
        self._in_probes += seconds
        self._last = seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time spent in this block, on the training thread, as overhead."""
        began = self._clock()
        try:
            yield
        finally:
            self._in_calls += self._clock() - began

    @property
    def _spent(self) -> float:
        return self._in_calls + self._in_probes

    def share_taken(self, running: float = 0.0) -> float:
        """Return the share so far.

        Args:
          running: the seconds that a probe under way took until now.
        """
        if self._began is None:
            return 0.0
        return (self._spent + running) / max(self._clock() - self._began, 1e-9)
