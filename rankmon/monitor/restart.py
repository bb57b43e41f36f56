"""Restart: the state that a monitor saves, and the earlier records of a continued run folder."""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any, Self

import jax
import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon.monitor.alerts import Watch
from rankmon.monitor.fanout import Fanout
from rankmon.monitor.measuring import Unprepared
from rankmon.monitor.state import checked, decode, digest, encode
from rankmon.probes.base import PreparedProbe, Probe, State
from rankmon.problem.problem import Problem


class Progress:
    """The progress of a run: the contents of `monitor.state`, and whether an attempt has begun.

    Args:
      problem: the network, loss and probe batch to measure.
      probes: the measurements.

    Attributes:
      measured: the last measured step (None before the first) and the probes' states after it. They
        are one value, so that an interrupt cannot separate them.
      reported: the step of the last report, None before the first.
      begun: whether the current attempt has begun.
      resumes_at: the step after the last one of a restored state, until the next attempt begins.
    """

    def __init__(self, problem: Problem, probes: Sequence[Probe]) -> None:
        self.measured: tuple[int | None, dict[str, State]] = (
            None,
            {probe.name: probe.placeholder_state(problem) for probe in probes},
        )
        self.reported: int | None = None
        self.begun = False
        self.resumes_at: int | None = None
        self._batch = _digest_of(problem)
        # Entries that older states lack, as names of entries by the probe's name.
        self._optional = {
            probe.name: frozenset(getattr(probe, "optional_state", ())) for probe in probes
        }

    @property
    def last(self) -> int | None:
        """The step of the last measurement, None before the first."""
        return self.measured[0]

    def fit(self, prepared: Mapping[str, PreparedProbe | Unprepared]) -> None:
        """Give blank states the shapes that these probes need.

        Raises:
          ValueError: if a restored state has different shapes.
        """
        last, states = self.measured
        self.measured = last, _fitted(states, prepared, last, self._optional)

    def saved(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the probes' states and the monitor's own in a form that checkpointers can save.

        The monitor's own are the steps of the last measurement and the last report, and a digest of
        the probe batch.
        """
        last, states = self.measured
        steps = {"last_step": last, "last_report": self.reported}
        own = {key: np.asarray(-1.0 if s is None else float(s)) for key, s in steps.items()}
        own["batch"] = np.asarray(self._batch)
        return encode({"monitor": own, **states})

    def restored(
        self, state: Mapping[str, Any], prepared: Mapping[str, PreparedProbe | Unprepared]
    ) -> Self:
        """Return a new `Progress` with the saved values.

        Args:
          state: the result of `saved`.
          prepared: the prepared probes, empty before the first measurement.

        Raises:
          TypeError: if the state is not a mapping.
          ValueError: if the state was saved by a monitor with other probes or another probe batch.
        """
        values = decode(checked(state, self.saved(), optional=self._optional))
        own = {key: int(step) for key, step in values.pop("monitor").items()}
        saved, reported = own["last_step"], own.get("last_report", -1)
        last = None if saved < 0 else saved
        batch = own.get("batch", -1)
        if any(values.values()) and -1 not in (batch, self._batch) and batch != self._batch:
            raise ValueError(
                "expected a state saved with this probe batch, got one saved with other inputs, "
                "targets or weights; pass the probe batch of the run that saved it (the same "
                "examples in the same order), or omit state= to start with new references"
            )
        states: dict[str, State] = {
            name: {key: np.full(np.shape(blank[key]), np.nan) for key in blank} | values[name]
            for name, blank in self.measured[1].items()
        }
        other = copy(self)
        other.measured = last, _fitted(states, prepared, last, self._optional)
        other.reported = None if reported < 0 else reported
        other.begun = False
        other.resumes_at = max(saved, reported) + 1
        return other


def look_back(
    progress: Progress, start: int, *, fanout: Fanout, watch: Watch, errors: ErrorPolicy
) -> str:
    """Let the alerts see the run folder's earlier records; warn if no state was restored.

    Args:
      progress: the run's progress, before its attempt begins.
      start: the first step of the attempt.
      fanout: reads the records.
      watch: the alerts; their alarms on these records were given in the earlier attempts.
      errors: the error policy, which gives the warning.

    Returns:
      The note for the first measured record; empty if there is nothing to note.
    """
    has_state = progress.resumes_at is not None
    if has_state and not watch:
        return ""
    earlier = errors.guard("the search for older records", fanout.earlier)
    if earlier is None:
        return ""
    before = [record for record in earlier if record[0] < start]
    errors.guard("the alerts on older records", watch.resume, before)
    if has_state:
        return ""
    lost = fanout.has_lost_lines
    remembering = [name for name, state in progress.measured[1].items() if state]
    if earlier or lost:
        last = earlier[-1][0] if earlier else None
        errors.warn(_without_state(start, last, remembering))
    return _new_reference(remembering) if remembering and (before or lost) else ""


def _fitted(
    states: Mapping[str, State],
    prepared: Mapping[str, PreparedProbe | Unprepared],
    last: int | None,
    optional: Mapping[str, Collection[str]],
) -> dict[str, State]:
    """Return the probes' initial states before the first measurement, else the states given.

    An optional entry that an older state lacks is NaN, in the shape that the probe needs.

    Raises:
      ValueError: if a given state does not have the shapes of the probe's initial state.
    """
    fitted = dict(states)
    for name, probe in prepared.items():
        blank = probe.initial_state()
        if last is None:
            fitted[name] = blank
            continue
        for key, value in states[name].items():
            if key in optional.get(name, ()) and value.size == 0:
                fitted[name] = fitted[name] | {key: np.full(blank[key].shape, np.nan)}
            elif value.shape != blank[key].shape:
                raise ValueError(
                    f"expected {name}/{key} of shape {blank[key].shape} in the restored state, "
                    f"got {value.shape}; restore the state of the same problem, "
                    "with as many probe batches"
                )
    return fitted


def _digest_of(problem: Problem) -> float:
    """Return the digest of the probe batch; -1 if it has none."""
    try:
        return digest(jax.tree.leaves((problem.inputs, problem.targets, problem.weights)))
    except (TypeError, ValueError):
        return -1.0


def _without_state(step: int, last: int | None, remembering: Sequence[str]) -> str:
    """Return the warning for a run that continues in its folder without its state."""
    goes_on = last is not None and step > last
    what = f"continues at step {step}" if goes_on else f"supersedes those from step {step} on"
    until = "" if last is None else f" up to step {last}"
    if remembering:
        what += (
            ", and its probes start with new references (the residuals for H_f_fixed, the "
            "integrals of Lemma 8, the weights from which changes are measured)"
        )
    return (
        f"expected state= for a logdir with records{until}, got none: this run {what}. To "
        "continue the earlier run, pass its state=; to keep its records, use another logdir"
    )


def _new_reference(remembering: Sequence[str]) -> str:
    """Return the note for the first record of a run that continues without its state."""
    return (
        f"resumed without state=: the references of the probes ({', '.join(remembering)}) start "
        "again at this step; H_f_fixed uses the residuals of this step"
    )
