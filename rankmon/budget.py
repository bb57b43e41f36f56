"""The share of the wall time that probes may take: when the next one is affordable; no schedule.

Works with any clock, so that what it decides can be told without waiting.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Adds up what the probes cost since the first of them began.

    Another probe is affordable while

        spent + expected <= share * (wall + expected),

    where `expected` is the cost of the last probe, once for each that is still under way and once
    for the one in question. What was spent before the second probe includes preparing the first
    one, with all its compilations.

    Args:
      share: of the wall time, in (0, 1]; None for no limit.
      clock: seconds, from any origin.
    """

    def __init__(self, share: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._spent = 0.0
        self._last: float | None = None
        self._under_way = 0

    def affords(self) -> bool:
        """Whether another probe keeps to the share; the first one always does."""
        if self._share is None or self._began is None:
            return True
        with self._lock:
            if self._last is None:
                return not self._under_way
            expected = self._last * (self._under_way + 1)
            wall = self._clock() - self._began
            return self._spent + expected <= self._share * (wall + expected)

    def start(self) -> None:
        """The wall time counts from the first time that this is called."""
        if self._began is None:
            self._began = self._clock()

    def probe_begins(self) -> None:
        """A probe is under way, waiting or running, until `probe_ends`."""
        with self._lock:
            self._under_way += 1

    def probe_ends(self, seconds: float) -> None:
        """A probe is done, or has failed, after this time."""
        with self._lock:
            self._under_way -= 1
            self._spent += seconds
            self._last = seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done inside counts, and is no probe."""
        began = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._spent += self._clock() - began

    def share_taken(self, running: float = 0.0) -> float:
        """The share so far.

        Args:
          running: the seconds that a probe under way took until now.
        """
        if self._began is None:
            return 0.0
        with self._lock:
            return (self._spent + running) / max(self._clock() - self._began, 1e-9)
