"""Compare runs: their last values, the spread of these, and the first step with a difference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan, nan

import numpy as np

from rankmon._util.globs import matches
from rankmon.report.summary import Curve, is_over_seeds, rank_tags, summary_of
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
      median: the median of the finite last values; NaN if there are none.
      lowest: the lowest finite last value; NaN if there are none.
      highest: the highest finite last value; NaN if there are none.
      differ: the first step at which two runs logged different values; None if there is no such
        step.
    """

    tag: str
    last: tuple[float | None, ...]
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
    tags = list(dict.fromkeys(tag for run in runs for tag in rank_tags(run)))
    has_loss = any("loss" in run.scalars for run in runs)
    return Comparison(
        runs=tuple(_compared_run(run) for run in runs),
        ranks=tuple(_compared_tag(runs, tag) for tag in tags),
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
    logged = [run.scalars[tag] for run in runs if tag in run.scalars]
    last = [float(run.scalars[tag].values[-1]) if tag in run.scalars else None for run in runs]
    finite = [value for value in last if value is not None and isfinite(value)]
    return ComparedTag(
        tag,
        tuple(last),
        median=float(np.median(finite)) if finite else nan,
        lowest=min(finite, default=nan),
        highest=max(finite, default=nan),
        differ=_first_difference(logged),
    )


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
