"""Convert the series of a run to JSON for the tab's charts.

The tab's routes and the pages of `rankmon report --html` pass the same objects to the browser. JSON
has no non-finite numbers: they are the strings "NaN", "Infinity" and "-Infinity". Tables are
little-endian arrays in base64.
"""

import base64
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.plugin_util import markdown_to_safe_html

from rankmon._util.hparams import Hparam
from rankmon._util.strict_json import json_numbers
from rankmon._util.tags import natural_order
from rankmon.runs.series import ArraySeries, RunSeries, ScalarSeries

# The slider moves the cut by factors from 10^-8 to 10^8, in ten steps per decade.
PER_DECADE, LOWEST, POSITIONS = 10, -80, 161
MOST_STEPS, MOST_INDICES = 400, 300
_SPECTRUM, _SINGULAR = "spectrum/", "singular_values/"
Json = dict[str, Any]


def parts(arrays: Iterable[str]) -> list[str]:
    """Return the parts (H_L, ...) that have a spectrum, given the tags of a run's arrays."""
    return [tag.removeprefix(_SPECTRUM) for tag in arrays if tag.startswith(_SPECTRUM)]


def weights(arrays: Iterable[str]) -> list[str]:
    """Return the weights whose singular values are logged, given the tags of a run's arrays."""
    return [tag.removeprefix(_SINGULAR) for tag in arrays if tag.startswith(_SINGULAR)]


def overview(
    name: str,
    scalars: Collection[str],
    arrays: Collection[str],
    texts: Collection[str],
    latest: float | None = None,
    hparams: Mapping[str, Hparam] = MappingProxyType({}),
) -> Json:
    """Return the contents of a run: tags, parts that have a spectrum, and finite hyperparameters.

    "latest" is the time of the latest record in seconds since 1970, or null if it is not known.
    """
    finite = {
        name: value
        for name, value in hparams.items()
        if not isinstance(value, float) or math.isfinite(value)
    }
    return {
        "name": name,
        "latest": latest,
        "scalars": sorted(scalars, key=natural_order),
        "spectra": sorted(parts(arrays)),
        "weights": sorted(weights(arrays), key=natural_order),
        "texts": sorted(texts, key=natural_order),
        "hparams": finite,
    }


def scalars(series: Mapping[str, ScalarSeries], prefixes: Sequence[str]) -> Json:
    """Return steps and values of the series whose tags start with one of the prefixes."""
    return {
        tag: {"steps": one.steps.tolist(), "values": json_numbers(one.values)}
        for tag, one in series.items()
        if tag.startswith(tuple(prefixes))
    }


def counts(spectrum: ArraySeries, cuts: ScalarSeries) -> Json:
    """Count the eigenvalues above the cut times 10^((LOWEST + j) / PER_DECADE), by j and step.

    The table has a row for each j = 0, ..., POSITIONS - 1, and a column for each step that has both
    a spectrum and a cut. The column is zero if the cut is not positive and finite, or if the
    spectrum contains NaN.
    """
    steps, at, where = np.intersect1d(spectrum.steps, cuts.steps, return_indices=True)
    table = np.zeros((len(steps), POSITIONS), np.uint32)
    factors = (LOWEST + np.arange(POSITIONS)) / PER_DECADE
    logs = [_log10(cut) for cut in cuts.values[where]]
    for row, index, log in zip(table, at, logs, strict=True):
        values = np.sort(spectrum.values[index])
        # Values and cuts are logarithms, so the slider's factors are added.
        if not np.isnan(log) and not np.isnan(values).any():
            row[:] = len(values) - np.searchsorted(values, log + factors, side="right")
    most = table.max(initial=0)
    bits = 8 if most < 2**8 else 16 if most < 2**16 else 32  # few bytes for most runs
    return {
        "steps": steps.tolist(),
        "bits": bits,
        "counts": packed(table.T.astype(f"<u{bits // 8}")),
    }


