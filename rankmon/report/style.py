"""The palette and style of pictures, and how ranks, loss and NaN are drawn; needs matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rankmon._util.palette import DASHES, LINES, WIDTHS
from rankmon._util.palette import PARTS as COLORS
from rankmon._util.tags import HESSIAN_PARTS
from rankmon.runs.series import ScalarSeries

BLUE, VERMILION, GREEN, PURPLE, BROWN, OLIVE, GRAY = LINES["light"]
BLACK, ORANGE = "#000000", "#e69f00"

_SYMBOLS = {part: f"${part}$" for part in HESSIAN_PARTS}
_SYMBOLS["H_f_fixed"] = r"$H_f^{\mathrm{fixed}}$"


def _dashed(part: str) -> str | tuple[int, tuple[float, ...]]:
    """Return the line style; Matplotlib's dashes are in widths of the line."""
    return (0, tuple(length / WIDTHS[part] for length in DASHES[part])) if DASHES[part] else "-"


# Label, color, line style and width. Thin lines lie on thick ones, so that both of two curves that
# coincide stay visible.
PARTS: Mapping[str, tuple[str, str, Any, float]] = {
    part: (_SYMBOLS[part], color, _dashed(part), WIDTHS[part])
    for part, color in COLORS["light"].items()
}
LAYERS = LINES["light"][:6]
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "legend.frameon": False,
    # The same picture gives the same bytes; letters of PDFs stay text.
    "svg.hashsalt": "rankmon",
    "pdf.fonttype": 42,
}
# Theory is drawn as open circles, few of them.
CIRCLE: Any = {"linestyle": "", "marker": "o", "mfc": "white", "ms": 6}
# Bounds, and landmarks: the ranks of the same layers without activations.
REFERENCES: Mapping[str, Any] = {
    "rank_bound": {"linestyle": "--", "lw": 1.2, "alpha": 0.8},
    "rank_landmark": {"linestyle": ":", "lw": 1.2, "alpha": 0.8},
}
BAND: Any = {"alpha": 0.18, "lw": 0}
LOSS = "loss (right axis)"
OF_CUTS = "rank at 10 to 0.1 times the cut"
_LINE_OF_LOSS: Any = {"color": "#9a9a9a", "linewidth": 1.2}
_CIRCLES = 9
_BARS = 25


def draw_ranks(axes: Axes, scalars: Mapping[str, ScalarSeries], *, band: str = OF_CUTS) -> None:
    """Draw each part's rank, the band from low to high, and theory as open circles.

    An upper bound is drawn dashed, and the rank of the linear counterpart of a network with
    activations dotted; both are faint.
    A rank of which only these bounds are known is drawn as the band alone, with bars; a step
    without rank and bounds as a triangle.

    Args:
      axes: to draw on.
      scalars: tag -> series; `rank/H_L` and so on are drawn.
      band: the meaning of low and high, for the legend.
    """
    banded, lost = False, []
    for part, (label, color, style, width) in PARTS.items():
        if f"rank/{part}" not in scalars:
            continue
        ranks = scalars[f"rank/{part}"]
        low, high = (scalars.get(f"rank_{end}/{part}") for end in ("low", "high"))
        if low is not None and high is not None and len(low.steps) == len(high.steps):
            axes.fill_between(low.steps, low.values, high.values, color=color, **BAND)
            _draw_unknown(axes, ranks, low, high, color)
            banded = banded or bool(np.any(low.values < high.values))
            lost.append(_without(ranks, low.steps[np.isfinite(low.values)]))
        else:
            lost.append(ranks)
        dot = "." if len(ranks.steps) == 1 else ""
        label = label if np.isfinite(ranks.values).any() else "_"  # no entry without a line
        look: Any = {"ls": style, "marker": dot, "color": color, "lw": width, "label": label}
        axes.plot(ranks.steps, ranks.values, **look)
        for family, dashes in REFERENCES.items():
            if part != "H_f_fixed" and (other := scalars.get(f"{family}/{part}")) is not None:
                axes.plot(other.steps, other.values, color=color, **dashes)
        theory = scalars.get(f"rank_theory/{part}")
        if theory is not None and part != "H_f_fixed":
            few = np.unique(np.linspace(0, len(theory.steps) - 1, _CIRCLES).astype(int))
            axes.plot(
                theory.steps[few],
                theory.values[few],
                color=color,
                zorder=5,
                clip_on=False,  # a rank of 0 is a whole circle on the axis
                **CIRCLE,
            )
    if banded:
        axes.fill_between([], [], color=GRAY, label=band, **BAND)
    draw_nan(axes, lost)


def draw_nan(axes: Axes, curves: Iterable[ScalarSeries]) -> None:
    """Draw a triangle at each step at which a curve is NaN; say it if no curve has a number."""
    curves = [curve for curve in curves if len(curve.steps)]
    at = sorted({int(s) for c in curves for s in c.steps[np.isnan(c.values)]})
    if not at:
        return
    look: Any = {"color": BLACK, "marker": "^", "ls": "", "ms": 6, "clip_on": False, "zorder": 6}
    axes.plot(at, np.full(len(at), 0.02), transform=axes.get_xaxis_transform(), **look, label="NaN")
    if all(np.isnan(curve.values).all() for curve in curves):
        place: Any = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "NaN at every step", fontsize=12, color=GRAY, **place)


def _without(curve: ScalarSeries, steps: np.ndarray) -> ScalarSeries:
    """Return the curve at all other steps."""
    other = ~np.isin(curve.steps, steps)
    return ScalarSeries(curve.steps[other], curve.values[other])


def _draw_unknown(
    axes: Axes, ranks: ScalarSeries, low: ScalarSeries, high: ScalarSeries, color: str
) -> None:
    """Draw the bounds of ranks of which nothing else is known as bars with ends.

    The bars show that the band there is not a margin around a rank; there are at most a few.
    """
    known = ranks.steps[np.isfinite(ranks.values)]
    unknown = np.isfinite(low.values) & np.isfinite(high.values) & ~np.isin(low.steps, known)
    at = np.flatnonzero(unknown)
    if at.size:
        few = at[np.unique(np.linspace(0, at.size - 1, _BARS).astype(int))]
        middle = (low.values[few] + high.values[few]) / 2
        half = (high.values[few] - low.values[few]) / 2
        axes.errorbar(low.steps[few], middle, half, fmt="none", ecolor=color, capsize=4, lw=1.2)


def draw_loss(axes: Axes, loss: ScalarSeries) -> Axes:
    """Draw the loss behind the ranks on a second axis, logarithmic and gray, and return that."""
    right = axes.twinx()
    right.semilogy(loss.steps, loss.values, **_LINE_OF_LOSS)
    axes.plot([], [], label=LOSS, **_LINE_OF_LOSS)
    right.set_ylabel("loss", color="#7a7a7a")
    right.tick_params(axis="y", which="both", colors="#7a7a7a")
    right.grid(visible=False)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    return right


def add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend for all panels below them, each label once, the loss last."""
    labeled: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labeled.setdefault(label, handle)
    if LOSS in labeled:
        labeled[LOSS] = labeled.pop(LOSS)
    for rows in range(1 if len(labeled) <= 5 else 2, len(labeled) + 1):
        columns = -(-len(labeled) // rows)  # rounded up
        # Matplotlib fills columns; the rows should read in order.
        names = [name for i in range(columns) for name in list(labeled)[i::columns]]
        legend = figure.legend(
            [labeled[name] for name in names],
            names,
            loc="outside lower center",
            ncols=columns,
            handlelength=2.6,
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
