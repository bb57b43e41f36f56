"""Summaries of runs: first, last and lowest values of their curves, changes, agreement with theory.

NaN stands for what was not logged. "Last" is the last value that was logged, whatever it was; the
first, the lowest and the changes are among the finite ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankmon._util.globs import matches
from rankmon._util.tags import HESSIAN_PARTS
from rankmon.runs.series import RunSeries, ScalarSeries

NAN = float("nan")

# A feature's rank is logged alone: rank_low/<layer> is that of the layer's weight.
_WITH_MARGIN = ("rank/", "rank_weights/")


@dataclass(frozen=True)
class Curve:
    """One number over the steps.

    Attributes:
      tag: its tag.
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
    """One rank over the steps.

    Attributes:
      tag: its tag.
      first: the first count.
      last: the last one.
      lowest: the lowest one.
      low: the count at 10 times the cut, at the end; over seeds, the lowest seed's rank.
      high: the count at a tenth of it, at the end; over seeds, the highest seed's rank.
      theory: the last prediction.
      predicted_steps: at how many steps there was one.
      agreed_steps: at how many of them the rank was just that.
      changed: the first step at which the rank was not its first value; None if it never changed.
    """

    tag: str
    first: float
    last: float
    lowest: float
    low: float
    high: float
    theory: float
    predicted_steps: int
    agreed_steps: int
    changed: int | None


@dataclass(frozen=True)
class WeightCurves:
    """How close a weight matrix comes to a lower rank.

    Attributes:
      layer: its name.
      stable_rank: over the steps.
      effective_rank: over the steps.
      condition_number: over the steps.
    """

    layer: str
    stable_rank: Curve
    effective_rank: Curve
    condition_number: Curve


@dataclass(frozen=True)
class Determinant:
    """The determinant of a square weight.

    Attributes:
      layer: its name.
      sign: over the steps.
      log_abs: log|det|, over the steps.
      sign_changes: the steps at which the sign was another than at the probe before.
    """

    layer: str
    sign: Curve
    log_abs: Curve
    sign_changes: tuple[int, ...]


@dataclass(frozen=True)
class AlertText:
    """What the alerts said at one step, in Markdown."""

    step: int
    text: str


@dataclass(frozen=True)
class RunSummary:
    """The summary of one run.

    Attributes:
      name: of the run.
      over_seeds: whether each number is a median over seeds, and each margin their range.
      probes: at how many steps anything was measured.
      first_step: of the run.
      last_step: of the run.
      loss: on the probe batch.
      ranks: of the Hessian's parts and Omega, of weights, of features, in this order.
      weights: of the weights.
      determinants: of the square ones.
      alerts: in the order of their steps.
      errors: how many errors the monitor had.
    """

    name: str
    over_seeds: bool
    probes: int
    first_step: int
    last_step: int
    loss: Curve
    ranks: tuple[RankCurve, ...]
    weights: tuple[WeightCurves, ...]
    determinants: tuple[Determinant, ...]
    alerts: tuple[AlertText, ...]
    errors: int


