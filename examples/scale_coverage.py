"""How often a sketch's interval contains the true rank, for up to a million parameters.

The networks are linear, with known ranks; each seed draws other weights, inputs and teacher.
"""

import argparse
import time

import numpy as np

from plotting import check
from rankmon import Problem, hessian_ranks, theory  # here, so that no measurement loads them

# Widths (d, M_1, ..., K) and n: p = 10,005, 29,985, 100,060 and 1,000,020.
NETWORKS = (
    ((130, 60, 35, 3), 40),
    ((400, 60, 95, 3), 40),
    ((5000, 20, 3), 20),
    ((100000, 10, 2), 20),
)
QUICK = (((30, 12, 10, 3), 20),)
MEMORY = 6 * 2**30


def linear(weights, x):
    """Return W^L ... W^1 x."""
    for w in weights:
        x = x @ w
    return x


def drawn(dims, n, seed):
    """Draw a problem and weights with this seed."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(s) / np.sqrt(s[0]) for s in zip(dims, dims[1:], strict=False)]
    x = rng.standard_normal((n, dims[0]))
    y = x @ rng.standard_normal((dims[0], dims[-1])) / np.sqrt(dims[0])
    return Problem(linear, loss="mse", inputs=x, targets=y), weights


def truth(dims, n):
    """Return the ranks by the closed forms."""
    r = min(n, dims[0])
    s = min(r, dims[-1])
    return {
        "H_L": theory.rank_loss(dims, r=r, s=s),
        "H_o": theory.rank_outer(dims, r=r),
        "H_f": theory.rank_functional(dims, r=r, s=s),
    }


def main():
    """Print a row for each network, and check the promises."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small network, four seeds")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    networks, seeds = (QUICK, 4) if options.quick else (NETWORKS, options.seeds)
    print(f"{'p':>10}{'H_L':>7}{'H_f':>7}{'held':>8}{'exact':>8}{'seconds':>10}")
    held = exact = total = 0
    for dims, n in networks:
        expected = truth(dims, n)
        inside = same = 0
        seconds = []
        for seed in range(seeds):
            problem, weights = drawn(dims, n, seed)
            begun = time.perf_counter()
            found = hessian_ranks(
                problem, weights, engine="sketch", memory_limit=MEMORY, time_limit=600
            )
            seconds.append(time.perf_counter() - begun)
            for part in ("H_L", "H_f"):  # H_o is always exact
                inside += found[part].low <= expected[part] <= found[part].high
                same += found[part].rank == expected[part] and found[part].certain
        p = theory.number_of_parameters(dims)
        print(
            f"{p:10,}{expected['H_L']:7}{expected['H_f']:7}{inside:5}/{2 * seeds:<2}"
            f"{same:5}/{2 * seeds:<2}{np.median(seconds):10.1f}",
            flush=True,
        )
        held, exact, total = held + inside, exact + same, total + 2 * seeds
    check(
        {
            f"the interval holds the truth: {held} of {total}": held >= 0.95 * total,
            f"exact, and low = high, where the gap is clear: {exact} of {total}": exact == total,
        }
    )


if __name__ == "__main__":
    main()
