"""Train an ordinary network, 784-128-64-10 on MNIST, with a monitor of default settings.

Adam on cross entropy in float32, p = 109,386; ranks and curvature are measured on 256 images. In
the picture a line is a number, exact or estimated, and a band its interval.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import rankmon
from datasets import load
from loops import batches
from plotting import draw_estimate, draw_hessian_ranks, draw_loss, finish, plt, save, series
from rankmon.report.style import BLUE, GRAY, PARTS, PURPLE, VERMILION
from rankmon.runs.series import ScalarSeries

# Images, their side and number; widths; steps, how often a probe, and its examples.
FULL = "mnist", 28, 6000, (128, 64), 400, 40, 256
QUICK = "digits", 8, 500, (12, 8), 60, 20, 32
BATCH, TIME_LIMIT = 128, 10
SHARES = {"0.1": VERMILION, "0.01": BLUE, "0.001": PURPLE}
COUNTS = {f"rank_{share}": (rf"{share} $\|H_L\|$", color) for share, color in SHARES.items()}
ENDS = {"eigenvalue_max": ("largest", VERMILION), "eigenvalue_min": ("smallest", BLUE)}


class MLP(nn.Module):
    """Dense layers with biases, and a ReLU after each but the last."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        """Return the logits [n, 10] of images [n, d]."""
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10, name="head")(x)


@jax.jit
def train_step(state, images, labels):
    """Return the state after one step of Adam."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


def save_picture(records, path, title):
    """Draw the ranks with the loss, the epsilon-ranks of H_L, and its extreme eigenvalues."""
    figure, (ranks, counts, extremes) = plt.subplots(1, 3, figsize=(13, 4.4))
    draw_loss(ranks, ScalarSeries(*series(records, "loss")))
    draw_hessian_ranks(ranks, records)
    ranks.set(title="ranks", ylabel="rank")
    for axes, curves in ((counts, COUNTS), (extremes, ENDS)):
        for family, (label, color) in curves.items():
            draw_estimate(axes, records, f"{family}/H_L", label=label, color=color)
    counts.set(title=r"number of eigenvalues of $H_L$ beyond", yscale="log")
    extremes.axhline(0, color=GRAY, lw=1)
    extremes.set_title(r"extreme eigenvalues of $H_L$")
    extremes.set_yscale("symlog", linthresh=0.1)
    for axes in (ranks, counts, extremes):
        axes.set_xlabel("step")
        axes.legend(fontsize=9)
    figure.suptitle(title)
    save(figure, path)


def claims(records):
    """Return the claims about the records, and whether each holds."""
    scalars = [record.scalars for record in records]
    pairs = [(s, tag) for s in scalars for tag in s if f"interval_low/{tag}" in s]
    inside = [s[f"interval_low/{tag}"] <= s[tag] <= s[f"interval_high/{tag}"] for s, tag in pairs]
    slowest = max(s["monitor/seconds"] for s in scalars[1:])
    tags = {f"{family}/{part}" for family in (*ENDS, *COUNTS) for part in PARTS}
    return {
        "extremes and epsilon-ranks are logged": all(tags <= set(s) for s in scalars),
        f"each of {len(inside)} intervals contains its number": all(inside),
        "H_o's rank is known": all(s["rank/H_o"] > 0 for s in scalars),
        f"after the first, a probe took {slowest:.1f} s at most": slowest <= 1.2 * TIME_LIMIT,
    }


def main():
    """Train, monitor, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs") / "ordinary_mlp")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, 64-12-8-10")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps MNIST")
    options = parser.parse_args()
    name, side, n, widths, steps, every, probe = QUICK if options.quick else FULL
    pixels, labels = load(name, side=side, n=n, data_dir=options.data_dir)
    images, labels = pixels.astype(np.float32), labels.astype(np.int32)

    mlp = MLP(widths)
    params = mlp.init(jax.random.key(0), images[:1])["params"]
    state = TrainState.create(apply_fn=mlp.apply, params=params, tx=optax.adam(1e-3))
    batch = {"inputs": images[:probe], "targets": labels[:probe]}
    problem = rankmon.Problem.from_linen(mlp, loss="cross_entropy", **batch)
    with rankmon.RankMonitor(problem, logdir=options.logdir, every=every) as monitor:
        for chosen in batches(steps, n, BATCH):
            monitor(state)
            state = train_step(state, images[chosen], labels[chosen])
    records = rankmon.read_jsonl(options.logdir / "rankmon.jsonl")
    figure, sizes = options.logdir / "ranks.png", "-".join(map(str, (side * side, *widths, 10)))
    save_picture(records, figure, f"ReLU network {sizes} on {name}")
    finish(records, figure, options.logdir, claims(records))


if __name__ == "__main__":
    main()
