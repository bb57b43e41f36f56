"""What a probe takes and gives: snapshots, measurements, descriptions; no probe lives here.

Probes are pure. What must be remembered from probe to probe (the residuals of the first one, the
integrals of Lemma 8) goes in and comes out as a state, a dict of float64 arrays; the monitor
keeps it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rankmon._hparams import Hparam
from rankmon.flat import FlatProblem
from rankmon.problem import Problem
from rankmon.rank import NumericalRank

State = dict[str, np.ndarray]
MOST_LISTED = 20


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The parameters at one step, copied to the host.

    Attributes:
      flat: the problem that they belong to.
      step: the step of training.
      leaves: all parameter leaves, in the precision of the measurement.
    """

    flat: FlatProblem
    step: int
    leaves: list[np.ndarray]

    @classmethod
    def take(cls, flat: FlatProblem, step: int, params: Any) -> "Snapshot":
        """Copies the parameters; what the training loop does to them later is not seen."""
        return cls(flat, step, flat.leaves(params))

    @classmethod
    def of_leaves(cls, flat: FlatProblem, step: int, leaves: Sequence[Any]) -> "Snapshot":
        """Copies leaves that are known to be those of the problem."""
        with flat.precision.scope():  # it allows the transfer to the host
            return cls(flat, step, [flat.precision.lift(leaf) for leaf in leaves])

    @cached_property
    def theta(self) -> Float[np.ndarray, " p"]:
        """The differentiated leaves as one vector."""
        return self.flat.split(self.leaves)[0]

    @cached_property
    def fixed(self) -> tuple[np.ndarray, ...]:
        """The leaves held fixed."""
        return self.flat.split(self.leaves)[1]

    @cached_property
    def nonfinite(self) -> int:
        """The number of NaN and infinite entries of the differentiated leaves."""
        return sum(
            int(np.sum(~np.isfinite(leaf)))
            for leaf, spec in zip(self.leaves, self.flat.specs, strict=True)
            if spec.differentiated
        )


@dataclass(frozen=True)
class Measurement:
    """Tagged scalars and arrays, as `writers` takes them, and what the user should be told once."""

    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Fact(NamedTuple):
    """A line of the run's card, in plain text."""

    name: str
    text: str


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


def listed(names: Sequence[str]) -> str:
    """The names in a line of the card, the first `MOST_LISTED` of them."""
    more = len(names) - MOST_LISTED
    shown = ", ".join(names[:MOST_LISTED]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown


def count_scalar(count: int | None) -> float:
    """A count as a scalar; NaN where there is none."""
    return float("nan") if count is None else count


def rank_scalars(prefix: str, name: str, rank: NumericalRank) -> dict[str, float]:
    """The scalars of one rank: the count under prefix/name, and its cut, low, high and gap."""
    return {
        f"{prefix}/{name}": count_scalar(rank.rank),
        f"tolerance/{name}": rank.tolerance,
        f"rank_low/{name}": count_scalar(rank.low),
        f"rank_high/{name}": count_scalar(rank.high),
        f"gap/{name}": rank.gap,
    }
