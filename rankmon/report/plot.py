"""Plot runs as a PNG, SVG or PDF in the style of figure S1 (arXiv 2106.16225); needs matplotlib."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rankmon._util.facts import HESSIAN_OF
from rankmon._util.tags import HESSIAN_PARTS, natural_order
from rankmon._util.text import printable
from rankmon.report.card_facts import card_facts
from rankmon.report.medians import as_single_run
from rankmon.report.names import shortened
from rankmon.report.style import (
    CIRCLE,
    GRAY,
    LAYERS,
    OF_CUTS,
    PARTS,
    REFERENCES,
    STYLE,
    add_legend,
    draw_loss,
    draw_nan,
    draw_ranks,
)
from rankmon.runs.series import RunSeries

LABEL = 24  # characters of a weight's name
NAMED = 24  # lines of weights with a name: as many as there are colors and dashes
_DASHES = ("-", "--", ":", "-.")
_OF_WEIGHTS = {
    "rank_weights": "rank of weights",
    "stable_rank": "stable rank of weights",
    "effective_rank": "effective rank of weights",
}
# The suffixes that name a format, and what keeps the date out of the file.
FORMATS: dict[str, Any] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def picture_of(runs: Sequence[RunSeries], *, suffix: str = ".png") -> bytes:
    """Return a picture of the Hessian's ranks over the steps, with one panel per run.

    If there is only one run, further panels show the ranks, stable ranks and effective ranks of its
    weights. For a run without the Hessian's ranks, its panel shows the weights.

    Args:
      runs: one or more runs.
      suffix: the format: ".png", ".svg" or ".pdf".
    """
    singles = [as_single_run(run) for run in runs]
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Characters of a name that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        band = OF_CUTS if singles == [*runs] else "range over seeds or probe batches"
        figure = _one_run(singles[0], band) if len(runs) == 1 else _panels(singles, band)
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix[1:], dpi=130, metadata=FORMATS[suffix])
    return picture.getvalue()


def _one_run(run: RunSeries, band: str) -> Figure:
    """Draw the Hessian's ranks of one run, and the ranks and soft ranks of its weights."""
    of_weights = [family for family in _OF_WEIGHTS if _has_layers(run, family)]
    count = _has(run, "rank") + len(of_weights)
    if count <= 1:
        figure = Figure(figsize=(7.5, 4.6), layout="constrained")
        left = figure.subplots()
        _draw(left, run, band)
        left.set_ylabel("rank")
        if _has(run, "rank") and HESSIAN_OF in card_facts(run):
            left.set_title(_hessian_title(run), parse_math=False)
    else:
        columns, rows = (2, 2) if count == 4 else (count, 1)
        figure = Figure(figsize=(5 * columns + 1.5, 4.1 * rows + 0.5), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        left, others = panels[0], iter(panels)
        if _has(run, "rank"):
            _draw_hessian(next(others), run, band)
            left.set_title(_hessian_title(run), parse_math=False)
            left.set_ylabel("rank")
        # One legend for the panels of a row stands beside the last of them.
        for family, axes in zip(of_weights, others, strict=True):
            _draw_weights(axes, run, family, named=axes in panels[columns - 1 :: columns])
    add_legend(figure, figure.axes)
    figure.suptitle(printable(run.name), parse_math=False)
    return figure


def _panels(runs: Sequence[RunSeries], band: str) -> Figure:
    """Draw one panel for each run."""
    columns = 2 if len(runs) in (2, 4) else 3
    rows = -(-len(runs) // columns)  # rounded up
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes, run in zip(panels, runs, strict=False):
        _draw(axes, run, band)
        axes.set_title(printable(run.name), parse_math=False, fontsize=10)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("rank")
    add_legend(figure, panels)
    return figure


def _draw(axes: Axes, run: RunSeries, band: str) -> None:
    if _has(run, "rank") or not _has(run, "rank_weights"):
        _draw_hessian(axes, run, band)
    else:
        _draw_weights(axes, run)


def _hessian_title(run: RunSeries) -> str:
    """Return the title of the Hessian's panel, with its parameters if these are not all."""
    measured = card_facts(run).get(HESSIAN_OF)
    return "Hessian" if measured is None else shortened(f"Hessian: {printable(measured)}", 56)


def _has(run: RunSeries, group: str) -> bool:
    return any(tag.startswith(f"{group}/") for tag in run.scalars)


def _draw_hessian(axes: Axes, run: RunSeries, band: str) -> None:
    """Draw the ranks as `draw_ranks` does, and the loss in gray."""
    loss = run.scalars.get("loss")
    if loss is not None and np.any(loss.values > 0):
        draw_loss(axes, loss)
    tags = [f"rank/{part}" for part in PARTS if f"rank/{part}" in run.scalars]
    draw_ranks(axes, run.scalars, band=band)
    if _has(run, "rank_theory"):
        axes.plot([], [], color=GRAY, label="theory", **CIRCLE)
    for family, name in (("rank_bound", "upper bound"), ("rank_landmark", "linear counterpart")):
        if _has(run, family):
            axes.plot([], [], color=GRAY, label=name, **REFERENCES[family])
    _finish(axes, [step for tag in tags for step in run.scalars[tag].steps.tolist()])


def _has_layers(run: RunSeries, family: str) -> bool:
    return bool(_tags_of_layers(run, family))


def _tags_of_layers(run: RunSeries, family: str) -> list[str]:
    """Return the tags of the layers' curves in natural order, without the Hessian's parts."""
    parts = {f"{family}/{part}" for part in HESSIAN_PARTS}
    tags = (tag for tag in run.scalars if tag.startswith(f"{family}/") and tag not in parts)
    return sorted(tags, key=natural_order)


def _draw_weights(
    axes: Axes, run: RunSeries, family: str = "rank_weights", *, named: bool = True
) -> None:
    """Draw one curve for each layer, with a legend of all names beside the panel if asked."""
    layers = [tag.partition("/")[2] for tag in _tags_of_layers(run, "rank_weights")]
    drawn = _tags_of_layers(run, family)
    names = list(dict.fromkeys([*layers, *(tag.partition("/")[2] for tag in drawn)]))
    lines = []
    for tag in drawn:
        place, series = names.index(tag.partition("/")[2]), run.scalars[tag]
        look: Any = {
            "color": LAYERS[place % len(LAYERS)],
            "ls": _DASHES[place // len(LAYERS) % len(_DASHES)],
            "marker": "." if len(series.steps) == 1 else "",
            "lw": 2.2,
            "label": "_",  # not for the legend of the figure
        }
        lines += axes.plot(series.steps, series.values, **look)
    if named and lines:
        _name_lines(axes, lines, [tag.partition("/")[2] for tag in drawn])
    draw_nan(axes, [run.scalars[tag] for tag in drawn])
    axes.set(title=_OF_WEIGHTS[family])
    _finish(axes, [step for tag in drawn for step in run.scalars[tag].steps.tolist()])


def _name_lines(axes: Axes, lines: Sequence[Line2D], names: Sequence[str]) -> None:
    """Add a legend to the right of a panel; it counts the names beyond the first `NAMED`."""
    shown = [printable(name) for name in names[:NAMED]]
    shown = [name if len(name) <= LABEL else "\u2026" + name[-LABEL:] for name in shown]
    more = len(names) - NAMED
    legend = axes.legend(
        lines[:NAMED],
        shown,
        title=f"and {more} more" if more > 0 else None,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize=9,
        handlelength=2.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _finish(axes: Axes, steps: Sequence[int]) -> None:
    """Start the axis of ranks at 0; make that of steps logarithmic if most steps come early."""
    axes.set(xlabel="step", ylim=(0, max(1, axes.get_ylim()[1])))
    axes.locator_params(integer=True)
    different = sorted(set(steps))
    if len(different) == 1:
        axes.set_xticks(different)
    elif different and np.median(different) < different[0] + 0.1 * (different[-1] - different[0]):
        positive = [step for step in different if step > 0]
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        axes.set_xlim(different[0], 1.2 * different[-1])
