"""Measure the cost of the monitor in a training loop: idle calls, memory, wall time, 1,000 probes.

Each number is measured in a process of its own and printed with the bound that it must keep.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rankmon.hessian.memory import dense_bytes
from rankmon.theory import number_of_parameters

MIB = 2**20
CHILD = Path(__file__).with_name("loop_costs.py")


def child(name: str, *arguments):
    """Call a function of `loop_costs` in a new process with one BLAS thread; return its result."""
    print(f"measuring: {name}{arguments}", file=sys.stderr, flush=True)
    command = [sys.executable, str(CHILD), name, json.dumps(arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(
            f"expected a figure of {name}, got exit status {done.returncode}; see above"
        )
    return json.loads(done.stdout)


def idle_rows():
    """Yield the row of a call at a step that is not due."""
    micros = child("idle_call")
    yield "a call that is not due", f"{micros:.2f} us", "under 10 us", micros < 10


def memory_rows(dims):
    """Yield the peak memory of a measurement of a ReLU network under two limits."""
    p = number_of_parameters(dims)
    for spare in (64, 512):
        limit = dense_bytes(p) + spare * MIB
        grown = child("peak_growth", dims, limit)
        what = f"peak memory of a probe, ReLU, p = {p:,}"
        bound = f"under memory_limit, {limit / MIB:.0f} MiB"
        yield what, f"{grown / MIB:.0f} MiB", bound, grown <= limit


def overhead_rows(dims, seconds, pairs, enforced):
    """Yield the rows that compare training with a monitor in the background and without."""
    runs = child("overhead", dims, seconds, pairs)
    ratio = statistics.median(watched / bare for bare, watched, *_ in runs)
    bare, _, drain, probes, share = (
        statistics.median(column) for column in zip(*runs, strict=True)
    )
    bound = "at most 1.08" if enforced else "not checked in --quick"
    what = f"wall time with / without the monitor, {bare:.3g} s, {pairs} pairs"
    yield what, f"{ratio:.3f}", bound, ratio <= 1.08 or not enforced
    yield "  of it the drain at close (counted above)", f"{drain:.2f} s", "", True
    yield "  probes made; of every 50th step", f"{probes:.0f}", "", True
    yield "  monitor/overhead, of 0.05 asked", f"{share:.3f}", "", True


def endurance_rows(dims, probes, engine, enforced):
    """Yield the rows of many probes in one process, by one engine."""
    early, late, compiled, versions = child("endurance", dims, probes, engine)
    growth = late / early - 1
    bound = "under 2 %" if enforced else "not checked in --quick"
    what = f"{engine}: resident memory, probe 10 to {probes}, {late / MIB:.0f} MiB"
    yield what, f"{100 * growth:+.2f} %", bound, growth < 0.02 or not enforced
    yield "compilations after the second probe", f"{compiled}", "0", compiled == 0
    yield "compiled versions of the train step", f"{versions}", "1", versions == 1


def main() -> None:
    """Measure and print; exit with an error if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/benchmark"))
    parser.add_argument("--seconds", type=float, default=60, help="of a loop without the monitor")
    parser.add_argument("--quick", action="store_true", help="small networks, short loops")
    options = parser.parse_args()
    quick = options.quick
    network = (12, 10, 8, 6, 4) if quick else (30, 25, 20, 15, 10)
    groups = (
        idle_rows(),
        memory_rows((20, 20, 20, 10) if quick else (64, 40, 30, 10)),
        *(
            endurance_rows((12, 10, 8, 6, 4), 30 if quick else 1000, engine, not quick)
            for engine in ("deep_linear", "stack", "dense")
        ),
        overhead_rows(network, 2 if quick else options.seconds, 2 if quick else 5, not quick),
    )
    lines, broken = [], False
    for what, value, bound, kept in (row for group in groups for row in group):
        verdict = ("kept" if kept else "NOT KEPT") if bound else ""
        lines.append(f"{verdict:9} {what:58}{value:>11}   {bound}")
        print(lines[-1], flush=True)
        broken |= not kept
    options.logdir.mkdir(parents=True, exist_ok=True)
    (options.logdir / "benchmark_loop.txt").write_text("\n".join(lines) + "\n")
    if broken:
        raise SystemExit("a bound is not kept")


if __name__ == "__main__":
    main()
