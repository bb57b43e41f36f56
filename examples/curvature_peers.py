"""Counts, trace and extremes of H_L by rankmon and its peers: CPU time at equal accuracy.

For each way settings are tried from few products to many, until the median error over the seeds is
within the target; the truth is dense. Each way is a process of its own with one thread; CPU seconds
are those of an estimate of everything that the way gives, after a first one that compiles. Most of
rankmon's ways give one quantity without an interval, as its peers do; "intervals" is what the
engine "lanczos" logs: all of them with 95 % intervals.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from curvature_cases import CASES, QUICK
from curvature_child import TARGETS
from curvature_ours import WAYS
from curvature_truth import truth
from plotting import check
from slq_peers import ONE_THREAD

CHILD = str(Path(__file__).with_name("curvature_child.py"))
TIMES = 5  # how much less time than the best peer's is claimed


def rows_of(way, *arguments):
    """Return the lines that the child of this way prints; none if a library is missing."""
    missing = [name for name in WAYS[way][2] if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{way:25} not run: {missing[0]} is not installed: pip install -e '.[benchmark]'")
        return []
    command = [sys.executable, CHILD, json.dumps([way, *arguments])]
    environment = os.environ | ONE_THREAD
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def cheapest(rows, name):
    """Return the row of the least time within the target; None if there is none."""
    good = [row for row in rows if row["errors"].get(name, np.inf) <= TARGETS[name]]
    return min(good, key=lambda row: row["seconds"], default=None)


def cell(rows, name):
    """Return time and products within the target, or how far off the last setting is."""
    if not rows or name not in rows[-1]["errors"]:
        return ""
    if row := cheapest(rows, name):
        return f"{row['seconds']:.3f} s ({row['products']:,.0f})"
    off = rows[-1]["errors"][name]
    text = f"off {100 * off:.2g} %" if np.isfinite(off) else "not found"
    return f"{text} ({rows[-1]['products']:,.0f})"


def line(way, rows):
    """Return a row of the table."""
    last = rows[-1]
    ends = "{:g} to {:.3g}".format(*last["counts"]) if last["counts"] else ""
    cells = [*(cell(rows, name) for name in TARGETS), ends]
    each = f"{1000 * last['seconds'] / last['products']:10.2f} ms"
    return f"{way:25}" + "".join(f"{text:>19}" for text in cells) + each


def best(found, name, ours):
    """Return the fastest of rankmon's ways or of its peers within the target, and its row."""
    rows = {
        way: cheapest(rows, name)
        for way, rows in found.items()
        if way.startswith("rankmon") == ours
    }
    reached = {way: row for way, row in rows.items() if row}
    return min(reached.items(), key=lambda pair: pair[1]["seconds"], default=(None, None))


def claims(case, found):
    """Return for each quantity whether rankmon takes so much less time than the best peer."""
    kept = {}
    for name in TARGETS:
        (_, ours), (peer, other) = best(found, name, True), best(found, name, False)
        ratio = other["seconds"] / ours["seconds"] if ours and other else np.nan
        kept[f"{case}, {name}: {ratio:.2g} times less time than {peer}"] = bool(ratio >= TIMES)
    return kept


def main():
    """Print a table for each case, and the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small network, 3 seeds")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    seeds = 3 if options.quick else options.seeds
    kept, heads = {}, [f"{name}: {100 * target:g} %" for name, target in TARGETS.items()]
    for index, case in enumerate(QUICK if options.quick else CASES):
        true = truth(case)
        numbers = ", ".join(f"{name} {value:.5g}" for name, value in true.items())
        print(f"\n{case.name}, p = {sum(map(np.size, case.params)):,}; H_L's {numbers}")
        heading = [*heads, "range above 0.1"]
        print(f"{'':25}" + "".join(f"{head:>19}" for head in heading) + f"{'a product':>13}")
        found = {}
        for way in WAYS:
            if rows := rows_of(way, index, true, seeds, options.quick):
                found[way] = rows
                print(line(way, rows), flush=True)
        kept |= claims(case.name, found)
    check({"all ways ran": True} if options.quick else kept)


if __name__ == "__main__":
    main()
