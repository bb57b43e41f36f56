"""The protocols of probes, and the measurements and descriptions that they return.

Probes are pure. Values to remember between measurements (the residuals of the first one, the
integrals of Lemma 8) are passed in and returned as a state, a dict of float64 arrays; the monitor
stores it. A probe may have an attribute `optional_state`: the entries that a restored state may
lack, because an earlier version saved it. They are then NaN.
"""

from collections.abc import Collection, Mapping, Sequence
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
    """The result of one measurement.

    Attributes:
      scalars: tag -> number, for the record.
      arrays: tag -> array of real numbers, for the record.
      warnings: texts of warnings; the monitor issues each only once.
    """

    scalars: Mapping[str, float]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A rank that theory predicts, with a description in plain text.

    Attributes:
      quantity: the name of the matrix, for example "H_o".
      rank: the predicted rank, or the tag under which it is logged.
      formula: the formula for the rank.
      source: the source of the formula, and whether it is proved.
    """

    quantity: str
    rank: int | str
    formula: str
    source: str


@dataclass(frozen=True)
class Description:
    """A probe's part of the run's card.

    Attributes:
      facts: facts on the measured quantities and the method.
      network: the network's kind and widths, if the probe knows them.
      predictions: the ranks that theory predicts.
      reservation: the limits of the predictions, or the reason why there are none.
      hparams: name -> value of the facts by which a user may want to compare runs.
    """

    facts: Sequence[Fact] = ()
    network: str = ""
    predictions: Sequence[Prediction] = ()
    reservation: str = ""
    hparams: Mapping[str, Hparam] = field(default_factory=dict)


class NotApplicableError(ValueError):
    """A probe that "all" chose cannot measure the problem; it is left out of the run."""


@runtime_checkable
class PreparedProbe(Protocol):
    """A probe that is ready to measure: the structure of the parameters is known."""

    def initial_state(self) -> State:
        """Return the state before the first measurement; later states have the same shapes."""

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure the snapshot; also return the state for the next measurement."""

    def describe(self) -> Description:
        """Return the probe's part of the run's card."""


@runtime_checkable
class Probe(Protocol):
    """A named measurement, which `prepare` checks and sets up before training starts.

    A probe with an attribute `wants_optimizer` that is true finds a copy of the optimizer's state
    in `snapshot.optimizer`, if the call passes `opt_state=` or a TrainState. With several probe
    batches, a probe with an attribute `per_batch` that is false measures once, on all examples.
    """

    @property
    def name(self) -> str:
        """The key of the probe's state in `monitor.state`."""

    def placeholder_state(self, problem: Problem) -> State:
        """Return a stand-in for the initial state, with the same keys, before parameters exist."""

    def prepare(self, flat: FlatProblem) -> PreparedProbe:
        """Return the probe for this problem; raise an error if it cannot measure the problem."""


@runtime_checkable
class CheckableProbe(Probe, Protocol):
    """A probe whose `prepare` takes long, because it compiles programs.

    With background=True a monitor calls `checked_state` in the first call, and `prepare` on its
    worker.
    """

    def checked_state(self, flat: FlatProblem) -> State:
        """Return the initial state of the prepared probe, without compiling for long.

        Raise an error if the probe cannot measure the problem, as far as traces and sizes show it.
        """


def count_scalar(count: int | None) -> float:
    """Return a count as a scalar; NaN if there is none."""
    return float("nan") if count is None else count


def rank_scalars(prefix: str, name: str, rank: NumericalRank) -> dict[str, float]:
    """Return the scalars of one rank: the rank at prefix/name, and its cut, low, high and gap.

    The rank is NaN if only its bounds, low and high, are known.
    """
    return {
        f"{prefix}/{name}": count_scalar(rank.known),
        f"tolerance/{name}": rank.tolerance,
        f"rank_low/{name}": count_scalar(rank.low),
        f"rank_high/{name}": count_scalar(rank.high),
        f"gap/{name}": rank.gap,
    }


@dataclass(frozen=True)
class WrappingProbe:
    """A part of a probe that measures by another one: what the monitor asks before measuring.

    Attributes:
      probe: the other probe.
    """

    probe: Probe

    @property
    def name(self) -> str:
        """The name of the probe."""
        return self.probe.name

    @property
    def optional_state(self) -> Collection[str]:
        """The entries of the probe's state that older states lack."""
        return getattr(self.probe, "optional_state", ())

    @property
    def wants_optimizer(self) -> bool:
        """Whether the probe measures the optimizer's state too."""
        return getattr(self.probe, "wants_optimizer", False)
