"""`RankMonitor`, which a training loop calls at each step: its arguments and its public methods.

A monitor never changes what it watches: parameters are copied and measured in a scope of their own,
and monitor errors never stop training unless the user asks for it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankmon._util.distributed import is_first
from rankmon._util.errors import ErrorPolicy
from rankmon._util.facts import Fact
from rankmon._util.forks import Home
from rankmon._util.hparams import as_hparams
from rankmon._util.validate import as_count, as_memory_limit, check_choice, check_flag
from rankmon._util.warnings import RankmonWarning
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, Tolerance
from rankmon.monitor.alerts import Alert
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
from rankmon.monitor.dispatch import Dispatcher
from rankmon.monitor.due import DueSteps
from rankmon.monitor.lifecycle import Call, ClosesOnExit
from rankmon.monitor.overhead import Overhead
from rankmon.monitor.pipeline import Pipeline
from rankmon.monitor.scan import CompiledLoop, CompiledSteps, StepFunction
from rankmon.monitor.schedule import Schedule
from rankmon.monitor.worker import Worker
from rankmon.probes.base import Probe
from rankmon.probes.registry import as_probes
from rankmon.problem.problem import Problem, check_problem
from rankmon.writers.base import Outcome, Record, Writer

__all__ = ["RankMonitor", "RankmonWarning"]

_NEVER_FULL = 2**31


class RankMonitor(ClosesOnExit):
    """Watches ranks during training: `monitor(step, params)` measures when the step is due.

    The first call is always due; `close` measures the last parameters seen. A call that is not due
    touches no parameter and waits for no device value: parameters that are changed in place later
    on (a dict that is updated, donated buffers) need `close(step, params)` with the final ones.

    With background=True a due step only dispatches copies of the parameters, which outlive donation
    of the originals; a worker thread measures and writes them, in order. Call one monitor from one
    thread at a time. Without `close` no snapshot is lost: the interpreter's exit waits for them.

    Parameters may be sharded. If several processes train together (`jax.distributed`), each has
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
        """Open the writers; nothing is measured yet.

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
          oversize: if not even a sketch of the Hessian fits in memory_limit, "raise" before
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
          MemoryError: if `params` are given and the Hessian does not fit.
          OSError: if logdir cannot be written or has another live writer.
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
        self._errors = errors = ErrorPolicy(on_error)
        limit = Overhead(share)
        worker = Worker(waiting, when_full, errors=errors) if background else None
        # A report from inside a compiled program must not wait for what waits for the program.
        writing = Worker(_NEVER_FULL, "block", errors=errors)
        self._pipeline = pipeline = Pipeline(
            problem,
            as_probes(probes, tolerance=tolerance, memory_limit=memory_limit),
            skips_oversize=oversize == "weights",
            errors=errors,
            writing=writing,
            overhead=limit,
            logdir=logdir,
            writers=writers,
            alerts=alerts,
            facts=[Fact("schedule", schedule_text(schedule, share))],
            hparams=hparams,
            params=params,
            state=state,
        )
        self._due = due = DueSteps(
            schedule, limit, pipeline=pipeline, worker=worker, writing=writing
        )
        self._dispatcher = Dispatcher(
            problem,
            pipeline,
            due=due,
            worker=worker,
            writing=writing,
            errors=errors,
            overhead=limit,
        )
        self._program: CompiledSteps | None = None  # of the last scan
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
        """Measure if the step is due.

        Args:
          step: the training step, a Python or NumPy integer; or a flax TrainState alone, which has
            both. Its step is a device value: reading it waits for the update that made it.
          params: the parameters at that step, before its update: a pytree of arrays, a TrainState,
            or, of a problem from Linen or NNX, what `Problem.from_linen` and `from_nnx` say.
          extra: other collections that the network needs, for apply(params, inputs, extra).
          scalars: numbers of your own (a training loss) to write with the record when due. One with
            a tag of the monitor's goes under "user/<tag>"; what is not a number is NaN.

        Returns:
          The `Record`, or None if the step is not due; always None with background=True.

        Raises:
          TypeError, ValueError, MemoryError: at the first call, for input that cannot be measured.
        """
        if self._home.is_elsewhere():
            return None
        if type(step) is not int or params is None:
            step, params = as_step_and_params(step, params)
        if self._errors.kept:
            self._errors.tell()
        call = Call(step, params, extra, scalars)
        if self._errors.guard("the schedule", self._due.is_due, step):
            return self._dispatcher.measure(call)
        self._dispatcher.see(call)
        return None

    def is_due(self, step: int) -> bool:
        """Return whether a call at this step would measure: for scalars computed only then."""
        if self._home.is_elsewhere():
            return False
        return bool(self._errors.guard("the schedule", self._due.is_due, step))

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
        """Run `jax.lax.scan(step_fn, carry, xs, length=steps)`, measured at the due steps.

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
          StopTraining: if an alert asks for it; it has the `carry` and the `ys` so far.
        """
        start, steps = as_step(start), as_count("steps", steps)
        if self._program is None or self._program.step_fn is not step_fn:
            self._program = CompiledSteps(step_fn)
        loop = CompiledLoop(self._program, carry, steps, xs)
        loop.run(
            lambda step, carry: self(step, params_of(carry)),
            start=start,
            is_scheduled=partial(self._errors.guard, "the schedule", self._due.is_scheduled),
        )
        self._dispatcher.see(Call(start + steps, params_of(loop.carry), None, None))
        return loop.carry, loop.ys

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers that were measured elsewhere; from any thread, and without waiting.

        `hooks.watch_weights` and `hooks.report_weights` report here from inside compiled programs.

        Args:
          step: the step that they belong to; reports may come in any order.
          scalars: tag -> number.
        """
        if self._home.is_elsewhere():
            return
        step, numbers = as_step(step), {str(tag): float(scalars[tag]) for tag in scalars}
        self._dispatcher.report(step, numbers)

    def hook(self, params: Callable[[], Any]) -> Callable[..., None]:
        """Return a function for loops that call hooks with the step alone: `hook(step)`.

        Args:
          params: gives the parameters at the step of the call; asked only then, and never later.
        """

        def on_step(step: Any, t: float | None = None) -> None:
            self(step, params())

        return on_step

    def flush(self) -> None:
        """Hand everything that was measured to the operating system."""
        if self._home.is_elsewhere():
            return
        self._wait()
        self._pipeline.flush()
        self._errors.tell()

    def close(
        self,
        step: Any = None,
        params: Any = None,
        *,
        extra: Any = None,
        scalars: Mapping[str, Any] | None = None,
    ) -> Record | None:
        """Measure the last parameters, unless they were measured, and close all writers.

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
          The last `Record`, or None if nothing was left to measure (with background=True: if
          nothing was recorded). A second time does nothing.

        Raises:
          TypeError, ValueError, MemoryError: if nothing was measured before, as for a call.
        """
        if self._dispatcher.closed or self._home.is_elsewhere():
            return None
        self._dispatcher.refuse_here()
        try:
            record = self._wait()
            if step is None:
                record = self._dispatcher.measure_seen() or record
            else:
                step, params = as_step_and_params(step, params)
                if step != self._due.submitted:
                    record = self._dispatcher.measure_here(Call(step, params, extra, scalars))
        finally:
            self._dispatcher.close(self._outcome)
            self._errors.tell()
        return record

    def _gives_up(self) -> None:
        self._dispatcher.forget_seen()
        self._outcome = "failure"

    # Restart

    @property
    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """What a restart needs: the last step, the reference residuals, the integrals.

        A nested dict of uint32 arrays that any checkpointer can save: the bits of float64 numbers,
        two words each, since JAX with x64 off would round the numbers themselves. One structure
        from construction on. For a checkpointer that insists on shapes (Orbax, with a target to
        restore into) pass `params=` at construction: without, they are final only once measured.
        It has a digest of the probe batch, without which H_f_fixed's residuals mean nothing.
        """
        if not self._home.is_elsewhere():
            self._wait()
        return self._pipeline.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`; records after its last step are superseded, not lost.

        Raises:
          TypeError: if the state is not a mapping.
          ValueError: if it is not that of a monitor with these probes and this probe batch.
        """
        if self._home.is_elsewhere():
            return
        self._wait()
        self._pipeline.restore(state)
        self._due.forget_skipped()
        self._dispatcher.forget_seen()

    def _wait(self) -> Record | None:
        return self._dispatcher.wait()
