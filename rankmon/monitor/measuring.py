"""Prepare the probes of a run for its parameters, and measure them under the error policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon._util.text import counted
from rankmon.probes.base import (
    CheckableProbe,
    Description,
    Measurement,
    NotApplicableError,
    PreparedProbe,
    Probe,
    State,
)
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot


@dataclass(frozen=True)
class Unprepared:
    """A checked probe for one problem, whose programs are not compiled yet.

    Attributes:
      probe: the probe.
      flat: the problem for the parameters' structure.
      state: the initial state.
    """

    probe: CheckableProbe
    flat: FlatProblem
    state: State

    def initial_state(self) -> State:
        """Return the state before the first measurement."""
        return self.state

    def prepare(self) -> PreparedProbe:
        """Return the prepared probe, with its programs compiled."""
        return self.probe.prepare(self.flat)


def prepare_probes(
    probes: Sequence[Probe],
    flat: FlatProblem,
    *,
    later: bool,
    skips_oversize: bool,
    errors: ErrorPolicy,
) -> tuple[dict[str, PreparedProbe | Unprepared], dict[str, str]]:
    """Prepare the probes for these parameters, or only check those that compile.

    Probes that "all" chose are left out if they do not apply.

    Args:
      probes: the probes to prepare.
      flat: the problem for the parameters' structure.
      later: whether to check `CheckableProbe`s, and to leave the rest to `prepare_rest`.
      skips_oversize: whether to leave out a probe that does not fit in memory, with a warning.
      errors: the error policy, which gives the warning.

    Returns:
      The prepared probes, and for each probe that does not apply the reason, both by name.

    Raises:
      TypeError, ValueError: if the parameters cannot be measured.
      MemoryError: if a probe does not fit.
    """
    prepared: dict[str, PreparedProbe | Unprepared] = {}
    inapplicable: dict[str, str] = {}
    for probe in probes:
        try:
            if later and isinstance(probe, CheckableProbe):
                prepared[probe.name] = Unprepared(probe, flat, probe.checked_state(flat))
            else:
                prepared[probe.name] = probe.prepare(flat)
        except NotApplicableError as error:
            inapplicable[probe.name] = str(error)
        except MemoryError as error:
            if not skips_oversize:
                raise
            errors.warn(_left_out(probe.name, error))
    if not prepared:
        raise ValueError(
            "expected a probe that fits in memory_limit, got none; add the 'weights' probe"
        )
    return prepared, inapplicable


def prepare_rest(
    probes: Mapping[str, PreparedProbe | Unprepared], *, skips_oversize: bool, errors: ErrorPolicy
) -> dict[str, PreparedProbe]:
    """Prepare the probes that are only checked; leave out those that raise an error.

    Args:
      probes: the result of `prepare_probes`.
      skips_oversize: whether a probe that does not fit in memory causes a warning alone.
      errors: the error policy, which keeps warnings and errors for the user.
    """
    prepared: dict[str, PreparedProbe] = {}

    def prepare(name: str, probe: Unprepared) -> PreparedProbe | None:
        try:
            return probe.prepare()
        except MemoryError as error:
            if not skips_oversize:
                raise
            errors.warn(_left_out(name, error))
            return None

    for name, probe in probes.items():
        if isinstance(probe, Unprepared):
            what = f"the preparation of probe {name!r}, which is left out,"
            found = errors.attempt(partial(errors.guard, what, prepare, name, probe))
        else:
            found = probe
        if found is not None:
            prepared[name] = found
    return prepared


def _left_out(name: str, error: MemoryError) -> str:
    return f"{name}: left out, and the other probes continue: {error}"


def describe_probes(
    prepared: Mapping[str, PreparedProbe], errors: ErrorPolicy
) -> dict[str, Description]:
    """Return the probes' descriptions for the card; leave out those that raise an error."""
    described = {
        name: errors.guard(f"the card of probe {name!r}", _description, probe)
        for name, probe in prepared.items()
    }
    return {name: found for name, found in described.items() if found is not None}


def measure_probes(
    prepared: Mapping[str, PreparedProbe],
    states: Mapping[str, State],
    step: int,
    take: Callable[[], Snapshot],
    errors: ErrorPolicy,
) -> tuple[Measurement, dict[str, State]]:
    """Return the measurements of all probes at a snapshot, and the probes' new states.

    If a probe fails, its state is kept and the other probes still measure.

    Args:
      prepared: the prepared probes.
      states: the probes' states after the previous measurement.
      step: the training step.
      take: returns the snapshot.
      errors: the error policy.
    """
    snapshot = take()
    if snapshot.nonfinite:
        errors.warn(
            f"step {step}: {counted(snapshot.nonfinite, 'NaN or infinite parameter')}; ranks that "
            "depend on them are logged as NaN",
            key="nonfinite",
        )
    scalars: dict[str, float] = {"monitor/nonfinite": snapshot.nonfinite}
    arrays: dict[str, np.ndarray] = {}
    states = dict(states)  # a copy: the caller keeps the old states until the record is written
    for name, probe in prepared.items():
        what = f"probe {name!r} at step {step}"
        result = errors.guard(what, _measured, probe, snapshot, states[name])
        if result is not None:
            measurement, states[name] = result
            scalars |= measurement.scalars
            arrays |= measurement.arrays
            for message in measurement.warnings:
                errors.warn(message)
    return Measurement(scalars, arrays), states


def _measured(probe: PreparedProbe, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
    """Return a probe's measurement; raise, within the guard, if its type is wrong."""
    measurement, state = probe.measure(snapshot, state)
    scalars, arrays = dict(measurement.scalars), dict(measurement.arrays)
    return Measurement(scalars, arrays, tuple(measurement.warnings)), state


def _description(probe: PreparedProbe) -> Description:
    """Return a probe's description; raise, within the guard, if its type is wrong."""
    described = probe.describe()
    if not isinstance(described, Description):
        raise TypeError(
            "expected describe() to return a rankmon.measurement.Description, got "
            f"{type(described).__name__}; return for instance Description([Fact('noise', '0.1')])"
        )
    return described
