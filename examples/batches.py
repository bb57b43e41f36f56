"""How sure is the batch? The spread of ranks over eight probe batches of MNIST during training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rankmon
from loops import batches, digits, finish, parse_options
from networks import initial_weights, relu
from plotting import GRAY, PARTS, add_legend, plt, save, series

IMAGES, BATCH, EVERY = 6000, 64, 50
PROBES, PROBE = 8, 50  # probe batches, and images in each
RANKS = ("rank/H_L", "rank/H_o", "rank/H_f")
OTHERS = ("effective_rank/H_L", "eigenvalue_max/H_L", "loss")


def train(options, images, labels, monitor=None):
    """Train, and return the weights."""
    weights = initial_weights(jax.random.key(0), (images.shape[1], 10, 10, 10), "Glorot")
    optimizer = optax.adam(1e-3)
    state = optimizer.init(weights)

    @jax.jit
    def train_step(weights, state, images, labels):
        def loss_fn(weights):
            losses = optax.softmax_cross_entropy_with_integer_labels(relu(weights, images), labels)
            return jnp.mean(losses)

        updates, state = optimizer.update(jax.grad(loss_fn)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    for step, batch in enumerate(batches(options.steps, len(images), BATCH)):
        if monitor is not None:
            monitor(step, weights)
        weights, state = train_step(weights, state, images[batch], labels[batch])
    if monitor is not None:
        monitor.close(options.steps, weights)
    return weights


def print_spread(records):
    """Print the median of each quantity, and its range relative to it, at four steps."""
    print(f"{'step':>22}", *(f"{tag:>22}" for tag in (*RANKS, *OTHERS)), sep="")
    for place in np.unique(np.linspace(0, len(records) - 1, 4).astype(int)):
        record, cells = records[place], []
        for tag in (*RANKS, *OTHERS):
            values = record.arrays[f"batches/{tag}"]
            share = np.ptp(values) / np.median(values)
            cells.append(f"{np.median(values):.5g} ({share:.0%})")
        print(f"{record.step:22}", *(f"{cell:>22}" for cell in cells), sep="")


def save_picture(records, path):
    """Draw median and range of the ranks, and of the largest eigenvalue of H_L."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for axes, tags in ((left, RANKS), (right, ["eigenvalue_max/H_L"])):
        for tag in tags:
            label, color, style, width = PARTS[tag.partition("/")[2]]
            steps, low = series(records, f"batches/{tag}/low")
            axes.fill_between(
                steps, low, series(records, f"batches/{tag}/high")[1], alpha=0.25, color=color, lw=0
            )
            axes.plot(*series(records, tag), ls=style, color=color, lw=width, label=label)
        axes.set(xlabel="step", ylim=(0, None))
    left.fill_between([], [], color=GRAY, alpha=0.25, label=f"range over {PROBES} batches")
    left.set(title="ranks, median and range", ylabel="rank")
    right.set_title(r"largest eigenvalue $\lambda_{\max}(H_L)$")
    add_legend(figure, [left])
    save(figure, path)


def main():
    """Train twice, with the monitor and without; print and draw the spread."""
    options = parse_options(__doc__, "batches", steps=400)
    every, size = (12, 10) if options.quick else (EVERY, PROBE)
    images, labels = digits(options, 500 if options.quick else IMAGES)
    images = images[:, ::2, ::2].reshape(len(images), -1)

    probe = {"inputs": images[: PROBES * size], "targets": labels[: PROBES * size]}
    problem = rankmon.Problem(relu, loss="cross_entropy", **probe)
    monitor = rankmon.RankMonitor(problem, every=every, batches=PROBES, logdir=options.logdir)
    watched = train(options, images, labels, monitor)
    bare = train(options, images, labels)
    records = rankmon.read_jsonl(options.logdir / "rankmon.jsonl")
    print(f"\nMedian over {PROBES} batches of {size} images, and the range in % of it")
    print_spread(records)
    save_picture(records, options.logdir / "batches.png")
    print()
    finish(options, watched, bare, [f"batches/{tag}/" for tag in RANKS], every=every)


if __name__ == "__main__":
    main()
