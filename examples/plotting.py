"""Draw the figures and print the tables of the examples from a run's records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np

from rankmon import Record
from rankmon.report.style import (
    BLUE,
    CIRCLE,
    GRAY,
    LAYERS,
    PARTS,
    REFERENCES,
    STYLE,
    VERMILION,
    add_legend,
    draw_loss,
    draw_ranks,
)
from rankmon.runs.series import ScalarSeries

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend is chosen first
from matplotlib.axes import Axes  # noqa: E402

plt.rcParams.update({**STYLE, "figure.constrained_layout.use": True})


def series(records: Sequence[Record], tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps at which a tag was logged, and its values."""
    pairs = [(r.step, r.scalars[tag]) for r in records if tag in r.scalars]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, float)


def layers(records: Sequence[Record], prefix: str) -> list[str]:
    """Return the layers that have a tag with this prefix, in the order of the log."""
    tags = [tag for tag in records[0].scalars if tag.startswith(prefix + "/")]
    return [tag.removeprefix(prefix + "/") for tag in tags]


def draw_hessian_ranks(axes: Axes, records: Sequence[Record]) -> None:
    """Draw the four ranks, bands from low to high, and theory as open circles."""
    tags = {tag for record in records for tag in record.scalars}
    draw_ranks(axes, {tag: ScalarSeries(*series(records, tag)) for tag in tags})
    if any(tag.startswith("rank_theory/") for tag in tags):
        axes.plot([], [], color=GRAY, label="theory", **CIRCLE)
    for family, name in (("rank_bound", "upper bound"), ("rank_landmark", "linear counterpart")):
        if any(tag.startswith(f"{family}/") for tag in tags):
            axes.plot([], [], color=GRAY, label=name, **REFERENCES[family])
    axes.set_ylim(bottom=0)


def draw_estimate(
    axes: Axes, records: Sequence[Record], tag: str, *, label: str, color: str
) -> None:
    """Draw a curve, and the band of its interval if it was estimated."""
    axes.plot(*series(records, tag), ".-", color=color, lw=2, ms=5, label=label)
    ends = [series(records, f"interval_{end}/{tag}") for end in ("low", "high")]
    axes.fill_between(ends[0][0], ends[0][1], ends[1][1], color=color, alpha=0.2, lw=0)


