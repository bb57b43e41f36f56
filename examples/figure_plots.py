"""Draw the figures of the paper's supplement from records and spectra."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from plotting import LAYERS, PARTS, plt, save, series
from rankmon import Record
from rankmon.report.style import BLACK, BLUE, CIRCLE, GRAY, ORANGE, VERMILION
from rankmon.theory.spectra import PlateauMatch

SWEEPS = {"samples": "examples $N$", "width": "hidden width $M$", "depth": "hidden layers"}
THREE = ("H_L", "H_o", "H_f")
SHARE = "rank / #params"
COUNTS = ("rank_autodiff", "rank_low_autodiff", "rank_high_autodiff", "rank_theory")
NAMES = {
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "mixture": "a mixture of Gaussians",
}
DPI = 90  # the pictures are committed


def save_rank_sweep(panels: Mapping[str, Sequence[Record]], path: Path, *, title: str) -> None:
    """Draw figures S8 to S19: rank over sample size, rank/#params over width and depth.

    Lines are counts by automatic differentiation, circles are predictions, bands go from low to
    high. The background is gray if the examples are so few that the inputs have a rank below d.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.6))
    for ax, (name, records) in zip(axes, panels.items(), strict=True):
        steps, parameters = series(records, "p")
        scale = np.ones(len(steps)) if name == "samples" else parameters
        for part in THREE:
            label, color, style, width = PARTS[part]
            counts, low, high, predicted = (
                series(records, f"{kind}/{part}")[1] / scale for kind in COUNTS
            )
            ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            ax.plot(steps, counts, ls=style, color=color, lw=width, label=f"{label}, measured")
            ax.plot(steps, predicted, color=color, zorder=5, **CIRCLE)
        few = steps[series(records, "r")[1] < series(records, "d")[1]]
        if len(few):
            ax.axvspan(0, few[-1], color="#f1f1f1", zorder=0)
            ax.text(few[-1] / 2, 1.0, "$r < d$", transform=ax.get_xaxis_transform(), color=GRAY,
                    fontsize=9, ha="center", va="bottom")  # fmt: skip
        ax.set(xlabel=SWEEPS[name], ylim=(0, None), xlim=(0, steps[-1] * 1.03))
        ax.set_ylabel("rank" if name == "samples" else SHARE)
        if name == "depth":
            ax.set_xticks(steps)
    handles, _ = axes[0].get_legend_handles_labels()
    circle = Line2D([], [], ls="", marker="o", color=GRAY, mfc="white", label="predicted")
    figure.legend(handles=[*handles, circle], loc="outside lower center", ncols=4)
    figure.suptitle(title)
    save(figure, path, dpi=DPI)


