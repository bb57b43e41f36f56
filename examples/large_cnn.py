"""A Linen CNN of a million parameters on Fashion-MNIST, monitored in at most a tenth of the time.

The rank of H_o is exact. Those of H_L and H_f are bounded, and their curvature is estimated.
"""

import argparse
import time
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
from plotting import check

IMAGES, BATCH, PROBE = 6000, 64, 32
PARTS, ENDS = ("H_o", "H_L", "H_f"), ("low", "high")


class CNN(nn.Module):
    """Two convolutions, a wide hidden layer, a head: 1,031,160 parameters at 28 x 28 pixels."""

    width: int

    @nn.compact
    def __call__(self, x):
        """Return logits [n, 10] of images [n, h, w, 1]."""
        for features in (16, 32):
            x = nn.relu(nn.Conv(features=features, kernel_size=(3, 3))(x))
            x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(features=self.width)(x.reshape((x.shape[0], -1))))
        return nn.Dense(features=10, name="head")(x)


def ranks_of(record):
    """Return the interval of each rank, the curvature and the time of the measurement as text."""
    s = record.scalars
    largest, smallest = s["eigenvalue_max/H_L"], s["eigenvalue_min/H_L"]
    ends = [[s[f"rank_{end}/{part}"] for end in ENDS] for part in PARTS]
    pairs = zip(PARTS, ends, strict=True)
    ranks = [f"{part} {low:,.0f}..{high:,.0f}" for part, (low, high) in pairs]
    above = [s.get(f"interval_{end}/rank_0.01/H_L", s["rank_0.01/H_L"]) for end in ENDS]
    curvature = f"eigenvalues of H_L {smallest:.4g} to {largest:.5g}, {above} above 1 %"
    return f"{', '.join(ranks)}; {curvature}; in {s['monitor/seconds']:.0f} s"


@jax.jit
def train_step(state, images, labels):
    """Return the state after one step of Adam."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


def main():
    """Train for the given number of seconds, and check the log against the promises."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs") / "large_cnn")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--time-limit", type=float, default=20, help="seconds a probe")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, 20 seconds")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps Fashion-MNIST")
    options = parser.parse_args()
    name, side, n = ("digits", 8, 500) if options.quick else ("fashion_mnist", 28, IMAGES)
    seconds, limit = (20, 0.2) if options.quick else (options.seconds, options.time_limit)
    pixels, labels = load(name, side=side, n=n, data_dir=options.data_dir)
    images = pixels.reshape(n, side, side, 1).astype(np.float32)
    labels = labels.astype(np.int32)

    cnn = CNN(width=24 if options.quick else 650)
    params = cnn.init(jax.random.key(0), images[:1])["params"]
    state = TrainState.create(apply_fn=cnn.apply, params=params, tx=optax.adam(1e-3))
    batch = {"inputs": images[:PROBE], "targets": labels[:PROBE]}
    problem = rankmon.Problem.from_linen(cnn, loss="cross_entropy", **batch)
    engine = "lanczos" if options.quick else "auto"  # matrices of the small network would fit
    probe = rankmon.HessianProbe(engine=engine, time_limit=limit)
    monitor = rankmon.RankMonitor(
        problem, every=20, probes=[probe], overhead=0.1, logdir=options.logdir
    )
    begun = time.monotonic()
    with monitor:
        for chosen in batches(1_000_000, n, BATCH):
            monitor(state)
            state = train_step(state, images[chosen], labels[chosen])
            if (wall := time.monotonic() - begun) > seconds:
                break
    records = rankmon.read_jsonl(options.logdir / "rankmon.jsonl")
    p = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"p = {p:,}, {int(state.step):,} steps in {wall:.0f} s")
    for record in records:
        print(f"step {record.step}: loss {record.scalars['loss']:.3g}, {ranks_of(record)}")
    spent = sum(r.scalars["monitor/seconds"] for r in records[:-1])  # the last one after training
    ends = [[r.scalars[f"rank_{end}/{part}"] for part in PARTS] for r in records for end in ENDS]
    lows, highs = np.array(ends[::2]), np.array(ends[1::2])
    check(
        {
            "H_o has no eigenvalue near the cut at first": bool(lows[0, 0] == highs[0, 0]),
            "H_L and H_f are intervals": bool(np.all(lows <= highs)),
            "whose upper ends are less than p": bool(np.all(highs < p)),
            f"{100 * spent / wall:.1f} % of training's time was the probes', of 10 allowed": (
                spent <= 0.1 * wall or options.quick
            ),
        }
    )


if __name__ == "__main__":
    main()
