"""`Dispatcher`: measure a call at once on the caller's thread, or queue a copy for the worker."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from rankmon._util.arrays import check_concrete, check_not_tracing
from rankmon._util.distributed import gathered
from rankmon._util.errors import ErrorPolicy
from rankmon.monitor.arguments import check_background
from rankmon.monitor.due import DueSteps
from rankmon.monitor.lifecycle import Call, is_unchanged
from rankmon.monitor.overhead import Overhead
from rankmon.monitor.pipeline import Pipeline
from rankmon.monitor.worker import Worker
from rankmon.problem.device_copy import DeviceCopy, copied_optimizer
from rankmon.problem.flat import FlatProblem
from rankmon.problem.optimizer import Optimizer
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import with_settings_kept
from rankmon.problem.problem import Problem
from rankmon.problem.thread_view import ThreadView
from rankmon.writers.base import Outcome, Record


class Dispatcher:
    """Passes calls and reports to the pipeline, and keeps the last call that was not measured.

    Args:
      problem: the network, loss and probe batch to measure.
      pipeline: measures a snapshot and writes its record.
      due: counts the steps that were submitted.
      worker: the thread that measures; None to measure on the caller's thread.
      writing: the thread that writes records.
      errors: the error policy.
      overhead: adds up the seconds that calls take.

    Attributes:
      worker: the thread that measures, or None.
      closed: whether the monitor was closed: nothing is measured or written after that.
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
        """Keep a call that is not due: `close` measures it if no other follows."""
        if not self.closed:
            if call.opt_state is not None and not self._pipeline.wants_optimizer:
                call = call._replace(opt_state=None)  # it would stay in memory
            self._seen = call

    def forget_seen(self) -> None:
        """Drop the call that `see` kept."""
        self._seen = None

    def measure(self, call: Call) -> Record | None:
        """Measure a call and return its record, or queue it for the worker and return None."""
        if self.closed:
            self._errors.warn("the monitor was called after close; this call is not measured")
            return None
        # Kept from here on, so that an interrupted call can still be measured by `close`.
        self._seen = call
        try:
            return with_settings_kept(partial(self._measure, call))
        except Exception:
            self._seen = None
            raise

    def measure_here(self, call: Call) -> Record:
        """Measure a call on this thread, even if there is a worker."""
        record: Record = with_settings_kept(partial(self._measure_here, call))
        return record

    def measure_seen(self) -> Record | None:
        """Measure the last call on this thread, unless that was done or its parameters changed."""
        call = self._seen
        if call is None or call.step == self._due.submitted:
            return None
        return self.measure_here(call) if is_unchanged(call, self._errors) else None

    def _measure(self, call: Call) -> Record | None:
        """Measure a call on this thread, or queue it if there is a worker."""
        if self.worker is None:
            return self._measure_here(call)
        # Not guarded: parameters that cannot be measured raise at the first call.
        flat = self._ready(call, later=partial(_sees_the_same, self.worker))
        what = f"the measurement at step {call.step}"
        self._errors.guard(what, self._submit, self.worker, flat, call)
        return None

    def _ready(
        self, call: Call, *, later: Callable[[FlatProblem], bool] | None = None
    ) -> FlatProblem:
        """Return the problem for the parameters' structure; the first call prepares the probes.

        Args:
          call: the call.
          later: returns whether the worker may compile the probes.
        """
        self._overhead.start()
        if self._pipeline.flat is not None:
            return self._pipeline.flat
        check_concrete("parameters to be measured", (call.params, call.extra, call.opt_state))
        check_not_tracing("the monitor to be called")
        with self._overhead.spending():  # compilation counts as overhead
            params = self._problem.unpack(call.params, call.extra)
            if self.worker is not None:
                check_background(self._problem, params)
            return self._pipeline.prepare(params, later=later)

    def _measure_here(self, call: Call) -> Record:
        flat = self._ready(call)
        counts = {} if self.worker is None else self.worker.counts()

        def take() -> Snapshot:
            return Snapshot.take(flat, call.step, self._tree(call), self._optimizer(call))

        try:
            record = self._pipeline.record(call.step, take, call.scalars, counts)
        finally:
            self._errors.tell_warnings()
        self._seen = None  # only now: after an interrupt, `close` still measures the call
        return record

    def _tree(self, call: Call) -> Any:
        """Return the pytree to measure, with all arrays gathered in this process."""
        check_concrete("parameters to be measured", (call.params, call.extra))
        check_not_tracing("the monitor to be called")
        return gathered(self._problem.unpack(call.params, call.extra))

    def _optimizer(self, call: Call) -> Optimizer | None:
        """Return the call's optimizer with a copy of its state, if a probe wants it."""
        if not self._pipeline.wants_optimizer:
            return None
        optimizer = Optimizer.of_call(call.params, call.opt_state)
        return None if optimizer is None else copied_optimizer(optimizer)

    def _submit(self, worker: Worker, flat: FlatProblem, call: Call) -> None:
        """Queue copies of the parameters for the worker; keep the call if the step is skipped."""

        def copied() -> DeviceCopy:
            return DeviceCopy.take(flat, call.step, self._tree(call), self._optimizer(call))

        def job() -> Callable[[], Record]:
            """Copy the parameters and scalars; return the measurement of the copies, for later."""
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
        """Queue numbers that were measured elsewhere, without waiting; any thread may call this."""

        def submit() -> None:
            if self.closed:
                self._errors.warn(
                    "the monitor received a report after close; the report is not written"
                )
            else:
                self._writing.submit(lambda: partial(self._pipeline.report, step, numbers))

        self._errors.attempt(submit)  # never raise: the caller may be a thread of XLA

    def wait(self) -> Record | None:
        """Wait until all reports are written and the worker is idle; return its last record."""
        if self._writing.is_here:
            return None  # a writer that reads `monitor.state` cannot wait for its own record
        # Compiled programs that are still running may report too.
        self._errors.guard("the wait for reports", jax.effects_barrier)
        record = None if self.worker is None else self.worker.wait()
        self._writing.wait()
        return record

    def refuse_here(self) -> None:
        """Refuse to close from a thread or writer that `close` would have to wait for.

        Raises:
          RuntimeError: on one of the monitor's threads, or in a writer.
        """
        for each in (self._writing, self.worker, self._pipeline):
            if each is not None:
                each.refuse_here()

    def close(self, outcome: Outcome) -> None:
        """Finish all submitted work, close the pipeline, and end the worker.

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
    """Measure a copy on the worker, without a reference that would keep the monitor alive."""
    if copy is None:
        return pipeline.record(step, None, scalars, counts)
    copy.wait()  # so that the training steps before it do not count as the monitor's time
    return pipeline.record(step, copy.snapshot, scalars, counts)


def _sees_the_same(worker: Worker, flat: FlatProblem) -> bool:
    """Return whether the worker traces the same programs as this thread."""
    try:
        return bool(ThreadView(flat) == worker.do(partial(ThreadView, flat)))
    except Exception:  # noqa: BLE001  for instance without the mesh of this thread
        return False