def draw_weight_ranks(axes: Axes, records: Sequence[Record]) -> None:
    """Draw the rank of each weight, with its name at the end of the line."""
    ends = []
    for i, layer in enumerate(layers(records, "rank_weights")):
        steps, ranks = series(records, f"rank_weights/{layer}")
        color = LAYERS[i % len(LAYERS)]
        axes.plot(steps, ranks, color=color, linewidth=2.2)
        ends.append(int(np.nan_to_num(ranks[-1])))
        axes.annotate(
            rf"$W^{{{i + 1}}}$",
            (steps[-1], ranks[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
        )
    axes.set(title="weights", ylim=(0, None))
    axes.margins(x=0.1)
    axes.set_yticks(sorted({0, *ends}))


@dataclass(frozen=True)
class Phase:
    """A phase of training: its first step, its name, and the unit of its steps ("epoch")."""

    start: int
    name: str
    unit: str


def save_rank_evolution(
    records: Sequence[Record], path: Path, *, title: str, phases: Sequence[Phase]
) -> None:
    """Draw figures S1 and S2: ranks of the Hessian with the loss, and ranks of the weights.

    Args:
      records: the records of one run.
      path: the PNG to write.
      title: the title above the panels.
      phases: the phases of training, in order, one panel each with steps from its start.
    """
    widths = [2.4 / len(phases) * (1.1 if len(phases) > 1 else 1)] * len(phases)
    figure = plt.figure(figsize=(11, 4.6))
    grid = figure.add_gridspec(1, len(phases) + 1, width_ratios=[*widths, 1])
    ends = [phase.start for phase in phases[1:]] + [records[-1].step]
    panels = []
    for i, (phase, end) in enumerate(zip(phases, ends, strict=True)):
        axes = figure.add_subplot(grid[i], sharey=panels[0] if panels else None)
        panels.append(axes)
        part = [
            replace(r, step=r.step - phase.start) for r in records if phase.start <= r.step <= end
        ]
        least, most = _loss_range(records)
        steps, loss = series(part, "loss")
        right = draw_loss(axes, ScalarSeries(steps, np.maximum(loss, least)))
        right.set_ylim(least, most)
        if i < len(phases) - 1:  # all panels share the last one's scale
            right.tick_params(axis="y", labelright=False)
            right.set_ylabel("")
        draw_hessian_ranks(axes, part)
        axes.set(xlabel=phase.unit, title=phase.name or "Hessian")
        axes.tick_params(labelleft=i == 0)
    panels[0].set_ylabel("rank")
    add_legend(figure, panels)
    last = figure.add_subplot(grid[-1])
    draw_weight_ranks(last, records)
    last.set_xlabel(", then ".join(phase.unit for phase in phases))
    for phase in phases[1:]:
        last.axvline(phase.start, color="#888888", linewidth=1, linestyle=":")
    figure.suptitle(title)
    save(figure, path)


def _loss_range(records: Sequence[Record]) -> tuple[float, float]:
    loss = series(records, "loss")[1]
    return float(np.min(loss[loss > 0])) / 10, float(np.max(loss)) * 10


def save_determinants(
    flow: Sequence[Record], descent: Sequence[Record], path: Path, time_of_step: float
) -> Path:
    """Draw log|det W^1| as measured and as Lemma 8 predicts it, and the difference of the two.

    Args:
      flow: records along the gradient flow, with the ODE's own prediction at flow/log_abs_det/*.
      descent: records along gradient descent.
      path: the PNG to write.
      time_of_step: the flow time of one step.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5))

    def curve(records: Sequence[Record], tag: str) -> tuple[np.ndarray, np.ndarray]:
        steps, values = series(records, tag)
        return steps * time_of_step, values

    # The four curves coincide: a wide one, a thin one, and marks of both on different steps.
    left.plot(*curve(flow, "log_abs_det/0"), color=BLUE, lw=6, alpha=0.3, label="flow, measured")
    t, predicted = curve(flow, "flow/log_abs_det/0")
    left.plot(t[::4], predicted[::4], color=BLUE, label="flow, predicted by the ODE", **CIRCLE)
    left.plot(*curve(descent, "log_abs_det/0"), color=VERMILION, lw=1.5, label="descent, measured")
    at, predicted = curve(descent, "lemma8/predicted_log_abs_det/0")
    _, error = curve(descent, "lemma8/quadrature_error/0")
    left.errorbar(at[2::4], predicted[2::4], yerr=np.nan_to_num(error)[2::4], fmt="x", ms=7, mew=2,
                  color=VERMILION, label="descent, predicted by trapezoids")  # fmt: skip
    left.set(
        xlabel="flow time", ylabel=r"$\log|\det W^1|$", title="Lemma 8: four curves that coincide"
    )
    left.set_xscale("symlog", linthresh=0.1, linscale=0.5)

    t, measured = curve(flow, "log_abs_det/0")
    off = np.abs(measured - curve(flow, "flow/log_abs_det/0")[1])
    right.loglog(t[1:], off[1:], "o-", color=BLUE, ms=3, label="flow, error of the prediction")
    t, off = curve(descent, "lemma8/prediction_error/0")
    right.loglog(t[1:], np.abs(off[1:]), "x-", color=VERMILION, ms=5,
                 label="descent, error of the prediction")  # fmt: skip
    right.loglog(at, error, ":", color=VERMILION, lw=2.5, label="descent, estimate of this error")
    for records, color, name in ((flow, BLUE, "flow"), (descent, VERMILION, "descent")):
        t, imbalance = curve(records, "lemma8/balancedness/0")
        right.loglog(t[1:], imbalance[1:], "--", color=color, label=f"{name}, imbalance")
    right.set(xlabel="flow time", title="errors and imbalance", ylim=(1e-14, None))
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14))
    save(figure, path)
    return path


def save(figure: plt.Figure, path: Path, *, dpi: int = 130) -> None:
    """Write the PNG, and an SVG of the same name; make the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def print_ranks(records: Sequence[Record]) -> None:
    """Print each rank at the first and last step, its range, and its prediction at the start."""
    names = [f"rank/{part}" for part in PARTS] + [
        f"rank_weights/{layer}" for layer in layers(records, "rank_weights")
    ]
    print(f"{'':24}{'first':>7}{'last':>7}{'min':>7}{'max':>7}{'theory at first':>17}")
    for name in names:
        _, values = series(records, name)
        theory = records[0].scalars.get(name.replace("rank/", "rank_theory/"))
        shown = "" if theory is None or name.startswith("rank_weights") else f"{theory:g}"
        row = "".join(f"{v:7g}" for v in (values[0], values[-1], values.min(), values.max()))
        print(f"{name:24}{row}{shown:>17}")


def finish(
    records: Sequence[Record], figure: Path, logdir: Path, claims: Mapping[str, bool]
) -> None:
    """End a script: print the ranks and the folder of the curves, and check the claims."""
    print_ranks(records)
    print(f"\n{figure}\nSee the curves: tensorboard --logdir {logdir.parent}\n")
    check(claims)


def check(claims: Mapping[str, bool]) -> None:
    """Print each claim and whether it holds; exit with an error if one fails."""
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS':>6}  {claim}")
    if not all(claims.values()):
        raise SystemExit(1)
