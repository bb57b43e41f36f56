"""The data of the tab's charts as JSON, made from the series of a run.

The tab's routes and the pages of `rankmon report --html` give the browser the same objects. Numbers
that JSON does not have are the strings "NaN", "Infinity" and "-Infinity"; tables are the base64 of
little-endian arrays.
"""

import base64
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.plugin_util import markdown_to_safe_html

from rankmon._util.strict_json import json_numbers
from rankmon.runs.series import ArraySeries, RunSeries, ScalarSeries

# The slider moves the cut by factors from 10^-8 to 10^8, ten steps a decade.
PER_DECADE, LOWEST, POSITIONS = 10, -80, 161
MOST_STEPS, MOST_INDICES = 400, 300
_SPECTRUM = "spectrum/"
Json = dict[str, Any]


def parts(arrays: Iterable[str]) -> list[str]:
    """Return the parts (H_L, ...) whose spectra are among the tags of arrays."""
    return [tag.removeprefix(_SPECTRUM) for tag in arrays if tag.startswith(_SPECTRUM)]


def overview(
    name: str, scalars: Collection[str], arrays: Collection[str], texts: Collection[str]
) -> Json:
    """Return what a run has: its tags, and the parts whose spectra it has."""
    return {
        "name": name,
        "scalars": sorted(scalars),
        "spectra": sorted(parts(arrays)),
        "texts": sorted(texts),
    }


def scalars(series: Mapping[str, ScalarSeries], prefixes: Sequence[str]) -> Json:
    """Return the series of tags that start with one of the prefixes: steps and values."""
    return {
        tag: {"steps": one.steps.tolist(), "values": json_numbers(one.values)}
        for tag, one in series.items()
        if tag.startswith(tuple(prefixes))
    }


def counts(spectrum: ArraySeries, cuts: ScalarSeries) -> Json:
    """Count the eigenvalues above the cut times 10^((LOWEST + j) / PER_DECADE), by j and step.

    A row for each j, a column for each step that has both. Beside a cut that is not positive and
    finite no count is made: the column is zero, as are those of spectra with NaN in them.
    """
    steps, at, where = np.intersect1d(spectrum.steps, cuts.steps, return_indices=True)
    table = np.zeros((len(steps), POSITIONS), np.uint32)
    factors = (LOWEST + np.arange(POSITIONS)) / PER_DECADE
    logs = [_log10(cut) for cut in cuts.values[where]]
    for row, index, log in zip(table, at, logs, strict=True):
        values = np.sort(spectrum.values[index])
        if not np.isnan(log) and not np.isnan(values).any():
            row[:] = len(values) - np.searchsorted(values, log + factors, side="right")
    bits = 16 if table.max(initial=0) < 2**16 else 32
    return {
        "steps": steps.tolist(),
        "bits": bits,
        "counts": packed(table.T.astype(f"<u{bits // 8}")),
    }


def counts_of_run(spectra: Mapping[str, ArraySeries], cuts: Mapping[str, ScalarSeries]) -> Json:
    """Return `counts` of each part (H_L, ...) whose cuts were logged; older runs have none."""
    counted = {part: counts(spectra[part], cuts[part]) for part in spectra if part in cuts}
    return {"per_decade": PER_DECADE, "lowest": LOWEST, "parts": counted}


def spectrum(
    series: ArraySeries, cuts: ScalarSeries | None, zeros: ScalarSeries | None, step: int
) -> Json:
    """Return the spectrum of the nearest logged step: log10 of absolute eigenvalues, descending."""
    at = int(np.argmin(np.abs(series.steps - step)))
    logged = int(series.steps[at])
    exact, cut = value_at(zeros, logged), _log10(value_at(cuts, logged))
    return {
        "step": logged,
        "values": packed(series.values[at].astype("<f4")),
        "zeros": int(exact) if np.isfinite(exact) else None,
        "cut": None if np.isnan(cut) else cut,
    }


def heatmap(series: ArraySeries, cuts: ScalarSeries | None) -> Json:
    """Return the spectra over steps, thinned evenly: rows of log10 |eigenvalue| at some indices.

    "logged" are all steps that have a spectrum.
    """
    rows = thinned(len(series.steps), MOST_STEPS)
    longest = max((len(series.values[row]) for row in rows), default=0)
    columns = thinned(longest, MOST_INDICES)
    table = np.full((len(rows), len(columns)), np.nan, "<f4")
    for line, row in zip(table, rows, strict=True):
        there = columns < len(series.values[row])
        line[there] = series.values[row][columns[there]]
    steps = series.steps[rows]
    return {
        "logged": series.steps.tolist(),
        "steps": steps.tolist(),
        "indices": columns.tolist(),
        "values": packed(table),
        "cut": json_numbers([_log10(value_at(cuts, step)) for step in steps]),
    }


def texts(series: Mapping[str, Mapping[int, str]]) -> Json:
    """Return texts by tag and step, as HTML without scripts, as TensorBoard renders Markdown."""
    return {
        tag: [
            {"step": int(step), "html": markdown_to_safe_html(text)}
            for step, text in sorted(by_step.items())
        ]
        for tag, by_step in series.items()
    }


def whole(run: RunSeries) -> Json:
    """Return all of a run's payloads in one object, for a page without a server."""
    spectra = {part: run.arrays[_SPECTRUM + part] for part in parts(run.arrays)}
    cuts = {p: run.scalars[tag] for p in spectra if (tag := f"tolerance/{p}") in run.scalars}
    zeros = {part: run.scalars.get(f"spectrum_zeros/{part}") for part in spectra}
    return {
        "overview": overview(run.name, run.scalars, run.arrays, run.texts),
        "scalars": scalars(run.scalars, [""]),
        "counts": counts_of_run(spectra, cuts),
        "spectra": {
            part: [
                spectrum(series, cuts.get(part), zeros[part], step)
                for step in series.steps[thinned(len(series.steps), MOST_STEPS)]
            ]
            for part, series in spectra.items()
        },
        "heatmaps": {part: heatmap(series, cuts.get(part)) for part, series in spectra.items()},
        "texts": texts(run.texts),
    }


def thinned(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of 0, ..., count - 1, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def value_at(series: ScalarSeries | None, step: int) -> float:
    """Return the value at this very step; NaN if there is none."""
    if series is None:
        return float("nan")
    at = int(np.searchsorted(series.steps, step))
    there = at < len(series.steps) and series.steps[at] == step
    return float(series.values[at]) if there else float("nan")


def packed(table: NDArray[Any]) -> str:
    """Return the base64 of an array's bytes, in C order."""
    return base64.b64encode(table.tobytes()).decode("ascii")


def _log10(cut: float) -> float:
    """Return the logarithm; NaN for a cut that is not positive and finite."""
    return math.log10(cut) if 0 < cut < math.inf else math.nan