def summary_of(run: RunSeries) -> RunSummary:
    """Return the summary of one run; of its medians if it is that of several seeds."""
    values, steps = as_single_run(run), _all_steps(run)
    return RunSummary(
        name=run.name,
        over_seeds=is_over_seeds(run),
        probes=len(steps),
        first_step=steps[0],
        last_step=steps[-1],
        loss=_curve(values, "loss"),
        ranks=tuple(_rank_curve(values, tag) for tag in rank_tags(values)),
        weights=tuple(
            WeightCurves(
                layer,
                _curve(values, f"stable_rank/{layer}"),
                _curve(values, f"effective_rank/{layer}"),
                _curve(values, f"condition_number/{layer}"),
            )
            for layer in _layers(values, "stable_rank")
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
        alerts=tuple(AlertText(*item) for item in run.texts.get("rankmon/alerts", {}).items()),
        errors=int(np.nan_to_num(_curve(run, "monitor/errors").last)),
    )


def rank_tags(run: RunSeries) -> list[str]:
    """Return the run's tags of ranks: the Hessian's parts, Omega, weights, features."""
    parts = [f"rank/{part}" for part in HESSIAN_PARTS if f"rank/{part}" in run.scalars]
    groups = ("rank/", "rank_self/", "rank_bound/", "rank_weights/", "rank_features/")
    others = [tag for group in groups for tag in run.scalars if tag.startswith(group)]
    return list(dict.fromkeys([*parts, *others]))


def only_tags(summary: RunSummary, patterns: Sequence[str]) -> RunSummary:
    """Return the summary without the curves whose tags match none of these globs."""
    return replace(
        summary,
        ranks=tuple(curve for curve in summary.ranks if matches(curve.tag, patterns)),
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


def is_over_seeds(run: RunSeries) -> bool:
    """Return whether a run is the median over seeds, with range, that `SeedsMonitor` writes."""
    bases = [tag.removesuffix("/median") for tag in run.scalars if tag.endswith("/median")]
    expected = {f"{base}/{kind}" for base in bases for kind in ("median", "low", "high")}
    return bool(bases) and expected == run.scalars.keys()


def as_single_run(run: RunSeries) -> RunSeries:
    """Return a run over seeds under a single run's tags: medians, with the range as margins."""
    if not is_over_seeds(run):
        return run
    scalars = {
        tag.removesuffix("/median"): series
        for tag, series in run.scalars.items()
        if tag.endswith("/median")
    }
    for tag in [tag for tag in scalars if tag.startswith(_WITH_MARGIN)]:
        name = tag.partition("/")[2]
        scalars[f"rank_low/{name}"] = run.scalars[f"{tag}/low"]
        scalars[f"rank_high/{name}"] = run.scalars[f"{tag}/high"]
    return replace(run, scalars=scalars)


def _all_steps(run: RunSeries) -> list[int]:
    steps = {int(step) for series in run.scalars.values() for step in series.steps}
    steps |= {int(step) for series in run.arrays.values() for step in series.steps}
    steps |= {step for texts in run.texts.values() for step in texts}
    return sorted(steps)


def _layers(run: RunSeries, prefix: str) -> list[str]:
    return [tag.partition("/")[2] for tag in run.scalars if tag.startswith(f"{prefix}/")]


def _curve(run: RunSeries, tag: str) -> Curve:
    if tag not in run.scalars:
        return Curve(tag, NAN, NAN, NAN)
    values = run.scalars[tag].values
    finite = values[np.isfinite(values)]
    first, lowest = (finite[0], finite.min()) if finite.size else (NAN, NAN)
    return Curve(tag, float(first), float(values[-1]), float(lowest))


def _rank_curve(run: RunSeries, tag: str) -> RankCurve:
    series = run.scalars[tag]
    group, _, name = tag.partition("/")
    has_margin = tag.startswith(_WITH_MARGIN)
    theory = run.scalars.get(f"rank_theory/{name}") if group == "rank" else None
    predicted, agreed = _agreement(series, theory) if theory else (0, 0)
    return RankCurve(
        **vars(_curve(run, tag)),
        low=_curve(run, f"rank_low/{name}").last if has_margin else NAN,
        high=_curve(run, f"rank_high/{name}").last if has_margin else NAN,
        theory=float(theory.values[-1]) if theory else NAN,
        predicted_steps=predicted,
        agreed_steps=agreed,
        changed=_first_change(series),
    )


def _agreement(measured: ScalarSeries, theory: ScalarSeries) -> tuple[int, int]:
    """Return at how many steps both are finite, and at how many of those they are equal."""
    _, mine, other = np.intersect1d(measured.steps, theory.steps, return_indices=True)
    ranks, predictions = measured.values[mine], theory.values[other]
    both = np.isfinite(ranks) & np.isfinite(predictions)
    return int(both.sum()), int((ranks[both] == predictions[both]).sum())


def _first_change(series: ScalarSeries) -> int | None:
    finite = np.isfinite(series.values)
    steps, values = series.steps[finite], series.values[finite]
    other = steps[values != values[:1]]
    return int(other[0]) if other.size else None


def _steps_of_change(series: ScalarSeries) -> tuple[int, ...]:
    finite = np.isfinite(series.values)
    steps, values = series.steps[finite], series.values[finite]
    return tuple(int(step) for step in steps[1:][values[1:] != values[:-1]])
