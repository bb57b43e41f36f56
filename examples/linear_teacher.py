"""Figures 5 and S1: a deep linear network learns a linear teacher, and H_L falls onto H_o.

Linear network 30-25-20-15-10, inputs N(0, I), targets from a Gaussian teacher, full-batch gradient
descent on the sum of squared errors 1/2 ||F - y||^2 in float64, learning rate 9e-5.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import trange

import rankmon
from networks import glorot_normal, linear
from plotting import Phase, finish, save_rank_evolution, series

# Training in float32 stops at a loss near 1e-10, at which H_f has not vanished.
jax.config.update("jax_enable_x64", True)


def main():
    """Train, monitor, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/linear_teacher"))
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="epochs from probe to probe")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="12-10-8-6-4, some seconds")
    options = parser.parse_args()
    dims = (12, 10, 8, 6, 4) if options.quick else (30, 25, 20, 15, 10)
    examples, rate = (46, 9e-4) if options.quick else (115, 9e-5)

    weights_key, data_key, teacher_key = jax.random.split(jax.random.key(options.seed), 3)
    weights = glorot_normal(weights_key, dims)
    x = jax.random.normal(data_key, (examples, dims[0]))
    y = x @ jax.random.normal(teacher_key, (dims[0], dims[-1]))

    @jax.jit
    def train_step(weights):
        gradient = jax.grad(lambda w: 0.5 * jnp.sum((linear(w, x) - y) ** 2))(weights)
        return [w - rate * g for w, g in zip(weights, gradient, strict=True)]

    problem = rankmon.Problem(linear, loss="mse", inputs=x, targets=y)
    with rankmon.RankMonitor(problem, logdir=options.logdir, every=options.every) as monitor:
        for epoch in trange(options.epochs + 1, unit="epoch", mininterval=1):
            monitor(epoch, weights)
            weights = train_step(weights)

    records = rankmon.read_jsonl(options.logdir / "rankmon.jsonl")
    figure = options.logdir / "ranks.png"
    name = "-".join(map(str, dims))
    title = f"Linear network {name} under a linear teacher"
    save_rank_evolution(records, figure, title=title, phases=[Phase(0, "", "epoch")])
    finish(records, figure, options.logdir, claims(records, dims))


def claims(records, dims):
    """Check the statements of figure S1, and the predictions at every probe."""
    predicted = rankmon.theory.rank_loss(dims), rankmon.theory.rank_outer(dims)
    expected = dict(zip(("H_L", "H_o"), predicted, strict=True))
    expected["H_f"] = expected["H_f_fixed"] = rankmon.theory.rank_functional(dims)
    first, last = records[0].scalars, records[-1].scalars
    # If all of H_f is below the cut, the residual is rounding error relative to H_L.
    signal = [r.scalars for r in records if r.scalars["rank_high/H_f"] > 0]
    certain = [
        (s[f"rank/{part}"], s[f"rank_theory/{part}"])
        for s in (r.scalars for r in records)
        if all(s[f"rank_low/{p}"] == s[f"rank_high/{p}"] for p in expected)
        for part in expected
    ]
    return {
        f"at step 0 the ranks are theory's: {expected}": all(
            first[f"rank/{part}"] == rank for part, rank in expected.items()
        ),
        "H_o and H_f_fixed stay there at every probe": all(
            (series(records, f"rank/{part}")[1] == expected[part]).all()
            for part in ("H_o", "H_f_fixed")
        ),
        "the weights keep full rank": all(
            (series(records, f"rank_weights/{i}")[1] == min(shape)).all()
            for i, shape in enumerate(zip(dims, dims[1:], strict=False))
        ),
        "at the end H_f = 0 and H_L = H_o": last["rank/H_f"] == 0
        and last["rank/H_L"] == expected["H_o"],
        f"rank_self/H_f = rank_theory/H_f at the {len(signal)} probes before H_f is noise": all(
            s["rank_self/H_f"] == s["rank_theory/H_f"] for s in signal
        ),
        f"ranks with low = high for all parts equal theory ({len(certain)} of them)": bool(certain)
        and all(rank == theory for rank, theory in certain),
    }


if __name__ == "__main__":
    main()
