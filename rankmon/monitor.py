"""`RankMonitor`: when a step is due, snapshot, run the probes, hand the record to the writers.

The only module with loop state. It never changes what it watches: parameters are copied, measured
in a scope of their own, and no error of the monitor's ends a training run unless asked for.
"""

import logging
import operator
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np

from rankmon._state import decode, encode
from rankmon.curvature import DEFAULT_MEMORY_LIMIT
from rankmon.measurement import Measurement, PreparedProbe, Probe, Snapshot, State
from rankmon.outbox import Outbox
from rankmon.probes import as_probes
from rankmon.problem import FlatProblem, Problem
from rankmon.rank import DEFAULT_TOLERANCE, Tolerance
from rankmon.schedule import EveryN, Schedule
from rankmon.writers import Record, Writer

_log = logging.getLogger("rankmon")


class RankmonWarning(UserWarning):
    """Something that the monitor could not measure or write; training is not affected."""


class RankMonitor:
    """Watches ranks during training: `monitor(step, params)` measures when the step is due.

    The first call is always due; `close` measures the last parameters seen. A call that is not due
    touches no parameter and waits for no device value.

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
          writers: more writers, beside those of logdir.
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
          OSError: where logdir cannot be written or has another live writer.
        """
        if not isinstance(problem, Problem):
            raise TypeError(
                f"expected a rankmon.Problem, got {type(problem).__name__}; build one from apply, "
                "loss, inputs and targets"
            )
        _check_choice("oversize", oversize, ("raise", "weights"))
        _check_choice("on_error", on_error, ("warn", "raise"))
        self._problem = problem
        self._schedule = _as_schedule(every, schedule)
        self._probes = as_probes(probes, tolerance=tolerance, memory_limit=memory_limit)
        self._oversize = oversize
        self._on_error = on_error
        self._prepared: dict[str, PreparedProbe] | None = None
        self._flat: FlatProblem | None = None
        self._states = {probe.name: probe.placeholder_state(problem) for probe in self._probes}
        self._restored: dict[str, State] = {}
        self._last: int | None = None
        self._seen: tuple[int, Any, Mapping[str, Any]] | None = None
        self._resumes_at: int | None = None
        self._warned: set[str] = set()
        self._errors = 0
        self._seconds = 0.0
        self._opened = time.monotonic()
        self._closed = False
        if params is not None:
            self._prepare(params)
        if state is not None:
            self.restore(state)
        self._outbox = Outbox(logdir, writers, guard=self._guard)

    # The loop's side

    def __call__(
        self, step: int, params: Any, *, scalars: Mapping[str, Any] | None = None
    ) -> Record | None:
        """Measures if the step is due.

        Args:
          step: the training step, a Python or NumPy integer.
          params: the parameters at that step, before its update.
          scalars: numbers of your own (a training loss) to write with the record when due.

        Returns:
          The `Record`, or None where the step is not due.

        Raises:
          TypeError, ValueError, MemoryError: at the first call, for input that cannot be measured.
        """
        if type(step) is not int:
            step = _as_step(step)
        if self._schedule.due(step, self._last):
            return self._measure(step, params, scalars or {})
        self._seen = (step, params, scalars or {})
        return None

    def flush(self) -> None:
        """Hands everything that was measured to the operating system."""
        self._outbox.flush()

    def close(self, step: int | None = None, params: Any = None) -> Record | None:
        """Measures the last parameters, unless they were measured, and closes the writers.

        Args:
          step: the step of `params`, for loops whose last parameters the monitor has not seen or
            whose buffers are donated to the next step.
          params: the last parameters; without them, those of the last call.
        """
        if self._closed:
            return None
        record = None
        try:
            if params is not None:
                step = _as_step(step)
                if step != self._last:
                    record = self._measure(step, params, {})
            else:
                record = self._measure_last_seen()
        finally:
            self._closed = True
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
        from construction on; with `params` given at construction, one set of shapes too.
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
        last = int(values.pop("monitor")["last_step"])
        self._last = None if last < 0 else last
        self._resumes_at = 0 if last < 0 else last + 1
        self._seen = None
        self._states = {name: values[name] for name in self._states}
        if self._prepared is not None:
            self._check_shapes()

    def _check_shapes(self) -> None:
        assert self._prepared is not None
        for name, probe in self._prepared.items():
            blank = probe.initial_state()
            for key, value in self._states[name].items():
                started = self._last is not None
                if value.shape != blank[key].shape and started:
                    raise ValueError(
                        f"expected {name}/{key} of shape {blank[key].shape} in the restored state, "
                        f"got {value.shape}; restore the state of the same problem"
                    )
                if not started:
                    self._states[name][key] = blank[key]

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
                self._warn(f"{probe.name}: left out, the others go on. {error}")
        if not prepared:
            raise ValueError(
                "expected a probe that fits in memory_limit, got none; add the 'weights' probe"
            )
        self._flat, self._prepared = flat, prepared
        if flat.warning:
            self._warn(flat.warning)
        self._check_shapes()

    def _measure(self, step: int, params: Any, extra: Mapping[str, Any]) -> Record | None:
        if self._closed:
            self._warn("the monitor was called after close; nothing is measured any more")
            return None
        if self._prepared is None:
            self._prepare(params)
        began = time.monotonic()
        begins = self._last is None or step < self._last or self._resumes_at is not None
        if begins:
            self._outbox.start(step if self._resumes_at is None else min(step, self._resumes_at))
            self._resumes_at = None
        self._last, self._seen = step, None
        measurement = self._guard(f"the measurement at step {step}", self._probe, step, params)
        scalars = dict(measurement.scalars) if measurement else {}
        scalars |= {tag: float(value) for tag, value in extra.items()}
        seconds = time.monotonic() - began
        self._seconds += seconds
        scalars["monitor/seconds"] = seconds
        scalars["monitor/overhead"] = self._seconds / max(time.monotonic() - self._opened, 1e-9)
        scalars["monitor/errors"] = self._errors
        record = Record(
            step=step,
            attempt=self._outbox.attempt,
            wall_time=time.time(),
            scalars=scalars,
            arrays=dict(measurement.arrays) if measurement else {},
            texts={"rankmon/card": self._card()} if begins else {},
        )
        self._outbox.write(record)
        return record

    def _probe(self, step: int, params: Any) -> Measurement:
        assert self._flat is not None
        assert self._prepared is not None
        snapshot = Snapshot.take(self._flat, step, params)
        if snapshot.nonfinite:
            self._warn(
                f"step {step}: {snapshot.nonfinite} parameters are NaN or infinite; ranks are "
                "logged as NaN while that lasts",
                key="nonfinite",
            )
        scalars: dict[str, float] = {"monitor/nonfinite": snapshot.nonfinite}
        arrays: dict[str, np.ndarray] = {}
        for name, probe in self._prepared.items():
            result = self._guard(
                f"probe {name!r} at step {step}", probe.measure, snapshot, self._states[name]
            )
            if result is not None:
                measurement, self._states[name] = result
                scalars |= measurement.scalars
                arrays |= measurement.arrays
        return Measurement(scalars, arrays)

    def _measure_last_seen(self) -> Record | None:
        if self._seen is None:
            return None
        step, params, extra = self._seen
        if step == self._last:
            return None
        if any(getattr(leaf, "is_deleted", bool)() for leaf in jax.tree.leaves(params)):
            self._warn(
                f"the parameters of the last step, {step}, were donated to your train step, so the "
                "last probe is missing; call monitor.close(step, params) with the final ones"
            )
            return None
        return self._measure(step, params, extra)

    def _card(self) -> str:
        assert self._prepared is not None
        return "\n".join(probe.describe() for probe in self._prepared.values())

    # Trouble

    def _guard(self, what: str, action: Any, *arguments: Any) -> Any:
        """The action's result; None and one warning where it fails, unless errors are to raise."""
        try:
            return action(*arguments)
        except Exception as error:
            self._errors += 1
            if self._on_error == "raise":
                raise
            kind = what.split(" at step")[0]
            self._warn(f"{what} failed ({type(error).__name__}: {error})", key=kind)
            return None

    def _warn(self, message: str, *, key: str | None = None) -> None:
        key = key or message.split(":")[0]
        if key in self._warned:
            return
        self._warned.add(key)
        try:
            warnings.warn(f"rankmon: {message}", RankmonWarning, stacklevel=4)
        except RankmonWarning:  # the user turns warnings into errors; training must go on
            _log.warning("rankmon: %s", message)


def _as_step(step: Any) -> int:
    if isinstance(step, jax.Array):
        raise TypeError(
            "expected step to be a Python or NumPy integer, got a jax.Array, whose value the "
            "monitor would have to wait for; count steps in Python or pass int(step)"
        )
    try:
        return operator.index(step)
    except TypeError:
        raise TypeError(
            f"expected step to be an integer, got {type(step).__name__}; pass the training step"
        ) from None


def _as_schedule(every: int | None, schedule: Schedule | None) -> Schedule:
    if every is not None and schedule is None:
        return EveryN(every)
    if schedule is not None and every is None:
        return schedule
    raise ValueError(
        f"expected either every or schedule, got every={every}, schedule={schedule}; "
        "for instance every=100"
    )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {choices}, got {value!r}; choose one")
