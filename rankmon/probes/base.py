"""What a probe takes and gives: snapshots, measurements, descriptions; no probe lives here.

Probes are pure. What must be remembered from probe to probe (the residuals of the first one, the
integrals of Lemma 8) goes in and comes out as a state, a dict of float64 arrays; the monitor
keeps it.
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
    """Tagged scalars and arrays, as `writers` takes them, and what the user should be told once."""

    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A rank that theory speaks of, in plain text but for its number.

    Attributes:
      quantity: of what, "H_o".
      rank: the number itself, or the tag that it is logged under.
      formula: that gives it.
      source: of the formula, and how sure it is.
    """

    quantity: str
    rank: int | str
    formula: str
    source: str


@dataclass(frozen=True)
class Description:
    """What the run's card says of a probe.

    Attributes:
      facts: what it measures, and how.
      network: the network's kind and widths, where the probe knows them.
      predictions: what theory expects.
      reservation: what the predictions are not; or why there is none.
      hparams: those of the facts by which runs may be compared, name -> value.
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
        """The state before the first measurement, with the shapes of all later ones."""

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """What the snapshot shows, and the state for the next one."""

    def describe(self) -> Description:
        """What the run's card says of it."""


@runtime_checkable
class Probe(Protocol):
    """A named measurement; `prepare` refuses what cannot be measured, before training starts."""

    @property
    def name(self) -> str:
        """The key of the probe's state in `monitor.state`."""

    def placeholder_state(self, problem: Problem) -> State:
        """The initial state as far as it is known without parameters: same keys, shapes guessed."""

    def prepare(self, flat: FlatProblem) -> PreparedProbe:
        """The probe for this problem; raises where it cannot be measured."""


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
