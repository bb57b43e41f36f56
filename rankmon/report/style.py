"""The palette and style of PNGs, and how ranks and the loss are drawn; needs matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rankmon.runs.series import ScalarSeries

# Okabe and Ito's palette, safe for color-blind readers.
BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
VERMILION, ORANGE, PURPLE = "#D55E00", "#E69F00", "#CC79A7"
GRAY = "#666666"

# Label, color, line style and width. H_f_fixed is dashed as in figure S1 (arXiv 2106.16225), and
# thin lines lie on thick ones, so that both of two curves that coincide stay visible.
PARTS: Mapping[str, tuple[str, str, str, float]] = {
    "H_L": (r"$H_L$", BLACK, "-", 4.5),
    "H_o": (r"$H_o$", SKY, "-", 2.0),
    "H_f": (r"$H_f$", VERMILION, "-", 3.0),
    "H_f_fixed": (r"$H_f^{\mathrm{fixed}}$", GREEN, "--", 1.8),
}
LAYERS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK)
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "legend.frameon": False,
}
# Theory is drawn as open circles, few of them.
CIRCLE: Any = {"linestyle": "", "marker": "o", "mfc": "white", "ms": 6}
_CIRCLES = 9
_BARS = 25


def draw_ranks(axes: Axes, scalars: Mapping[str, ScalarSeries]) -> None:
    """Draw each part's rank, the band from low to high, and theory as open circles.

    A rank of which only these bounds are known is drawn as the band alone, with bars.

    Args:
      axes: to draw on.
      scalars: tag -> series; `rank/H_L` and so on are drawn.
    """
    for part, (label, color, style, width) in PARTS.items():
        if f"rank/{part}" not in scalars:
            continue
        ranks = scalars[f"rank/{part}"]
        low, high = (scalars.get(f"rank_{end}/{part}") for end in ("low", "high"))
        if low is not None and high is not None and len(low.steps) == len(high.steps):
            axes.fill_between(low.steps, low.values, high.values, color=color, alpha=0.18, lw=0)
            _draw_unknown(axes, ranks, low, high, color)
        dot = "." if len(ranks.steps) == 1 else ""
        axes.plot(ranks.steps, ranks.values, style, marker=dot, color=color, lw=width, label=label)
        theory = scalars.get(f"rank_theory/{part}")
        if theory is not None and part != "H_f_fixed":
            few = np.unique(np.linspace(0, len(theory.steps) - 1, _CIRCLES).astype(int))
            axes.plot(theory.steps[few], theory.values[few], color=color, zorder=5, **CIRCLE)


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
    right.semilogy(loss.steps, loss.values, color="#9a9a9a", linewidth=1.2)
    right.set_ylabel("loss", color="#7a7a7a")
    right.tick_params(axis="y", colors="#7a7a7a")
    right.grid(visible=False)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    return right
