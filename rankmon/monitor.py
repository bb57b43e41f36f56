"""`RankMonitor`: when a step is due, snapshot, run the probes, hand the record to the writers.

The only module with loop state. It never changes what it watches: parameters are copied, measured
in a scope of their own, and no error of the monitor's ends a training run unless asked for.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np

from rankmon._options import as_memory_limit, as_schedule, as_step, as_writers, check_choice
from rankmon._scalars import UserScalars
from rankmon._state import decode, encode
from rankmon._trouble import Trouble
from rankmon._warnings import RankmonWarning
from rankmon.curvature import DEFAULT_MEMORY_LIMIT
from rankmon.measurement import Measurement, PreparedProbe, Probe, Snapshot, State
from rankmon.outbox import Outbox
from rankmon.probes import as_probes
from rankmon.problem import FlatProblem, Problem
from rankmon.rank import DEFAULT_TOLERANCE, Tolerance
from rankmon.schedule import Schedule
from rankmon.writers import Record, Writer

__all__ = ["RankMonitor", "RankmonWarning"]

_TIMES = ("monitor/seconds", "monitor/overhead", "monitor/errors")


class RankMonitor:
    """Watches ranks during training: `monitor(step, params)` measures when the step is due.

    The first call is always due; `close` measures the last parameters seen. A call that is not due
    touches no parameter and waits for no device value: parameters that are changed in place later
    on (a dict that is updated, donated buffers) need `close(step, params)` with the final ones.

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
    ) -> None:
        """Opens the writers; nothing is measured yet.

        Args:
          problem: network, loss and probe batch.
          logdir: run folder for TensorBoard events and rankmon.jsonl; None to write neither.
          every: measure every so many steps; or
          schedule: any schedule of `rankmon.schedule`.
          probes: "hessian", "weights", or probe objects.
          writers: more writers, beside those of logdir; `close` closes them too. For one that fails
            up to 1000 records are kept and tried again.
          tolerance: how the Hessian's cut is chosen.
          memory_limit: bytes for the Hessian's dense matrices and their assembly.
          oversize: where the Hessian does not fit in memory_limit, "raise" before training starts
            or go on with the other "weights" probes alone.
          on_error: what a failing probe or writer does once training runs: "warn" (once, counted
            in monitor/errors) or "raise".
          params: parameters (or arrays like them), to check everything now instead of at the first
            call and to give `state` its final shapes at once.
          state: a saved `monitor.state` to go on from.

        Raises:
          TypeError, ValueError: for input that does not fit.
          MemoryError: where `params` are given and the Hessian does not fit.
          OSError: where logdir cannot be written or has another live writer.
        """
        if not isinstance(problem, Problem):
            raise TypeError(
                f"expected a rankmon.Problem, got {type(problem).__name__}; build one from apply, "
                "loss, inputs and targets"
            )
        check_choice("oversize", oversize, ("raise", "weights"))
        check_choice("on_error", on_error, ("warn", "raise"))
        writers, memory_limit = as_writers(writers), as_memory_limit(memory_limit)
        self._problem = problem
        self._schedule = as_schedule(every, schedule)
        self._probes = as_probes(probes, tolerance=tolerance, memory_limit=memory_limit)
        self._oversize = oversize
        self._trouble = Trouble(on_error)
        self._prepared: dict[str, PreparedProbe] | None = None
        self._flat: FlatProblem | None = None
        self._states = {probe.name: probe.placeholder_state(problem) for probe in self._probes}
        self._last: int | None = None
        self._seen: tuple[int, Any, Mapping[str, Any] | None] | None = None
        self._resumes_at: int | None = None
        self._scalars = UserScalars(self._trouble, reserved=("rankmon/card", *_TIMES))
        self._seconds = 0.0
        self._opened = time.monotonic()
        self._closed = False
        if params is not None:
            self._prepare(params)
        if state is not None:
            self.restore(state)
        self._outbox = Outbox(logdir, writers, trouble=self._trouble)

    # The loop's side

    def __call__(
        self, step: int, params: Any, *, scalars: Mapping[str, Any] | None = None
    ) -> Record | None:
        """Measures if the step is due.

        Args:
          step: the training step, a Python or NumPy integer.
          params: the parameters at that step, before its update.
          scalars: numbers of your own (a training loss) to write with the record when due. One with
            a tag of the monitor's goes under "user/<tag>", what is no number is NaN.

        Returns:
          The `Record`, or None where the step is not due.

        Raises:
          TypeError, ValueError, MemoryError: at the first call, for input that cannot be measured.
        """
        if type(step) is not int:
            step = as_step(step)
        if self._trouble.guard("the schedule", self._due, step):
            return self._measure(step, params, scalars)
        if not self._closed:
            self._seen = (step, params, scalars)
        return None

    def _due(self, step: int) -> bool:
        return bool(self._schedule.due(step, self._last))

    def flush(self) -> None:
        """Hands everything that was measured to the operating system."""
        self._outbox.flush()

    def close(self, step: int | None = None, params: Any = None) -> Record | None:
        """Measures the last parameters, unless they were measured, and closes all writers.

        Args:
          step: the step of `params`, for loops whose last parameters the monitor has not seen or
            which change them in place: donated buffers, NumPy arrays, a dict that is updated.
          params: the last parameters; without them, those of the last call. Of a dict that was
            updated since, those are the new values under the old step; NumPy arrays and donated
            ones are left out with a warning.

        Returns:
          The last `Record`, or None where nothing was left to measure. A second time does nothing.

        Raises:
          TypeError, ValueError, MemoryError: where nothing was measured before, as for a call.
        """
        if self._closed:
            return None
        record = None
        try:
            if params is not None:
                step = as_step(step)
                if step != self._last:
                    record = self._measure(step, params, None)
            else:
                record = self._measure_last_seen()
        finally:
            self._closed, self._seen = True, None
            self._outbox.close()
        return record

    def __enter__(self) -> Self:
        """The monitor itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes; after an exception in the loop without measuring once more."""
        if kind is not None:
            self._seen = None
        self.close()

    # Restart

    @property
    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """What must survive a restart: the last step, the reference residuals, the integrals.

        A nested dict of uint32 arrays that any checkpointer can save: the bits of float64 numbers,
        two words each, since JAX with x64 off would round the numbers themselves. One structure
        from construction on. For a checkpointer that insists on shapes (Orbax, with a target to
        restore into) pass `params=` at construction: without, they are final only once measured.
        """
        last = np.asarray(-1.0 if self._last is None else float(self._last))
        return encode({"monitor": {"last_step": last}, **self._states})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved `state`; records after its last step are superseded, not lost.

        Raises:
          ValueError: where the state is not that of a monitor with these probes.
        """
        expected = {name: set(values) for name, values in self.state.items()}
        got = {name: set(values) for name, values in state.items()}
        if expected != got:
            raise ValueError(
                f"expected the state of a monitor with {expected}, got {got}; restore into a "
                "monitor with the probes of the one that was saved"
            )
        values = decode(state)
        saved = int(values.pop("monitor")["last_step"])
        last = None if saved < 0 else saved
        states: dict[str, State] = {name: values[name] for name in self._states}
        if self._prepared is not None:
            states = _fitted(states, self._prepared, last)
        self._last, self._seen, self._states = last, None, states
        self._resumes_at = 0 if last is None else last + 1

    # Measuring

    def _prepare(self, params: Any) -> None:
        flat = self._problem.flat(params)
        prepared: dict[str, PreparedProbe] = {}
        for probe in self._probes:
            try:
                prepared[probe.name] = probe.prepare(flat)
            except MemoryError as error:
                if self._oversize == "raise":
                    raise
                self._trouble.warn(f"{probe.name}: left out, the others go on. {error}")
        if not prepared:
            raise ValueError(
                "expected a probe that fits in memory_limit, got none; add the 'weights' probe"
            )
        self._states = _fitted(self._states, prepared, self._last)
        self._flat, self._prepared = flat, prepared

    def _measure(self, step: int, params: Any, extra: Mapping[str, Any] | None) -> Record | None:
        if self._closed:
            self._trouble.warn("the monitor was called after close; nothing is measured any more")
            return None
        if self._prepared is None:
            self._prepare(params)
        began = time.monotonic()
        what = f"the measurement at step {step}"
        measured = self._trouble.guard(what, self._probe, step, params)
        measurement, states = measured or (Measurement({}), self._states)
        numbers = self._scalars.numbers(extra, step)
        begins = self._last is None or step < self._last or self._resumes_at is not None
        if begins:
            self._begin(step)
        texts = {"rankmon/card": self._card()} if begins else {}
        scalars = {**measurement.scalars, **self._times(time.monotonic() - began)}
        record = Record(
            step=step,
            attempt=self._outbox.attempt,
            wall_time=time.time(),
            scalars=scalars | self._scalars.beside([*scalars, *measurement.arrays], numbers),
            arrays=dict(measurement.arrays),
            texts=texts,
        )
        # Not before: a measurement that is interrupted never happened.
        self._last, self._seen, self._resumes_at, self._states = step, None, None, states
        self._outbox.write(record)
        return record

    def _begin(self, step: int) -> None:
        """A new attempt, which supersedes records of this step and later ones."""
        if self._last is not None and step < self._last:
            self._trouble.warn(
                f"step {step} comes after step {self._last}: from here on earlier records of later "
                "steps are superseded; for another network use another monitor and logdir",
                key="back",
            )
        elif self._resumes_at is None:
            last = self._trouble.guard("the search for older records", self._outbox.last_step)
            if last is not None and last >= step:
                self._trouble.warn(
                    f"the logdir has records of step {last}, which this new run from step {step} "
                    "on supersedes, with residuals of its own for H_f_fixed; to continue the old "
                    "run pass its state=, to keep its records use another logdir"
                )
        self._outbox.start(step if self._resumes_at is None else min(step, self._resumes_at))

    def _times(self, seconds: float) -> dict[str, float]:
        self._seconds += seconds
        overhead = self._seconds / max(time.monotonic() - self._opened, 1e-9)
        return dict(zip(_TIMES, (seconds, overhead, self._trouble.errors), strict=True))

    def _probe(self, step: int, params: Any) -> tuple[Measurement, dict[str, State]]:
        """What all probes show, and their states afterwards."""
        assert self._flat is not None
        assert self._prepared is not None
        snapshot = Snapshot.take(self._flat, step, params)
        if snapshot.nonfinite:
            self._trouble.warn(
                f"step {step}: {snapshot.nonfinite} parameters are NaN or infinite; ranks are "
                "logged as NaN while that lasts",
                key="nonfinite",
            )
        scalars: dict[str, float] = {"monitor/nonfinite": snapshot.nonfinite}
        arrays: dict[str, np.ndarray] = {}
        states = dict(self._states)
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

    def _measure_last_seen(self) -> Record | None:
        if self._seen is None:
            return None
        step, params, extra = self._seen
        if step == self._last:
            return None
        changed = self._trouble.guard("the last parameters", _perhaps_changed, params)
        if changed:
            self._trouble.warn(
                f"the parameters of the last step, {step}, {changed}, so the last probe is "
                "missing; call monitor.close(step, params) with the final ones"
            )
            return None
        return self._measure(step, params, extra)

    def _card(self) -> str:
        assert self._prepared is not None
        lines = (
            self._trouble.guard(f"the card of probe {name!r}", probe.describe)
            for name, probe in self._prepared.items()
        )
        return "\n".join(str(line) for line in lines if line is not None)


def _measured(probe: PreparedProbe, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
    """What a probe returns; an error here, under the guard, where it is something else."""
    measurement, state = probe.measure(snapshot, state)
    scalars, arrays = dict(measurement.scalars), dict(measurement.arrays)
    return Measurement(scalars, arrays, tuple(measurement.warnings)), state


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


def _perhaps_changed(params: Any) -> str | None:
    """Why the parameters may no longer be those of the call that showed them; None if they are."""
    leaves = jax.tree.leaves(params)
    if any(getattr(leaf, "is_deleted", bool)() for leaf in leaves):
        return "were donated to your train step"
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return "are NumPy arrays, which may have changed in place"
    return None
