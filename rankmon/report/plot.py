"""Plot runs as a PNG, SVG or PDF in the style of figure S1 (arXiv 2106.16225); needs matplotlib."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rankmon._util.tags import natural_order
from rankmon._util.text import printable
from rankmon.report.style import (
    CIRCLE,
    GRAY,
    LAYERS,
    PARTS,
    REFERENCES,
    STYLE,
    add_legend,
    draw_loss,
    draw_nan,
    draw_ranks,
)
from rankmon.report.summary import as_single_run
from rankmon.runs.series import RunSeries

LABEL = 20  # characters of a weight's name
# The suffixes that name a format, and what keeps the date out of the file.
FORMATS: dict[str, Any] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def picture_of(runs: Sequence[RunSeries], *, suffix: str = ".png") -> bytes:
    """Return a picture of the Hessian's ranks over the steps, with one panel per run.

    If there is only one run, a second panel shows the ranks of its weights. For a run without the
    Hessian's ranks, its panel shows the weights.

    Args:
      runs: one or more runs.
      suffix: the format: ".png", ".svg" or ".pdf".
    """
    singles = [as_single_run(run) for run in runs]
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Characters of a name that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = _one_run(singles[0]) if len(runs) == 1 else _panels(singles)
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix[1:], dpi=130, metadata=FORMATS[suffix])
    return picture.getvalue()


def _one_run(run: RunSeries) -> Figure:
    """Draw the ranks of the Hessian and of the weights of one run, if it has both."""
    both = _has(run, "rank") and _has(run, "rank_weights")
    figure = Figure(figsize=(11, 4.6) if both else (7.5, 4.6), layout="constrained")
    if both:
        left, right = figure.subplots(1, 2, width_ratios=(2.4, 1.2))
        _draw_hessian(left, run)
        _draw_weights(right, run)
        left.set_title("Hessian")
    else:
        left = figure.subplots()
        _draw(left, run)
    left.set_ylabel("rank")
    add_legend(figure, figure.axes)
    figure.suptitle(printable(run.name), parse_math=False)
    return figure


def _panels(runs: Sequence[RunSeries]) -> Figure:
    """Draw one panel for each run."""
    columns = 2 if len(runs) in (2, 4) else 3
    rows = -(-len(runs) // columns)  # rounded up
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes, run in zip(panels, runs, strict=False):
        _draw(axes, run)
        axes.set_title(printable(run.name), parse_math=False, fontsize=10)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("rank")
    add_legend(figure, panels)
    return figure


def _draw(axes: Axes, run: RunSeries) -> None:
    draw = _draw_hessian if _has(run, "rank") or not _has(run, "rank_weights") else _draw_weights
    draw(axes, run)


def _has(run: RunSeries, group: str) -> bool:
    return any(tag.startswith(f"{group}/") for tag in run.scalars)


def _draw_hessian(axes: Axes, run: RunSeries) -> None:
    """Draw the ranks as `draw_ranks` does, and the loss in gray."""
    loss = run.scalars.get("loss")
    if loss is not None and np.any(loss.values > 0):
        draw_loss(axes, loss)
    tags = [f"rank/{part}" for part in PARTS if f"rank/{part}" in run.scalars]
    draw_ranks(axes, run.scalars)
    if _has(run, "rank_theory"):
        axes.plot([], [], color=GRAY, label="theory", **CIRCLE)
    for family, name in (("rank_bound", "upper bound"), ("rank_landmark", "linear counterpart")):
        if _has(run, family):
            axes.plot([], [], color=GRAY, label=name, **REFERENCES[family])
    _finish(axes, [step for tag in tags for step in run.scalars[tag].steps.tolist()])


def _draw_weights(axes: Axes, run: RunSeries) -> None:
    """Draw the ranks of the weights, with names at the ends of the lines."""
    tags = sorted(
        (tag for tag in run.scalars if tag.startswith("rank_weights/")), key=natural_order
    )
    for i, tag in enumerate(tags):
        series, dot = run.scalars[tag], "." if len(run.scalars[tag].steps) == 1 else ""
        color = LAYERS[i % len(LAYERS)]
        axes.plot(series.steps, series.values, marker=dot, color=color, lw=2.2)
    for rank, name, color in _labels(run, tags):
        axes.annotate(
            name,
            (1, rank),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            color=color,
            ha="right",
            fontsize=9,
            parse_math=False,
        )
    draw_nan(axes, [run.scalars[tag] for tag in tags])
    axes.set(title="weights")
    _finish(axes, [step for tag in tags for step in run.scalars[tag].steps.tolist()])


def _labels(run: RunSeries, tags: Sequence[str]) -> list[tuple[float, str, str]]:
    """Return labels (rank, name, color): one for each last rank of the weights.

    If two labels would overlap, the lower one is left out.
    """
    ends: dict[float, list[int]] = {}
    for i, tag in enumerate(tags):
        last = float(run.scalars[tag].values[-1])
        if np.isfinite(last):
            ends.setdefault(last, []).append(i)
    labels: list[tuple[float, str, str]] = []
    for rank in sorted(ends, reverse=True):
        last_drawn, name = ends[rank][-1], printable(tags[ends[rank][-1]].partition("/")[2])
        name = name if len(name) <= LABEL else "\u2026" + name[-LABEL:]
        more = f" and {len(ends[rank]) - 1} more" if len(ends[rank]) > 1 else ""
        # About the height of a line of text, as a share of the highest rank.
        if not labels or labels[-1][0] - rank > 0.06 * labels[0][0]:
            labels.append((rank, name + more, LAYERS[last_drawn % len(LAYERS)]))
    return labels


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
