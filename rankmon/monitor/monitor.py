"""`RankMonitor`: the object that a training loop calls at each step.

A monitor never changes training: it measures copies of the parameters in a scope of its own, and
monitor errors never stop training unless the user asks for it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankmon._util.closing import ClosesOnExit
from rankmon._util.distributed import is_first
from rankmon._util.errors import ErrorPolicy
from rankmon._util.facts import Fact
from rankmon._util.forks import Home
from rankmon._util.hparams import as_hparams
from rankmon._util.validate import as_flag, as_integer, as_layers
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
    check_reactions,
    schedule_text,
)
from rankmon.monitor.dispatch import Dispatcher
from rankmon.monitor.due import DueSteps
from rankmon.monitor.lifecycle import Call
from rankmon.monitor.over_batches import batches_fact, over_batches
from rankmon.monitor.overhead import Overhead
from rankmon.monitor.pipeline import Pipeline
from rankmon.monitor.scan import CompiledLoop, CompiledSteps, StepFunction
from rankmon.monitor.schedule import Schedule
from rankmon.monitor.worker import Worker
from rankmon.probes.base import Probe
from rankmon.probes.registry import as_probes
from rankmon.problem.batches import Batches
from rankmon.problem.problem import Problem
from rankmon.writers.base import Outcome, Record, Writer

_NEVER_FULL = 2**31


class RankMonitor(ClosesOnExit):
    """Watches ranks during training: `monitor(step, params)` measures when the step is due.

    The first call is always due; `close` measures the last parameters seen. A call that is not due
    neither reads the parameters nor waits for a device. If parameters are changed in place later
    (an updated dict, donated buffers), call `close(step, params)` with the final ones.

    With background=True a due step only copies the parameters, so that the originals may be
    donated; a worker thread measures and writes the copies in order. Call a monitor from one thread
    at a time. No snapshot is lost without `close`: the interpreter's exit waits for all of them.

    Parameters may be sharded. If several processes train together (`jax.distributed`), create a
    monitor in each and make the same calls; all processes measure, and the first one writes.

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
        problem: Problem | Sequence[Problem],
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
        layers: str | Sequence[str] | None = None,
        batches: int = 1,
    ) -> None:
        """Open the writers; the first measurement comes with the first call.

        Args:
          problem: network, loss and probe batch; or, as for `batches`, a list of Problems of one
            network and loss, each with a probe batch of the same size.
          logdir: run folder for TensorBoard events and rankmon.jsonl; None to write neither.
          every: the number of steps between measurements; give either this or `schedule`.
          schedule: a schedule of `rankmon.schedule`, or any object with its `due` method.
          probes: names ("hessian", "weights", "features", "gradients", "collapse", "ntk"; "all"
            for all that apply), or probe objects.
          writers: writers in addition to those of logdir; `close` closes them too. If one fails, up
            to 1000 records are kept for it and tried again. Writers of your own are called on the
            thread that calls the monitor (with background=True on the worker); reports are written
            on a separate thread.
          tolerance: the rule for the Hessian's cut.
          memory_limit: bytes for the Hessian's matrices, or for sketches if these do not fit.
          oversize: the reaction if not even a sketch of the Hessian fits in memory_limit: "raise"
            before training starts, or continue with the other probes ("weights").
          on_error: the reaction to a failing probe or writer during training: "warn" (once, counted
            in monitor/errors) or "raise".
          params: parameters, or arrays with their shapes, to check everything now instead of at the
            first call, and to give `state` its final shapes at once.
          state: a saved `monitor.state` to continue from.
          background: compile and measure on a worker thread. Its warnings are given, and with
            on_error="raise" its errors raised, at the next call, `flush` or `close`.
          queue: the number of snapshots that may wait for the worker.
          when_full: at a due step with a full queue, "block" until there is space, or "skip" this
            point of the schedule; counted in monitor/blocked and monitor/skipped. The first step,
            the first step after training went back, and the last step are never skipped.
          overhead: the largest share of the wall time since the first call that probes may take, in
            (0, 1]. A due step that would exceed it is postponed to the first step that does not.
            The time of the first probe includes all compilations. The first call, a step back and
            the last step are always measured.
          alerts: conditions of `rankmon.alerts`, checked in every record. An alert is recorded as a
            text at the step at which its condition begins to hold, and warns, calls a function, or
            stops the loop (`alerts.StopTraining`, with background=True at the next call).
          hparams: numbers, strings and bools by which to compare runs on TensorBoard's HPARAMS
            page, which also shows the monitor's own (widths, engine, ...). None for no such page.
          layers: globs over the names of the layers that have curves in TensorBoard; by default all
            of at most 24 layers, and none of more: then each family of curves is an array.
          batches: the number of disjoint probe batches of equal size into which to split the
            examples, at random but always alike. Each tag has its median over the batches, and
            batches/<tag>/low and high the range. They share the time limits of the probes.

        Raises:
          TypeError, ValueError: for invalid arguments.
          MemoryError: if `params` are given and the Hessian does not fit.
          OSError: if logdir cannot be written or has another live writer.
        """
        over = Batches.of(problem, batches)
        whole = over.whole
        check_reactions(oversize=oversize, on_error=on_error, when_full=when_full)
        background, waiting = as_flag("background", background), as_integer("queue", queue, least=0)
        memory_limit = as_integer(
            "memory_limit", memory_limit, least=1, remedy="pass bytes, for instance 4 * 2**30"
        )
        writers, share = as_writers(writers), as_overhead(overhead)
        alerts, schedule = as_alerts(alerts), as_schedule(every, schedule)
        hparams = None if hparams is None else as_hparams(hparams)
        check_processes(overhead=overhead, when_full=when_full, alerts=alerts)
        if not is_first():
            logdir, writers = None, []
        self._home, self._errors = Home(), (errors := ErrorPolicy(on_error))
        cap = Overhead(share, background=background)
        worker = Worker(waiting, when_full, errors=errors) if background else None
        # A separate thread: a report from inside a compiled program must not wait for a measurement
        # that itself waits for the program.
        writing = Worker(_NEVER_FULL, "block", errors=errors)
        self._pipeline = pipeline = Pipeline(
            whole,
            over_batches(as_probes(probes, tolerance=tolerance, memory_limit=memory_limit), over),
            skips_oversize=oversize == "weights",
            errors=errors,
            writing=writing,
            overhead=cap,
            logdir=logdir,
            layers=as_layers(layers),
            writers=writers,
            alerts=alerts,
            facts=[*batches_fact(over), Fact("schedule", schedule_text(schedule, share))],
            hparams=hparams,
            params=params,
            state=state,
        )
        self._due = due = DueSteps(schedule, cap, pipeline=pipeline, worker=worker, writing=writing)
        self._dispatcher = Dispatcher(
            whole, pipeline, due=due, worker=worker, writing=writing, errors=errors, overhead=cap
        )
        self._program: CompiledSteps | None = None  # the last scan's
        self._outcome: Outcome = "success"

    # Called by the training loop

    def __call__(
        self,
        step: Any,
        params: Any = None,
        *,
        extra: Any = None,
        scalars: Mapping[str, Any] | None = None,
        opt_state: Any = None,
    ) -> Record | None:
        """Measure if the step is due.

        Args:
          step: the training step, a Python or NumPy integer; or a flax TrainState, which contains
            both step and params. Reading its step waits for the update that computes it.
          params: the parameters at that step, before its update: a pytree of arrays or a
            TrainState; for a problem from Linen or NNX see `Problem.from_linen` and `from_nnx`.
          extra: other collections that the network needs, for apply(params, inputs, extra).
          scalars: numbers of your own (a training loss) to write with the record of a due step, as
            "user/<tag>" if the monitor uses the tag; a value that is not a number becomes NaN.
          opt_state: the optimizer's state, for probes that want it; a TrainState contains it.

        Returns:
          The `Record`, or None if the step is not due; always None with background=True.

        Raises:
          TypeError, ValueError, MemoryError: at the first call, if the input cannot be measured.
        """
        if self._home.is_elsewhere():
            return None
        if type(step) is not int or params is None:
            step, params = as_step_and_params(step, params)
        if self._errors.kept:
            self._errors.tell()
        call = Call(step, params, extra, scalars, opt_state)
        if self._errors.guard("the schedule", self._due.is_due, step):
            return self._dispatcher.measure(call)
        self._dispatcher.see(call)
        return None

    def is_due(self, step: int) -> bool:
        """Return whether a call at this step would measure, to compute scalars only if needed."""
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

        One compiled program runs from each due step to the next, on a copy of the carry that is
        donated to it; your arrays stay valid. `close` measures the last parameters.

        Args:
          step_fn: step_fn(carry, x) -> (carry, y), traceable. The same function object in the
            next scan (the next epoch) is not compiled again.
          carry: pytree of arrays.
          steps: the number of steps to run.
          params_of: params_of(carry) returns the `params` of a call (also a TrainState).
          xs: None, or a pytree of arrays with leading axis `steps`; step_fn gets one entry.
          start: the number of the first step in the schedule.

        Returns:
          The last carry, and the outputs y with leading axis `steps`.

        Raises:
          TypeError, ValueError, MemoryError: for invalid arguments, as for a call.
          StopTraining: if an alert stops training; it has the `carry` and the `ys` so far.
        """
        start, steps = as_step(start), as_integer("steps", steps, least=0)
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
        """Write numbers that were measured elsewhere, without waiting; any thread may call this.

        `hooks.watch_weights` and `hooks.report_weights` call it from inside compiled programs.

        Args:
          step: the training step of the numbers; reports may come in any order.
          scalars: tag -> number.
        """
        if self._home.is_elsewhere():
            return
        step, numbers = as_step(step), {str(tag): float(scalars[tag]) for tag in scalars}
        self._dispatcher.report(step, numbers)

    def hook(self, params: Callable[[], Any]) -> Callable[..., None]:
        """Return a function `hook(step)` for training loops that pass their hooks only the step.

        Args:
          params: returns the current parameters; it is called only during a call of the hook.
        """

        def on_step(step: Any, t: float | None = None) -> None:
            self(step, params())

        return on_step

    def flush(self) -> None:
        """Pass everything measured so far to the operating system."""
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
        opt_state: Any = None,
    ) -> Record | None:
        """Measure the last parameters, unless that was done, and close all writers.

        With background=True it waits for the worker first, and measures on this thread.

        Args:
          step: the step of `params`. Give both if the monitor has not seen the last parameters, or
            if the loop changes them in place (donated buffers, NumPy arrays, an NNX model, an
            updated dict). Or a flax TrainState, without `params`.
          params: the last parameters; by default those of the last call, a dict with the values
            that it has by now. NumPy arrays, NNX models and donated arrays get a warning instead.
          extra: as for a call.
          scalars: as for a call.
          opt_state: as for a call.

        Returns:
          The last `Record`; None if all was measured before (with background=True: if nothing was
          recorded). A second call has no effect.

        Raises:
          TypeError, ValueError, MemoryError: as for a call, if nothing was measured before.
        """
        if self._dispatcher.closed or self._home.is_elsewhere():
            return None
        self._dispatcher.refuse_here()
        try:
            record = self._wait()
            if step is None:
                record = self._dispatcher.measure_seen() or record
            else:
                call = Call(*as_step_and_params(step, params), extra, scalars, opt_state)
                if call.step != self._due.submitted:
                    record = self._dispatcher.measure_here(call)
        finally:
            self._dispatcher.close(self._outcome)
            self._errors.tell()
        return record

    def _note_failure(self) -> None:
        self._dispatcher.forget_seen()
        self._outcome = "failure"

    # Restart

    @property
    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """The data needed for a restart: last step, reference residuals, integrals.

        A nested dict of uint32 arrays that any checkpointer can save. They hold the bits of float64
        numbers, two words each, because JAX with x64 off would round the numbers themselves. The
        structure is the same from construction on, the shapes from the first measurement on, or
        with `params=` from construction on (Orbax needs them in a target to restore into). A digest
        of the probe batch is part of it, because references are meaningless for any other batch.
        """
        if not self._home.is_elsewhere():
            self._wait()
        return self._pipeline.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved `state`; records after its last step are superseded, not lost.

        Raises:
          TypeError: if the state is not a mapping.
          ValueError: if the state was saved by a monitor with other probes or another probe batch.
        """
        if self._home.is_elsewhere():
            return
        self._wait()
        self._pipeline.restore(state)
        self._due.forget_skipped()
        self._dispatcher.forget_seen()

    def _wait(self) -> Record | None:
        return self._dispatcher.wait()
