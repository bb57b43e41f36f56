"""What a run has logged, as series over steps; where it was read from is not known here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ScalarSeries:
    """One number a step.

    Attributes:
      steps: ascending, each once.
      values: as many.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ArraySeries:
    """One vector a step, of lengths that differ: a spectrum without its exact zeros.

    Attributes:
      steps: ascending, each once.
      values: as many vectors.
    """

    steps: NDArray[np.int64]
    values: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, eq=False)
class RunSeries:
    """One run.

    Attributes:
      name: as TensorBoard names it, the run folder's path below the log folder ("." for itself).
      scalars: tag -> series, `rank/H_L` and so on.
      arrays: tag -> series, without "/values": `spectrum/H_L`, log10 of absolute eigenvalues,
        the largest first.
      texts: tag -> step -> Markdown, `rankmon/card` and `rankmon/alerts`.
    """

    name: str
    scalars: Mapping[str, ScalarSeries] = field(default_factory=dict)
    arrays: Mapping[str, ArraySeries] = field(default_factory=dict)
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
