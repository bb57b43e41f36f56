"""The protocol of a probe, and the measurements and descriptions that it gives.

Probes are pure. What has to be remembered between measurements (the residuals of the first one, the
integrals of Lemma 8) goes in and out as a state, a dict of float64 arrays; the monitor keeps it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from rankmon._util.facts import Fact
from rankmon._util.hparams import Hparam
from rankmon.linalg.numerical_rank import NumericalRank
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measurement:
    """Tagged scalars and arrays, as writers take them, and warnings to be given once."""

    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A rank that theory predicts, in plain text except for its number.

    Attributes:
      quantity: what has this rank, "H_o".
      rank: the number itself, or the tag that it is logged under.
      formula: the formula that gives it.
      source: the source of the formula, and how sure it is.
    """

    quantity: str
    rank: int | str
    formula: str
    source: str


@dataclass(frozen=True)
class Description:
    """A probe's part of the run's card.

    Attributes:
      facts: what it measures, and how.
      network: the network's kind and widths, if the probe knows them.
      predictions: the ranks that theory predicts.
      reservation: what the predictions do not claim, or why there is none.
      hparams: the facts by which runs may be compared, name -> value.
    """

    facts: Sequence[Fact] = ()
    network: str = ""
    predictions: Sequence[Prediction] = ()
    reservation: str = ""
    hparams: Mapping[str, Hparam] = field(default_factory=dict)


@runtime_checkable
class PreparedProbe(Protocol):
    """A probe at parameters of a known structure."""

    def initial_state(self) -> State:
        """Return the state before the first measurement, with the shapes of all later ones."""

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Return what the snapshot shows, and the state for the next measurement."""

    def describe(self) -> Description:
        """Return the probe's part of the run's card."""


@runtime_checkable
class Probe(Protocol):
    """A named measurement; `prepare` refuses what cannot be measured, before training starts."""

    @property
    def name(self) -> str:
        """The key of the probe's state in `monitor.state`."""

    def placeholder_state(self, problem: Problem) -> State:
        """Return the initial state as far as it is known without parameters: same keys."""

    def prepare(self, flat: FlatProblem) -> PreparedProbe:
        """Return the probe for this problem; raise if it cannot be measured."""


def count_scalar(count: int | None) -> float:
    """Return a count as a scalar; NaN if there is none."""
    return float("nan") if count is None else count


def rank_scalars(prefix: str, name: str, rank: NumericalRank) -> dict[str, float]:
    """Return the scalars of one rank: the count under prefix/name, its cut, low, high and gap."""
    return {
        f"{prefix}/{name}": count_scalar(rank.rank),
        f"tolerance/{name}": rank.tolerance,
        f"rank_low/{name}": count_scalar(rank.low),
        f"rank_high/{name}": count_scalar(rank.high),
        f"gap/{name}": rank.gap,
    }
