"""Summarize runs: first, last and lowest values of curves, changes, and agreement with theory.

Values that were not logged are NaN. The last value is the last one that was logged, finite or not;
the first value, the lowest value and the changes consider finite values only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rankmon._util.facts import HESSIAN_OF
from rankmon._util.globs import matches
from rankmon._util.tags import (
    ALERTS,
    BATCHES,
    CURVATURE,
    HESSIAN_PARTS,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    natural_order,
)
from rankmon.report.card_facts import card_facts
from rankmon.report.medians import as_single_run, is_over_batches, is_over_seeds, margin_tags
from rankmon.runs.series import RunSeries, ScalarSeries

NAN = float("nan")

_OWN = "rank_self/H_f"


@dataclass(frozen=True)
class Curve:
    """The summary of a curve.

    Attributes:
      tag: the tag of the curve.
      first: the first value.
      last: the last value.
      lowest: the lowest value.
    """

    tag: str
    first: float
    last: float
    lowest: float


@dataclass(frozen=True)
class RankCurve:
    """The summary of a curve of ranks.

    Attributes:
      tag: the tag of the curve.
      first: the first rank.
      last: the last rank; NaN if only its bounds low and high are known.
      lowest: the lowest rank.
      low: the last count at 10 times the cut; over seeds or batches, their lowest last rank.
      high: the last count at a tenth of the cut; over seeds or batches, their highest last rank.
      theory: the last rank that theory predicted.
      landmark: the last closed form for the same layers without activations.
      predicted_steps: the number of steps with both a measured and a predicted rank.
      agreed_steps: the number of these steps at which the two are equal.
      certain_steps: the number of the predicted steps at which low = rank = high: the cut leaves no
        doubt about the rank.
      agreed_certain_steps: the number of the certain steps at which the two are equal.
      changed: the first step at which the rank differs from the first rank; None if it never does.
    """

    tag: str
    first: float
    last: float
    lowest: float
    low: float
    high: float
    theory: float
    landmark: float
    predicted_steps: int
    agreed_steps: int
    certain_steps: int
    agreed_certain_steps: int
    changed: int | None

    @property
    def is_bounded(self) -> bool:
        """Whether the last rank is unknown, and low and high are bounds of it."""
        return bool(np.isnan(self.last) and np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True)
class EstimatedCurve(Curve):
    """The summary of a curve whose values may be estimates.

    Attributes:
      low: the lower end of the interval of the last value, over batches of its range; NaN for a
        value without an interval.
      high: its upper end.
    """

    low: float
    high: float


@dataclass(frozen=True)
class WeightCurves:
    """The curves that show how close a weight matrix is to a lower rank.

    Attributes:
      layer: the name of the layer.
      stable_rank: the curve of its stable rank.
      effective_rank: the curve of its effective rank.
      condition_number: the curve of its condition number.
    """

    layer: str
    stable_rank: Curve
    effective_rank: Curve
    condition_number: Curve


@dataclass(frozen=True)
class Determinant:
    """The determinant of a square weight.

    Attributes:
      layer: the name of the layer.
      sign: the curve of the sign.
      log_abs: the curve of log|det|.
      sign_changes: the steps at which the sign differs from that at the previous probe.
    """

    layer: str
    sign: Curve
    log_abs: Curve
    sign_changes: tuple[int, ...]


@dataclass(frozen=True)
class AlertText:
    """The texts of the alerts at one step, in Markdown."""

    step: int
    text: str


@dataclass(frozen=True)
class RunSummary:
    """The summary of one run.

    Attributes:
      name: the run's name.
      over_seeds: whether each number is a median over seeds, with the range over seeds as margin.
      batches: the number of probe batches, if each number is a median over them, with the range
        over them as margin; 0 if the card does not say it, None for a single batch.
      measured: the parameters that the Hessian is of; empty if these are all.
      probes: the number of steps with measurements.
      first_step: the first of these steps.
      last_step: the last of these steps.
      loss: the loss on the probe batch.
      ranks: the ranks of the Hessian's parts and Omega, of weights, and of features, in this order.
      curvature: the curves of the signed eigenvalues of the Hessian's parts.
      weights: the soft ranks and condition numbers of the weights.
      determinants: the determinants of the square weights.
      alerts: the texts of the alerts, in the order of their steps.
      errors: the number of errors in the monitor.
      vanished: the step from which on all eigenvalues of H_f are below a tenth of the cut, if any:
        `rank_self/H_f` then counts rounding errors.
    """

    name: str
    over_seeds: bool
    batches: int | None
    measured: str
    probes: int
    first_step: int
    last_step: int
    loss: Curve
    ranks: tuple[RankCurve, ...]
    curvature: tuple[EstimatedCurve, ...]
    weights: tuple[WeightCurves, ...]
    determinants: tuple[Determinant, ...]
    alerts: tuple[AlertText, ...]
    errors: int
    vanished: int | None

    @property
    def has_curves(self) -> bool:
        """Whether there is a curve besides the loss."""
        return bool(self.ranks or self.curvature or self.weights or self.determinants)


def summary_of(run: RunSeries) -> RunSummary:
    """Return the summary of one run; for a run over seeds or batches, of its medians."""
    values, steps = as_single_run(run), _all_steps(run)
    facts, vanished = card_facts(run), _vanished(run)
    ranks = [rank_curve(values, tag) for tag in rank_tags(values)]
    return RunSummary(
        name=run.name,
        over_seeds=is_over_seeds(run),
        batches=_batches(facts.get("batches", "")) if is_over_batches(run) else None,
        measured=facts.get(HESSIAN_OF, ""),
        probes=len(steps),
        first_step=steps[0],
        last_step=steps[-1],
        loss=_curve(values, "loss"),
        ranks=tuple(curve for curve in ranks if _is_worth_a_row(curve, vanished, steps[0])),
        curvature=tuple(
            _estimated_curve(values, tag)
            for family in CURVATURE
            for part in HESSIAN_PARTS
            if (tag := f"{family}/{part}") in values.scalars
        ),
        weights=tuple(
            WeightCurves(
                layer,
                _curve(values, f"stable_rank/{layer}"),
                _curve(values, f"effective_rank/{layer}"),
                _curve(values, f"condition_number/{layer}"),
            )
            for layer in _layers(values, "stable_rank")
            if layer not in HESSIAN_PARTS
        ),
        determinants=tuple(
            Determinant(
                layer,
                _curve(values, f"det_sign/{layer}"),
                _curve(values, f"log_abs_det/{layer}"),
                _steps_of_change(values.scalars[f"det_sign/{layer}"]),
            )
            for layer in _layers(values, "det_sign")
        ),
        alerts=tuple(AlertText(*item) for item in run.texts.get(ALERTS, {}).items()),
        errors=int(np.nan_to_num(_curve(run, "monitor/errors").last)),
        vanished=vanished,
    )


def _batches(fact: str) -> int:
    """Return the number that begins the card's line on the probe batches, 0 if there is none."""
    number = fact.partition(" ")[0]
    return int(number) if number.isdecimal() else 0


