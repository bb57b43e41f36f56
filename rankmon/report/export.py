"""Export runs, comparisons and predictions as CSV and JSON, with all digits.

JSON has no non-finite numbers: they are the strings "NaN", "Infinity" and "-Infinity", as in
rankmon.jsonl.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rankmon._util.globs import matches
from rankmon._util.strict_json import json_numbers
from rankmon._util.tags import natural_order
from rankmon.report.compare import Comparison
from rankmon.report.summary import RunSummary
from rankmon.runs.series import ArraySeries, RunSeries, ScalarSeries
from rankmon.theory.tables import ClosedForms, FamilyForms

SCHEMA = 1  # increased whenever a key of the JSON is removed or changes its meaning


def csv_of(runs: Sequence[RunSeries], patterns: Sequence[str]) -> str:
    """Return the scalars as CSV, one number per line: run, step, tag, value.

    Args:
      runs: the runs.
      patterns: globs that select tags.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "step", "tag", "value"])
    for run in runs:
        for tag, series in _chosen(run.scalars, patterns).items():
            for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                writer.writerow([run.name, step, tag, repr(value)])  # reads back as the same float
    return text.getvalue()


def report_json(
    runs: Sequence[RunSeries], summaries: Sequence[RunSummary], patterns: Sequence[str]
) -> str:
    """Return the summary and the series of each run as JSON.

    {"schema": 1, "runs": [{"summary": ..., "scalars": {tag: {"steps": [...], "values": [...]}},
    "arrays": {tag: {"steps": [...], "values": [[...], ...]}}, "texts": {tag: {step: Markdown}}}]}.
    A summary has the fields of `summary.RunSummary`.

    Args:
      runs: the runs.
      summaries: the summary of each run.
      patterns: globs that select the tags of the series.
    """
    entries = [
        {
            "summary": asdict(summary),
            "scalars": _series(_chosen(run.scalars, patterns)),
            "arrays": _series(_chosen(run.arrays, patterns)),
            "texts": {tag: dict(texts) for tag, texts in run.texts.items()},
        }
        for run, summary in zip(runs, summaries, strict=True)
    ]
    return _json({"schema": SCHEMA, "runs": entries})


def comparison_json(comparison: Comparison) -> str:
    """Return {"schema": 1} and the fields of `compare.Comparison` as JSON."""
    return _json({"schema": SCHEMA, **asdict(comparison)})


def prediction_json(forms: ClosedForms | FamilyForms) -> str:
    """Return {"schema": 1} and the fields of the closed forms (`theory.tables`) as JSON."""
    return _json({"schema": SCHEMA, **asdict(forms)})


def _chosen(series: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """Return the series whose tags match; with a spectrum also the negative eigenvalues in it.

    Tags are in natural order.
    """
    return {
        tag: series[tag]
        for tag in sorted(series, key=natural_order)
        if matches(tag, patterns)
        or matches(tag.replace("spectrum_negative/", "spectrum/"), patterns)
    }


def _series(series: Mapping[str, ScalarSeries | ArraySeries]) -> dict[str, Any]:
    return {tag: {"steps": one.steps, "values": one.values} for tag, one in series.items()}


def _json(value: Any) -> str:
    return json.dumps(_plain(value), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return the value converted to types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer):
        return value.tolist()
    if isinstance(value, (float, np.ndarray)):
        return json_numbers(value)
    return value
