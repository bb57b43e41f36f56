"""Draw the ranks, determinants and singular values of `rank_deficiency`, and print a table."""

import numpy as np

from plotting import plt, save, series
from rankmon.report.style import BLUE, CIRCLE, GRAY, VERMILION

COLORS = {"flow": BLUE, "sgd": VERMILION}
LABELS = {"flow": "gradient flow", "sgd": "SGD with label noise"}
TIME = r"flow time (learning rate $\times$ step)"


def save_picture(teacher, lemma, path, *, rate, cut):
    """Draw the four panels over the flow time; `cut` is relative to the largest singular value."""
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.2))
    for name in COLORS:
        draw_teacher(axes.flat[:3], teacher[name], name, rate)
        draw_determinant(axes.flat[3], lemma[name], "0", name, rate)
        steps, predicted = series(lemma[name], "lemma8/predicted_log_abs_det/0")
        seen = np.isfinite(series(lemma[name], "log_abs_det/0")[1])
        draw_circles(axes.flat[3], rate * steps[seen], predicted[seen], COLORS[name])
    determinant, rank, values, second = axes.flat

    steps, change = series(teacher["sgd"], "steps/log_abs_det")
    start = series(teacher["sgd"], "log_abs_det/params")[1][0]
    draw_circles(determinant, rate * steps, start + change, VERMILION)
    determinant.plot([], [], color=GRAY, label="predicted: sum over steps, Lemma 8", **CIRCLE)
    determinant.plot([], [], "x", color=GRAY, ms=8, mew=2, label="from here on singular in float64")
    determinant.fill_between([], [], color=GRAY, alpha=0.25, label="at 10 to 0.1 times the cut")
    edge = cut * 10.0 ** np.median([r.arrays["singular_values/params"][0] for r in teacher["sgd"]])
    values.axhspan(1e-17, edge, color="#eeeeee", zorder=0)
    end = rate * steps[-1]
    values.text(0.4 * end, 1e-13, "below the cut", color=GRAY)
    values.text(end, 3e-3, "two stay: the teacher's rank", color=VERMILION, ha="right")

    determinant.set(title=r"network with a teacher of rank 2, $\Theta$: 7 $\times$ 7")
    determinant.set(ylabel=r"$\log|\det \Theta|$")
    rank.set(title=r"rank of $\Theta$", ylabel="rank", ylim=(0, 7.5))
    values.set(title=r"singular values of $\Theta$", ylim=(1e-17, 20), xlabel=TIME)
    second.set(title=r"network of Lemma 8, $W^1$: 6 $\times$ 6", xlabel=TIME)
    second.set(ylabel=r"$\log|\det W^1|$", ylim=(-105, 5))
    figure.legend(*determinant.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, path)


def draw_teacher(axes, records, name, rate):
    """Draw the determinant of Theta, its rank, and its singular values."""
    determinant, rank, values = axes
    draw_determinant(determinant, records, "params", name, rate)
    steps, ranks = series(records, "rank_weights/params")
    low, high = (series(records, f"rank_{end}/params")[1] for end in ("low", "high"))
    rank.plot(rate * steps, ranks, color=COLORS[name], lw=2.2, drawstyle="steps-post")
    rank.fill_between(rate * steps, low, high, step="post", color=COLORS[name], alpha=0.18, lw=0)
    logs = [record.arrays["singular_values/params"] for record in records]
    most = max(map(len, logs))
    table = [np.pad(10.0**log, (0, most - len(log)), constant_values=np.nan) for log in logs]
    values.semilogy(rate * steps, table, color=COLORS[name], lw=1.3)


def draw_determinant(axes, records, matrix, name, rate):
    """Draw log|det|, with a cross at the last probe before the matrix is singular."""
    steps, values = series(records, f"log_abs_det/{matrix}")
    axes.plot(rate * steps, values, color=COLORS[name], lw=2.2, label=LABELS[name])
    if not np.isfinite(values[-1]):
        last = np.flatnonzero(np.isfinite(values))[-1]
        axes.plot(rate * steps[last], values[last], "x", color=COLORS[name], ms=8, mew=2)


def draw_circles(axes, time, predicted, color):
    """Draw a prediction as open circles, evenly spaced in time."""
    nearest = {int(np.argmin(np.abs(time - t))) for t in np.linspace(time[0], time[-1], 11)}
    few = sorted(nearest)
    axes.plot(time[few], predicted[few], color=color, zorder=5, clip_on=False, **CIRCLE)


def print_table(networks, rate):
    """Print rank and log|det| at the start and at the end of each run.

    Args:
      networks: title -> (records of both runs, name of the matrix).
      rate: the flow time of a step.
    """
    print(f"{'':28}{'rank':>10}{'log|det|':>22}  singular in float64 from time")
    for title, (runs, matrix) in networks.items():
        for name, records in runs.items():
            ranks = series(records, f"rank_weights/{matrix}")[1]
            steps, values = series(records, f"log_abs_det/{matrix}")
            finite = np.isfinite(values)
            ends = f"{values[0]:.3f} to {values[finite][-1]:.3f}"
            at = "never" if finite.all() else f"{rate * steps[~finite][0]:.0f}"
            row = f"{title + ', ' + LABELS[name]:28}{f'{ranks[0]:g} to {ranks[-1]:g}':>10}"
            print(f"{row}{ends:>22}  {at}")
