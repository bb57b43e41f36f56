"""Probes that measure on each of several probe batches, and give medians and ranges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankmon._util.facts import Fact
from rankmon._util.tags import BATCHES
from rankmon._util.text import counted
from rankmon.monitor.spread import spread_of
from rankmon.probes.base import (
    CheckableProbe,
    Description,
    Measurement,
    PreparedProbe,
    Probe,
    State,
    WrappingProbe,
)
from rankmon.probes.hessian import HessianProbe
from rankmon.probes.ntk import NtkProbe
from rankmon.probes.registry import OptionalProbe
from rankmon.problem.batches import Batches
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem


def over_batches(probes: Sequence[Probe], batches: Batches) -> list[Probe]:
    """Return the probes for these batches: those that depend on the batch measure on each.

    The batches share the time limit of a probe.
    """
    count = len(batches.each)
    if count == 1:
        return list(probes)
    return [
        _on_each(_sharing_time(probe, count), batches.each)
        if getattr(probe, "per_batch", True)
        else probe
        for probe in probes
    ]


def batches_fact(batches: Batches) -> list[Fact]:
    """Return the line on the batches for the card; an empty list for a single batch."""
    count, size = len(batches.each), batches.each[0].n
    if count == 1:
        return []
    rest = f" ({counted(batches.left_out, 'example')} left out)" if batches.left_out else ""
    return [
        Fact(
            "batches",
            f"{count} disjoint probe batches of {counted(size, 'example')} each{rest}: a curve "
            "shows the median over the batches, a spectrum is that of batch 0, and batches/… has "
            "the range; curves of the weights alone are measured once, Lemma 8 on all examples",
        )
    ]


def _sharing_time(probe: Probe, count: int) -> Probe:
    """Return a probe with its share of the time limit, so that all batches end within it."""
    if isinstance(probe, OptionalProbe):
        return OptionalProbe(_sharing_time(probe.probe, count))
    if isinstance(probe, HessianProbe | NtkProbe):
        return replace(probe, time_limit=probe.time_limit / count)
    return probe


def _on_each(probe: Probe, problems: Sequence[Problem]) -> "OverBatches":
    if isinstance(probe, CheckableProbe):
        return CheckableOverBatches(probe, tuple(problems))
    return OverBatches(probe, tuple(problems))


@dataclass(frozen=True)
class OverBatches(WrappingProbe):
    """A probe that measures on each of several probe batches, one after the other.

    The arrays of its state are those of the probe, stacked over the batches.

    Attributes:
      probe: the probe.
      problems: the problem of each batch.
    """

    problems: tuple[Problem, ...]

    def placeholder_state(self, problem: Problem) -> State:
        """Return the placeholders of the probe for all batches."""
        return _stacked([self.probe.placeholder_state(one) for one in self.problems])

    def prepare(self, flat: FlatProblem) -> "PreparedOverBatches":
        """Prepare the probe for each batch.

        The batches share compiled programs, except those that contain the span of a batch's inputs.

        Raises:
          TypeError, ValueError, MemoryError: if the probe cannot measure one of the batches.
        """
        flats = flats_of(self.problems, flat)
        return PreparedOverBatches(flats, tuple(self.probe.prepare(one) for one in flats))


@dataclass(frozen=True)
class CheckableOverBatches(OverBatches):
    """`OverBatches` for a probe whose programs may be compiled after the check."""

    probe: CheckableProbe

    def checked_state(self, flat: FlatProblem) -> State:
        """Return the initial state of the prepared probe, after its check for each batch."""
        flats = flats_of(self.problems, flat)
        return _stacked([self.probe.checked_state(one) for one in flats])


@dataclass(frozen=True)
class PreparedOverBatches:
    """`OverBatches` for parameters of a known structure.

    Attributes:
      flats: the problem of each batch.
      probes: the prepared probe of each batch.
    """

    flats: tuple[FlatProblem, ...]
    probes: tuple[PreparedProbe, ...]

    def initial_state(self) -> State:
        """Return the initial states of all batches."""
        return _stacked([probe.initial_state() for probe in self.probes])

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Return the median and the range of each scalar, and the arrays of the first batch."""
        found, states = [], []
        for place, (flat, probe) in enumerate(zip(self.flats, self.probes, strict=True)):
            own = {key: np.array(values[place]) for key, values in state.items()}
            measurement, own = probe.measure(replace(snapshot, flat=flat), own)
            found.append(measurement)
            states.append(own)
        rows = [one.scalars for one in found]
        tags = dict.fromkeys(tag for row in rows for tag in row)
        scalars, arrays = {}, dict(found[0].arrays)
        spreads = spread_of(rows, tags)
        for tag, spread in spreads.items():
            scalars[tag] = spread.median
        for tag, spread in spreads.items():
            scalars[f"{BATCHES}{tag}/low"] = spread.low
            scalars[f"{BATCHES}{tag}/high"] = spread.high
            arrays[f"{BATCHES}{tag}"] = spread.values
        warnings = dict.fromkeys(text for one in found for text in one.warnings)
        return Measurement(scalars, arrays, tuple(warnings)), _stacked(states)

    def describe(self) -> Description:
        """Describe the probe on the first batch, and say which facts differ on others."""
        first, *others = [probe.describe() for probe in self.probes]
        known = [set(one.facts) for one in others]
        facts = [
            fact
            if all(fact in own for own in known)
            else Fact(fact.name, f"{fact.text} (batch 0; it differs on other batches)")
            for fact in first.facts
        ]
        hparams = {**first.hparams, "batches": len(self.probes)}
        return replace(first, facts=facts, hparams=hparams)


def flats_of(problems: Sequence[Problem], flat: FlatProblem) -> tuple[FlatProblem, ...]:
    """Return each problem at parameters of the same structure as those of another problem.

    Raises:
      TypeError, ValueError: if a problem does not accept such parameters, or if the outputs differ
        in shape.
    """
    flats = tuple(problem.flat_like(flat) for problem in problems)
    for place, one in enumerate(flats):
        shapes = [(*each.position_axes, each.k) for each in (flats[0], one)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"expected Problems of one network, got outputs {shapes[0]} for problems[0] and "
                f"{shapes[1]} for problems[{place}]; build all of them from one network"
            )
    return flats


def _stacked(states: Sequence[Mapping[str, np.ndarray]]) -> State:
    """Return the arrays of all batches, stacked along a new first axis."""
    return {key: np.stack([state[key] for state in states]) for key in states[0]}
