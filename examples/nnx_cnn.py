"""The CNN of linen_cnn.py in NNX, with batch norm and dropout, monitored in inference mode."""

import jax.numpy as jnp
import optax
from flax import nnx

import rankmon
from loops import batches, digits, finish, parse_options

IMAGES, BATCH, PROBE, EVERY = 6000, 64, 100, 20


class CNN(nnx.Module):
    """Two convolutions, a hidden layer and a small head."""

    def __init__(self, side, rngs):
        self.conv1 = nnx.Conv(1, 8, kernel_size=(3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, kernel_size=(3, 3), rngs=rngs)
        self.dense = nnx.Linear(16 * (side // 4) ** 2, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        """Return logits [n, 10] of images [n, h, w, 1]."""
        x = nnx.avg_pool(nnx.relu(self.norm(self.conv1(x))), (2, 2), strides=(2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.head(self.dropout(x))


@nnx.jit
def train_step(model, optimizer, images, labels):
    """Update the model in place by one step of Adam."""

    def loss_fn(model):
        logits = model(images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    optimizer.update(model, nnx.grad(loss_fn)(model))


def train(options, model, images, labels, monitor=None):
    """Train, and return the model's parameters and statistics."""
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    for step, batch in enumerate(batches(options.steps, len(images), BATCH)):
        if monitor is not None:
            monitor(step, model)  # 3: measures if the step is due
        train_step(model, optimizer, images[batch], labels[batch])
    if monitor is not None:
        monitor.close(options.steps, model)
    return nnx.state(model, (nnx.Param, nnx.BatchStat))


def main():
    """Train twice, with the monitor and without."""
    options = parse_options(__doc__, "nnx_cnn", steps=200)
    images, labels = digits(options, 500 if options.quick else IMAGES)
    model, twin = (CNN(images.shape[1], nnx.Rngs(0)) for _ in range(2))

    probe = {"inputs": images[:PROBE], "targets": labels[:PROBE]}
    problem = rankmon.Problem.from_nnx(
        model, loss="cross_entropy", **probe
    )  # 1: the network and its data
    probes = [rankmon.HessianProbe(include="head/*"), "weights", "features"]
    monitor = rankmon.RankMonitor(  # 2: steps, ranks, folder
        problem, every=EVERY, probes=probes, logdir=options.logdir
    )
    watched = train(options, model, images, labels, monitor)
    bare = train(options, twin, images, labels)
    tags = ("rank/", "rank_weights/", "rank_features/", "dead_units/", "loss")
    finish(options, watched, bare, tags, every=EVERY)


if __name__ == "__main__":
    main()