def counts_of_run(spectra: Mapping[str, ArraySeries], cuts: Mapping[str, ScalarSeries]) -> Json:
    """Return `counts` for each part and weight with logged cuts, which older runs do not have.

    Args:
      spectra: the spectra of parts (H_L, ...) and the singular values of weights by name, as log10.
      cuts: the cuts by the same names, which are distinct: no weight is named like a part.
    """
    counted = {part: counts(spectra[part], cuts[part]) for part in spectra if part in cuts}
    return {"per_decade": PER_DECADE, "lowest": LOWEST, "parts": counted}


def spectrum(
    series: ArraySeries,
    cuts: ScalarSeries | None,
    zeros: ScalarSeries | None,
    step: int,
    negative: ArraySeries | None = None,
) -> Json:
    """Return the spectrum (log10 |eigenvalue|, descending) at the logged step nearest to `step`.

    "negative" has the negative eigenvalues among them, or is null if the run has no signs.
    """
    at = int(np.argmin(np.abs(series.steps - step)))
    logged = int(series.steps[at])
    exact, cut = value_at(zeros, logged), _log10(value_at(cuts, logged))
    return {
        "step": logged,
        "values": packed(series.values[at].astype("<f4")),
        "negative": _negative_at(negative, logged),
        "zeros": int(exact) if np.isfinite(exact) else None,
        "cut": None if np.isnan(cut) else cut,
    }


def _negative_at(series: ArraySeries | None, step: int) -> str | None:
    if series is None or step not in series.steps:
        return None
    at = int(np.searchsorted(series.steps, step))
    return packed(series.values[at].astype("<f4"))


def heatmap(series: ArraySeries, cuts: ScalarSeries | None) -> Json:
    """Return a table of log10 |eigenvalue|: a row per step, a column per index in the spectrum.

    Steps and indices are thinned evenly. "logged" has all steps with a spectrum.
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
    """Return texts by tag and step, as the safe HTML that TensorBoard renders from Markdown."""
    return {
        tag: [
            {"step": int(step), "html": markdown_to_safe_html(text)}
            for step, text in sorted(by_step.items())
        ]
        for tag, by_step in series.items()
    }


def whole(run: RunSeries) -> Json:
    """Return all data of a run in one object, for a page that works without a server."""
    spectra = {part: run.arrays[_SPECTRUM + part] for part in parts(run.arrays)}
    singular = {name: run.arrays[_SINGULAR + name] for name in weights(run.arrays)}
    counted = spectra | singular
    cuts = {p: run.scalars[tag] for p in counted if (tag := f"tolerance/{p}") in run.scalars}
    zeros = {part: run.scalars.get(f"spectrum_zeros/{part}") for part in spectra}
    negative = {part: run.arrays.get(f"spectrum_negative/{part}") for part in spectra}
    return {
        "overview": overview(run.name, run.scalars, run.arrays, run.texts),
        "scalars": scalars(run.scalars, [""]),
        "counts": counts_of_run(counted, cuts),
        "spectra": {
            part: [
                spectrum(series, cuts.get(part), zeros[part], step, negative[part])
                for step in series.steps[thinned(len(series.steps), MOST_STEPS)]
            ]
            for part, series in spectra.items()
        },
        "heatmaps": {part: heatmap(series, cuts.get(part)) for part, series in spectra.items()},
        "texts": texts(run.texts),
    }


def thinned(count: int, most: int) -> NDArray[np.int64]:
    """Return up to `most` evenly spaced indices out of 0, ..., count - 1, including both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def value_at(series: ScalarSeries | None, step: int) -> float:
    """Return the value at exactly this step; NaN if there is none."""
    if series is None:
        return float("nan")
    at = int(np.searchsorted(series.steps, step))
    there = at < len(series.steps) and series.steps[at] == step
    return float(series.values[at]) if there else float("nan")


def packed(table: NDArray[Any]) -> str:
    """Return the base64 of an array's bytes, in C order."""
    return base64.b64encode(table.tobytes()).decode("ascii")


def _log10(cut: float) -> float:
    """Return log10 of a cut; NaN if the cut is not positive and finite."""
    return math.log10(cut) if 0 < cut < math.inf else math.nan
