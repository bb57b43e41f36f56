"""H_o's rank at a million parameters: seconds, peak memory, and small networks checked densely.

Softmax does not change if all k logits are shifted, so that a generic batch of n examples has rank
n (k - 1). Each row is measured in a process of its own, so that memory is counted separately.
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
    """Return the problem with these inputs and with every class in turn, and the parameters."""
    targets = np.arange(len(inputs)) % k
    return Problem(apply, loss="cross_entropy", inputs=inputs, targets=targets), params


def relu(size, layer=lambda x, w: x @ w):
    """Return the problem of a ReLU network, and its parameters."""
    rng, dims = np.random.default_rng(0), size["dims"]
    shapes = zip(dims, dims[1:], strict=False)
    params = [(rng.standard_normal(s) * np.sqrt(2 / s[0])).astype(np.float32) for s in shapes]

    def apply(weights, x):
        for w in weights[:-1]:
            x = jax.nn.relu(layer(x, w))
        return layer(x, weights[-1])

    return stated(apply, params, rng.standard_normal((size["n"], dims[0])), dims[-1])


def used_twice(size):
    """Return the same with each kernel used twice, so that no layer is recognized."""
    return relu(size, lambda x, w: (x @ w + x[:, ::-1] @ w) / 2)


def convolutional(size):
    """Return the problem of the Linen CNN in large_cnn.py, and its parameters."""
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
    """Return the `OuterRank`, the seconds of a first and of a second call, and peak GiB."""
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
    """Return whether the small network has the rank that dense matrices give."""
    make, method = ROWS[row]
    problem, params = make(SMALL)
    dense = hessian_ranks(problem, params, engine="dense")["H_o"]
    return outer_rank(problem, params, method=method).rank == dense.rank


def main():
    """Print a row for each network and method, and check the promises."""
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
        if size is LARGE:  # dead units of the narrow CNN lower the rank below n (k - 1)
            exact = found.certain and found.rank == size["n"] * (size["dims"][-1] - 1)
            within = first <= SECONDS and gib <= GIB
            kept[f"{row}: exact, in {SECONDS} s and {GIB} GiB"] = exact and within
        kept[f"{row}: the small twin as the dense engine"] = as_dense_engine(row)
    check(kept)


if __name__ == "__main__":
    main()
