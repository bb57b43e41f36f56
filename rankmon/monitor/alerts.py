"""Alerts: conditions on records that warn, call a function or stop training."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from rankmon._util.errors import ErrorPolicy
from rankmon._util.globs import as_patterns, matches
from rankmon._util.tags import HESSIAN_PARTS, INTERVAL_LOW, SOFT_RANKS, THRESHOLD
from rankmon._util.text import counted
from rankmon._util.validate import as_share

_SOFT_RANKS_OF_PARTS = frozenset(f"{name}/{part}" for name in SOFT_RANKS for part in HESSIAN_PARTS)


@dataclass(frozen=True)
class Alarm:
    """A finding of an alert in one record.

    Attributes:
      step: the training step.
      tag: the tag of the scalar that caused it.
      message: a sentence that describes it.
    """

    step: int
    tag: str
    message: str


class StopTraining(Exception):  # noqa: N818  not an error, but a request of the user
    """Raised in the training loop by an alert whose action is "stop", once its record is written.

    Attributes:
      alarm: the alarm that stops training.
      carry: the carry of `monitor.scan` before the step of the alarm; None for other loops.
      ys: the outputs of `monitor.scan`, zeros from that step on; None for other loops.
    """

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(f"step {alarm.step}: {alarm.message}")
        self.alarm = alarm
        self.carry: Any = None
        self.ys: Any = None


Action = Literal["warn", "stop"] | Callable[[Alarm], Any]


class Alert(Protocol):
    """A condition on the scalars of a record."""

    @property
    def action(self) -> Action:
        """The reaction: "warn", "stop", or a function of the `Alarm`."""

    def found(self, scalars: Mapping[str, float], first: Mapping[str, float]) -> dict[str, str]:
        """Return tag -> message for each scalar that meets the condition in this record.

        Args:
          scalars: the record's scalars by tag.
          first: the first finite value of each tag in this run; for an alert with an attribute
            `since_alarm` that is true, the largest since its last alarm on the tag.
        """


class _WithAction:
    """A base for alerts: an action, checked at construction."""

    action: Action

    def __post_init__(self) -> None:
        if self.action not in ("warn", "stop") and not callable(self.action):
            raise ValueError(
                'expected action to be "warn", "stop" or a function of the Alarm, got '
                f"{self.action!r}; choose one"
            )


@dataclass(frozen=True)
class _WithShare(_WithAction):
    """A base for alerts with a threshold that is a share in (0, 1]."""

    share: float

    def __post_init__(self) -> None:
        as_share("share", self.share, remedy="for instance 0.5")
        super().__post_init__()


@dataclass(frozen=True)
class RankBelow(_WithShare):
    """An alert if a rank falls below a share of its first value.

    It gives one alarm until the rank has recovered. By default it watches numerical ranks, which
    fall if layers lose directions exactly (dead units, features that coincide). Training fills a
    matrix that is close to a low rank with small singular values, so that its numerical rank is
    full again after a few steps: use `EffectiveRankDrop` to learn of such a collapse. After a
    restart the first values are read from the run folder.

    Args:
      share: the share of the first value, in (0, 1].
      tags: globs over tags; by default the ranks of weights and features. (The rank of H_f is left
        out, because it falls with the loss in every network that learns. For the same reason the
        soft ranks of the Hessian's parts match only globs that name them, such as
        "stable_rank/H_L": "stable_rank/*" means the weights.)
      action: "warn", "stop" (raises `StopTraining` in the loop) or a function of the `Alarm`.
    """

    tags: str | Sequence[str] = ("rank_weights/*", "rank_features/*")
    action: Action = "warn"

    def found(self, scalars: Mapping[str, float], first: Mapping[str, float]) -> dict[str, str]:
        """Return tag -> message, as `Alert.found` does."""
        return {
            tag: f"{tag} is {value:g}, below {self.share:g} times its first value ({first[tag]:g})"
            for tag, value in scalars.items()
            if _are_matched(tag, self.tags) and value < self.share * first.get(tag, 0)
        }


def _are_matched(tag: str, patterns: str | Sequence[str]) -> bool:
    """Return whether a glob means the tag; soft ranks of the Hessian's parts have to be named."""
    globs = as_patterns(patterns)
    if tag in _SOFT_RANKS_OF_PARTS:
        globs = tuple(glob for glob in globs if "H_" in glob)
    return matches(tag, globs)


@dataclass(frozen=True)
class EffectiveRankDrop(_WithShare):
    """An alert if the effective rank of a weight falls below a share of its largest value.

    It finds collapses that leave the numerical rank full, which `RankBelow` does not see. The
    largest value is that since the last alarm on the same weight: a further fall by the same share
    is a new alarm, and so is one after a recovery. It needs the probe "weights", which measures by
    default. Healthy training lowers the effective rank of most layers slowly and little; that of
    features ("effective_rank_features/*") and stable ranks ("stable_rank/*") often halve in it.
    Small initial weights learn a low rank first: there, use a smaller share.

    Args:
      share: the share of the largest value, in (0, 1].
      tags: globs over tags, as for `RankBelow`; by default the effective ranks of weights.
      action: as for `RankBelow`.
    """

    share: float = 0.5
    tags: str | Sequence[str] = "effective_rank/*"
    action: Action = "warn"
    since_alarm: ClassVar[bool] = True

    def found(self, scalars: Mapping[str, float], first: Mapping[str, float]) -> dict[str, str]:
        """Return tag -> message, as `Alert.found` does, for the largest values in `first`."""
        return {
            tag: f"{tag} is {value:.4g}, below {self.share:g} times its largest value so far, or "
            f"since the last alarm ({first[tag]:.4g})"
            for tag, value in scalars.items()
            if _are_matched(tag, self.tags) and value < self.share * first.get(tag, 0)
        }


