"""Runs of medians, over seeds or over probe batches, with the tags of a single run."""

from dataclasses import replace

import numpy as np

from rankmon._util.tags import BATCHES, CURVATURE, INTERVAL_HIGH, INTERVAL_LOW
from rankmon.runs.series import RunSeries, ScalarSeries

# The families of ranks with margins, and the beginning of the margin's name: the margin of a
# layer's weight is at rank_low/<layer>, that of its features at rank_low/features/<layer>.
_MARGINS = {"rank": "", "rank_weights": "", "rank_features": "features/"}
_ENDS, _INTERVAL = ("low", "high"), (INTERVAL_LOW, INTERVAL_HIGH)


def margin_tags(tag: str) -> tuple[str, ...]:
    """Return the tags of the margin of a rank, low and high; empty if its family has none."""
    group, _, name = tag.partition("/")
    if group not in _MARGINS:
        return ()
    return tuple(f"rank_{end}/{_MARGINS[group]}{name}" for end in _ENDS)


def is_over_seeds(run: RunSeries) -> bool:
    """Return whether a run is one that `SeedsMonitor` writes: medians and ranges over seeds."""
    bases = [tag.removesuffix("/median") for tag in run.scalars if tag.endswith("/median")]
    expected = {f"{base}/{kind}" for base in bases for kind in ("median", "low", "high")}
    return bool(bases) and expected == run.scalars.keys()


def is_over_batches(run: RunSeries) -> bool:
    """Return whether the curves of a run are medians over several probe batches."""
    return any(tag.startswith(BATCHES) for tag in run.scalars) and not is_over_seeds(run)


def as_single_run(run: RunSeries) -> RunSeries:
    """Return a run of medians with the tags of a single run; return other runs unchanged.

    Medians become the values, the range of a rank over seeds or batches becomes its margin, and
    that of an eigenvalue or a count its interval: it contains the intervals of all of them.
    """
    if is_over_seeds(run):
        scalars = {
            tag.removesuffix("/median"): series
            for tag, series in run.scalars.items()
            if tag.endswith("/median") and not tag.startswith(BATCHES)
        }
        return replace(run, scalars=scalars | _ranges(run, scalars, "", of_exact=False))
    if is_over_batches(run):
        scalars = {tag: one for tag, one in run.scalars.items() if not tag.startswith(BATCHES)}
        return replace(run, scalars=scalars | _ranges(run, scalars, BATCHES, of_exact=True))
    return run


def _ranges(
    run: RunSeries, scalars: dict[str, ScalarSeries], prefix: str, *, of_exact: bool
) -> dict[str, ScalarSeries]:
    """Return the ranges, at <prefix><tag>/low and high, as the margins and intervals of the tags.

    Args:
      run: the run with the ranges.
      scalars: the medians.
      prefix: the beginning of the ranges' tags.
      of_exact: whether numbers without an interval get their range as interval.
    """
    found = {}
    for tag in scalars:
        ends = [run.scalars.get(f"{prefix}{tag}/{end}") for end in _ENDS]
        for margin, end, series in zip(margin_tags(tag), _ENDS, ends, strict=False):
            if series is not None:
                bound = run.scalars.get(f"{prefix}{margin}/{end}")
                found[margin] = _where_known(series, bound)
        if tag.partition("/")[0] in CURVATURE:
            for interval, end, series in zip(_INTERVAL, _ENDS, ends, strict=True):
                own = run.scalars.get(f"{prefix}{interval}/{tag}/{end}")
                if (shown := own or (series if of_exact else None)) is not None:
                    found[f"{interval}/{tag}"] = shown
    return found


def _where_known(series: ScalarSeries, bound: ScalarSeries | None) -> ScalarSeries:
    """Return the series; at steps at which it is NaN, the values of a bound, if there is one."""
    if bound is None:
        return series
    values = series.values.copy()
    _, mine, other = np.intersect1d(series.steps, bound.steps, return_indices=True)
    unknown = np.isnan(values[mine])
    values[mine[unknown]] = bound.values[other[unknown]]
    return ScalarSeries(series.steps, values)
