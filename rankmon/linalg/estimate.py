"""A number with its confidence interval."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
      value: the estimate.
      low: the interval's lower end.
      high: its upper end.
      confidence: the probability that such an interval contains the true value.
    """

    value: float
    low: float
    high: float
    confidence: float

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """Return a number that is known: its interval has no width."""
        return cls(float(value), float(value), float(value), 1.0)

    @classmethod
    def unknown(cls) -> "Estimate":
        """Return NaN, for a number that was not measured."""
        return cls(math.nan, math.nan, math.nan, math.nan)

    @property
    def is_exact(self) -> bool:
        """Whether the interval has no width."""
        return self.low == self.value == self.high

    def unless_wider(self, width: float) -> "Estimate":
        """Return the estimate; with NaN as its value if the interval is wider than this.

        A value anywhere in an interval that tells nothing would be read as a measurement.
        """
        return self if self.high - self.low <= width else replace(self, value=math.nan)

    def spanning(self, other: "Estimate") -> "Estimate":
        """Return this value in the smallest interval that contains both intervals."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Estimate(self.value, low, high, min(self.confidence, other.confidence))
