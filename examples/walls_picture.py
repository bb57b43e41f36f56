"""Draw the walls of H_f: the picture of `walls.py`."""

import numpy as np

from plotting import CIRCLE, GRAY, PARTS, plt, save, series
from rankmon.report.style import PURPLE


def save_walls(records, sums, walls, rate, path):
    """Draw the ranks, the sums of two eigenvalues, and the eigenvalues of H_f that vanish.

    Args:
      records: the records of the run.
      sums: the sums of two eigenvalues at each step.
      walls: time, ranks and approach (distances, eigenvalues, cut) of each wall.
      rate: the learning rate, the time of one step.
      path: the PNG to write.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4))
    color, times = PARTS["H_f"][1], [time for time, *_ in walls]
    for part in ("H_L", "H_f"):
        steps, ranks = series(records, f"rank/{part}")
        label, own, style, width = PARTS[part]
        left.plot(steps * rate, ranks, ls=style, color=own, lw=width, label=label)
    full = int(ranks.max())
    for time, found, _ in walls:
        left.plot([time, time], [full, found["H_f"].rank], ":", color=color, lw=1.5)
        left.plot(time, found["H_f"].rank, "o", color=color, ms=7)
    left.plot([], [], "o", color=color, ms=7, label=r"$H_f$ at a wall")
    left.set(title="ranks", ylim=(full - 3.5, full + 1), yticks=range(full - 3, full + 2))
    left.legend(loc="lower left", ncols=3, columnspacing=1.2, handlelength=1.6)
    for step, values in enumerate(sums):
        real = values[np.abs(values.imag) < 1e-12].real
        middle.plot(np.full(len(real), step * rate), real, ".", color=PURPLE, ms=2)
    middle.axhline(0, color=GRAY, lw=1)
    middle.plot(times, np.zeros(len(times)), color=color, zorder=5, **CIRCLE)
    middle.set(title=r"real sums $\lambda_i + \lambda_j$ (circles: walls)")
    middle.set_yscale("symlog", linthresh=0.01)
    distances, vanishing, cut = walls[0][-1]
    right.loglog(distances, vanishing[:, 0], "o", color=color, ms=8, mfc="white", label="smallest")
    right.loglog(distances, vanishing[:, 1], "x", color=color, ms=6, label="second smallest")
    right.axhline(cut, color=GRAY, ls="--", label="cut of the rank")
    right.set(title=r"$|$eigenvalues$|$ of $H_f$", xlabel="time to the first wall")
    right.legend(loc="upper left")
    for axes in (left, middle):
        axes.set_xlabel("time (steps times learning rate)")
    save(figure, path)
    return path
