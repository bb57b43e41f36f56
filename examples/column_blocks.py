"""Theorem 5 during training: the rank of each layer's columns of the functional Hessian H_f.

Linear networks 30-25-20-15-10: that of figure S1, one under cross entropy (optimized by Adam, with
labels from a linear teacher), and one with biases, whose formula extends the theorem.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from tqdm import trange

import rankmon
from networks import affine, glorot_normal, linear
from plotting import LAYERS, add_legend, check, draw_loss, layers, plt, save, series
from rankmon.report.style import CIRCLE, GRAY
from rankmon.runs.series import ScalarSeries

# Training in float32 stops at a loss near 1e-10, at which H_f has not vanished.
jax.config.update("jax_enable_x64", True)

RUNS = {  # name: title, loss, and whether the layers have biases
    "mse": ("squared error (figure S1)", "mse", False),
    "cross_entropy": ("cross entropy", "cross_entropy", False),
    "biases": ("squared error, with biases", "mse", True),
}


def trained(name, dims, options):
    """Train a network with the monitor, and return its records."""
    _, loss, bias = RUNS[name]
    n, rate = (46, 9e-4) if options.quick else (115, 9e-5)
    keys = jax.random.split(jax.random.key(options.seed), 4)
    x = jax.random.normal(keys[1], (n, dims[0]))
    x -= x.mean(axis=0) * bias  # the formula with biases is for centered inputs
    y = x @ jax.random.normal(keys[2], (dims[0], dims[-1]))
    y = jnp.argmax(y, axis=1) if loss == "cross_entropy" else y
    params, apply = glorot_normal(keys[0], dims), linear
    if bias:
        drawn = zip(params, jax.random.split(keys[3], len(params)), strict=True)
        params = [{"kernel": w, "bias": 0.3 * jax.random.normal(k, w.shape[1:])} for w, k in drawn]
        apply = affine

    def total(params):
        z = apply(params, x)
        if loss == "cross_entropy":
            return optax.softmax_cross_entropy_with_integer_labels(z, y).sum()
        return 0.5 * jnp.sum((z - y) ** 2)

    optimizer = optax.adam(3e-3) if loss == "cross_entropy" else optax.sgd(rate)

    @jax.jit
    def train_step(params, state):
        updates, state = optimizer.update(jax.grad(total)(params), state)
        return optax.apply_updates(params, updates), state

    problem = rankmon.Problem(apply, loss=loss, inputs=x, targets=y)
    state, folder = optimizer.init(params), options.logdir / name
    probe = rankmon.HessianProbe(blocks=True)
    with rankmon.RankMonitor(
        problem, logdir=folder, every=options.every, probes=[probe]
    ) as monitor:
        for epoch in trange(options.epochs + 1, unit="epoch", mininterval=1):
            monitor(epoch, params)
            params, state = train_step(params, state)
    return rankmon.read_jsonl(folder / "rankmon.jsonl")


def shown(axes, records, title):
    """Draw and print the ranks by layer; return how many are certain, and whether all agree."""
    axes.set(title=title, xlabel="epoch")
    draw_loss(axes, ScalarSeries(*series(records, "loss")))
    print(f"\n{title}\n{'columns of':14}{'first':>7}{'last':>7}{'theory':>8}{'agree':>8}")
    count, agreed = 0, True
    for i, name in enumerate(layers(records, "rank_columns/H_f")):
        kinds = ("rank_columns", "rank_low/columns", "rank_high/columns", "rank_columns_theory")
        steps, _ = series(records, "loss")
        rank, low, high, theory = (series(records, f"{k}/H_f/{name}")[1] for k in kinds)
        style = {"color": LAYERS[i], "ls": "--" if i == 2 else "-", "lw": 4.5 - i}
        axes.plot(steps, rank, label=rf"columns of $W^{{{i + 1}}}$", **style)
        axes.fill_between(steps, low, high, color=LAYERS[i], alpha=0.18, lw=0)
        few = slice(None, None, max(len(steps) // 9, 1))
        axes.plot(steps[few], theory[few], color=LAYERS[i], zorder=5, clip_on=False, **CIRCLE)
        certain = (low == rank) & (rank == high)
        agree = rank[certain] == theory[certain]
        numbers = f"{rank[0]:7g}{rank[-1]:7g}{theory[0]:8g}"
        print(f"W^{i + 1:<12}{numbers}{f'{agree.sum()}/{certain.sum()}':>8}")
        count, agreed = count + certain.sum(), agreed and agree.all() and certain[0]
    return count, agreed


def main():
    """Train the three networks, and draw and check the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/column_blocks"))
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="epochs from probe to probe")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="12-10-8-6-4, some seconds")
    options = parser.parse_args()
    dims = (12, 10, 8, 6, 4) if options.quick else (30, 25, 20, 15, 10)
    figure, panels = plt.subplots(1, len(RUNS), figsize=(14, 4.4), sharey=True)
    claims, path = {}, options.logdir / "columns.png"
    for axes, (name, (title, *_)) in zip(panels, RUNS.items(), strict=True):
        count, agreed = shown(axes, trained(name, dims, options), title)
        claims[f"{title}: the {count} ranks with low = rank = high are the predicted ones"] = agreed
    panels[0].set(ylabel=r"rank of the columns of $H_f$", ylim=(0, None))
    panels[0].fill_between([], [], color=GRAY, alpha=0.25, label="rank at 10 to 0.1 times the cut")
    panels[0].plot([], [], color=GRAY, label="Theorem 5", **CIRCLE)
    add_legend(figure, panels[:1])
    save(figure, path)
    print(f"\n{path}\n")
    check(claims)


if __name__ == "__main__":
    main()
