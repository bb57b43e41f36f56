"""Stochastic Lanczos quadrature of H_L by rankmon and by other libraries: CPU time and errors.

All use the same network and the same numbers of vectors and steps; the truth is the dense spectrum.
Each row is measured in a process of its own with one thread, after one call to warm up.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time

import numpy as np

from peers import Network
from plotting import check
from slq_ways import WAYS, truth

NETWORK, SIZES = Network("64-50-50-10", "ReLU", (64, 50, 50, 10), 200), (64, 128)
SMALL, FEW = Network("small", "ReLU", (12, 10, 8, 4), 40), (16, 40)
SHARES = (0.1, 0.03, 0.01)
NEEDED = {"rankmon": "matfree", "curvlinops": "curvlinops", "PyHessian": "pyhessian"}
# For each library that multiplies matrices.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"
}


def child(way, quick, cuts):
    """Measure one way, and print CPU seconds and counts as JSON."""
    network, sizes = (SMALL, FEW) if quick else (NETWORK, SIZES)
    counts = WAYS[way](network, *sizes)
    counts(cuts)
    begun = time.process_time()
    found = counts(cuts)
    print(json.dumps({"seconds": time.process_time() - begun, "counts": found}))


def measured(way, quick, cuts):
    """Measure one way in a child process; return None if its library is missing."""
    if importlib.util.find_spec(NEEDED[way]) is None:
        print(f"{way:17} not run: {NEEDED[way]} is not installed: pip install -e '.[benchmark]'")
        return None
    command = [sys.executable, __file__, "--child", way, json.dumps(cuts)] + ["--quick"] * quick
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | ONE_THREAD)
    return json.loads(done.stdout)


def cell(count, truth):
    """Return a count with its relative error, and its interval if it has one, as text."""
    value, *interval = count
    between = " [{:.0f}, {:.0f}]".format(*interval) if interval else ""
    return f"{value:.0f} ({100 * (value / truth - 1):+.1f} %){between}"


def main():
    """Measure, print the table, and check rankmon's intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.quick, json.loads(options.child[1]))
        return
    spectrum = truth(SMALL if options.quick else NETWORK)
    cuts = [float(share * spectrum[0]) for share in SHARES]
    true = [int(np.sum(spectrum > cut)) for cut in cuts]
    print(f"{'|eigenvalue| >':26}" + "".join(f"{f'{c:g} of the norm':>30}" for c in SHARES))
    print(f"{'truth':26}" + "".join(f"{count:30}" for count in true))
    rows = {way: row for way in WAYS if (row := measured(way, options.quick, cuts))}
    for way, row in rows.items():
        cells = [cell(*pair) for pair in zip(row["counts"], true, strict=True)]
        print(f"{way:17}{row['seconds']:7.1f} s" + "".join(f"{text:>30}" for text in cells))
    ours = list(zip(rows["rankmon"]["counts"], true, strict=True))
    close = all(abs(value / t - 1) <= 0.03 for (value, *_), t in ours if t >= 50)
    check(
        {
            "rankmon's intervals hold the truth": all(
                low <= t <= high for (_, low, high), t in ours
            ),
            "rankmon's counts of 50 and more are within 3 % of it": close or options.quick,
        }
    )


if __name__ == "__main__":
    main()
