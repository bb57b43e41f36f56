"""One hidden layer of ReLUs: rank H_f exactly, and a bound on rank H_o that is mostly met.

First a network 2-24-2 is trained by gradient descent from small weights: its units align, so that
more and more of them have the same slopes on the batch, and rank H_o falls with the bound. Then
random networks of widths 1 to 12 are counted by SVDs without rankmon.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import rankmon
from hidden_counts import counted
from networks import relu
from plotting import add_legend, check, draw_hessian_ranks, draw_loss, plt, save, series
from rankmon.monitor.schedule import at_steps
from rankmon.report.style import BLUE, VERMILION
from rankmon.runs.series import ScalarSeries

jax.config.update("jax_enable_x64", True)

DIMS, TEACHER, SAMPLES, SCALE, RATE = (2, 24, 2), 3, 60, 0.05, 0.1


def trained(options):
    """Train on the outputs of a small teacher with the monitor, and return the records."""
    keys = jax.random.split(jax.random.key(options.seed), 5)
    d, M, K = DIMS
    x = jax.random.normal(keys[0], (SAMPLES, d))
    shapes = (d, TEACHER), (TEACHER, K), (d, M), (M, K)
    teacher, out, first, second = map(jax.random.normal, keys[1:], shapes)
    y = relu([teacher, out], x)
    weights = [SCALE * first, SCALE * second]
    problem = rankmon.Problem(relu, loss="mse", inputs=x, targets=y)

    @jax.jit
    def descend(weights, steps):
        def loss(weights):
            return 0.5 * jnp.mean(jnp.sum((relu(weights, x) - y) ** 2, axis=1))

        def step(_, weights):
            return jax.tree.map(lambda w, g: w - RATE * g, weights, jax.grad(loss)(weights))

        return jax.lax.fori_loop(0, steps, step, weights)

    last = 2_000 if options.quick else 100_000
    marks = np.unique(np.r_[0, np.geomspace(1, last, 80)].astype(int)).tolist()
    probes = [rankmon.HessianProbe(parts=("H_L", "H_o", "H_f"))]
    with rankmon.RankMonitor(
        problem, logdir=options.logdir, schedule=at_steps(marks), probes=probes
    ) as monitor:
        for before, step in zip([0, *marks], tqdm(marks, unit="probe"), strict=False):
            weights = descend(weights, step - before)
            monitor(step, weights)
    return rankmon.read_jsonl(options.logdir / "rankmon.jsonl")


def main():
    """Train and count, draw both, and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/group_bound"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="30 networks and a short run")
    options = parser.parse_args()
    records = trained(options)
    (size, rank, bound, of_units), mismatches = counted(range(30 if options.quick else 500))

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(1.5, 1))
    draw_loss(left, ScalarSeries(*series(records, "loss")))
    draw_hessian_ranks(left, records)
    left.set_xscale("symlog", linthresh=1, linscale=0.5)
    left.set(title="a ReLU network 2-24-2, from small weights", xlabel="step", ylabel="rank")
    left.set_xlim(-0.1, 1.3 * records[-1].step)
    some = bound > 0
    ratios = ((of_units, VERMILION, "smaller of Theorem 9 and $nK$"), (bound, BLUE, "group bound"))
    for values, color, name in ratios:
        share = rank[some] / values[some]
        right.semilogx(size[some], share, ".", color=color, ms=5, alpha=0.7, label=name)
    right.set(title=f"{len(size)} random networks", xlabel=r"$nK/p$", ylim=(0, 1.05))
    right.set_ylabel(r"rank $H_o$ / bound")
    add_legend(figure, [left, right])
    path = options.logdir / "group_bound.png"
    save(figure, path)

    few, found = size <= 1, {tag: series(records, tag)[1] for tag in records[0].scalars}
    reached = [float(np.mean((rank == bound)[part])) for part in (few, ~few)]
    low, mine, high = (found[f"{kind}/H_f"] for kind in ("rank_low", "rank", "rank_high"))
    clear, exact = (low == mine) & (mine == high), mine == found["rank_theory/H_f"]
    held = found["rank/H_o"] <= found["rank_bound/H_o"]
    print(f"\n{path}\nSee the curves: tensorboard --logdir {options.logdir}\n")
    claims = {
        f"rank H_f is exact at the {clear.sum()} probes with low = rank = high": exact[clear],
        f"rank H_o is within its bound at {held.sum()} of {len(held)} probes": held,
        f"{mismatches} random networks have another rank H_f": mismatches == 0,
        f"none of {len(size)} random networks exceeds the bound": rank <= bound,
        f"{reached[0]:.0%} of {few.sum()} with n <= p / K reach it": reached[0] >= 0.75,
        f"{reached[1]:.0%} of {(~few).sum()} with more reach it": reached[1] >= 0.9,
    }
    check({claim: bool(np.all(holds)) for claim, holds in claims.items()})


if __name__ == "__main__":
    main()
