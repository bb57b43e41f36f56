"""The edge of stability: the largest eigenvalue of H_L at which gradient descent is still stable.

On a quadratic function, gradient descent with learning rate eta and momentum beta diverges along
each eigenvector whose eigenvalue exceeds a threshold. Networks trained with the full batch approach
it and stay there. Source: Cohen, Kaur, Li, Kolter and Talwalkar (2021), Gradient Descent on Neural
Networks Typically Occurs at the Edge of Stability, arXiv 2103.00065, section 2 and appendix B.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import jax
import numpy as np

from rankmon._util.facts import Fact
from rankmon._util.tags import THRESHOLD
from rankmon._util.validate import as_flag
from rankmon.probes.base import Description, Measurement, PreparedProbe, State
from rankmon.problem.optimizer import Optimizer
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import NATIVE

LearningRate = float | Callable[[int], Any] | str
FROM_OPTIMIZER = "optimizer"


def stability_threshold(
    learning_rate: float, *, momentum: float = 0.0, nesterov: bool = False
) -> float:
    """Return the largest eigenvalue for which gradient descent on a quadratic does not diverge.

    2 / eta for gradient descent, 2 (1 + beta) / eta with momentum beta (heavy ball, without
    dampening), and 2 (1 + beta) / ((1 + 2 beta) eta) with Nesterov's momentum; infinite for a
    learning rate of 0, NaN for one that is negative or not finite.

    Source: arXiv 2103.00065, appendix B.
    """
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        return math.nan
    slowed = 1 + 2 * momentum if nesterov else 1
    scaled = slowed * learning_rate
    return 2 * (1 + momentum) / scaled if scaled > 0 else math.inf


@dataclass(frozen=True)
class StabilityLine:
    """The threshold at each step of a run, in the units of the eigenvalues of H_L.

    Attributes:
      learning_rate: a number, a schedule, or "optimizer".
      momentum: beta.
      nesterov: whether the momentum is Nesterov's.
      loss_scale: the trained loss divided by the mean loss over the probe batch.
    """

    learning_rate: LearningRate
    momentum: float = 0.0
    nesterov: bool = False
    loss_scale: float = 1.0

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if isinstance(rate, str):
            if rate != FROM_OPTIMIZER:
                raise ValueError(
                    f"expected learning_rate to be a number, a schedule or {FROM_OPTIMIZER!r}, got "
                    f"{rate!r}; pass one of them"
                )
        elif not callable(rate):
            _check_number("learning_rate", rate, "positive", lambda number: number > 0)
        _check_number("momentum", self.momentum, "in [0, 1)", lambda number: 0 <= number < 1)
        _check_number("loss_scale", self.loss_scale, "positive", lambda number: number > 0)
        as_flag("nesterov", self.nesterov)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """Return the threshold at the step of the snapshot; a warning if it is not known."""
        try:
            rate = self._rate(snapshot)
        except Exception as error:  # noqa: BLE001  a schedule may raise any error
            return Measurement({}, warnings=(f"no {THRESHOLD}/H_L is logged: {error}",))
        threshold = stability_threshold(rate, momentum=self.momentum, nesterov=self.nesterov)
        # The trained loss has loss_scale times the eigenvalues of H_L.
        return Measurement({f"{THRESHOLD}/H_L": threshold / self.loss_scale})

    def describe(self) -> Fact:
        """Describe the formula and its assumptions."""
        factors = ["loss_scale"] if self.loss_scale != 1 else []
        factors += ["(1 + 2 beta)"] if self.nesterov and self.momentum else []
        below = " ".join([*factors, "eta"])
        formula = ("2 (1 + beta)" if self.momentum else "2") + " / "
        formula += f"({below})" if " " in below else below
        rate = self.learning_rate
        settings = ["eta of the schedule" if callable(rate) else f"eta = {rate}"]
        settings = ["eta of the optimizer's state"] if rate == FROM_OPTIMIZER else settings
        settings += [f"beta = {self.momentum:g}"] if self.momentum else []
        settings += [f"loss_scale = {self.loss_scale:g}"] if self.loss_scale != 1 else []
        return Fact(
            "stability threshold",
            f"{formula}, {', '.join(settings)}; for training with the probe batch as the full "
            "batch, without regularization and adaptive steps",
        )

    def _rate(self, snapshot: Snapshot) -> float:
        """Return the learning rate of the update that follows the snapshot.

        Raises:
          Exception: if it is not known, with the reason.
        """
        rate = self.learning_rate
        if isinstance(rate, str):
            return injected_rate(snapshot.optimizer, self.momentum)
        if callable(rate):
            with NATIVE.scope():  # as in training
                return float(np.asarray(rate(snapshot.step)))
        return float(rate)


def injected_rate(optimizer: Optimizer | None, momentum: float) -> float:
    """Return the learning rate in a state of `optax.inject_hyperparams`.

    Raises:
      ValueError: if it is not known, or if the hyperparameters contain another momentum, or one
        that plain gradient descent does not have.
    """
    if optimizer is None:
        raise ValueError(
            "expected the state of the optimizer for learning_rate='optimizer', got none; write "
            "monitor(step, params, opt_state=opt_state)"
        )
    if optimizer.unreadable:
        raise ValueError(optimizer.unreadable)

    def holds(node: Any) -> bool:
        return isinstance(getattr(node, "hyperparams", None), Mapping)

    states = [node for node in jax.tree.leaves(optimizer.state, is_leaf=holds) if holds(node)]
    if len(states) != 1:
        raise ValueError(
            "expected one state of optax.inject_hyperparams for learning_rate='optimizer', got "
            f"{len(states)}; write optax.inject_hyperparams(optax.sgd)(learning_rate=...), or pass "
            "the learning rate as a number or a schedule"
        )
    values = {
        name: float(np.asarray(jax.tree.leaves(value)[0]))
        for name, value in states[0].hyperparams.items()
    }
    rate = values.pop("learning_rate", None)
    used = values.pop("momentum", momentum)
    if rate is None or values:
        raise ValueError(
            "expected the hyperparameters learning_rate and momentum of optax.sgd, got "
            f"{sorted(states[0].hyperparams)}; the threshold is known only for gradient descent. "
            "If this is one, pass the learning rate as a number or a schedule"
        )
    if not math.isclose(used, momentum, rel_tol=1e-3):  # bfloat16 rounds by 2e-3 at most
        raise ValueError(
            f"expected momentum={momentum:g} in the state of the optimizer, got {used:g}; pass "
            "this to HessianProbe"
        )
    return rate


@dataclass(frozen=True)
class PreparedWithLine:
    """A prepared probe whose measurements contain the threshold too.

    Attributes:
      probe: the probe.
      line: the threshold.
    """

    probe: PreparedProbe
    line: StabilityLine

    def initial_state(self) -> State:
        """Return the probe's state before the first measurement."""
        return self.probe.initial_state()

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure with the probe, and add the threshold."""
        found, state = self.probe.measure(snapshot, state)
        line = self.line.measure(snapshot)
        return replace(
            found,
            scalars={**found.scalars, **line.scalars},
            warnings=(*found.warnings, *line.warnings),
        ), state

    def describe(self) -> Description:
        """Return the probe's part of the card, with the threshold's formula."""
        description = self.probe.describe()
        return replace(description, facts=[*description.facts, self.line.describe()])


def _check_number(name: str, value: Any, range_: str, fits: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"expected {name} to be a number, got {type(value).__name__}; pass a float")
    if not (math.isfinite(value) and fits(float(value))):
        raise ValueError(f"expected {name} to be {range_}, got {value}; see HessianProbe")
