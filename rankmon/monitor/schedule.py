"""Schedules: the steps at which to measure, every n steps, log-spaced, or listed explicitly.

A schedule is a set of points among the steps 0, 1, 2, ... A step is due if a point lies in
(last, step], where `last` is the last step measured: a loop that counts in chunks (95, then 205)
measures once for all points that it skips. The first call is always due, and so is a step before
`last`, because training went back to a checkpoint. The same step is never due twice.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, log10
from typing import Protocol

from rankmon._util.validate import as_integer

_MOST_SHOWN = 12


class Schedule(Protocol):
    """The protocol of schedules: whether to measure at a step."""

    def due(self, step: int, last: int | None) -> bool:
        """Return whether to measure at `step`.

        Args:
          step: the training step, at least 0.
          last: the last step that was measured, None before the first.
        """
        ...


@dataclass(frozen=True)
class EveryN:
    """A schedule with the points 0, n, 2n, ..."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", as_integer("n, a number of steps,", self.n, least=1))

    def __str__(self) -> str:
        return "every step" if self.n == 1 else f"every {self.n} steps"

    def due(self, step: int, last: int | None) -> bool:
        """Return whether a multiple of n lies in (last, step]; see `Schedule`."""
        if last is None or step < last:
            return True
        return step // self.n > last // self.n


@dataclass(frozen=True)
class LogSpaced:
    """A schedule with the points 0 and round(10^(i / per_decade)), i = 0, 1, 2, ..., each once."""

    per_decade: int

    def __post_init__(self) -> None:
        number = as_integer("per_decade", self.per_decade, least=1)
        object.__setattr__(self, "per_decade", number)

    def __str__(self) -> str:
        return f"{self.per_decade} times per decade of steps"

    def due(self, step: int, last: int | None) -> bool:
        """Return whether a point lies in (last, step]; see `Schedule`."""
        if last is None or step < last:
            return True
        return self._index(step) > self._index(last)

    def _index(self, step: int) -> int:
        """Return the largest i whose point is at most `step`; -1 for the point 0."""
        if step < 1:
            return -1
        # round(10^(i/k)) <= step means 10^(i/k) < step + 1/2, hence i < k log10(step + 1/2).
        return floor(self.per_decade * log10(step + 0.5))


@dataclass(frozen=True)
class AtSteps:
    """A schedule with the given points, in any order."""

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        remedy = "steps count from 0 at the start of training"
        steps = {as_integer("every step", step, least=0, remedy=remedy) for step in self.steps}
        if not steps:
            raise ValueError("expected at least one step, got none; pass the steps to measure")
        object.__setattr__(self, "steps", tuple(sorted(steps)))

    def __str__(self) -> str:
        first, more = self.steps[:_MOST_SHOWN], len(self.steps) - _MOST_SHOWN
        shown = f"at steps {', '.join(map(str, first))}"
        return f"{shown} and {more} more" if more > 0 else shown

    def due(self, step: int, last: int | None) -> bool:
        """Return whether one of the steps lies in (last, step]; see `Schedule`."""
        if last is None or step < last:
            return True
        return bisect_right(self.steps, step) > bisect_right(self.steps, last)


def every(n: int) -> EveryN:
    """Return the schedule with the steps 0, n, 2n, ...

    Args:
      n: the number of steps from one measurement to the next, at least 1.

    Raises:
      TypeError: if n is not an integer.
      ValueError: if n < 1.
    """
    return EveryN(n)


def log_spaced(*, per_decade: int = 10) -> LogSpaced:
    """Return the schedule with step 0 and steps evenly spaced in log step, without end.

    The steps are round(10^(i / per_decade)) for i = 0, 1, 2, ..., each once: with 3 per decade
    0, 1, 2, 5, 10, 22, 46, 100, 215, ...

    Args:
      per_decade: the number of measurements between a step and ten times that step.

    Raises:
      TypeError: if per_decade is not an integer.
      ValueError: if per_decade < 1.
    """
    return LogSpaced(per_decade)


def at_steps(steps: Iterable[int]) -> AtSteps:
    """Return the schedule with the steps given.

    Args:
      steps: integers of at least 0, in any order; repetitions count once.

    Raises:
      TypeError: if a step is not an integer.
      ValueError: if `steps` is empty or one is negative.
    """
    return AtSteps(tuple(steps))
