"""Checks of `RankMonitor`'s arguments; each probe checks its own arguments."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rankmon._util.arrays import check_concrete
from rankmon._util.distributed import count, spans_processes
from rankmon._util.validate import as_share, check_choice
from rankmon.monitor.alerts import Alert
from rankmon.monitor.schedule import EveryN, Schedule
from rankmon.problem.problem import Problem
from rankmon.writers.base import Writer
from rankmon.writers.clu import ScalarsWriter


def as_step(step: Any) -> int:
    """Return the training step as a Python integer.

    Raises:
      TypeError: if it is not an integer, or a jax.Array.
    """
    check_concrete("the monitor to be called", step)
    if isinstance(step, jax.Array):
        raise TypeError(
            "expected step to be a Python or NumPy integer, got a jax.Array, which would make "
            "the monitor wait for the device; count steps in Python or pass int(step)"
        )
    try:
        return operator.index(step)
    except TypeError:
        raise TypeError(
            f"expected step to be an integer, got {type(step).__name__}; pass the training step"
        ) from None


def as_step_and_params(step: Any, params: Any) -> tuple[int, Any]:
    """Return the step as a Python integer and the parameters, or take both from a TrainState.

    Raises:
      TypeError: for anything else.
    """
    if params is not None:
        if _is_integer(params) and not _is_integer(step):
            raise TypeError(
                f"expected monitor(step, params), got {type(step).__name__} as step and "
                f"{type(params).__name__} as params; pass the step first"
            )
        return as_step(step), params
    if not (hasattr(step, "step") and hasattr(step, "params")):
        raise TypeError(
            f"expected monitor(step, params) or monitor(state) with a flax TrainState, got "
            f"{type(step).__name__} alone; pass the training step and the parameters"
        )
    check_concrete("the monitor to be called", step.step)
    if np.ndim(step.step):
        raise TypeError(
            f"expected the state of one network, got a step of shape {np.shape(step.step)}; for "
            "several seeds, use SeedsMonitor; for the replicas of pmap, pass one of them: "
            "flax.jax_utils.unreplicate(state)"
        )
    with jax.transfer_guard("allow"):
        return int(step.step), step


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer))


def as_schedule(every: int | None, schedule: Schedule | None) -> Schedule:
    """Return the schedule given by exactly one of the arguments `every` and `schedule`.

    Raises:
      ValueError: if neither or both are given.
      TypeError: for a schedule without due(step, last).
    """
    if every is not None and schedule is None:
        return EveryN(every)
    if schedule is None or every is not None:
        raise ValueError(
            f"expected either every or schedule, got every={every}, schedule={schedule}; "
            "pass one of them, for instance every=100"
        )
    if not _has(schedule, "due"):
        raise TypeError(
            f"expected a schedule with due(step, last), got {_kind(schedule)}; pass "
            "schedule=rankmon.schedule.every(100) or every=100"
        )
    return schedule


def schedule_text(schedule: Schedule, share: float | None) -> str:
    """Describe when a monitor measures: the schedule's own text, or its type."""
    own = (
        type(schedule).__repr__ is not object.__repr__
        or type(schedule).__str__ is not object.__str__
    )
    text = str(schedule) if own else type(schedule).__name__
    limit = "" if share is None else f"; probes take at most {share:.3g} of the wall time"
    return f"{text}, and at the first and the last call{limit}"


def as_writers(writers: Sequence[Writer]) -> list[Writer]:
    """Return the writers; wrap those with the interface of CLU or metrax.

    Raises:
      TypeError: if the argument is not a sequence of writers.
    """
    given = [_with_every_method(writer) for writer in _listed("writer", writers)]
    for writer in given:
        if not _has(writer, "start", "write", "flush", "close"):
            raise TypeError(
                f"expected writers with start, write, flush and close, got {_kind(writer)}; use "
                "one of rankmon.writers (WandbWriter(run), MLflowWriter(run)), an object with "
                "write_scalars(step, scalars) or log_scalar(tag, value, step=...), or logdir= for "
                "a run folder"
            )
    return given


def as_alerts(alerts: Sequence[Alert]) -> list[Alert]:
    """Return the alerts as a list.

    Raises:
      TypeError: if the argument is not a sequence of alerts.
    """
    given = _listed("alert", alerts)
    for alert in given:
        if not (_has(alert, "found") and hasattr(alert, "action")):
            raise TypeError(
                f"expected alerts with found(scalars, first) and an action, got {_kind(alert)}; "
                "use one of rankmon.alerts"
            )
    return given


def as_overhead(overhead: float | None) -> float | None:
    """Return the largest share of the wall time that probes may take; None for no limit.

    Raises:
      TypeError: if it is not a real number.
      ValueError: if it is outside (0, 1].
    """
    remedy = "pass a fraction of the wall time, for instance 0.05, or None"
    return None if overhead is None else as_share("overhead", overhead, remedy=remedy)


def check_reactions(*, oversize: str, on_error: str, when_full: str) -> None:
    """Check the arguments that name a reaction: to an oversize probe, an error, a full queue.

    Raises:
      ValueError: for a name that the argument does not accept.
    """
    check_choice("oversize", oversize, ("raise", "weights"))
    check_choice("on_error", on_error, ("warn", "raise"))
    check_choice("when_full", when_full, ("block", "skip"))


def check_processes(
    *, overhead: float | None, when_full: str, alerts: Sequence[Alert] = ()
) -> None:
    """Refuse options that could make processes that train together act differently."""
    if count() > 1 and any(alert.action == "stop" for alert in alerts):
        raise ValueError(
            f"expected alerts that warn or call a function when {count()} processes train "
            "together, got 'stop', which may stop only some of them; inform the others in a "
            "callback"
        )
    if count() > 1 and (overhead is not None or when_full == "skip"):
        raise ValueError(
            f"expected overhead=None and when_full='block' when {count()} processes train "
            f"together, got {overhead} and {when_full!r}, with which each process would choose "
            "its own steps; choose the steps with every= or schedule="
        )


def check_background(problem: Problem, params: Any) -> None:
    """Refuse a network whose communication would mix with training's on another thread."""
    if count() > 1 and spans_processes(problem.flat(params).program):
        raise ValueError(
            f"expected a network without sharding constraints over {count()} processes with "
            "background=True, whose communication could wait for that of training for ever, got "
            "some; give the Problem an apply without them, since each process measures its own "
            "copy of the parameters"
        )


def _listed(name: str, things: Any) -> list[Any]:
    """Return the sequence as a list; refuse a single object."""
    try:
        return list(things)
    except TypeError:
        raise TypeError(
            f"expected {name}s to be a sequence of {name}s, got {_kind(things)}; pass "
            f"{name}s=[{name}]"
        ) from None


def _with_every_method(writer: Any) -> Any:
    """Wrap an object that has only a method for scalars; return any other object unchanged."""
    takes_scalars = _has(writer, "write_scalars") or _has(writer, "log_scalar")
    return ScalarsWriter(writer) if takes_scalars and not _has(writer, "start", "write") else writer


def _has(thing: Any, *methods: str) -> bool:
    """Return whether the object is an instance, not a class, that has these methods."""
    named = all(callable(getattr(thing, method, None)) for method in methods)
    return named and not isinstance(thing, type)


def _kind(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