def _vanished(run: RunSeries) -> int | None:
    """Return the step from which on all eigenvalues of H_f are below a tenth of the cut, if any."""
    # Over batches or seeds, the highest count of any of them.
    high = "rank_high/H_f"
    tags = (f"{BATCHES}{high}/high", f"{high}/high", high)
    series = next((run.scalars[tag] for tag in tags if tag in run.scalars), None)
    if series is None or not len(series.steps) or series.values[-1] != 0:
        return None
    others = np.flatnonzero(series.values != 0)
    return int(series.steps[others[-1] + 1 if others.size else 0])


def _is_worth_a_row(curve: RankCurve, vanished: int | None, first_step: int) -> bool:
    """Return whether a rank is shown: H_f's own is not if unknown or if H_f is always rounding."""
    is_known = not (np.isnan(curve.first) and np.isnan(curve.last))
    return curve.tag != _OWN or (is_known and vanished != first_step)


def rank_tags(*runs: RunSeries) -> list[str]:
    """Return the tags of the runs' ranks: the Hessian's parts, Omega, weights, features.

    Layers are in natural order.
    """
    tags = sorted({tag for run in runs for tag in run.scalars}, key=natural_order)
    parts = [f"rank/{part}" for part in HESSIAN_PARTS if f"rank/{part}" in tags]
    groups = ("rank/", "rank_self/", "rank_bound/", "rank_weights/", "rank_features/")
    others = [tag for group in groups for tag in tags if tag.startswith(group)]
    return list(dict.fromkeys([*parts, *others]))


def only_tags(summary: RunSummary, patterns: Sequence[str]) -> RunSummary:
    """Return the summary with only those curves whose tags match one of the globs."""
    return replace(
        summary,
        ranks=tuple(curve for curve in summary.ranks if matches(curve.tag, patterns)),
        curvature=tuple(curve for curve in summary.curvature if matches(curve.tag, patterns)),
        weights=tuple(
            weight
            for weight in summary.weights
            if any(
                matches(curve.tag, patterns)
                for curve in (weight.stable_rank, weight.effective_rank, weight.condition_number)
            )
        ),
        determinants=tuple(
            one
            for one in summary.determinants
            if matches(one.sign.tag, patterns) or matches(one.log_abs.tag, patterns)
        ),
    )


