"""The data of a run as series over steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ScalarSeries:
    """A curve: one number per step.

    Attributes:
      steps: the steps, strictly increasing.
      values: the number at each step.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ArraySeries:
    """One vector per step, for example a spectrum without its exact zeros; lengths may differ.

    Attributes:
      steps: the steps, strictly increasing.
      values: the vector at each step.
    """

    steps: NDArray[np.int64]
    values: tuple[NDArray[np.float64], ...]


def are_negative(logs: NDArray[np.float64], negative: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which eigenvalues are negative; of equal magnitudes the first ones are.

    Args:
      logs: a `spectrum/X`, log10 of the absolute eigenvalues.
      negative: the `spectrum_negative/X` of the same step, a part of these numbers.
    """
    order = np.argsort(logs, kind="stable")
    values, below = logs[order], np.sort(negative)
    place_among_equals = np.arange(len(values)) - np.searchsorted(values, values)
    counts = np.searchsorted(below, values, "right") - np.searchsorted(below, values)
    found = np.zeros(len(logs), bool)
    found[order] = place_among_equals < counts
    return found


@dataclass(frozen=True, eq=False)
class RunSeries:
    """The data of one run.

    Attributes:
      name: TensorBoard's name of the run: the path of the run folder below the log folder, "." if
        they are the same folder.
      scalars: tag -> series, for example `rank/H_L`.
      arrays: tag -> series, for example `spectrum/H_L`: log10 of the absolute eigenvalues, in
        descending order, and `spectrum_negative/H_L`: those of the negative eigenvalues among them
        (not in runs of earlier versions). The tags lack the "/values" that TensorBoard's end with.
      texts: tag -> step -> Markdown, for the tags `rankmon/card` and `rankmon/alerts`.
    """

    name: str
    scalars: Mapping[str, ScalarSeries] = field(default_factory=dict)
    arrays: Mapping[str, ArraySeries] = field(default_factory=dict)
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def eigenvalues(self, part: str) -> ArraySeries | None:
        """Return the eigenvalues of a part with their signs, largest magnitude first.

        Exact zeros are left out; None if the run has no spectra of the part, or not their signs.
        """
        spectrum = self.arrays.get(f"spectrum/{part}")
        negative = self.arrays.get(f"spectrum_negative/{part}")
        if spectrum is None or negative is None:
            return None
        steps, at, below = np.intersect1d(spectrum.steps, negative.steps, return_indices=True)
        values = []
        for i, j in zip(at, below, strict=True):
            logs = spectrum.values[i]
            values.append(np.where(are_negative(logs, negative.values[j]), -1, 1) * 10.0**logs)
        return ArraySeries(steps, tuple(values))
