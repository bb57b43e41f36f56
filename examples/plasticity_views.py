"""Print the table of the plasticity example, and draw its picture."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from plasticity_curves import (
    CURVES,
    FIRST,
    SECOND,
    correlation,
    crossing,
    curve,
    moved,
    onset,
    reached,
    values_of,
    warns,
)
from plotting import plt, save
from rankmon.report.style import GRAY

DRAWN = (
    f"norm_since_start/{FIRST}",
    f"stable_rank/{FIRST}",
    f"effective_rank_features/{SECOND}",
    f"dead_share/{FIRST}",
    f"norm_gradient/{FIRST}",
)


def print_table(runs):
    """Print the medians of all curves, and which of them warn of the loss in all runs."""
    plain, others = runs["SGD"], {name: run for name, run in runs.items() if name != "SGD"}
    places = (0, onset(plain), -1)
    print(f"{'':34}{'SGD':^38}" + "".join(f"{name:^22}" for name in others))
    _print_row("", ["first", "at loss", "last", "moved", "r"], [["last", "r", "at"]] * len(others))
    losses = [["", "", _numbered(onset(run))] for run in others.values()]
    _print_row("loss at task", ["", _numbered(places[1]), "", "", ""], losses)
    accuracies = [f"{reached(plain)[i]:.2f}" for i in places]
    lasts = [[f"{reached(run)[-1]:.2f}", "", ""] for run in others.values()]
    _print_row("accuracy, permuted labels", [*accuracies, "", ""], lasts)
    for tag, title in CURVES.items():
        values = [f"{curve(plain, tag)[i]:.3g}" for i in places]
        mine = [*values, f"{moved(plain, tag):.0%}", f"{correlation(plain, tag):.2f}"]
        theirs = [
            [
                f"{curve(run, tag)[-1]:.3g}",
                f"{correlation(run, tag):.2f}",
                _numbered(crossing(runs, name, tag)),
            ]
            for name, run in others.items()
        ]
        _print_row(title, mine, theirs)
    print("\nmoved: change until SGD's loss, as a share of the curve's range over all tasks")
    print("r: rank correlation with the accuracy; at: first task with SGD's value at its loss")
    if all(onset(run) is None for run in others.values()):
        print("SGD alone loses plasticity, so no value is tested as a warning")
        return
    good = [title for tag, title in CURVES.items() if warns(runs, tag)]
    print(f"SGD's value precedes each loss and only those, for each seed: {', '.join(good) or '-'}")


def _print_row(title, mine, theirs):
    cells = [f"{cell:>8}" for cell in mine[:3]] + [f"{cell:>7}" for cell in mine[3:]]
    for last, r, at in theirs:
        cells.append(f"{last:>10}{r:>7}{at:>5}")
    print(f"{title:34}" + "".join(cells))


def _numbered(task):
    return "-" if task is None else str(task + 1)


def save_picture(runs, variants, path, title):
    """Draw the accuracies over the tasks, and the curves that matter."""
    figure, panels = plt.subplots(2, 3, figsize=(13, 7), sharex=True)
    for name, run in runs.items():
        color = variants[name].color
        drawn = [np.array([accuracies for _, _, accuracies in run])]
        drawn += [values_of(run, tag) for tag in DRAWN]
        for axes, values in zip(panels.flat, drawn, strict=True):
            tasks = np.arange(1, values.shape[1] + 1)
            axes.plot(tasks, np.median(values, axis=0), color=color, lw=2, label=name)
            lowest, highest = values.min(axis=0), values.max(axis=0)
            axes.fill_between(tasks, lowest, highest, color=color, alpha=0.15, lw=0)
            if onset(run) is not None:
                axes.axvline(onset(run) + 1, color=color, lw=1.2, ls=":")
    titles = ("accuracy reached on permuted labels", *(CURVES[tag] for tag in DRAWN))
    for axes, text in zip(panels.flat, titles, strict=True):
        axes.set(title=text, ylim=(0, None))
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[1]:
        axes.set_xlabel("task")
    panels[0, 0].plot([], [], color=GRAY, lw=1.2, ls=":", label="loss of plasticity")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title)
    save(figure, path)
