"""How the cost of a measurement grows with p, n and k: the dense engine, sketches, and H_o alone.

The networks d-10-k are linear, so that their ranks are known; the engines do not use it. The second
measurement is timed, because a monitor compiles only once.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from plotting import LAYERS, plt, save
from rankmon import hessian_ranks, outer_rank  # here, so that no measurement loads them
from scale_coverage import drawn, truth

BASE = {"d": 100, "n": 30, "k": 3}
SWEEPS = {
    "p": ("d", (30, 100, 300, 1000, 3000, 10_000, 30_000)),
    "n": ("n", (10, 30, 100, 300, 1000)),
    "k": ("k", (1, 2, 4, 8)),
}
QUICK = {"p": ("d", (10, 20, 40, 60)), "n": ("n", (10, 20)), "k": ("k", (1, 3))}
LARGEST_DENSE = 3100
ENGINES = {"dense: all parts": "dense", "sketch: all parts": "sketch", "outer_rank: H_o": None}


def seconds(engine, d, n, k):
    """Return the seconds of the second measurement; check its ranks by the closed forms."""
    dims = (d, 10, k)
    problem, weights = drawn(dims, n, 0)
    for _ in range(2):
        weights = [1.001 * w for w in weights]  # else cached results would be returned
        begun = time.perf_counter()
        if engine is None:
            found = {"H_o": outer_rank(problem, weights)}
        else:
            found = hessian_ranks(problem, weights, engine=engine, time_limit=600)
        taken = time.perf_counter() - begun
    wrong = {part: r.rank for part, r in found.items() if r.rank != truth(dims, n)[part]}
    if wrong:
        raise SystemExit(f"FAILS  {engine}, {dims}, n = {n}: got {wrong}, not {truth(dims, n)}")
    return taken


def measured(sweeps):
    """Return the values of each swept quantity with the seconds of each engine."""
    results = {}
    for quantity, (name, values) in sweeps.items():
        for label, engine in ENGINES.items():
            points = []
            for value in values:
                setting = BASE | {name: value}
                p = 10 * (setting["d"] + setting["k"])
                if engine == "dense" and p > LARGEST_DENSE:
                    continue
                points.append((p if quantity == "p" else value, seconds(engine, **setting)))
            results[quantity, label] = np.array(points).T
            print(f"{quantity}, {label}:", *(f"{x:g}: {s:.3g} s" for x, s in points), flush=True)
    return results


def draw(results, path):
    """Draw seconds on log-log axes, with the slope of the last half of each line."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True)
    axis = {"p": "parameters p", "n": "examples n", "k": "outputs k"}
    for panel, quantity in zip(panels, axis, strict=True):
        for color, label in zip(LAYERS, ENGINES, strict=False):
            x, y = results[quantity, label]
            half = len(x) // 2
            slope = np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0] if len(x) > 2 else None
            text = "" if slope is None else f" (slope {slope:.1f})"
            panel.loglog(x, y, "o-", color=color, label=label.replace("H_o", "$H_o$") + text)
        fixed = {"p": "n = 30, k = 3", "n": "p = 1,030, k = 3", "k": "p = 1,000 + 10 k, n = 30"}
        panel.set(xlabel=axis[quantity], title=fixed[quantity])
        if quantity == "k":
            panel.set_xticks(x, map(str, map(int, x)))
            panel.minorticks_off()
        panel.legend(fontsize=9)
    panels[0].set_ylabel("seconds a measurement")
    save(figure, path)


def main():
    """Measure, draw, and print the name of the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few small networks")
    parser.add_argument("--logdir", type=Path, default=Path("logs") / "scale_growth")
    options = parser.parse_args()
    results = measured(QUICK if options.quick else SWEEPS)
    options.logdir.mkdir(parents=True, exist_ok=True)
    draw(results, options.logdir / "growth.png")
    print(f" holds  all ranks are those of theory; {options.logdir / 'growth.png'}")


if __name__ == "__main__":
    main()
