"""What measures a snapshot and writes its record: probes and their states, times, card, attempts.

Knows no schedule. One measurement at a time, from whichever thread. A record is put together and
written on a thread of its own, so that an interrupt finds the step measured and its record with the
writers, or neither.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from rankmon._util.errors import Trouble
from rankmon._util.facts import Fact, Hparam
from rankmon.monitor.alerts import Action, Alarm, Alert, StopTraining, Watch
from rankmon.monitor.fanout import Outbox
from rankmon.monitor.overhead import Budget
from rankmon.monitor.state import checked, decode, digest, encode
from rankmon.monitor.user_scalars import UserScalars
from rankmon.monitor.worker import Worker
from rankmon.probes.base import Description, Measurement, PreparedProbe, Probe, State
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem
from rankmon.writers import card
from rankmon.writers.base import Record, Writer
from rankmon.writers.card import Card
from rankmon.writers.events import Outcome
from rankmon.writers.jsonl import JsonlWriter
from rankmon.writers.memory import MemoryWriter
from rankmon.writers.tensorboard import TensorBoardWriter

_Found = Sequence[tuple[Action, Alarm]]


# What may be called from any thread.
_OWN = (JsonlWriter, MemoryWriter, TensorBoardWriter)


_TIMES = ("monitor/seconds", "monitor/overhead", "monitor/errors")


class Recorder:
    """The probes of one monitor, at parameters of one structure once `prepare` saw them.

    Args:
      problem: what is measured.
      probes: what measures it.
      skips_oversize: whether a probe that does not fit in memory is left out.
      trouble: decides what an error does.
      writing: the thread that puts records together and writes them, and reports too.
      budget: is told what each probe takes.
      logdir: as for `Outbox`.
      writers: as for `Outbox`.
      alerts: conditions on the records.
      facts: for the card, of what only the monitor knows.
      hparams: the user's, for the first record of each attempt; None for none, the card's neither.
      params: to `prepare` at once.
      state: to `restore` at once.

    Attributes:
      flat: the problem at the parameters' structure, None before `prepare`.
      scalars: converts those of the user.
    """

    def __init__(
        self,
        problem: Problem,
        probes: Sequence[Probe],
        *,
        skips_oversize: bool,
        trouble: Trouble,
        writing: Worker,
        budget: Budget,
        logdir: str | Path | None,
        writers: Sequence[Writer],
        alerts: Sequence[Alert] = (),
        facts: Sequence[Fact] = (),
        hparams: Mapping[str, Hparam] | None = None,
        params: Any = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.flat: FlatProblem | None = None
        self.scalars = UserScalars(trouble, reserved=(card.TAG, *_TIMES))
        self._problem = problem
        self._probes = probes
        self._skips_oversize = skips_oversize
        self._trouble = trouble
        self._writing = writing
        self._budget = budget
        self._prepared: dict[str, PreparedProbe] = {}
        # The last step, and the probes' states after it: one value, of which nothing can be torn.
        self._measured: tuple[int | None, dict[str, State]] = (
            None,
            {probe.name: probe.placeholder_state(problem) for probe in probes},
        )
        self._batch = _digest_of(problem)
        self._resumes_at: int | None = None
        self._new_reference = ""  # for the next record that is measured
        self._watch = Watch(alerts)
        self._reported: int | None = None  # the last step of a report
        self._begun = self._opens = False
        self._card, self._hparams = Card(facts), hparams
        self._found: deque[tuple[Action, Alarm]] = deque()  # in records; nothing was done about it
        if params is not None:
            self.prepare(params)
        if state is not None:
            self.restore(state)
        own = [writer for writer in writers if isinstance(writer, _OWN)]
        self._outbox = Outbox(logdir, own, trouble=trouble)
        # A connection to a database, for one, belongs to the thread that opened it: these are
        # called on the caller's thread, where an interrupt can make them take a record twice.
        others = [writer for writer in writers if not isinstance(writer, _OWN)]
        self._others = Outbox(None, others, trouble=trouble)

    @property
    def last(self) -> int | None:
        """The step of the last measurement, None before the first."""
        return self._measured[0]

    def prepare(self, params: Any) -> FlatProblem:
        """Checks the parameters' structure and compiles the probes, unless that was done.

        Raises:
          TypeError, ValueError: for what cannot be measured.
          MemoryError: where a probe does not fit.
        """
        if self.flat is not None:
            return self.flat
        flat = self._problem.flat(params)
        prepared: dict[str, PreparedProbe] = {}
        for probe in self._probes:
            try:
                prepared[probe.name] = probe.prepare(flat)
            except MemoryError as error:
                if not self._skips_oversize:
                    raise
                self._trouble.warn(f"{probe.name}: left out, the others go on. {error}")
        if not prepared:
            raise ValueError(
                "expected a probe that fits in memory_limit, got none; add the 'weights' probe"
            )
        last, states = self._measured
        self._measured = last, _fitted(states, prepared, last)
        self._card.describe(flat, self._descriptions(prepared))
        self._prepared = prepared
        self.flat = flat  # last: an interrupted preparation is made again
        return flat

    def _descriptions(self, prepared: Mapping[str, PreparedProbe]) -> dict[str, Description]:
        """What the probes say of themselves; those that cannot are left out."""
        described = {
            name: self._trouble.guard(f"the card of probe {name!r}", _description, probe)
            for name, probe in prepared.items()
        }
        return {name: found for name, found in described.items() if found is not None}

    # Restart

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """The last steps and the probes' states, as any checkpointer can save them."""
        last, states = self._measured
        steps = {"last_step": last, "last_report": self._reported}
        own = {key: np.asarray(-1.0 if s is None else float(s)) for key, s in steps.items()}
        own["batch"] = np.asarray(self._batch)
        return encode({"monitor": own, **states})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved `state`.

        Raises:
          TypeError: where it is no mapping.
          ValueError: where it is not that of a monitor with these probes and this probe batch.
        """
        values = decode(checked(state, self.state()))
        own = {key: int(step) for key, step in values.pop("monitor").items()}
        saved, reported = own["last_step"], own.get("last_report", -1)
        last = None if saved < 0 else saved
        batch = own.get("batch", -1)
        if any(values.values()) and -1 not in (batch, self._batch) and batch != self._batch:
            raise ValueError(
                "expected the state of a monitor with this probe batch, got that of one with other "
                "inputs, targets or weights; build the batch of the run that saved it (the same "
                "examples in the same order), or leave out state= to begin with new references"
            )
        states: dict[str, State] = {name: values[name] for name in self._measured[1]}
        if self.flat is not None:
            states = _fitted(states, self._prepared, last)

        def resume() -> None:
            self._measured = last, states
            self._reported = None if reported < 0 else reported
            self._resumes_at = max(saved, reported) + 1
            self._begun = False

        self._writing.do(resume)

    # Records

    def record(
        self,
        step: int,
        take: Callable[[], Snapshot] | None,
        extra: Mapping[str, Any] | None,
        counts: Mapping[str, float],
    ) -> Record:
        """Measures a snapshot and writes its record.

        Args:
          step: the step of training.
          take: gives the snapshot; None where it could not be taken, which was reported.
          extra: the user's scalars.
          counts: more scalars of the monitor.
        """
        # For the record of a call that was interrupted: its states are those that this one needs.
        self._writing.wait()
        began = time.monotonic()
        try:
            what = f"the measurement at step {step}"
            measured = take and self._trouble.guard(what, self._probe, step, take)
            numbers = self.scalars.numbers(extra, step)
            write = partial(self._record, step, measured, numbers, counts, began)
            record: Record = self._writing.do(write, step=step)
            self._others.deliver()
        finally:
            self._budget.probe_ends(time.monotonic() - began)
        self._act(self._found)
        return record

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers that were measured elsewhere, in whatever order they come."""
        if not self._begun:
            self._begin(step)
        record, found = self._assembled(step, dict(scalars))
        self._reported = max(step, -1 if self._reported is None else self._reported)
        try:
            self._others.append(record)
            self._outbox.write(record)
            self._others.deliver()
        finally:
            self._act(deque(found))

    def _record(
        self,
        step: int,
        measured: tuple[Measurement, dict[str, State]] | None,
        numbers: Mapping[str, float],
        counts: Mapping[str, float],
        began: float,
    ) -> Record:
        last, states = self._measured
        measurement, states = measured or (Measurement({}), states)
        if not self._begun or (last is not None and step < last):
            self._begin(step)
        scalars = {**measurement.scalars, **counts, **self._times(time.monotonic() - began)}
        scalars |= self.scalars.beside([*scalars, *measurement.arrays], numbers)
        note = self._new_reference
        record, found = self._assembled(step, scalars, dict(measurement.arrays), note)
        # Not before: a step whose record could not be put together was not measured.
        self._measured, self._new_reference = (step, states), ""
        self._found.extend(found)
        self._others.append(record)
        self._outbox.write(record)
        return record

    def _assembled(
        self,
        step: int,
        scalars: dict[str, float],
        arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
        note: str = "",
    ) -> tuple[Record, _Found]:
        """A record with the note, and what the alerts find in it."""
        what = f"the alerts at step {step}"
        found: _Found = self._trouble.guard(what, self._watch.look, step, scalars) or []
        texts: dict[str, str] = {}
        said = [*([note] if note else []), *(alarm.message for _, alarm in found)]
        if said:
            texts["rankmon/alerts"] = "\n".join(f"* {message}" for message in said)
        page = self._trouble.guard("the card", self._card.page, step, scalars, [*arrays, *texts])
        if page is not None:
            texts[card.TAG] = page
        record = Record(
            step, self._outbox.attempt, time.time(), scalars, arrays, texts, self._hparams_now()
        )
        return record, found

    def _hparams_now(self) -> dict[str, Hparam]:
        """Those of the first record of an attempt: the card's facts, and the user's before them."""
        opens, self._opens = self._opens, False
        if self._hparams is None or not opens:
            return {}
        own = self._card.hparams
        return {**self._hparams, **{name: own[name] for name in own if name not in self._hparams}}

    def _act(self, found: deque[tuple[Action, Alarm]]) -> None:
        """Warns, calls back, and last stops, as the alerts ask for."""
        stop: StopTraining | None = None
        while found:
            action, alarm = found.popleft()
            if action == "stop":
                stop = stop or StopTraining(alarm)
            elif callable(action):
                self._trouble.guard(f"an alert's callback at step {alarm.step}", action, alarm)
            else:
                self._trouble.warn(f"step {alarm.step}: {alarm.message}", key=f"alert {alarm}")
        if stop is not None:
            raise stop

    def _begin(self, step: int) -> None:
        """A new attempt, which supersedes records of this step and later ones."""
        start = step if self._resumes_at is None else min(step, self._resumes_at)
        if not self._begun:
            self._look_back(start)
        if self.last is not None and step < self.last:
            self._trouble.warn(
                f"step {step} comes after step {self.last}: from here on earlier records of later "
                "steps are superseded; for another network use another monitor and logdir",
                key="back",
            )
        self._outbox.start(start)
        self._others.start(start)
        self._card.begin()
        self._begun, self._opens, self._resumes_at = True, True, None

    def _look_back(self, start: int) -> None:
        """Take up the records of the run folder, and warn if their state was not given."""
        has_state = self._resumes_at is not None
        if has_state and not self._watch:
            return
        earlier = self._trouble.guard("the search for older records", self._outbox.earlier)
        if earlier is None:
            return
        before = [record for record in earlier if record[0] < start]
        self._trouble.guard("the alerts on older records", self._watch.resume, before)
        if has_state:
            return
        lost = self._outbox.has_lost_lines
        remembering = [name for name, state in self._measured[1].items() if state]
        if earlier or lost:
            last = earlier[-1][0] if earlier else None
            self._trouble.warn(_without_state(start, last, remembering))
        if remembering and (before or lost):
            self._new_reference = _new_reference(remembering)

    def _times(self, seconds: float) -> dict[str, float]:
        values = (seconds, self._budget.share_taken(seconds), self._trouble.errors)
        return dict(zip(_TIMES, values, strict=True))

    def _probe(
        self, step: int, take: Callable[[], Snapshot]
    ) -> tuple[Measurement, dict[str, State]]:
        """What all probes show, and their states afterwards."""
        snapshot = take()
        if snapshot.nonfinite:
            self._trouble.warn(
                f"step {step}: {snapshot.nonfinite} parameters are NaN or infinite; ranks are "
                "logged as NaN while that lasts",
                key="nonfinite",
            )
        scalars: dict[str, float] = {"monitor/nonfinite": snapshot.nonfinite}
        arrays: dict[str, np.ndarray] = {}
        states = dict(self._measured[1])
        for name, probe in self._prepared.items():
            what = f"probe {name!r} at step {step}"
            result = self._trouble.guard(what, _measured, probe, snapshot, states[name])
            if result is not None:
                measurement, states[name] = result
                scalars |= measurement.scalars
                arrays |= measurement.arrays
                for message in measurement.warnings:
                    self._trouble.warn(message)
        return Measurement(scalars, arrays), states

    def refuse_here(self) -> None:
        """Refuses to be closed by a writer that takes a record.

        Raises:
          RuntimeError: within that.
        """
        if self._others.is_here:
            raise RuntimeError(
                "expected close to be called from the loop, got a call from a writer, which it "
                "would close; close it in the loop"
            )

    def flush(self) -> None:
        """Hands what was recorded to the operating system."""
        self._writing.do(self._outbox.flush)
        self._others.flush()

    def close(self, outcome: Outcome = "success") -> None:
        """Closes the writers, tells them how training ended, and ends their thread."""
        try:
            self._writing.close(partial(self._outbox.close, outcome))
        finally:
            self._others.close(outcome)