def save_simulated(
    panels: Sequence[tuple[str, Sequence[int], Mapping[str, Sequence[float]]]],
    path: Path,
    *,
    title: str,
    scale: str,
) -> None:
    """Draw figures S3 and S20: rank/#params from the closed forms.

    Args:
        panels: for each, the swept variable's name, its values, and the curves by label.
        path: the PNG to write.
        title: the title above the panels.
        scale: the scale of the axes, "linear" or "log".
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.8))
    # Thin dashes are drawn over thick lines, so that both of two equal curves stay visible.
    own = {PARTS[part][0]: PARTS[part][1:] for part in THREE}
    others = [(BLUE, "-", 5.0), (ORANGE, "--", 1.8)]
    for ax, (name, values, curves) in zip(axes, panels, strict=True):
        for i, (label, shares) in enumerate(curves.items()):
            color, style, width = own.get(label, others[i % 2])
            ax.plot(values, shares, ls=style, color=color, lw=width, label=label)
        ax.set(xlabel=name, ylabel=SHARE, xscale=scale, yscale=scale)
        if scale == "linear":
            ax.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
        ax.legend()
    figure.suptitle(title)
    save(figure, path, dpi=DPI)


def save_plateaus(
    panels: Sequence[tuple[str, np.ndarray, Sequence[PlateauMatch]]],
    path: Path,
    *,
    title: str,
    signed: bool,
) -> None:
    """Draw figures S4 to S7: eigenvalues in order, with the predicted plateaus as lines.

    Args:
        panels: for each, its title, the eigenvalues that are not zero, the plateaus among them.
        path: the PNG to write.
        title: the title above the panels.
        signed: whether eigenvalues have both signs (linear axis) or one (logarithmic axis).
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.7))
    for ax, (name, values, matches) in zip(axes, panels, strict=True):
        values = np.sort(values)[::-1]
        for match in matches:
            ax.axhline(match.level, color=LAYERS[1], lw=1, ls="--", zorder=1)
            on = np.flatnonzero(np.abs(values - match.level) <= match.tolerance * abs(match.level))
            ax.plot(on + 1, values[on], color=LAYERS[1], lw=6, alpha=0.35, solid_capstyle="butt")
        ax.plot(np.arange(1, len(values) + 1), values, ".", color=BLACK, ms=3.5)
        ax.set(title=f"${name}$", xlabel="index of the eigenvalue")
        if not signed:
            ax.set_yscale("log")
        ax.grid(visible=False)
    axes[0].set_ylabel("eigenvalue")
    handles = [
        Line2D([], [], ls="", marker=".", color=BLACK, label="measured"),
        Line2D([], [], ls="--", color=LAYERS[1], label="plateau predicted"),
        Line2D([], [], lw=6, alpha=0.35, color=LAYERS[1], label="eigenvalues on it, to $10^{-9}$"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(title)
    save(figure, path, dpi=DPI)


def save_reconstruction(
    errors: np.ndarray, lines: Mapping[str, int], path: Path, *, title: str
) -> None:
    """Draw figures S21 to S29: error of the best approximation over its rank, and three cut-offs.

    Args:
        errors: shares of the Frobenius norm for k = 0, 1, ..., p.
        lines: label -> rank; a rank beyond p has no line, but an arrow and its number.
        path: the PNG to write.
        title: the title above the panels.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.0))
    p = len(errors) - 1
    percent = 100 * errors
    styles = dict(zip(lines, ((BLUE, "-."), (VERMILION, "--"), (GRAY, ":")), strict=True))
    for ax in (left, right):
        ax.plot(np.arange(p + 1), percent, color=BLACK, lw=2.2)
        for label, rank in lines.items():
            color, style = styles[label]
            if rank <= p:
                ax.axvline(rank, color=color, ls=style, lw=1.6, label=f"{label}: {rank:,}")
            elif ax is left:
                ax.annotate("", (1, 0.6), (0.93, 0.6), "axes fraction",
                            arrowprops={"arrowstyle": "->", "color": color})  # fmt: skip
                ax.text(0.92, 0.6, f"{label}: {rank:,}\nbeyond $p$ = {p:,}", color=color,
                        transform=ax.transAxes, ha="right", va="center", fontsize=10)  # fmt: skip
        ax.set(xlabel="eigenvectors kept", xlim=(0, p * 1.01))
    left.set(ylabel="error of the approximation, %", ylim=(0, 102))
    right.set_yscale("log")
    right.set_ylim(1e-8, 200)
    handles, _ = left.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(title)
    save(figure, path, dpi=DPI)


def save_counterparts(
    linear: Record, nonlinear: Record, path: Path, *, title: str, name: str
) -> None:
    """Draw figures S30 to S34: spectra of the linear and the non-linear network, and the bulk.

    Args:
        linear: spectra of the linear network, and its predicted ranks (the size of the bulk).
        nonlinear: spectra of the other one.
        path: the PNG to write.
        title: the title above the panels.
        name: the name of the activation.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharey=True)
    for ax, part in zip(axes, THREE, strict=True):
        curves = [record.arrays[f"spectrum/{part}"] for record in (nonlinear, linear)]
        largest = max(curve[0] for curve in curves)
        styles = ((VERMILION, name, 2.6), (BLUE, "linear", 1.6))
        for curve, (color, label, width) in zip(curves, styles, strict=True):
            ax.plot(np.arange(1, len(curve) + 1), curve - largest, color=color, lw=width,
                    label=label)  # fmt: skip
        at = linear.scalars[f"rank_theory/{part}"]
        ax.axvline(at, color=BLACK, ls="--", lw=1.2, label="predicted bulk")
        ax.text(at, -19.3, f"{at:,.0f} ", ha="right", fontsize=9.5)
        ax.set(title=PARTS[part][0], xlabel="index", ylim=(-20, 1.6))
    axes[0].set_ylabel(r"$\log_{10}\;|\lambda| / |\lambda|_{\max}$")
    handles, _ = axes[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(title)
    save(figure, path, dpi=DPI)


def save_ntk(panels: Mapping[str, Sequence[Record]], path: Path, *, title: str) -> None:
    """Draw figure S35: the kernel's rank over sample size, one panel for each data set."""
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.5), sharey=True)
    for ax, (name, records) in zip(axes, panels.items(), strict=True):
        steps = [record.step for record in records]
        counts, low, high, predicted = (series(records, f"{kind}/NTK")[1] for kind in COUNTS)
        ax.fill_between(steps, low, high, color=BLACK, alpha=0.15, linewidth=0)
        ax.plot(steps, counts, color=BLACK, lw=2.6, label="measured")
        ax.plot(steps, predicted, color=VERMILION, label="predicted", **CIRCLE)
        ax.set(title=NAMES[name], xlabel="examples $N$", ylim=(0, 1.1 * max(high)), xlim=(0, None))
    axes[0].set_ylabel("rank of the NTK")
    axes[-1].legend(loc="lower right")
    figure.suptitle(title)
    save(figure, path, dpi=DPI)
