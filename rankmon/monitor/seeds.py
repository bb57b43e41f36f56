"""`SeedsMonitor`: a run for each of several seeds that train under one `jax.vmap`, and a median.

Each seed has its own `RankMonitor`. These share the probes' compiled programs and measure one after
the other, from one copy of the parameters on the host. Measuring all seeds as a batch would save
nothing: most of the time goes into eigenvalues, for which LAPACK uses all cores anyway.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rankmon._util.arrays import check_concrete
from rankmon._util.closing import ClosesOnExit
from rankmon._util.errors import ErrorPolicy
from rankmon._util.files import absolute_folder
from rankmon._util.forks import Home
from rankmon._util.tags import CARD
from rankmon._util.validate import as_integer, as_layers
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, Tolerance
from rankmon.monitor.arguments import as_step_and_params
from rankmon.monitor.fanout import Fanout
from rankmon.monitor.lifecycle import Call, is_unchanged
from rankmon.monitor.monitor import RankMonitor
from rankmon.monitor.spread import spread_of
from rankmon.monitor.worker import Worker
from rankmon.probes.base import PreparedProbe, Probe, State
from rankmon.probes.registry import as_probes
from rankmon.problem.equinox_keras import as_arrays
from rankmon.problem.flat import FlatProblem
from rankmon.problem.problem import Problem, check_problem
from rankmon.writers.base import Record
from rankmon.writers.card import MedianCard
from rankmon.writers.condense import condensed
from rankmon.writers.layout import seeds_layout
from rankmon.writers.memory import MemoryWriter

_OPTIONS = ("every", "schedule", "oversize", "on_error", "alerts", "hparams", "layers")


class SeedsMonitor(ClosesOnExit):
    """Watches ranks of several seeds: `monitor(step, params)`, every leaf with a leading seed axis.

    Each seed has a run folder like that of a `RankMonitor`: logdir/seed_0, ... The folder
    logdir/median has the median, lowest and highest value over the seeds: <tag>/median, <tag>/low,
    <tag>/high.

    Example:
      >>> import jax.numpy as jnp, rankmon
      >>> problem = rankmon.Problem(
      ...     lambda W, x: x @ W, loss="mse", inputs=jnp.eye(3), targets=jnp.ones((3, 2))
      ... )
      >>> with rankmon.SeedsMonitor(problem, seeds=4, every=10) as monitor:
      ...     records = monitor(0, jnp.ones((4, 3, 2)))
      >>> [record.scalars["rank_weights/params"] for record in records]
      [1, 1, 1, 1]
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seeds: int,
        logdir: str | Path | None = None,
        probes: Sequence[str | Probe] = ("hessian", "weights"),
        tolerance: Tolerance = DEFAULT_TOLERANCE,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        state: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Open the run folders; the first measurement comes with the first call.

        Args:
          problem: network, loss and probe batch, the same for all seeds.
          seeds: the number of seeds, at least 1.
          logdir: the folder that contains the run folders; None to write no files.
          probes: as for `RankMonitor`.
          tolerance: as for `RankMonitor`.
          memory_limit: as for `RankMonitor`; one seed is measured at a time.
          state: a saved `monitor.state` to continue from.
          options: every, schedule, oversize, on_error, alerts, hparams and layers, as for
            `RankMonitor`.

        Raises:
          TypeError, ValueError, OSError: as for `RankMonitor`.
        """
        check_problem(problem)
        self._seeds = as_integer(
            "seeds", seeds, least=1, remedy="pass the length of the leading axis"
        )
        unknown = options.keys() - set(_OPTIONS)
        if unknown:
            raise TypeError(
                f"expected options {', '.join(_OPTIONS[:-1])} or {_OPTIONS[-1]}, got "
                f"{', '.join(sorted(unknown))}; for several seeds, leave out other "
                "options of RankMonitor"
            )
        names = [f"seed_{i}" for i in range(self._seeds)]
        if state is not None and not (isinstance(state, Mapping) and set(names) <= state.keys()):
            got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(
                f"expected the state of a SeedsMonitor with seeds={self._seeds}, got {got}; pass "
                "the monitor.state that was saved with as many seeds"
            )
        own = as_probes(probes, tolerance=tolerance, memory_limit=memory_limit)
        shared = [_Shared(probe) for probe in own]
        self._layers = as_layers(options.get("layers"))
        self._wants_optimizer = any(probe.wants_optimizer for probe in shared)
        self._folder = None if logdir is None else absolute_folder(logdir)
        self._latest = [_Latest() for _ in names]
        self._monitors = [
            RankMonitor(
                problem,
                logdir=None if self._folder is None else self._folder / name,
                probes=shared,
                writers=[latest],
                state=None if state is None else state[name],
                **options,
            )
            for name, latest in zip(names, self._latest, strict=True)
        ]
        self._home = Home()
        self._errors = ErrorPolicy(options.get("on_error", "warn"))
        # Writes the median on its own thread: an interrupt leaves it written, or still to write.
        self._writing = Worker(0, "block", errors=self._errors)
        # The seeds that a due call still has to measure, and their last records before it.
        self._under_way: tuple[list[Call], list[Record | None]] | None = None
        self._median: Fanout | None = None
        self._card = MedianCard(self._seeds)
        self._last: int | None = None  # the step of the last median
        self._seen: Call | None = None

    def __call__(
        self,
        step: Any,
        params: Any = None,
        *,
        extra: Any = None,
        scalars: Mapping[str, Any] | None = None,
        opt_state: Any = None,
    ) -> list[Record] | None:
        """Measure all seeds if the step is due.

        Args:
          step: the training step, or a vmapped TrainState alone.
          params: as for `RankMonitor`, every leaf with a leading axis of the seeds.
          extra: other collections, with the same leading axis.
          scalars: tag -> one number for each seed, or one number for all.
          opt_state: as for `RankMonitor`, with the same leading axis.

        Returns:
          A record for each seed, or None if the step is not due.

        Raises:
          TypeError, ValueError, MemoryError: for input that does not fit.
        """
        if self._home.is_elsewhere():
            return None
        call = Call(*_step_and_params(step, params), extra, scalars, opt_state)
        records = None if self._under_way is None else self._finish_interrupted()
        if records and records[0].step == call.step:
            return records
        self._seen = call
        if not self._monitors[0].is_due(call.step):
            return None
        self._under_way = self._calls(call), [latest.record for latest in self._latest]
        self._seen = None
        return self._finish()

    def _finish_interrupted(self) -> list[Record] | None:
        """Finish a call that was interrupted between seeds; return None if there was none."""
        for monitor in self._monitors:
            monitor._wait()  # a record may still be on its way
        self._writing.wait()
        return self._finish()

    def _finish(self) -> list[Record] | None:
        """Measure the remaining seeds of the current call, and write the median."""
        if self._under_way is None:
            return None
        calls, before = self._under_way
        try:
            for monitor, latest, own, old in zip(
                self._monitors, self._latest, calls, before, strict=True
            ):
                if latest.record is old:  # else it was measured before an interrupt
                    record = monitor(own.step, own.params, **_options_of(own))
                    latest.record = record or latest.record
        except Exception:
            self._under_way = None  # a second attempt would fail too
            raise
        pairs = zip(self._latest, before, strict=True)
        now = [latest.record for latest, old in pairs if latest.record is not old]
        records = [record for record in now if record is not None]
        self._write_median(records)
        return records

    def _calls(self, call: Call) -> list[Call]:
        """Return one call for each seed, with that seed's slice of the arguments, on the host."""
        scalars = self._errors.guard("scalars", self._broadcast, call.scalars or {}) or {}
        state = call.opt_state if self._wants_optimizer else None
        check_concrete("seeds to be measured", (call.params, call.extra, state))
        with jax.transfer_guard("allow"):
            leaves, structure = jax.tree.flatten(as_arrays((call.params, call.extra, state)))
            arrays = [np.asarray(leaf) for leaf in leaves]
        for array in arrays:
            if array.shape[:1] != (self._seeds,):
                raise ValueError(
                    f"expected parameters with a leading axis of length {self._seeds}, got shape "
                    f"{array.shape}; stack them, as jax.vmap does"
                )
        calls = []
        for i in range(self._seeds):
            own = jax.tree.unflatten(structure, [array[i] for array in arrays])
            params, extra, state = own
            mine = {tag: values[i] for tag, values in scalars.items()}
            calls.append(Call(call.step, params, extra, mine, state))
        return calls

    def _broadcast(self, scalars: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return one number for each seed."""
        with jax.transfer_guard("allow"):
            return {tag: np.broadcast_to(value, self._seeds) for tag, value in scalars.items()}

    def _write_median(self, records: Sequence[Record]) -> None:
        """Write the median of these records on the writing thread."""
        try:
            self._writing.do(partial(self._median_of, records))
        finally:
            self._errors.tell_warnings()

    def _median_of(self, records: Sequence[Record]) -> None:
        """Write the median of these records, and end the call that they belong to."""
        self._under_way = None  # an interrupt no longer repeats the call
        if self._folder is None or not records:
            return
        step, scalars = records[0].step, _over_seeds(records, self._layers)
        if self._median is None:
            self._median = Fanout(
                self._folder / "median",
                [],
                errors=self._errors,
                layout=seeds_layout(scalars),
                layers=("*",),  # chosen in `_over_seeds`: its tags do not end with a layer
            )
            self._median.start(step)
        elif self._last is not None and step <= self._last:
            self._median.start(step)  # training went back
            self._card.begin()
        self._last = step
        texts = {CARD: page} if (page := self._card.page(scalars)) else {}
        self._median.write(
            Record(step, self._median.attempt, records[0].wall_time, scalars, {}, texts)
        )

    def _note_failure(self) -> None:
        self._seen = self._under_way = None
        for monitor in self._monitors:
            monitor._note_failure()

    def flush(self) -> None:
        """Pass everything measured so far to the operating system."""
        if self._home.is_elsewhere():
            return
        for monitor in self._monitors:
            monitor.flush()
        if self._median is not None:
            self._writing.do(self._median.flush)
            self._errors.tell_warnings()

    def close(
        self, step: Any = None, params: Any = None, *, extra: Any = None, opt_state: Any = None
    ) -> list[Record]:
        """Measure the last parameters, unless that was done, and close all writers.

        Args:
          step: as for `RankMonitor.close`.
          params: the last parameters, every leaf with a leading axis of the seeds.
          extra: as for a call.
          opt_state: as for a call.

        Returns:
          A record for each seed, or an empty list if everything was measured before.
        """
        if self._home.is_elsewhere():
            return []
        if step is not None:
            self._seen = Call(*_step_and_params(step, params), extra, None, opt_state)
        records: list[Record] = []
        with ExitStack() as stack:
            stack.callback(self._close_all)
            if self._under_way is not None:
                self._finish_interrupted()
            for monitor, own in zip(self._monitors, self._left(), strict=False):
                record = monitor.close(own.step, own.params, **_options_of(own))
                records += [] if record is None else [record]
            self._write_median(records)
        return records

    def _left(self) -> list[Call]:
        """Return the calls that are still to be measured, one for each seed, or an empty list."""
        seen, self._seen = self._seen, None
        if seen is None or not is_unchanged(seen, self._errors):
            return []
        return self._calls(seen)

    def _close_all(self) -> None:
        """Close the seeds' monitors, then the median, even if one of them raises."""
        with ExitStack() as stack:
            stack.callback(self._errors.tell)
            stack.callback(self._writing.close, self._close_median)
            for monitor in self._monitors:
                stack.callback(monitor.close)

    def _close_median(self) -> None:
        if self._median is not None:
            self._median.close()

    @property
    def state(self) -> dict[str, Any]:
        """The `RankMonitor.state` of each seed, by the names of their folders."""
        return {f"seed_{i}": monitor.state for i, monitor in enumerate(self._monitors)}


class _Latest(MemoryWriter):
    """A writer that keeps only the last record of a seed."""

    record: Record | None = None

    def start(self, step: int) -> None:
        pass

    def write(self, record: Record) -> None:
        self.record = record


class _Shared:
    """A probe that is prepared once for all seeds."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.wants_optimizer = getattr(probe, "wants_optimizer", False)
        self._prepared: PreparedProbe | None = None

    @property
    def name(self) -> str:
        return self._probe.name

    @property
    def optional_state(self) -> Collection[str]:
        return getattr(self._probe, "optional_state", ())

    def placeholder_state(self, problem: Problem) -> State:
        return self._probe.placeholder_state(problem)

    def prepare(self, flat: FlatProblem) -> PreparedProbe:
        if self._prepared is None:
            self._prepared = self._probe.prepare(flat)
        return self._prepared


def _over_seeds(records: Sequence[Record], layers: Sequence[str] | None) -> dict[str, float]:
    """Return the median, lowest and highest value of each scalar that all seeds have.

    Layers without curves are left out; the seeds' own records have them.
    """
    shown = condensed(records[0].scalars, layers).scalars
    tags = [tag for tag in shown if not tag.startswith("monitor/")]
    scalars = {}
    for tag, spread in spread_of([record.scalars for record in records], tags).items():
        scalars[f"{tag}/median"] = spread.median
        scalars[f"{tag}/low"], scalars[f"{tag}/high"] = spread.low, spread.high
    return scalars


def _options_of(call: Call) -> dict[str, Any]:
    """Return the keyword arguments that repeat a call."""
    return {"extra": call.extra, "scalars": call.scalars, "opt_state": call.opt_state}


def _step_and_params(step: Any, params: Any) -> tuple[int, Any]:
    """Return the step and the parameters; a vmapped TrainState gives the step of its first seed."""
    if params is None and hasattr(step, "step") and np.ndim(step.step) == 1:
        return int(step.step[0]), step
    return as_step_and_params(step, params)