def _all_steps(run: RunSeries) -> list[int]:
    """Return all steps at which anything was logged."""
    steps = {int(step) for series in run.scalars.values() for step in series.steps}
    steps |= {int(step) for series in run.arrays.values() for step in series.steps}
    steps |= {step for texts in run.texts.values() for step in texts}
    return sorted(steps)


def _layers(run: RunSeries, prefix: str) -> list[str]:
    names = (tag.partition("/")[2] for tag in run.scalars if tag.startswith(f"{prefix}/"))
    return sorted(names, key=natural_order)


def _curve(run: RunSeries, tag: str) -> Curve:
    """Summarize a curve; NaN if it was not logged."""
    if tag not in run.scalars:
        return Curve(tag, NAN, NAN, NAN)
    values = run.scalars[tag].values
    finite = values[np.isfinite(values)]
    first, lowest = (finite[0], finite.min()) if finite.size else (NAN, NAN)
    return Curve(tag, float(first), float(values[-1]), float(lowest))


def _estimated_curve(run: RunSeries, tag: str) -> EstimatedCurve:
    ends = [_last_with(run, tag, f"{prefix}/{tag}") for prefix in (INTERVAL_LOW, INTERVAL_HIGH)]
    return EstimatedCurve(**vars(_curve(run, tag)), low=ends[0], high=ends[1])


def _last_with(run: RunSeries, tag: str, other: str) -> float:
    """Return the value of another curve at the last step of a curve; NaN if there is none."""
    if other not in run.scalars:
        return NAN
    step, series = run.scalars[tag].steps[-1], run.scalars[other]
    return float(series.values[-1]) if series.steps[-1] == step else NAN


def rank_curve(run: RunSeries, tag: str) -> RankCurve:
    """Summarize a curve of ranks, with its margin and prediction if they were logged."""
    series = run.scalars[tag]
    group, _, name = tag.partition("/")
    ends = margin_tags(tag)
    theory, landmark = (
        run.scalars.get(f"{family}/{name}") if group == "rank" else None
        for family in ("rank_theory", "rank_landmark")
    )
    margin = [run.scalars.get(end) for end in ends]
    counts = _agreement(series, theory, margin) if theory else (0, 0, 0, 0)
    predicted, agreed, certain, agreed_certain = counts
    low, high = (_curve(run, end).last for end in ends) if ends else (NAN, NAN)
    return RankCurve(
        **vars(_curve(run, tag)),
        low=low,
        high=high,
        theory=float(theory.values[-1]) if theory else NAN,
        landmark=float(landmark.values[-1]) if landmark else NAN,
        predicted_steps=predicted,
        agreed_steps=agreed,
        certain_steps=certain,
        agreed_certain_steps=agreed_certain,
        changed=_first_change(series),
    )


def _agreement(
    measured: ScalarSeries, theory: ScalarSeries, margin: Sequence[ScalarSeries | None]
) -> tuple[int, int, int, int]:
    """Count the steps at which both are finite, and those of them at which both are equal.

    Then count the same among the steps at which the ends of the margin equal the rank.
    """
    _, mine, other = np.intersect1d(measured.steps, theory.steps, return_indices=True)
    steps, ranks, predictions = measured.steps[mine], measured.values[mine], theory.values[other]
    both = np.isfinite(ranks) & np.isfinite(predictions)
    equal = both & (ranks == predictions)
    certain = both.copy()
    for end in margin:
        certain &= False if end is None else _values_at(end, steps) == ranks
    return int(both.sum()), int(equal.sum()), int(certain.sum()), int((equal & certain).sum())


def _values_at(series: ScalarSeries, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the values at these steps; NaN at a step that the series lacks."""
    values = np.full(len(steps), NAN)
    _, at, where = np.intersect1d(steps, series.steps, return_indices=True)
    values[at] = series.values[where]
    return values


def _first_change(series: ScalarSeries) -> int | None:
    """Return the first step at which the value differs from the first finite value."""
    finite = np.isfinite(series.values)
    steps, values = series.steps[finite], series.values[finite]
    other = steps[values != values[:1]]  # a slice, because there may be no value
    return int(other[0]) if other.size else None


def _steps_of_change(series: ScalarSeries) -> tuple[int, ...]:
    """Return the steps at which the value differs from the previous finite value."""
    finite = np.isfinite(series.values)
    steps, values = series.steps[finite], series.values[finite]
    return tuple(int(step) for step in steps[1:][values[1:] != values[:-1]])
