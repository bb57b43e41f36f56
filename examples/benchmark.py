"""What the monitor costs: a call that is not due, a probe, and the memory that assembly takes.

Times are medians after warm-up; memory is the growth of the process's peak resident set, measured
in a process of its own for each memory_limit.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import rankmon
from networks import glorot_normal, linear, relu
from rankmon.curvature import dense_bytes

MIB = 2**20


def setting(dims, n, apply):
    """Random weights and a problem of this size, in float32 as users have it."""
    weights = glorot_normal(jax.random.key(0), dims)
    x = jax.random.normal(jax.random.key(1), (n, dims[0]))
    y = jax.random.normal(jax.random.key(2), (n, dims[-1]))
    return weights, rankmon.Problem(apply, loss="mse", inputs=x, targets=y)


def idle_call(calls=100_000, repeats=5):
    """Microseconds of a call that is not due."""
    weights, problem = setting((4, 3, 2), 8, linear)
    monitor = rankmon.RankMonitor(problem, every=10**9, probes=["weights"])
    monitor(0, weights)

    def once(first):
        began = time.perf_counter()
        for step in range(first, first + calls):
            monitor(step, weights)
        return (time.perf_counter() - began) / calls * 1e6

    return statistics.median(once(1 + i * calls) for i in range(repeats))


def probe_seconds(dims, n, apply, repeats):
    """Seconds of a probe of all ranks, from the second on."""
    weights, problem = setting(dims, n, apply)
    monitor = rankmon.RankMonitor(problem, every=1)
    seconds = []
    for step in range(repeats + 1):
        weights = jax.tree.map(lambda w: w * (1 + 1e-3 * jnp.sign(w)), weights)
        seconds.append(monitor(step, weights).scalars["monitor/seconds"])
    return statistics.median(seconds[1:])


def peak_growth(dims, limit):
    """Bytes by which one probe raises the peak of the resident set; for a process of its own."""
    small, problem = setting((4, 3, 2), 8, relu)
    rankmon.hessian_ranks(problem, small)  # JAX's compiler and LAPACK are in memory from here on
    weights, problem = setting(dims, 300, relu)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rankmon.hessian_ranks(problem, weights, reference=np.ones((300, dims[-1])), memory_limit=limit)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/benchmark"))
    parser.add_argument("--quick", action="store_true", help="small networks, some seconds")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_growth(*options.peak))
        return
    dims = (12, 10, 8, 6, 4) if options.quick else (30, 25, 20, 15, 10)
    wide = (20, 20, 20, 10) if options.quick else (64, 40, 30, 10)
    p = rankmon.theory.number_of_parameters(wide)

    idle = idle_call()
    rows = [("a call that is not due", f"{idle:.2f} us", "under 10 us")]
    for name, apply in (("linear", linear), ("ReLU", relu)):
        seconds = probe_seconds(dims, 300, apply, repeats=5)
        title = f"a probe, {name} {'-'.join(map(str, dims))}, N = 300"
        rows.append((title, f"{seconds:.2f} s", "all four parts and weights"))
    over = []
    for spare in (64, 512):
        limit = dense_bytes(p) + spare * MIB
        child = [sys.executable, __file__, "--peak", json.dumps([wide, limit])]
        grown = int(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
        title = f"peak memory of a probe, p = {p}, memory_limit {limit / MIB:.0f} MiB"
        rows.append((title, f"{grown / MIB:.0f} MiB", "under memory_limit"))
        over.append(grown > limit)
    table = "\n".join(f"{what:66}{value:>12}   {note}" for what, value, note in rows)
    print(table)
    options.logdir.mkdir(parents=True, exist_ok=True)
    (options.logdir / "benchmark.txt").write_text(table + "\n")
    if idle >= 10 or any(over):
        raise SystemExit("a bound is not kept")


if __name__ == "__main__":
    main()
