"""H_o's rank at a million parameters: seconds, peak memory, and a small twin measured densely.

Softmax over k classes has one direction in which nothing changes: with a generic batch of n
examples the rank is n (k - 1). Each row is a process of its own, so that its memory is its own.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np

from large_cnn import CNN
from plotting import check
from rankmon import Problem, hessian_ranks, outer_rank  # here, so that no measurement loads them

LARGE = {"dims": (784, 1000, 190, 150, 10), "side": 28, "width": 650, "n": 128}
SMALL = {"dims": (64, 30, 12, 10, 5), "side": 8, "width": 8, "n": 12}
SECONDS, GIB = 120, 6


def stated(apply, params, inputs, k):
    """The problem with these inputs, every class in turn, and its parameters."""
    targets = np.arange(len(inputs)) % k
    return Problem(apply, loss="cross_entropy", inputs=inputs, targets=targets), params


def relu(size, layer=lambda x, w: x @ w):
    """A ReLU network."""
    rng, dims = np.random.default_rng(0), size["dims"]
    shapes = zip(dims, dims[1:], strict=False)
    params = [(rng.standard_normal(s) * np.sqrt(2 / s[0])).astype(np.float32) for s in shapes]

    def apply(weights, x):
        for w in weights[:-1]:
            x = jax.nn.relu(layer(x, w))
        return layer(x, weights[-1])

    return stated(apply, params, rng.standard_normal((size["n"], dims[0])), dims[-1])


def used_twice(size):
    """The same with each kernel used twice, so that nothing is recognized."""
    return relu(size, lambda x, w: (x @ w + x[:, ::-1] @ w) / 2)


def convolutional(size):
    """The Linen CNN of large_cnn.py."""
    shape = (size["n"], size["side"], size["side"], 1)
    images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    cnn = CNN(width=size["width"])
    params = cnn.init(jax.random.key(0), images[:1])
    return stated(cnn.apply, params, images, 10)


ROWS = {
    "ReLU, dense layers": (relu, "auto"),
    "the same by QR": (relu, "qr"),
    "Linen CNN": (convolutional, "auto"),
    "each kernel used twice": (used_twice, "auto"),
}


def measured(row, size):
    """The `OuterRank`, seconds of the first and of the second time, and peak GiB."""
    make, method = ROWS[row]
    problem, params = make(size)
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        found = outer_rank(problem, params, method=method)
        seconds.append(time.perf_counter() - begun)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found, *seconds, gib


def as_dense_engine(row):
    """Whether the small twin has the rank that dense matrices give."""
    make, method = ROWS[row]
    problem, params = make(SMALL)
    dense = hessian_ranks(problem, params, engine="dense")["H_o"]
    return outer_rank(problem, params, method=method).rank == dense.rank


def main():
    """Prints a row for each network and way, and whether what is promised is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks")
    size = SMALL if parser.parse_args().quick else LARGE
    kept = {}
    print(f"{'':26}{'p':>10}{'rank':>7}{'first':>9}{'then':>9}{'memory':>10}")
    for row in ROWS:
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            found, first, then, gib = pool.submit(measured, row, size).result()
        print(f"{row:26}{found.size:10,}{found.rank:7}{first:7.1f} s{then:7.1f} s{gib:6.1f} GiB")
        if size is LARGE:  # in the narrow CNN units die, and the rank is less than n (k - 1)
            exact = found.certain and found.rank == size["n"] * (size["dims"][-1] - 1)
            within = first <= SECONDS and gib <= GIB
            kept[f"{row}: exact, in {SECONDS} s and {GIB} GiB"] = exact and within
        kept[f"{row}: the small twin as the dense engine"] = as_dense_engine(row)
    check(kept)


if __name__ == "__main__":
    main()