@dataclass(frozen=True)
class NonFinite(_WithAction):
    """An alert if parameters or the loss on the probe batch are NaN or infinite.

    Args:
      action: as for `RankBelow`.
    """

    action: Action = "warn"

    def found(self, scalars: Mapping[str, float], first: Mapping[str, float]) -> dict[str, str]:
        """Return tag -> message, as `Alert.found` does."""
        number = scalars.get("monitor/nonfinite", 0)
        if number:
            return {"monitor/nonfinite": counted(number, "NaN or infinite parameter")}
        if not math.isfinite(scalars.get("loss", 0)):
            return {"loss": f"the loss on the probe batch is {scalars['loss']}"}
        return {}


@dataclass(frozen=True)
class DeadUnits(_WithShare):
    """An alert if more than a share of a ReLU's units are dead on the probe batch.

    It needs the "features" probe.

    Args:
      share: the share of the layer's units, in (0, 1].
      action: as for `RankBelow`.
    """

    action: Action = "warn"

    def found(self, scalars: Mapping[str, float], first: Mapping[str, float]) -> dict[str, str]:
        """Return tag -> message, as `Alert.found` does."""
        return {
            tag: f"{value:.0%} of the units after {tag.removeprefix('dead_share/')} are dead on "
            f"the probe batch, more than {self.share:.0%}"
            for tag, value in scalars.items()
            if tag.startswith("dead_share/") and value > self.share
        }


@dataclass(frozen=True)
class EdgeOfStability(_WithShare):
    """An alert if the largest eigenvalue of H_L exceeds a share of its stability threshold.

    It needs `HessianProbe(learning_rate=...)`, which says what the threshold presumes. Of an
    estimated eigenvalue, the lower end of the interval counts. Training at the edge of stability
    oscillates about the threshold, and begins a new alarm whenever it rises above it.

    Args:
      share: the share of the threshold, in (0, 1].
      action: as for `RankBelow`.
    """

    share: float = 1.0
    action: Action = "warn"

    def found(self, scalars: Mapping[str, float], first: Mapping[str, float]) -> dict[str, str]:
        """Return tag -> message, as `Alert.found` does."""
        tag = "eigenvalue_max/H_L"
        threshold = scalars.get(f"{THRESHOLD}/H_L", math.nan)
        value = scalars.get(f"{INTERVAL_LOW}/{tag}", scalars.get(tag, math.nan))
        if not value > self.share * threshold:
            return {}
        share = "" if self.share == 1 else f"{self.share:g} times "
        return {
            tag: f"the largest eigenvalue of H_L is {value:.6g}, above {share}the stability "
            f"threshold of training, {threshold:.6g}"
        }


class Watch:
    """The alerts of one run; each is raised once, when its condition begins to hold.

    Args:
      alerts: the conditions.
    """

    def __init__(self, alerts: Sequence[Alert]) -> None:
        self._alerts = list(alerts)
        self._first: dict[str, float] = {}
        self._largest: list[dict[str, float]] = [{} for _ in self._alerts]
        self._holding: set[tuple[int, str]] = set()

    def __bool__(self) -> bool:
        """Return whether there are any alerts."""
        return bool(self._alerts)

    def resume(self, earlier: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Read the earlier records of a run without raising alerts on them a second time.

        Args:
          earlier: step and scalars of the earlier records.
        """
        self._first, self._holding = {}, set()
        self._largest = [{} for _ in self._alerts]
        for step, scalars in earlier:
            self.look(step, scalars)

    def look(self, step: int, scalars: Mapping[str, float]) -> list[tuple[Action, Alarm]]:
        """Check a record; return the alarms that begin at it, each with its alert's action."""
        if not self._alerts:
            return []
        for tag, value in scalars.items():
            if math.isfinite(value):
                self._first.setdefault(tag, value)
                for largest in self._largest:
                    largest[tag] = max(value, largest.get(tag, value))
        begun, holding = [], set()
        for index, (alert, largest) in enumerate(zip(self._alerts, self._largest, strict=True)):
            since_alarm = getattr(alert, "since_alarm", False)
            for tag, message in alert.found(
                scalars, largest if since_alarm else self._first
            ).items():
                holding.add((index, tag))
                if since_alarm and tag in scalars:
                    largest[tag] = scalars[tag]
                if since_alarm or (index, tag) not in self._holding:
                    begun.append((alert.action, Alarm(step, tag, message)))
        # A report has only some of the tags; keep the state of all others.
        silent = {key for key in self._holding if key[1] not in scalars}
        self._holding = holding | silent
        return begun


def act(found: deque[tuple[Action, Alarm]], errors: ErrorPolicy) -> None:
    """Perform the actions of the alarms: warn, call functions, and finally stop training.

    Args:
      found: pairs of action and alarm; they are removed once performed.
      errors: the error policy, which gives warnings and handles errors of the user's functions.

    Raises:
      StopTraining: if the action of an alarm is "stop".
    """
    stop: StopTraining | None = None
    while found:
        action, alarm = found.popleft()
        if action == "stop":
            stop = stop or StopTraining(alarm)
        elif callable(action):
            errors.guard(f"an alert's callback at step {alarm.step}", action, alarm)
        else:
            errors.warn(f"step {alarm.step}: {alarm.message}", key=f"alert {alarm}")
    if stop is not None:
        raise stop
