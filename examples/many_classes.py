"""Cross entropy with 16,000 classes: the memory of the ranks; small cases checked by autodiff.

One output Hessian, diag(p) - p p^T, would take 2 GB here. Each row is measured in a process of its
own, so that memory is counted separately. Only the hidden layer is differentiated.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from plotting import check
from rankmon import (  # here, so that no measurement loads them
    Problem,
    hessian_ranks,
    hessian_spectra,
)

N, INPUTS, HIDDEN, LIMIT = 64, 32, 64, 2**30
INCLUDE = ["hidden/*"]


def stated(k, n):
    """Return the network's apply, its parameters, inputs and labels."""
    rng = np.random.default_rng(0)
    params = {
        "hidden": {
            "kernel": rng.standard_normal((INPUTS, HIDDEN)) / np.sqrt(INPUTS),
            "bias": 0.1 * rng.standard_normal(HIDDEN),
        },
        "last": rng.standard_normal((HIDDEN, k)) / np.sqrt(HIDDEN),
    }

    def apply(p, x):
        return jnp.tanh(x @ p["hidden"]["kernel"] + p["hidden"]["bias"]) @ p["last"]

    return apply, params, rng.standard_normal((n, INPUTS)), rng.integers(0, k, n)


def resident(field):
    """Return the resident bytes of this process, now ("VmRSS") or at their peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measured(k, n, engine, limit):
    """Measure the ranks of the parts, the seconds, and the growth of resident memory."""
    apply, params, x, labels = stated(k, n)
    options = {"loss": "cross_entropy", "inputs": x, "targets": labels, "include": INCLUDE}
    jax.block_until_ready(
        jnp.ones(1000) @ jnp.ones((1000, 1000))
    )  # loads the libraries for products
    before, begun = resident("VmRSS"), time.perf_counter()
    problem = Problem(apply, **options)
    ranks = hessian_ranks(problem, params, engine=engine, memory_limit=limit)
    seconds, grown = time.perf_counter() - begun, resident("VmHWM") - before
    return ranks, seconds, grown


def spectra(k, n):
    """Return the largest error of the parts' eigenvalues against plain autodiff, over the norm."""
    apply, params, x, labels = stated(k, n)
    problem = Problem(apply, loss="cross_entropy", inputs=x, targets=labels, include=INCLUDE)
    found = hessian_spectra(problem, params, memory_limit=LIMIT)
    with jax.enable_x64(True):
        theta, unravel = jax.flatten_util.ravel_pytree(params["hidden"])

        def outputs(t):
            return apply({"hidden": unravel(t), "last": params["last"]}, x)

        def loss(z):
            return -jnp.mean(jax.nn.log_softmax(z)[np.arange(n), labels])

        whole = np.asarray(jax.hessian(lambda t: loss(outputs(t)))(theta))
        J = np.asarray(jax.jacrev(outputs)(theta))
        p = np.asarray(jax.nn.softmax(outputs(theta)))
    centered = J - np.einsum("nk,nkp->np", p, J)[:, None]
    A = (np.sqrt(p / n)[:, :, None] * centered).reshape(n * k, -1)
    outer = A.T @ A
    exact = {"H_L": whole, "H_o": outer, "H_f": whole - outer}
    norm = np.linalg.norm(whole, 2)
    return max(
        np.max(np.abs(np.sort(found[part]) - np.linalg.eigvalsh(H))) / norm
        for part, H in exact.items()
    )


def alone(function, *arguments):
    """Call a function in a process of its own; return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main():
    """Measure the rows and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=16_000)
    parser.add_argument("--quick", action="store_true", help="400 classes and 8 examples")
    parser.add_argument("--engine", default="auto")
    args = parser.parse_args()
    n = 8 if args.quick else N
    kept = {}
    for k in (50, 400):
        error = alone(spectra, k, n)
        print(f"{k} classes: eigenvalues are off from autodiff by {error:.1e} ||H||")
        kept[f"{k} classes: as by autodiff"] = error < 1e-12
    k = 400 if args.quick else args.classes
    ranks, seconds, grown = alone(measured, k, n, args.engine, LIMIT)
    counts = {part: rank.rank for part, rank in ranks.items()}
    print(f"{k:,} classes, {n} examples: {counts}, {seconds:.0f} s, {grown / 2**20:,.0f} MiB more")
    kept["memory grows by the limit at the most"] = grown <= LIMIT
    check(kept)


if __name__ == "__main__":
    main()
