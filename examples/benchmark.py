"""Compare rankmon with the obvious ways to compute the same ranks, on the same weights and data.

Seconds are medians after warm-up; memory is the rise of the peak resident set. Each row is measured
in a process of its own. `benchmark_loop.py` measures the cost in a training loop.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

from benchmark_plot import save_bars, table_of, time_text
from peers import LARGEST_DENSE, MATRICES, NETWORKS, PARTS, QUICK, Network
from rankmon.theory import number_of_parameters, rank_functional, rank_loss, rank_outer

CHILD = Path(__file__).with_name("benchmark_child.py")


def measured(way: str, network: Network, quick: bool, sizes: list[int]) -> dict:
    """Return the numbers of this way, measured in a child process, or under "absent" why not."""
    p = number_of_parameters(network.dims)
    if way in MATRICES and p > LARGEST_DENSE:
        return {"absent": f"not run, p x p matrices: {MATRICES[way] * 8 * p * p / 2**30:.3g} GiB"}
    warmups, repeats = (1, 2) if quick or p > LARGEST_DENSE else (2, 5)
    numbers = (asdict(network), warmups, repeats, sizes)
    command = [sys.executable, str(CHILD), way, *map(json.dumps, numbers)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"absent": f"failed: {textwrap.shorten(last, 70)}", "stderr": done.stderr}
    return json.loads(done.stdout)


def compared(networks, ways, quick: bool) -> dict[str, dict[str, dict]]:
    """Measure all ways on all networks, one after another."""
    results: dict[str, dict[str, dict]] = {}
    for network in networks:
        found = results.setdefault(network.name, {})
        for way in ways:
            sizes = [size for size in found["rankmon"].get("sizes", []) if size] if found else []
            too_long = quick and way in ("PyTorch", "curvlinops") and network.kind == "linear"
            if too_long or (way == "floor" and not sizes):
                continue
            print(f"measuring {network.name}: {way}", end=" ... ", file=sys.stderr, flush=True)
            found[way] = row = measured(way, network, quick, sizes)
            text = row["absent"] if "absent" in row else time_text(row["seconds"])
            print(text, file=sys.stderr, flush=True)
    return results


def bounds_of(results: dict[str, dict[str, dict]]) -> list[tuple[str, str, bool]]:
    """Return each promised bound with the measured value and whether the bound holds."""

    def seconds(network: str, way: str) -> float:
        return results[network].get(way, {}).get("seconds", float("nan"))

    own = {name: seconds(name, "rankmon") for name in results}
    wide = results["wide"]["rankmon"]
    gib = wide.get("peak_bytes", float("nan")) / 2**30
    kinds = (rank_loss, rank_outer, rank_functional, rank_functional)
    theory = [rank(NETWORKS[-1].dims, r=64, s=10) for rank in kinds]
    ranks = [wide.get("ranks", {}).get(part) for part in PARTS]
    faster = {name: seconds(name, "JAX") / own[name] for name in ("S1", "S2")}
    floor = own["S1"] / seconds("S1", "floor")
    return [
        ("S1: at least 15 times faster than JAX", f"{faster['S1']:.3g}", faster["S1"] >= 15),
        ("S1: at most 1.5 times the floor", f"{floor:.3g}", floor <= 1.5),
        ("S2: at least 3 times faster than JAX", f"{faster['S2']:.3g}", faster["S2"] >= 3),
        ("wide: at most 90 s", f"{own['wide']:.3g} s", own["wide"] <= 90),
        ("wide: at most 4 GiB", f"{gib:.3g} GiB", gib <= 4),
        (f"wide: ranks of theory {theory}", f"{ranks}", ranks == theory),
    ]


def agreement(results: dict[str, dict[str, dict]]) -> list[tuple[str, str, bool]]:
    """Return for each network the ranks of rankmon and whether JAX counts the same."""
    what = "JAX counts what rankmon counts"
    pairs = {n: [f[w].get("ranks") for w in ("rankmon", "JAX")] for n, f in results.items()}
    return [
        (f"{n}: {what}", f"{own}", own == other is not None) for n, (own, other) in pairs.items()
    ]


def main() -> None:
    """Measure, write the table, the numbers and the bar chart, and check the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/benchmark"))
    parser.add_argument("--quick", action="store_true", help="tiny networks, some seconds")
    options = parser.parse_args()
    ways = ["rankmon", "floor", "engine dense", "JAX"]
    for way, module in (("PyTorch", "torch"), ("curvlinops", "curvlinops")):
        if importlib.util.find_spec(module):
            ways.append(way)
        else:
            print(f"{module} is not installed: pip install -e '.[benchmark]'")
    networks = QUICK if options.quick else NETWORKS
    results = compared(networks, ways, options.quick)
    bounds = agreement(results) if options.quick else bounds_of(results)
    verdicts = [f"{'kept' if ok else 'NOT KEPT':9} {what}: {value}" for what, value, ok in bounds]
    text = "\n".join([table_of(networks, results), "", *verdicts])
    print(text)
    options.logdir.mkdir(parents=True, exist_ok=True)
    (options.logdir / "benchmark.txt").write_text(text + "\n")
    threads = {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}
    raw = {"cores": os.cpu_count(), "threads": threads, "results": results}
    (options.logdir / "benchmark.json").write_text(json.dumps(raw, indent=1) + "\n")
    save_bars(networks, results, options.logdir / "benchmark.png")
    if not all(ok for *_, ok in bounds):
        raise SystemExit("a bound is not kept")


if __name__ == "__main__":
    main()
