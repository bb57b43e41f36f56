"""The spread of scalars over several measurements at one step: over seeds, or probe batches."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Spread(NamedTuple):
    """The values of one scalar, and their median and range; NaN if any value is NaN.

    Attributes:
      median: the median; the mean of the two middle values if their number is even.
      low: the lowest value.
      high: the highest value.
      values: all values.
    """

    median: float
    low: float
    high: float
    values: Float[np.ndarray, " m"]


def spread_of(
    measurements: Sequence[Mapping[str, float]], tags: Iterable[str]
) -> dict[str, Spread]:
    """Return the spread of each of these scalars; one that a measurement lacks is NaN there."""
    found = {}
    for tag in tags:
        values = np.array([scalars.get(tag, np.nan) for scalars in measurements], np.float64)
        numbers = (float(np.median(values)), float(values.min()), float(values.max()))
        found[tag] = Spread(*numbers, values)
    return found