def _measured(probe: PreparedProbe, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
    """What a probe returns; an error here, under the guard, where it is something else."""
    measurement, state = probe.measure(snapshot, state)
    scalars, arrays = dict(measurement.scalars), dict(measurement.arrays)
    return Measurement(scalars, arrays, tuple(measurement.warnings)), state


def _description(probe: PreparedProbe) -> Description:
    described = probe.describe()
    if not isinstance(described, Description):
        raise TypeError(
            "expected describe() to give a rankmon.measurement.Description, got "
            f"{type(described).__name__}; for instance Description([Fact('noise', '0.1')])"
        )
    return described


def _fitted(
    states: Mapping[str, State], prepared: Mapping[str, PreparedProbe], last: int | None
) -> dict[str, State]:
    """The states with their final shapes; blank ones before the first measurement."""
    fitted = dict(states)
    for name, probe in prepared.items():
        blank = probe.initial_state()
        if last is None:
            fitted[name] = blank
            continue
        for key, value in states[name].items():
            if value.shape != blank[key].shape:
                raise ValueError(
                    f"expected {name}/{key} of shape {blank[key].shape} in the restored state, "
                    f"got {value.shape}; restore the state of the same problem"
                )
    return fitted


def _digest_of(problem: Problem) -> float:
    """The digest of the probe batch; -1 where it has none."""
    try:
        return digest(jax.tree.leaves((problem.inputs, problem.targets, problem.weights)))
    except (TypeError, ValueError):
        return -1.0


def _without_state(step: int, last: int | None, remembering: Sequence[str]) -> str:
    goes_on = last is not None and step > last
    what = f"goes on at step {step}" if goes_on else f"supersedes those from step {step} on"
    until = "" if last is None else f" up to step {last}"
    if remembering:
        what += (
            ", with new references for what probes remember (the residuals of H_f_fixed, Lemma "
            "8's integrals)"
        )
    return (
        f"expected state= for a logdir with records{until}, got none: this run {what}; to "
        "continue the old run pass its state=, to keep its records use another logdir"
    )


def _new_reference(remembering: Sequence[str]) -> str:
    """What is said beside the first record of a run that goes on without its state."""
    return (
        f"resumed without state=: what the probes remember ({', '.join(remembering)}) begins anew "
        "here, with the residuals of this step as reference of H_f_fixed"
    )
