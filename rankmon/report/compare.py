"""Compare runs: their last values, the spread of these, and the first step with a difference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan, nan

import numpy as np

from rankmon._util.globs import matches
from rankmon.report.medians import is_over_seeds, margin_tags
from rankmon.report.summary import Curve, rank_curve, rank_tags, summary_of
from rankmon.runs.series import RunSeries, ScalarSeries


@dataclass(frozen=True)
class ComparedRun:
    """One of the compared runs.

    Attributes:
      name: the run's name.
      probes: the number of steps with measurements.
      first_step: the first of these steps.
      last_step: the last of these steps.
      loss: the loss on the probe batch.
    """

    name: str
    probes: int
    first_step: int
    last_step: int
    loss: Curve


@dataclass(frozen=True)
class ComparedTag:
    """One tag, compared at the ends of the runs.

    Attributes:
      tag: the tag.
      last: the last value of each run; None if the run did not log the tag.
      bounds: for each run the bounds of its last rank, if only these are known, else None.
      median: the median of the finite last values; NaN if there are none, or if only bounds of some
        are known.
      lowest: the lowest finite last value or bound; NaN if there are none.
      highest: the highest finite last value or bound; NaN if there are none.
      differ: the first step at which two runs logged different values; None if there is no such
        step.
    """

    tag: str
    last: tuple[float | None, ...]
    bounds: tuple[tuple[float, float] | None, ...]
    median: float
    lowest: float
    highest: float
    differ: int | None


@dataclass(frozen=True)
class Comparison:
    """The comparison of several runs.

    Attributes:
      runs: the runs.
      ranks: each rank that at least one run logged.
      loss: the loss on the probe batch; None if no run logged it.
    """

    runs: tuple[ComparedRun, ...]
    ranks: tuple[ComparedTag, ...]
    loss: ComparedTag | None

    @property
    def first_differing(self) -> tuple[ComparedTag, ...]:
        """The ranks that differ at the earliest step; empty if no rank differs."""
        first = min((rank.differ for rank in self.ranks if rank.differ is not None), default=None)
        return tuple(rank for rank in self.ranks if first is not None and rank.differ == first)


def comparison_of(runs: Sequence[RunSeries]) -> Comparison:
    """Compare two or more runs; runs of medians over seeds are left out.

    Raises:
      ValueError: if fewer than two runs remain.
    """
    runs = [run for run in runs if not is_over_seeds(run)]
    if len(runs) < 2:
        raise ValueError(
            f"expected at least 2 runs to compare, got {len(runs)}; pass more run folders, or a "
            "folder that contains several runs"
        )
    has_loss = any("loss" in run.scalars for run in runs)
    return Comparison(
        runs=tuple(_compared_run(run) for run in runs),
        ranks=tuple(_compared_tag(runs, tag) for tag in rank_tags(*runs)),
        loss=_compared_tag(runs, "loss") if has_loss else None,
    )


def only_ranks(comparison: Comparison, patterns: Sequence[str]) -> Comparison:
    """Return the comparison with only those ranks whose tags match one of the globs."""
    ranks = (rank for rank in comparison.ranks if matches(rank.tag, patterns))
    return replace(comparison, ranks=tuple(ranks))


def _compared_run(run: RunSeries) -> ComparedRun:
    """Return the facts about a run that the comparison shows."""
    summary = summary_of(run)
    return ComparedRun(
        summary.name, summary.probes, summary.first_step, summary.last_step, summary.loss
    )


def _compared_tag(runs: Sequence[RunSeries], tag: str) -> ComparedTag:
    """Compare the last values of a tag, and find the first step with a difference."""
    logged = [_where_known(run, tag) for run in runs if tag in run.scalars]
    last = [float(run.scalars[tag].values[-1]) if tag in run.scalars else None for run in runs]
    finite = [value for value in last if value is not None and isfinite(value)]
    bounds = [_bounds(run, tag) for run in runs]
    known = [ends for ends in bounds if ends is not None]
    return ComparedTag(
        tag,
        tuple(last),
        tuple(bounds),
        median=float(np.median(finite)) if finite and not known else nan,
        lowest=min([*finite, *(low for low, _ in known)], default=nan),
        highest=max([*finite, *(high for _, high in known)], default=nan),
        differ=_first_difference(logged),
    )


def _bounds(run: RunSeries, tag: str) -> tuple[float, float] | None:
    """Return the bounds of the last rank of a run, if only these are known."""
    if tag not in run.scalars or tag == "loss":
        return None
    curve = rank_curve(run, tag)
    return (curve.low, curve.high) if curve.is_bounded else None


def _where_known(run: RunSeries, tag: str) -> ScalarSeries:
    """Return a curve without the steps at which only bounds of its value are known."""
    series = run.scalars[tag]
    margin = [run.scalars.get(end) for end in margin_tags(tag)]
    if not margin or margin[0] is None or margin[1] is None:
        return series
    low, high = margin[0], margin[1]
    bounded = np.intersect1d(
        low.steps[np.isfinite(low.values)], high.steps[np.isfinite(high.values)]
    )
    keep = ~(np.isnan(series.values) & np.isin(series.steps, bounded))
    return ScalarSeries(series.steps[keep], series.values[keep])


def _first_difference(series: Sequence[ScalarSeries]) -> int | None:
    """Return the first step at which two series have different values; NaN equals NaN."""
    seen: dict[int, float] = {}
    differing = set()
    for one in series:
        for step, value in zip(one.steps.tolist(), one.values.tolist(), strict=True):
            if not _same(seen.setdefault(step, value), value):
                differing.add(step)
    return min(differing, default=None)


def _same(a: float, b: float) -> bool:
    return a == b or (isnan(a) and isnan(b))
