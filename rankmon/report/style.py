"""The palette and style of PNGs, and how ranks and the loss are drawn; needs matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rankmon._util.palette import DASHES, LINES, WIDTHS
from rankmon._util.palette import PARTS as COLORS
from rankmon._util.tags import HESSIAN_PARTS
from rankmon.runs.series import ScalarSeries

BLUE, VERMILION, GREEN, PURPLE, BROWN, OLIVE, GRAY = LINES["light"]
BLACK, SKY, ORANGE = "#000000", "#56b4e9", "#e69f00"

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
}
# Theory is drawn as open circles, few of them.
CIRCLE: Any = {"linestyle": "", "marker": "o", "mfc": "white", "ms": 6}
# Bounds, and landmarks: the ranks of the same layers without activations.
REFERENCES: Mapping[str, Any] = {
    "rank_bound": {"linestyle": "--", "lw": 1.2, "alpha": 0.8},
    "rank_landmark": {"linestyle": ":", "lw": 1.2, "alpha": 0.8},
}
_CIRCLES = 9
_BARS = 25


def draw_ranks(axes: Axes, scalars: Mapping[str, ScalarSeries]) -> None:
    """Draw each part's rank, the band from low to high, and theory as open circles.

    An upper bound is drawn dashed, and the rank of the linear counterpart of a network with
    activations dotted; both are faint.
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
        look: Any = {"ls": style, "marker": dot, "color": color, "lw": width, "label": label}
        axes.plot(ranks.steps, ranks.values, **look)
        for family, dashes in REFERENCES.items():
            if part != "H_f_fixed" and (other := scalars.get(f"{family}/{part}")) is not None:
                axes.plot(other.steps, other.values, color=color, **dashes)
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
