"""Measure one way to count ranks in this process; print seconds, ranks and peak memory as JSON.

`python examples/benchmark_child.py WAY NETWORK WARMUPS REPEATS SIZES`, as `benchmark.py` calls it.
"""

import itertools
import json
import resource
import statistics
import sys
import time
from functools import partial

import numpy as np

import peers
from peers import PARTS, Network, Way

TINY = Network("tiny", "linear", (4, 3, 2), 8)


def problem_of(network: Network):
    """Return the problem that rankmon measures."""
    import jax

    import rankmon

    _, x, y = network.data()
    apply = partial(network.apply, jax.nn.relu)
    return rankmon.Problem(apply, loss="mse", inputs=x, targets=y)


def engine(network: Network, name: str) -> Way:
    """Return a function that counts ranks by `rankmon.hessian_ranks` with one engine."""
    import rankmon

    problem, held = problem_of(network), network.held()

    def ranks(weights):
        found = rankmon.hessian_ranks(problem, weights, reference=held, engine=name)
        return {part: rank.rank for part, rank in found.items()}

    return ranks


def monitor(network: Network) -> Way:
    """Return a function that counts ranks by a step of RankMonitor.

    It also returns the monitor/seconds of the record and the number of eigenvalues of each part.
    """
    import rankmon

    hessian = rankmon.HessianProbe(time_limit=300)  # exact ranks, also of the largest network
    probes = [hessian, "weights"]
    watch = rankmon.RankMonitor(problem_of(network), every=1, probes=probes, on_error="raise")
    steps = itertools.count()

    def ranks(weights):
        record = watch(next(steps), weights)
        found = {part: int(record.scalars[f"rank/{part}"]) for part in PARTS}
        for i in range(len(weights)):
            found[f"W{i + 1}"] = int(record.scalars[f"rank_weights/{i}"])
        sizes = [record.arrays[f"spectrum/{part}"].size for part in PARTS]
        return found | {"sizes": sizes, "seconds": record.scalars["monitor/seconds"]}

    return ranks


def floor(network: Network, sizes: list[int]) -> Way:
    """Return a function that only times LAPACK on random symmetric matrices of rankmon's sizes."""
    import scipy.linalg

    rng = np.random.default_rng(0)
    matrices = [m + m.T for m in (rng.normal(size=(size, size)) for size in sizes)]

    def ranks(weights):
        seconds = []
        for matrix in matrices:
            began = time.perf_counter()
            scipy.linalg.eigvalsh(matrix)
            seconds.append(time.perf_counter() - began)
        return {"each": seconds}

    return ranks


WAYS = {
    "rankmon": monitor,
    "JAX": peers.obvious_jax,
    "PyTorch": peers.pytorch,
    "curvlinops": peers.curvlinops,
    "engine dense": partial(engine, name="dense"),
}


def peak() -> int:
    """Return the peak of this process's resident set in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(way: str, network: Network, warmups: int, repeats: int, sizes: list[int]) -> dict:
    """Return medians over the repeats, the ranks of the last one, and the rise of peak memory.

    The weights change slightly before each call. A call on a tiny network comes first, so that
    the memory of compilers and LAPACK is not counted.
    """
    ways = WAYS | {"floor": partial(floor, sizes=sizes)}
    ways[way](TINY)(TINY.data()[0])
    before, count, seconds, each = peak(), ways[way](network), [], []
    weights = network.data()[0]
    for _ in range(warmups + repeats):
        weights = [w * (1 + 1e-3 * np.sign(w)) for w in weights]
        began = time.perf_counter()
        found = dict(count(weights))
        seconds.append(found.pop("seconds", time.perf_counter() - began))
        each.append(found.pop("each", [seconds[-1]]))
    # If a call is timed in parts, add the medians of the parts.
    median = sum(statistics.median(part) for part in zip(*each[warmups:], strict=True))
    return {
        "seconds": median,
        "all_seconds": seconds,
        "warmups": warmups,
        "peak_bytes": peak() - before,
        "sizes": found.pop("sizes", sizes),
        "ranks": found,
    }


if __name__ == "__main__":
    name, *numbers = (sys.argv[1], *(json.loads(argument) for argument in sys.argv[2:]))
    print(json.dumps(measured(name, Network(**numbers[0]), *numbers[1:])))
