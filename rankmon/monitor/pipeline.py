"""`Pipeline`: turn a snapshot or a report into a record, and pass it to the writers.

The pipeline measures one snapshot at a time, on any thread; the schedule is `DueSteps`'s. Records
are built and written on a separate thread: if an interrupt comes, either the step counts as
measured and its record is with the writers, or neither.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon._util.expected_time import say_compiled, seconds_compiling
from rankmon._util.facts import Fact
from rankmon._util.hparams import Hparam
from rankmon.monitor.alerts import Action, Alarm, Alert, act
from rankmon.monitor.fanout import Fanout
from rankmon.monitor.layer_summaries import layer_summaries
from rankmon.monitor.measuring import (
    Unprepared,
    describe_probes,
    measure_probes,
    prepare_probes,
    prepare_rest,
)
from rankmon.monitor.overhead import Overhead
from rankmon.monitor.records import RecordBuilder
from rankmon.monitor.restart import Progress, look_back
from rankmon.monitor.worker import Worker
from rankmon.probes.base import Measurement, PreparedProbe, Probe, State
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem
from rankmon.writers.base import Outcome, Record, Writer
from rankmon.writers.jsonl import JsonlWriter
from rankmon.writers.memory import MemoryWriter
from rankmon.writers.tensorboard import TensorBoardWriter

# Writers that may be called on any thread.
_OWN = (JsonlWriter, MemoryWriter, TensorBoardWriter)


class Pipeline:
    """The probes and writers of one monitor, for parameters of one structure.

    Args:
      problem: the network, loss and probe batch to measure.
      probes: the measurements.
      skips_oversize: whether to leave out a probe that does not fit in memory.
      errors: the error policy.
      writing: the thread that builds and writes records and reports.
      overhead: adds up the seconds that the probes take.
      logdir: as for `Fanout`.
      layers: as for `Fanout`.
      writers: as for `Fanout`.
      alerts: conditions on the records.
      facts: lines for the card that only the monitor can give.
      hparams: the user's hyperparameters, for the first record of each attempt; None to write no
        hyperparameters, not even the card's facts.
      params: parameters to pass to `prepare` at once.
      state: a state to pass to `restore` at once.

    Attributes:
      flat: the problem for the parameters' structure, None before `prepare`.
      wants_optimizer: whether a probe measures the optimizer's state too.
    """

    def __init__(
        self,
        problem: Problem,
        probes: Sequence[Probe],
        *,
        skips_oversize: bool,
        errors: ErrorPolicy,
        writing: Worker,
        overhead: Overhead,
        logdir: str | Path | None,
        layers: Sequence[str] | None = None,
        writers: Sequence[Writer],
        alerts: Sequence[Alert] = (),
        facts: Sequence[Fact] = (),
        hparams: Mapping[str, Hparam] | None = None,
        params: Any = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.flat: FlatProblem | None = None
        self.wants_optimizer = any(getattr(probe, "wants_optimizer", False) for probe in probes)
        self._problem = problem
        self._probes = probes
        self._skips_oversize = skips_oversize
        self._errors = errors
        self._writing = writing
        self._overhead = overhead
        self._checked: dict[str, PreparedProbe | Unprepared] = {}
        self._inapplicable: dict[str, str] = {}
        self._prepared: dict[str, PreparedProbe] | None = None
        self._progress = Progress(problem, probes)
        self._builder = RecordBuilder(
            errors=errors, overhead=overhead, alerts=alerts, facts=facts, hparams=hparams
        )
        self._note = ""  # for the next measured record
        self._compiled_before: float | None = None  # until the first probe has ended
        self._found: deque[tuple[Action, Alarm]] = deque()  # not acted on yet
        if params is not None:
            self.prepare(params)
        if state is not None:
            self.restore(state)
        own = [writer for writer in writers if isinstance(writer, _OWN)]
        self._own = Fanout(logdir, own, layers=layers, errors=errors)
        # The user's own writers are called on the caller's thread, because a database connection,
        # for example, belongs to the thread that opened it. An interrupt there can make such a
        # writer write a record twice.
        others = [writer for writer in writers if not isinstance(writer, _OWN)]
        self._others = Fanout(None, others, errors=errors)

    @property
    def last(self) -> int | None:
        """The step of the last measurement, None before the first."""
        return self._progress.last

    def prepare(
        self, params: Any, *, later: Callable[[FlatProblem], bool] | None = None
    ) -> FlatProblem:
        """Check the parameters' structure and prepare the probes, unless that was done before.

        Args:
          params: the parameters, unpacked.
          later: returns whether the first `record` may compile the probes, on another thread.

        Raises:
          TypeError, ValueError: if the parameters cannot be measured.
          MemoryError: if a probe does not fit.
        """
        if self.flat is not None:
            return self.flat
        flat = self._problem.flat(params)
        self._compiled_before = seconds_compiling()
        self._checked, self._inapplicable = prepare_probes(
            self._probes,
            flat,
            later=later is not None and later(flat),
            skips_oversize=self._skips_oversize,
            errors=self._errors,
        )
        self._progress.fit(self._checked)
        if not any(isinstance(probe, Unprepared) for probe in self._checked.values()):
            self._prepare_rest(flat)
        self.flat = flat  # last, so that an interrupted preparation is repeated
        return flat

    def _prepare_rest(self, flat: FlatProblem) -> None:
        """Prepare the probes that are only checked, and describe all for the card."""
        prepared = prepare_rest(
            self._checked, skips_oversize=self._skips_oversize, errors=self._errors
        )
        descriptions = describe_probes(prepared, self._errors)
        self._builder.card.describe(flat, descriptions, self._inapplicable)
        self._prepared = prepared

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the last steps and the probes' states in a form that checkpointers can save."""
        return self._progress.saved()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved `state`.

        Raises:
          TypeError: if the state is not a mapping.
          ValueError: if the state was saved by a monitor with other probes or another probe batch.
        """
        restored = self._progress.restored(state, self._checked)

        def resume() -> None:
            self._progress = restored

        self._writing.do(resume)

    def held(self, scalars: Mapping[str, Any] | None, step: int) -> dict[str, Any]:
        """Return a copy of the user's scalars at this moment, for a later `record`."""
        return self._builder.user_scalars.held(scalars, step)

    def record(
        self,
        step: int,
        take: Callable[[], Snapshot] | None,
        scalars: Mapping[str, Any] | None,
        counts: Mapping[str, float],
    ) -> Record:
        """Measure a snapshot and write its record.

        Args:
          step: the training step.
          take: returns the snapshot; None if it failed and the error was reported.
          scalars: the user's scalars.
          counts: additional scalars of the monitor.
        """
        # Finish the record of an interrupted call first: this measurement starts from its states.
        self._writing.wait()
        if self._prepared is None and self.flat is not None:
            with self._overhead.preparing():
                self._prepare_rest(self.flat)
        began = time.monotonic()
        try:
            what = f"the measurement at step {step}"
            measured = take and self._errors.guard(what, self._measure, step, take)
            numbers = self._builder.user_scalars.numbers(scalars, step)
            write = partial(self._record, step, measured, numbers, counts, began)
            record: Record = self._writing.do(write, step=step)
            self._others.deliver()  # on this thread; an interrupt leaves records in the backlog
        finally:
            self._overhead.probe_ends(time.monotonic() - began)
        if self._compiled_before is not None:
            say_compiled(self._compiled_before)
            self._compiled_before = None
        advice = self._overhead.advice()
        if advice is not None:
            self._errors.warn(advice, key="overhead")
        # Last, because it may raise StopTraining: the record is written by now.
        act(self._found, self._errors)
        return record

    def _measure(
        self, step: int, take: Callable[[], Snapshot]
    ) -> tuple[Measurement, dict[str, State]]:
        """Measure a snapshot with the probes' states after the previous measurement."""
        _, states = self._progress.measured
        return measure_probes(self._prepared or {}, states, step, take, self._errors)

    def _record(
        self,
        step: int,
        measured: tuple[Measurement, dict[str, State]] | None,
        numbers: Mapping[str, float],
        counts: Mapping[str, float],
        began: float,
    ) -> Record:
        """Build a record and pass it to the writers; called on the writing thread."""
        last, states = self._progress.measured
        measurement, states = measured or (Measurement({}), states)
        if not self._progress.begun or (last is not None and step < last):
            self._begin(step)
        seconds = time.monotonic() - began
        scalars = self._builder.scalars(measurement, counts, numbers, seconds)
        arrays = dict(measurement.arrays)
        record, found = self._builder.build(step, self._own.attempt, scalars, arrays, self._note)
        # Only now: if its record cannot be built, the step does not count as measured.
        self._progress.measured, self._note = (step, states), ""
        self._found.extend(found)
        self._others.append(record)
        self._own.write(record)
        return record

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers that were measured elsewhere; steps may come in any order."""
        progress = self._progress
        if not progress.begun:
            self._begin(step)
        scalars = {**scalars, **layer_summaries(scalars)}
        record, found = self._builder.build(step, self._own.attempt, scalars)
        progress.reported = max(step, -1 if progress.reported is None else progress.reported)
        try:
            self._others.append(record)
            self._own.write(record)
            self._others.deliver()
        finally:
            act(deque(found), self._errors)

    def _begin(self, step: int) -> None:
        """Begin an attempt, which supersedes records of this step and later ones."""
        progress = self._progress
        # After a restore, records from the saved step on are superseded, even if the first call
        # comes at a later step.
        start = step if progress.resumes_at is None else min(step, progress.resumes_at)
        if not progress.begun:
            watch = self._builder.watch
            note = look_back(progress, start, fanout=self._own, watch=watch, errors=self._errors)
            self._note = note or self._note
        if progress.last is not None and step < progress.last:
            self._errors.warn(
                f"step {step} comes after step {progress.last}; existing records of step "
                f"{step} and later steps are superseded. For another network, use another monitor "
                "and logdir",
                key="back",
            )
        self._own.start(start)
        self._others.start(start)
        self._builder.begin()
        progress.begun, progress.resumes_at = True, None

    def refuse_here(self) -> None:
        """Refuse to be closed by a writer that is writing a record.

        Raises:
          RuntimeError: if a writer makes this call.
        """
        if self._others.is_here:
            raise RuntimeError(
                "expected close to be called from the loop, got a call from a writer, which "
                "close would close; call close in the loop"
            )

    def flush(self) -> None:
        """Pass everything recorded so far to the operating system."""
        self._writing.do(self._own.flush)
        self._others.flush()

    def close(self, outcome: Outcome = "success") -> None:
        """Close the writers, end their session, and end the writing thread.

        Args:
          outcome: how training ended.
        """
        try:
            self._writing.close(partial(self._own.close, outcome))
        finally:
            self._others.close(outcome)
