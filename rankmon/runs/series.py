"""The data of a run as series over steps, and the recognition and the order of rankmon's runs."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ScalarSeries:
    """One number a step.

    Attributes:
      steps: ascending, each once.
      values: as many numbers.
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


_RANKMONS = re.compile(
    r"(rank|rank_weights|rank_features|stable_rank|det_sign|lemma8|spectrum|rankmon)/."
)


def is_rankmons(tags: Iterable[str]) -> bool:
    """Return whether a run with these tags, of whatever kind, is one of rankmon's."""
    return any(_RANKMONS.match(tag) for tag in tags)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts seed_2 before seed_10."""
    parts = re.split(r"(\d+)", name)  # digits at the odd places
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]
