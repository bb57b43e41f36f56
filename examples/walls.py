"""Walls of H_f: at isolated moments of training rank H_f falls by 2, and rank H_L stays.

A linear network 3-3-3-3 is trained by gradient descent. H_f loses two ranks if two eigenvalues of
(W^3 W^2 W^1)^T Omega are lambda and -lambda (docs/theory.md). Training crosses such a wall between
two steps. The crossing is found on the line between them, by a step with a part of the rate.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

import rankmon
from networks import linear
from plotting import check, series
from walls_picture import save_walls

jax.config.update("jax_enable_x64", True)

WIDTH, LAYERS, EXAMPLES, RATE = 3, 3, 20, 0.002
FULL = LAYERS * WIDTH**2  # p: the rank of H_f and H_L if the residual is in general position
RNG = np.random.default_rng(5)
X = RNG.normal(size=(EXAMPLES, WIDTH))
Y = X @ RNG.normal(size=(WIDTH, WIDTH)).T
START = [RNG.normal(size=(WIDTH, WIDTH)).T / WIDTH**0.5 for _ in range(LAYERS)]
PROBLEM = rankmon.Problem(linear, loss="mse", inputs=X, targets=Y)


@jax.jit
def after(weights, rate):
    """Return the weights after a step of gradient descent with this rate."""
    gradient = jax.grad(lambda w: 0.5 * jnp.mean(jnp.sum((linear(w, X) - Y) ** 2, axis=1)))(weights)
    return [w - rate * g for w, g in zip(weights, gradient, strict=True)]


@jax.jit
def matrix(weights):
    """Return (W^3 W^2 W^1)^T Omega; the kernels are stored (in, out)."""
    product = linear(weights, jnp.eye(WIDTH))
    return product @ (X @ product - Y).T @ X / EXAMPLES


def sums(weights):
    """Return the sums of two eigenvalues; those that are complex come in pairs."""
    values = np.linalg.eigvals(matrix(weights))
    return np.array([a + b for i, a in enumerate(values) for b in values[:i]])


def side(weights):
    """Return the product of these sums: it is real, and changes its sign at a wall."""
    return np.prod(sums(weights)).real


def smallest(weights):
    """Return the three smallest absolute eigenvalues of H_f."""
    spectrum = rankmon.hessian_spectra(PROBLEM, weights, parts=("H_f",))["H_f"]
    return np.sort(np.abs(spectrum))[:3]


def crossing(step, weights):
    """Find the wall between this step and the next; return its time, ranks and the approach."""
    part = brentq(lambda rate: side(after(weights, rate)), 0, RATE, xtol=1e-18)
    at, time = after(weights, part), step * RATE + part
    ranks = rankmon.hessian_ranks(PROBLEM, at, parts=("H_f", "H_L"))
    values = np.array2string(np.sort(np.linalg.eigvals(matrix(at))), precision=4)
    print(f"{time:9.6f}  {values:26}{np.abs(sums(at)).min():8.1e}", end="")
    print("".join(f"{value:9.1e}" for value in smallest(at)), end="")
    print("".join(f"{f'{ranks[k].low}..{ranks[k].high}':>8}" for k in ("H_f", "H_L")))
    distances = np.geomspace(1e-13, part, 23)
    vanishing = np.array([smallest(after(weights, part - distance)) for distance in distances])
    return time, ranks, (distances, vanishing, ranks["H_f"].tolerance)


def claims(records, walls, expected):
    """Return the claims about the probes and the walls, and whether each holds."""
    found = {f"training crosses {len(walls)} walls": len(walls) == expected}
    for part, rank in (("H_f", FULL - 2), ("H_L", FULL)):
        low, measured, high = (series(records, f"{k}/{part}")[1]
                               for k in ("rank_low", "rank", "rank_high"))  # fmt: skip
        certain = (low == measured) & (measured == high)
        claim = f"rank {part} is {FULL} at the {certain.sum()} probes with low = rank = high"
        found[claim] = np.mean(certain) > 0.5 and set(measured[certain]) == {FULL}
        at = {(r.low, r.rank, r.high) for r in (ranks[part] for _, ranks, _ in walls)}
        found[f"at the walls it is {rank}, with low = rank = high"] = at == {(rank, rank, rank)}
    distances, vanishing, _ = walls[0][-1]
    slope = np.polyfit(np.log(distances[8:]), np.log(vanishing[8:, 1]), 1)[0]
    found[f"eigenvalues vanish like distance^{slope:.3f}"] = abs(slope - 1) < 0.02
    return found


def main():
    """Train, measure at the walls, draw, and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs") / "walls")
    parser.add_argument("--quick", action="store_true", help="stop after the second wall")
    options = parser.parse_args()
    weights, path, walls, steps = START, [], [], 200 if options.quick else 700
    print("     time  the three eigenvalues        a sum    three smallest of H_f    H_f     H_L")
    with rankmon.RankMonitor(PROBLEM, logdir=options.logdir, every=10) as monitor:
        for step in range(steps + 1):
            monitor(step, weights)
            path.append(sums(weights))
            following = after(weights, RATE)
            if side(weights) * side(following) < 0:
                walls.append(crossing(step, weights))
            weights = following
    records = rankmon.read_jsonl(options.logdir / "rankmon.jsonl")
    picture = save_walls(records, path, walls, RATE, options.logdir / "walls.png")
    print(f"\n{picture}\nSee the curves: tensorboard --logdir {options.logdir}\n")
    check(claims(records, walls, 2 if options.quick else 3))


if __name__ == "__main__":
    main()
