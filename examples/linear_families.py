"""Ranks of a residual, a tied and a convolutional linear network during training.

rankmon recognizes these networks from their programs and logs their closed forms (circles) with the
measured ranks. The targets are outputs of another network of the same family, so that the loss
reaches 0, H_f vanishes, and H_L falls to H_o.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import trange

import rankmon
from family_networks import FAMILIES
from plotting import add_legend, check, draw_hessian_ranks, draw_loss, plt, save, series
from rankmon.runs.series import ScalarSeries

# Training in float32 stops at a loss near 1e-10, at which H_f has not vanished.
jax.config.update("jax_enable_x64", True)

PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")


def trained(name, options):
    """Train a network by gradient descent with the monitor, and return its records."""
    family, quick = FAMILIES[name], options.quick
    keys = jax.random.split(jax.random.key(options.seed), 3)
    shape = family.quick_shape if quick else family.input_shape
    x = jax.random.normal(keys[0], (40 if quick else 120, *shape))
    y = family.apply(family.params(keys[1], quick), x)
    params = family.params(keys[2], quick)

    @jax.jit
    def train_step(params):
        def loss(params):
            return 0.5 * jnp.sum((family.apply(params, x) - y) ** 2) / len(x)

        return jax.tree.map(lambda w, g: w - family.rate * g, params, jax.grad(loss)(params))

    steps = options.steps or family.steps
    every = max(steps // 40, 1)
    problem = rankmon.Problem(family.apply, loss="mse", inputs=x, targets=y)
    folder = options.logdir / name
    with rankmon.RankMonitor(problem, logdir=folder, every=every) as monitor:
        for step in trange(steps + 1, unit="step", mininterval=1):
            monitor(step, params)
            params = train_step(params)
    return rankmon.read_jsonl(folder / "rankmon.jsonl")


def compared(records):
    """Print each rank; return how many are certain and predicted, and how many of them agree."""
    print(f"{'part':12}{'first':>7}{'last':>7}{'theory':>8}{'certain':>9}{'agree':>7}")
    certain, agreed = 0, 0
    for part in PARTS:
        kinds = ("rank", "rank_low", "rank_high", "rank_theory")
        rows = [[r.scalars.get(f"{kind}/{part}") for kind in kinds] for r in records]
        known = [row for row in rows if row[0] == row[1] == row[2] and row[3] is not None]
        agree = sum(rank == theory for rank, _, _, theory in known)
        numbers = f"{rows[0][0]:7g}{rows[-1][0]:7g}{rows[0][3]:8g}"
        print(f"{part:12}{numbers}{len(known):9}{agree:7}")
        certain, agreed = certain + len(known), agreed + agree
    return certain, agreed


def draw(records, title, path):
    """Draw the four ranks with their predictions, and the loss."""
    figure, axes = plt.subplots(figsize=(7.4, 4.4))
    draw_loss(axes, ScalarSeries(*series(records, "loss")))
    draw_hessian_ranks(axes, records)
    axes.set(title=title, xlabel="step", ylabel="rank")
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # shows the circles at 0
    add_legend(figure, [axes])
    save(figure, path)
    print(f"{path}\n")


def main():
    """Train the three networks, and draw and check the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/linear_families"))
    parser.add_argument("--steps", type=int, help="by default of each network its own")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small networks, some seconds")
    options = parser.parse_args()
    claims = {}
    for name, family in FAMILIES.items():
        records = trained(name, options)
        print(f"\n{name}")
        certain, agreed = compared(records)
        draw(records, family.title, options.logdir / name / "ranks.png")
        same = f"{name}: the {certain} ranks with low = rank = high are the predicted ones"
        claims[same] = certain == agreed > 0
        last = records[-1].scalars
        gone = last["rank/H_f"] == 0 and last["rank/H_L"] == last["rank/H_o"]
        if not options.quick:
            claims[f"{name}: at the end H_f has vanished, and H_L has the rank of H_o"] = gone
    check(claims)


if __name__ == "__main__":
    main()
