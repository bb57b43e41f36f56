"""How a call reaches the pipeline: measured on its own thread, or as a copy on the worker's."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from rankmon._util.arrays import check_concrete
from rankmon._util.distributed import gathered
from rankmon._util.errors import ErrorPolicy
from rankmon.monitor.due import DueSteps
from rankmon.monitor.lifecycle import Call, is_unchanged
from rankmon.monitor.overhead import Overhead
from rankmon.monitor.pipeline import Pipeline
from rankmon.monitor.worker import Worker
from rankmon.problem.device_copy import DeviceCopy
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import with_settings_kept
from rankmon.problem.problem import Problem
from rankmon.writers.base import Outcome, Record


class Dispatcher:
    """Hands calls and reports to the pipeline, and keeps the last call that was not measured.

    Args:
      problem: what is measured.
      pipeline: measures and writes.
      due: knows which steps were handed over.
      worker: the thread that measures; None to measure on the thread of the call.
      writing: the thread that writes.
      errors: decides what an error does.
      overhead: adds up what calls cost.

    Attributes:
      worker: as given.
      closed: whether nothing is measured or written any more.
    """

    def __init__(
        self,
        problem: Problem,
        pipeline: Pipeline,
        *,
        due: DueSteps,
        worker: Worker | None,
        writing: Worker,
        errors: ErrorPolicy,
        overhead: Overhead,
    ) -> None:
        self._problem = problem
        self._pipeline = pipeline
        self._due = due
        self.worker = worker
        self._writing = writing
        self._errors = errors
        self._overhead = overhead
        self._seen: Call | None = None
        self.closed = False

    def see(self, call: Call) -> None:
        """Keep the parameters of a call that is not due: they may be the last ones."""
        if not self.closed:
            self._seen = call

    def forget_seen(self) -> None:
        """Drop the parameters that `see` kept."""
        self._seen = None

    def measure(self, call: Call) -> Record | None:
        """Measure a call, here or on the worker; return the record if it was here."""
        if self.closed:
            self._errors.warn("the monitor was called after close; nothing is measured any more")
            return None
        # Already here: if the call is interrupted, its parameters are still to be measured.
        self._seen = call
        try:
            return with_settings_kept(partial(self._measure, call))
        except Exception:
            self._seen = None
            raise

    def measure_here(self, call: Call) -> Record:
        """Measure a call on this thread, whether there is a worker or not."""
        record: Record = with_settings_kept(partial(self._measure_here, call))
        return record

    def measure_seen(self) -> Record | None:
        """Measure the last call on this thread, unless that was done or its parameters changed."""
        call = self._seen
        if call is None or call.step == self._due.submitted:
            return None
        return self.measure_here(call) if is_unchanged(call, self._errors) else None

    def _measure(self, call: Call) -> Record | None:
        if self.worker is None:
            return self._measure_here(call)
        flat = self._ready(call)
        what = f"the measurement at step {call.step}"
        self._errors.guard(what, self._submit, self.worker, flat, call)
        return None

    def _ready(self, call: Call) -> FlatProblem:
        """Return the problem at the parameters' structure, which the first call prepares."""
        self._overhead.start()
        if self._pipeline.flat is not None:
            return self._pipeline.flat
        check_concrete("parameters to be measured", (call.params, call.extra))
        with self._overhead.spending():
            return self._pipeline.prepare(self._problem.unpack(call.params, call.extra))

    def _measure_here(self, call: Call) -> Record:
        flat = self._ready(call)
        counts = {} if self.worker is None else self.worker.counts()

        def take() -> Snapshot:
            return Snapshot.take(flat, call.step, self._tree(call))

        try:
            record = self._pipeline.record(call.step, take, call.scalars, counts)
        finally:
            self._errors.tell_warnings()
        self._seen = None
        return record

    def _tree(self, call: Call) -> Any:
        """Return the pytree that is measured, with all of it in this process."""
        check_concrete("parameters to be measured", (call.params, call.extra))
        return gathered(self._problem.unpack(call.params, call.extra))

    def _submit(self, worker: Worker, flat: FlatProblem, call: Call) -> None:
        """Hand copies to the worker, or keep the parameters of a step that it skips."""

        def copied() -> DeviceCopy:
            return DeviceCopy.take(flat, call.step, self._tree(call))

        def job() -> Callable[[], Record]:
            with self._overhead.spending():
                copy = self._errors.guard(f"the measurement at step {call.step}", copied)
                held = self._pipeline.held(call.scalars, call.step)
            return partial(_record, self._pipeline, call.step, copy, held, worker.counts())

        before = self._due.submitted
        if worker.submit(job, must=self._due.is_back(call.step), step=call.step):
            self._seen = None
        else:
            self._due.skip(call.step, before)

    def report(self, step: int, numbers: Mapping[str, float]) -> None:
        """Queue numbers that were measured elsewhere; from any thread, and without waiting."""

        def submit() -> None:
            if self.closed:
                self._errors.warn("the monitor got a report after close; it is not written")
            else:
                self._writing.submit(lambda: partial(self._pipeline.report, step, numbers))

        self._errors.attempt(submit)  # on a thread of XLA's nothing may be raised

    def wait(self) -> Record | None:
        """Wait until reports are written and the worker is done; return its last record."""
        if self._writing.is_here:
            return None  # a writer that asks for the state cannot wait for its own record
        # Programs under way may still report.
        self._errors.guard("the wait for reports", jax.effects_barrier)
        record = None if self.worker is None else self.worker.wait()
        self._writing.wait()
        return record

    def refuse_here(self) -> None:
        """Refuse to be closed by what would then wait for itself.

        Raises:
          RuntimeError: on one of the threads, or in a writer.
        """
        for each in (self._writing, self.worker, self._pipeline):
            if each is not None:
                each.refuse_here()

    def close(self, outcome: Outcome) -> None:
        """Close the pipeline after all that was handed over, and end the worker.

        Args:
          outcome: how training ended.
        """
        close = partial(self._pipeline.close, outcome)
        try:
            if self.worker is None:
                close()
            else:
                self.worker.close(close)
        finally:
            self.closed, self._seen = True, None


def _record(
    pipeline: Pipeline,
    step: int,
    copy: DeviceCopy | None,
    scalars: Mapping[str, Any],
    counts: Mapping[str, float],
) -> Record:
    """Measure a copy: the worker's job, which does not hold the monitor, so that it may go."""
    if copy is None:
        return pipeline.record(step, None, scalars, counts)
    copy.wait()  # for the training steps before it, which is no cost of the monitor's
    return pipeline.record(step, copy.snapshot, scalars, counts)
