"""One way of `curvature_peers.py` with one case, in a process of its own."""

import json
import sys
import time

import numpy as np

from curvature_cases import CASES, QUICK
from curvature_ours import WAYS

# Relative errors that count as equal accuracy. Of the extremes the worse one counts.
TARGETS = {"above 0.1": 0.05, "above 0.01": 0.05, "trace": 0.01, "extremes": 1e-3}
FIRST = 5  # seeds, after which a setting that is far off is given up
LIMIT = 600  # CPU seconds of a way, after which no larger setting is tried


def errors(found, true):
    """Return the relative error of each quantity that was found; infinite if it is NaN."""
    off = {name: abs(value / true[name] - 1) for name, value in found.items()}
    if "largest" in off:
        off["extremes"] = max(off.pop("largest"), off.pop("smallest"))
    return {name: float(np.nan_to_num(value, nan=np.inf)) for name, value in off.items()}


def measured(estimate, setting, true, seeds):
    """Return this setting's products, CPU seconds and errors: medians over the seeds."""
    rows, costs, counts = [], [], []
    for seed in range(seeds):
        begun = time.process_time()
        found, products = estimate(*setting, seed=seed)
        costs.append((products, time.process_time() - begun))
        counts.append(found.get("above 0.1"))
        rows.append(errors(found, true))
        medians = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
        if seed + 1 == FIRST and all(medians[name] > 2 * TARGETS[name] for name in medians):
            break
    products, seconds = (float(n) for n in np.median(costs, axis=0))
    ends = None if None in counts else [min(counts), max(counts)]
    return {"products": products, "seconds": seconds, "errors": medians, "counts": ends}


def main(way, index, true, seeds, quick):
    """Print a line of JSON for each setting, until each quantity is within its target."""
    make, settings, _ = WAYS[way]
    settings = settings[:3] if quick else settings
    estimate = make((QUICK if quick else CASES)[index])
    estimate(*settings[0], seed=0)  # compiles
    for setting in settings:
        row = measured(estimate, setting, true, seeds)
        print(json.dumps(row), flush=True)
        wanted = TARGETS if setting == settings[0] else wanted
        wanted = [n for n in wanted if row["errors"].get(n, 0) > TARGETS[n]]
        if not wanted or time.process_time() > LIMIT:
            break


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
