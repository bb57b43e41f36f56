"""The way from a snapshot, or a report, to a record with the writers: `Pipeline`.

It knows no schedule, and measures one snapshot at a time, from whichever thread. Records are put
together and written on a thread of their own, so that an interrupt finds the step measured and its
record with the writers, or neither.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon._util.facts import Fact
from rankmon._util.hparams import Hparam
from rankmon.monitor.alerts import Action, Alarm, Alert, act
from rankmon.monitor.fanout import Fanout
from rankmon.monitor.measuring import describe_probes, measure_probes, prepare_probes
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

# What may be called from any thread.
_OWN = (JsonlWriter, MemoryWriter, TensorBoardWriter)


class Pipeline:
    """The probes and writers of one monitor, for parameters of one structure.

    Args:
      problem: what is measured.
      probes: what measures it.
      skips_oversize: whether a probe that does not fit in memory is left out.
      errors: decides what an error does.
      writing: the thread that puts records together and writes them, and reports too.
      overhead: adds up what the probes cost.
      logdir: as for `Fanout`.
      writers: as for `Fanout`.
      alerts: conditions on the records.
      facts: for the card, of what only the monitor knows.
      hparams: the user's, for the first record of each attempt; None for none, the card's neither.
      params: to `prepare` at once.
      state: to `restore` at once.

    Attributes:
      flat: the problem at the parameters' structure, None before `prepare`.
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
        writers: Sequence[Writer],
        alerts: Sequence[Alert] = (),
        facts: Sequence[Fact] = (),
        hparams: Mapping[str, Hparam] | None = None,
        params: Any = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.flat: FlatProblem | None = None
        self._problem = problem
        self._probes = probes
        self._skips_oversize = skips_oversize
        self._errors = errors
        self._writing = writing
        self._overhead = overhead
        self._prepared: dict[str, PreparedProbe] = {}
        self._progress = Progress(problem, probes)
        self._builder = RecordBuilder(
            errors=errors, overhead=overhead, alerts=alerts, facts=facts, hparams=hparams
        )
        self._note = ""  # for the next record that is measured
        self._found: deque[tuple[Action, Alarm]] = deque()  # in records, and not acted on yet
        if params is not None:
            self.prepare(params)
        if state is not None:
            self.restore(state)
        own = [writer for writer in writers if isinstance(writer, _OWN)]
        self._own = Fanout(logdir, own, errors=errors)
        # A connection to a database, for one, belongs to the thread that opened it: these are
        # called on the caller's thread, where an interrupt can make them take a record twice.
        others = [writer for writer in writers if not isinstance(writer, _OWN)]
        self._others = Fanout(None, others, errors=errors)

    @property
    def last(self) -> int | None:
        """The step of the last measurement, None before the first."""
        return self._progress.last

    def prepare(self, params: Any) -> FlatProblem:
        """Check the parameters' structure and compile the probes, unless that was done.

        Raises:
          TypeError, ValueError: for what cannot be measured.
          MemoryError: if a probe does not fit.
        """
        if self.flat is not None:
            return self.flat
        flat = self._problem.flat(params)
        prepared = prepare_probes(
            self._probes, flat, skips_oversize=self._skips_oversize, errors=self._errors
        )
        self._progress.fit(prepared)
        self._builder.card.describe(flat, describe_probes(prepared, self._errors))
        self._prepared = prepared
        self.flat = flat  # last: an interrupted preparation is made again
        return flat

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the last steps and the probes' states, as any checkpointer can save them."""
        return self._progress.saved()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`.

        Raises:
          TypeError: if it is no mapping.
          ValueError: if it is not that of a monitor with these probes and this probe batch.
        """
        restored = self._progress.restored(state, self._prepared)

        def resume() -> None:
            self._progress = restored

        self._writing.do(resume)

    def held(self, scalars: Mapping[str, Any] | None, step: int) -> dict[str, Any]:
        """Return the user's scalars as they are now, for `record` later on."""
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
          step: the step of training.
          take: gives the snapshot; None if it could not be taken, which was reported.
          scalars: the user's.
          counts: more scalars of the monitor.
        """
        # For the record of a call that was interrupted: its states are those that this one needs.
        self._writing.wait()
        began = time.monotonic()
        try:
            what = f"the measurement at step {step}"
            measured = take and self._errors.guard(what, self._measure, step, take)
            numbers = self._builder.user_scalars.numbers(scalars, step)
            write = partial(self._record, step, measured, numbers, counts, began)
            record: Record = self._writing.do(write, step=step)
            self._others.deliver()
        finally:
            self._overhead.probe_ends(time.monotonic() - began)
        act(self._found, self._errors)
        return record

    def _measure(
        self, step: int, take: Callable[[], Snapshot]
    ) -> tuple[Measurement, dict[str, State]]:
        _, states = self._progress.measured
        return measure_probes(self._prepared, states, step, take, self._errors)

    def _record(
        self,
        step: int,
        measured: tuple[Measurement, dict[str, State]] | None,
        numbers: Mapping[str, float],
        counts: Mapping[str, float],
        began: float,
    ) -> Record:
        last, states = self._progress.measured
        measurement, states = measured or (Measurement({}), states)
        if not self._progress.begun or (last is not None and step < last):
            self._begin(step)
        seconds = time.monotonic() - began
        scalars = self._builder.scalars(measurement, counts, numbers, seconds)
        arrays = dict(measurement.arrays)
        record, found = self._builder.build(step, self._own.attempt, scalars, arrays, self._note)
        # Not before: a step whose record could not be put together was not measured.
        self._progress.measured, self._note = (step, states), ""
        self._found.extend(found)
        self._others.append(record)
        self._own.write(record)
        return record

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers that were measured elsewhere, in whatever order they come."""
        progress = self._progress
        if not progress.begun:
            self._begin(step)
        record, found = self._builder.build(step, self._own.attempt, dict(scalars))
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
        start = step if progress.resumes_at is None else min(step, progress.resumes_at)
        if not progress.begun:
            watch = self._builder.watch
            note = look_back(progress, start, fanout=self._own, watch=watch, errors=self._errors)
            self._note = note or self._note
        if progress.last is not None and step < progress.last:
            self._errors.warn(
                f"step {step} comes after step {progress.last}: from here on earlier records of "
                "later steps are superseded; for another network use another monitor and logdir",
                key="back",
            )
        self._own.start(start)
        self._others.start(start)
        self._builder.begin()
        progress.begun, progress.resumes_at = True, None

    def refuse_here(self) -> None:
        """Refuse to be closed by a writer that takes a record.

        Raises:
          RuntimeError: within that.
        """
        if self._others.is_here:
            raise RuntimeError(
                "expected close to be called from the loop, got a call from a writer, which it "
                "would close; close it in the loop"
            )

    def flush(self) -> None:
        """Hand what was recorded to the operating system."""
        self._writing.do(self._own.flush)
        self._others.flush()

    def close(self, outcome: Outcome = "success") -> None:
        """Close the writers, and end their session and their thread.

        Args:
          outcome: how training ended.
        """
        try:
            self._writing.close(partial(self._own.close, outcome))
        finally:
            self._others.close(outcome)
