"""`RankMonitor`: whether a step is due, and then a snapshot for the recorder, here or on a worker.

The only module with loop state. It never changes what it watches: parameters are copied, measured
in a scope of their own, and no error of the monitor's ends a training run unless asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from rankmon._util.arrays import check_concrete
from rankmon._util.distributed import gathered, is_first
from rankmon._util.errors import Trouble
from rankmon._util.facts import Fact, as_hparams
from rankmon._util.forks import Home
from rankmon._util.validate import as_count, as_memory_limit, check_choice, check_flag
from rankmon._util.warnings import RankmonWarning
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, Tolerance
from rankmon.monitor.alerts import Alert, StopTraining
from rankmon.monitor.arguments import (
    as_alerts,
    as_overhead,
    as_schedule,
    as_step,
    as_step_and_params,
    as_writers,
    check_processes,
    schedule_text,
)
from rankmon.monitor.lifecycle import Call, ClosesOnExit, missing_last_probe, why_perhaps_changed
from rankmon.monitor.overhead import Budget
from rankmon.monitor.pipeline import Recorder
from rankmon.monitor.scan import CompiledLoop, CompiledSteps, StepFunction
from rankmon.monitor.schedule import Schedule
from rankmon.monitor.worker import Worker
from rankmon.probes.base import Probe
from rankmon.probes.registry import as_probes
from rankmon.problem.device_copy import DeviceCopy
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import with_settings_kept
from rankmon.problem.problem import Problem, check_problem
from rankmon.writers.base import Record, Writer
from rankmon.writers.events import Outcome

__all__ = ["RankMonitor", "RankmonWarning"]


_NEVER_FULL = 2**31


class RankMonitor(ClosesOnExit):
    """Watches ranks during training: `monitor(step, params)` measures when the step is due.

    The first call is always due; `close` measures the last parameters seen. A call that is not due
    touches no parameter and waits for no device value: parameters that are changed in place later
    on (a dict that is updated, donated buffers) need `close(step, params)` with the final ones.

    With background=True a due step only dispatches copies of the parameters, which outlive donation
    of the originals; a worker thread measures and writes them, in order. Call one monitor from one
    thread at a time. Who forgets `close` loses no snapshot: the interpreter's exit waits for them.

    Parameters may be sharded. Where several processes train together (`jax.distributed`), each has
    a monitor and makes the same calls; all measure, and the first process writes.

    Example:
      >>> import jax.numpy as jnp, rankmon
      >>> problem = rankmon.Problem(
      ...     lambda params, x: x @ params["W1"] @ params["W2"],
      ...     loss="mse", inputs=jnp.eye(3), targets=jnp.ones((3, 2)),
      ... )
      >>> params = {"W1": jnp.ones((3, 4)), "W2": jnp.ones((4, 2))}
      >>> with rankmon.RankMonitor(problem, every=10) as monitor:
      ...     record = monitor(0, params)
      >>> record.scalars["rank_weights/W1"]
      1
    """

    def __init__(
        self,
        problem: Problem,
        *,
        logdir: str | Path | None = None,
        every: int | None = None,
        schedule: Schedule | None = None,
        probes: Sequence[str | Probe] = ("hessian", "weights"),
        writers: Sequence[Writer] = (),
        tolerance: Tolerance = DEFAULT_TOLERANCE,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        oversize: Literal["raise", "weights"] = "raise",
        on_error: Literal["warn", "raise"] = "warn",
        params: Any = None,
        state: Mapping[str, Any] | None = None,
        background: bool = False,
        queue: int = 2,
        when_full: Literal["block", "skip"] = "block",
        overhead: float | None = None,
        alerts: Sequence[Alert] = (),
        hparams: Mapping[str, bool | float | str] | None = None,
    ) -> None:
        """Opens the writers; nothing is measured yet.

        Args:
          problem: network, loss and probe batch.
          logdir: run folder for TensorBoard events and rankmon.jsonl; None to write neither.
          every: measure every so many steps; or
          schedule: any schedule of `rankmon.schedule`.
          probes: "hessian", "weights", "features", or probe objects.
          writers: more writers, beside those of logdir; `close` closes them too. For one that fails
            up to 1000 records are kept and tried again. Your own ones are called on the thread that
            calls the monitor, with background=True on its worker, and for reports on another.
          tolerance: how the Hessian's cut is chosen.
          memory_limit: bytes for the Hessian's matrices, or for sketches where these do not fit.
          oversize: where not even a sketch of the Hessian fits in memory_limit, "raise" before
            training starts or go on with the other "weights" probes alone.
          on_error: what a failing probe or writer does once training runs: "warn" (once, counted
            in monitor/errors) or "raise".
          params: parameters (or arrays like them), to check everything now instead of at the first
            call and to give `state` its final shapes at once.
          state: a saved `monitor.state` to go on from.
          background: measure on a worker thread. Its warnings are given, and with
            on_error="raise" its errors raised, at the next call, `flush` or `close`.
          queue: how many snapshots may wait for the worker.
          when_full: at a due step with a full queue, "block" until there is a place, or "skip" this
            point of the schedule; counted in monitor/blocked and monitor/skipped. The first step,
            one after going back and the last one are never skipped.
          overhead: the share of the wall time since the first call that probes may take, in (0, 1];
            a due step that would exceed it waits for the first step that does not. The first call
            counts with all its compilations; it, a step back and the last one are always measured.
          alerts: conditions of `rankmon.alerts`, looked at in every record. Each is written as a
            text with the step where it begins to hold, and warns, calls back, or stops the loop
            (`alerts.StopTraining`, with background=True at the next call).
          hparams: numbers, strings and bools by which runs are compared, for TensorBoard's HPARAMS
            page; the monitor's own (widths, engine, ...) come beside them. None for no such page.

        Raises:
          TypeError, ValueError: for input that does not fit.
          MemoryError: where `params` are given and the Hessian does not fit.
          OSError: where logdir cannot be written or has another live writer.
        """
        check_problem(problem)
        check_choice("oversize", oversize, ("raise", "weights"))
        check_choice("on_error", on_error, ("warn", "raise"))
        check_choice("when_full", when_full, ("block", "skip"))
        check_flag("background", background)
        writers, memory_limit = as_writers(writers), as_memory_limit(memory_limit)
        waiting, share = as_count("queue", queue), as_overhead(overhead)
        alerts, schedule = as_alerts(alerts), as_schedule(every, schedule)
        hparams = None if hparams is None else as_hparams(hparams)
        check_processes(overhead=overhead, when_full=when_full, alerts=alerts)
        if not is_first():
            logdir, writers = None, []
        self._home = Home()
        self._problem = problem
        self._schedule = schedule
        self._trouble = Trouble(on_error)
        self._budget = Budget(share)
        self._worker = Worker(waiting, when_full, trouble=self._trouble) if background else None
        # Who reports from inside a compiled program must not wait for what waits for the program.
        self._writing = Worker(_NEVER_FULL, "block", trouble=self._trouble)
        self._recorder = Recorder(
            problem,
            as_probes(probes, tolerance=tolerance, memory_limit=memory_limit),
            skips_oversize=oversize == "weights",
            trouble=self._trouble,
            writing=self._writing,
            budget=self._budget,
            logdir=logdir,
            writers=writers,
            alerts=alerts,
            facts=[Fact("schedule", schedule_text(schedule, share))],
            hparams=hparams,
            params=params,
            state=state,
        )
        # A step that was skipped, and the last one before it that was not.
        self._skipped: tuple[int, int | None] | None = None
        self._seen: Call | None = None
        self._program: CompiledSteps | None = None  # of the last scan
        self._closed = False
        self._outcome: Outcome = "success"

    # The loop's side

    def __call__(
        self,
        step: Any,
        params: Any = None,
        *,
        extra: Any = None,
        scalars: Mapping[str, Any] | None = None,
    ) -> Record | None:
        """Measures if the step is due.

        Args:
          step: the training step, a Python or NumPy integer; or a flax TrainState alone, which has
            both. Its step is a device value: reading it waits for the update that made it.
          params: the parameters at that step, before its update: a pytree of arrays, a TrainState,
            or, of a problem from Linen or NNX, what `Problem.from_linen` and `from_nnx` say.
          extra: other collections that the network needs, for apply(params, inputs, extra).
          scalars: numbers of your own (a training loss) to write with the record when due. One with
            a tag of the monitor's goes under "user/<tag>", what is no number is NaN.

        Returns:
          The `Record`, or None where the step is not due; always None with background=True.

        Raises:
          TypeError, ValueError, MemoryError: at the first call, for input that cannot be measured.
        """
        if self._home.is_elsewhere():
            return None
        if type(step) is not int or params is None:
            step, params = as_step_and_params(step, params)
        if self._trouble.kept:
            self._trouble.tell()
        if self._trouble.guard("the schedule", self._due, step):
            return self._measure(Call(step, params, extra, scalars))
        if not self._closed:
            self._seen = Call(step, params, extra, scalars)
        return None

    def is_due(self, step: int) -> bool:
        """Whether a call at this step would measure: for scalars that are worth computing then."""
        if self._home.is_elsewhere():
            return False
        return bool(self._trouble.guard("the schedule", self._due, step))

    def scan(
        self,
        step_fn: StepFunction,
        carry: Any,
        steps: int,
        *,
        params_of: Callable[[Any], Any],
        xs: Any = None,
        start: int = 0,
    ) -> tuple[Any, Any]:
        """`jax.lax.scan(step_fn, carry, xs, length=steps)`, measured at the steps that are due.

        One compiled program runs from each due step to the next. The carry is copied once and then
        donated to it; what the caller passed stays as it is. `close` measures the last parameters.

        Args:
          step_fn: step_fn(carry, x) -> (carry, y), traceable. The same function object in the
            next scan (the next epoch) is not compiled again.
          carry: pytree of arrays.
          steps: how many.
          params_of: params_of(carry) gives what `monitor(step, params)` takes.
          xs: None, or a pytree of arrays with leading axis `steps`; step_fn gets one entry.
          start: the step of the first one, in the schedule's count.

        Returns:
          The last carry, and the outputs y with leading axis `steps`.

        Raises:
          TypeError, ValueError, MemoryError: for input that does not fit, as for a call.
          StopTraining: where an alert asks for it; it has the `carry` and the `ys` so far.
        """
        start, steps = as_step(start), as_count("steps", steps)
        if self._program is None or self._program.step_fn is not step_fn:
            self._program = CompiledSteps(step_fn)
        loop = CompiledLoop(self._program, carry, steps, xs)
        end, step, ahead = start + steps, start, 1
        while step < end:
            try:
                self(step, params_of(loop.carry))
            except StopTraining as stop:
                stop.carry, stop.ys = loop.carry, loop.ys
                raise
            # Still due where the budget puts it off: not at every step is the program left for it.
            ahead = 2 * ahead if self._scheduled(step) else 1
            step = next(filter(self._scheduled, range(step + ahead, end)), end)
            loop.advance(step - start)
        if not self._closed:
            self._seen = Call(end, params_of(loop.carry), None, None)
        return loop.carry, loop.ys

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers that were measured elsewhere; from any thread, and without waiting.

        `hooks.watch_weights` and `hooks.report_weights` report here from inside compiled programs.

        Args:
          step: the step that they belong to; reports may come in any order.
          scalars: tag -> number.
        """
        if self._home.is_elsewhere():
            return
        step, numbers = as_step(step), {str(tag): float(scalars[tag]) for tag in scalars}

        def submit() -> None:
            if self._closed:
                self._trouble.warn("the monitor got a report after close; it is not written")
            else:
                self._writing.submit(lambda: partial(self._recorder.report, step, numbers))

        self._trouble.attempt(submit)  # on a thread of XLA's nothing may be raised

    def hook(self, params: Callable[[], Any]) -> Callable[..., None]:
        """The monitor for loops that call hooks with the step alone: `hook(step)`.

        Args:
          params: gives the parameters at the step of the call; asked only then, and never later.
        """

        def on_step(step: Any, t: float | None = None) -> None:
            self(step, params())

        return on_step

    def _scheduled(self, step: int) -> bool:
        return bool(self._trouble.guard("the schedule", self._schedule.due, step, self._last))

    def _due(self, step: int) -> bool:
        if not self._schedule.due(step, self._last):
            return False
        under_way = 0 if self._worker is None else self._worker.unfinished
        return self._is_back(step) or self._budget.affords(under_way)

    def _is_back(self, step: int) -> bool:
        """Whether training went back: records of later steps have to be superseded now."""
        return self._last is not None and step < self._last

    @property
    def _last(self) -> int | None:
        """The step that the schedule counts from: the last one that was measured or skipped."""
        submitted = self._submitted
        if self._skipped is not None and self._skipped[1] == submitted:
            return self._skipped[0]
        return submitted

    @property
    def _submitted(self) -> int | None:
        """The last step that was handed over: it waits, is being measured, or has a record."""
        for worker in (self._worker, self._writing):
            if worker is not None and worker.unfinished:
                step = worker.newest_step()
                if step is not None:
                    return step
        return self._recorder.last

    def flush(self) -> None:
        """Hands everything that was measured to the operating system."""
        if self._home.is_elsewhere():
            return
        self._wait()
        self._recorder.flush()
        self._trouble.tell()

    def close(
        self,
        step: Any = None,
        params: Any = None,
        *,
        extra: Any = None,
        scalars: Mapping[str, Any] | None = None,
    ) -> Record | None:
        """Measures the last parameters, unless they were measured, and closes all writers.

        With background=True it waits for the worker first, and measures on this thread.

        Args:
          step: the step of `params`, for loops whose last parameters the monitor has not seen or
            which change them in place: donated buffers, NumPy arrays, an NNX model, a dict that is
            updated. Or a flax TrainState alone.
          params: the last parameters; without them, those of the last call. Of a dict that was
            updated since, those are the new values under the old step; NumPy arrays, NNX models and
            donated ones are left out with a warning.
          extra: as for a call.
          scalars: as for a call.

        Returns:
          The last `Record`, or None where nothing was left to measure (with background=True: where
          nothing was recorded). A second time does nothing.

        Raises:
          TypeError, ValueError, MemoryError: where nothing was measured before, as for a call.
        """
        if self._closed or self._home.is_elsewhere():
            return None
        for each in (self._writing, self._worker, self._recorder):
            if each is not None:
                each.refuse_here()
        try:
            record = self._wait()
            if step is not None:
                step, params = as_step_and_params(step, params)
                if step != self._submitted:
                    last = Call(step, params, extra, scalars)
                    record = with_settings_kept(partial(self._measure_here, last))
            else:
                record = self._measure_last_seen() or record
        finally:
            self._close_recorder()
            self._trouble.tell()
        return record

    def _close_recorder(self) -> None:
        close = partial(self._recorder.close, self._outcome)
        try:
            if self._worker is None:
                close()
            else:
                self._worker.close(close)
        finally:
            self._closed, self._seen = True, None

    def _gives_up(self) -> None:
        self._seen, self._outcome = None, "failure"

    # Restart

    @property
    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """What must survive a restart: the last step, the reference residuals, the integrals.

        A nested dict of uint32 arrays that any checkpointer can save: the bits of float64 numbers,
        two words each, since JAX with x64 off would round the numbers themselves. One structure
        from construction on. For a checkpointer that insists on shapes (Orbax, with a target to
        restore into) pass `params=` at construction: without, they are final only once measured.
        It has a digest of the probe batch, without which H_f_fixed's residuals mean nothing.
        """
        if not self._home.is_elsewhere():
            self._wait()
        return self._recorder.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved `state`; records after its last step are superseded, not lost.

        Raises:
          TypeError: where the state is no mapping.
          ValueError: where it is not that of a monitor with these probes and this probe batch.
        """
        if self._home.is_elsewhere():
            return
        self._wait()
        self._recorder.restore(state)
        self._seen = self._skipped = None

    # Measuring

    def _wait(self) -> Record | None:
        """Until reports are written and the worker is done; its last record."""
        if self._writing.is_here:
            return None  # a writer that asks for the state cannot wait for its own record
        # Programs under way may still report.
        self._trouble.guard("the wait for reports", jax.effects_barrier)
        record = None if self._worker is None else self._worker.wait()
        self._writing.wait()
        return record

    def _measure(self, call: Call) -> Record | None:
        if self._closed:
            self._trouble.warn("the monitor was called after close; nothing is measured any more")
            return None
        # Already here: where the call is interrupted, its parameters are still to be measured.
        self._seen = call
        try:
            return with_settings_kept(partial(self._measure_now, call))
        except Exception:
            self._seen = None
            raise

    def _measure_now(self, call: Call) -> Record | None:
        if self._worker is None:
            return self._measure_here(call)
        flat = self._ready(call)
        what = f"the measurement at step {call.step}"
        self._trouble.guard(what, self._submit, self._worker, flat, call)
        return None

    def _ready(self, call: Call) -> FlatProblem:
        self._budget.start()
        if self._recorder.flat is not None:
            return self._recorder.flat
        check_concrete("parameters to be measured", (call.params, call.extra))
        with self._budget.spending():
            return self._recorder.prepare(self._problem.unpack(call.params, call.extra))

    def _measure_here(self, call: Call) -> Record:
        flat = self._ready(call)
        counts = {} if self._worker is None else self._worker.counts()

        def take() -> Snapshot:
            return Snapshot.take(flat, call.step, self._tree(call))

        try:
            record = self._recorder.record(call.step, take, call.scalars, counts)
        finally:
            self._trouble.tell_warnings()
        self._seen = None
        return record

    def _tree(self, call: Call) -> Any:
        """The pytree that is measured, with all of it in this process."""
        check_concrete("parameters to be measured", (call.params, call.extra))
        return gathered(self._problem.unpack(call.params, call.extra))

    def _submit(self, worker: Worker, flat: FlatProblem, call: Call) -> None:
        """Hands copies to the worker, or keeps the parameters of a step that it skips."""

        def copied() -> DeviceCopy:
            return DeviceCopy.take(flat, call.step, self._tree(call))

        def job() -> Callable[[], Record]:
            with self._budget.spending():
                copy = self._trouble.guard(f"the measurement at step {call.step}", copied)
                held = self._recorder.scalars.held(call.scalars, call.step)
            return partial(_record, self._recorder, call.step, copy, held, worker.counts())

        before = self._submitted
        if worker.submit(job, must=self._is_back(call.step), step=call.step):
            self._seen = None
        else:
            self._skipped = call.step, before

    def _measure_last_seen(self) -> Record | None:
        call = self._seen
        if call is None or call.step == self._submitted:
            return None
        changed = self._trouble.guard("the last parameters", why_perhaps_changed, call.params)
        if changed:
            self._trouble.warn(missing_last_probe(call.step, changed))
            return None
        return with_settings_kept(partial(self._measure_here, call))


def _record(
    recorder: Recorder,
    step: int,
    copy: DeviceCopy | None,
    scalars: Mapping[str, Any],
    counts: Mapping[str, float],
) -> Record:
    """What the worker does; the monitor itself is none of its business, and may be dropped."""
    if copy is None:
        return recorder.record(step, None, scalars, counts)
    copy.wait()  # for the training steps before it, which is no cost of the monitor's
    return recorder.record(step, copy.snapshot, scalars, counts)
