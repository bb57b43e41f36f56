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


@dataclass(frozen=True, eq=False)
class RunSeries:
    """The data of one run.

    Attributes:
      name: TensorBoard's name of the run: the path of the run folder below the log folder, "." if
        they are the same folder.
      scalars: tag -> series, for example `rank/H_L`.
      arrays: tag -> series, for example `spectrum/H_L`: log10 of the absolute eigenvalues, in
        descending order. The tags lack the "/values" that TensorBoard's tags end with.
      texts: tag -> step -> Markdown, for the tags `rankmon/card` and `rankmon/alerts`.
    """

    name: str
    scalars: Mapping[str, ScalarSeries] = field(default_factory=dict)
    arrays: Mapping[str, ArraySeries] = field(default_factory=dict)
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
