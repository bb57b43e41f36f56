"""The data of a run as series over steps; helpers to recognize and to sort rankmon's runs."""

import re
from collections.abc import Iterable, Mapping
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


_RANKMONS = re.compile(
    r"(rank|rank_weights|rank_features|stable_rank|det_sign|lemma8|spectrum|rankmon)/."
)


def is_rankmons(tags: Iterable[str]) -> bool:
    """Return whether a run is one of rankmon's, judged by its tags of scalars, arrays or texts."""
    return any(_RANKMONS.match(tag) for tag in tags)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares numbers in names by value: seed_2 before seed_10."""
    parts = re.split(r"(\d+)", name)  # odd indices: the numbers
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]
