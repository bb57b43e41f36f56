"""A Linen CNN on MNIST, like Flax's own example; numbers mark the three lines that monitor it."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import rankmon
from loops import batches, digits, finish, parse_options

IMAGES, BATCH, PROBE, EVERY = 6000, 64, 100, 20


class CNN(nn.Module):
    """Two convolutions, a hidden layer and a small head."""

    @nn.compact
    def __call__(self, x):
        """Return logits [n, 10] of images [n, h, w, 1]."""
        x = nn.relu(nn.Conv(features=8, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(features=16, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=32)(x))
        return nn.Dense(features=10, name="head")(x)


@jax.jit
def train_step(state, images, labels):
    """Return the state after one step of Adam."""

    def loss_fn(params):
        logits = state.apply_fn({"params": params}, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))


def train(options, cnn, images, labels, monitor=None):
    """Train, and return the parameters."""
    params = cnn.init(jax.random.key(0), images[:1])["params"]
    state = TrainState.create(apply_fn=cnn.apply, params=params, tx=optax.adam(1e-3))
    for batch in batches(options.steps, len(images), BATCH):
        if monitor is not None:
            monitor(state)  # 3: measures if the step is due
        state = train_step(state, images[batch], labels[batch])
    if monitor is not None:
        monitor.close(state)
    return state.params


def main():
    """Train twice, with the monitor and without."""
    options = parse_options(__doc__, "linen_cnn", steps=200)
    images, labels = digits(options, 500 if options.quick else IMAGES)
    cnn = CNN()

    probe = {"inputs": images[:PROBE], "targets": labels[:PROBE]}
    problem = rankmon.Problem.from_linen(
        cnn, loss="cross_entropy", **probe
    )  # 1: the network and its data
    probes = [rankmon.HessianProbe(include="head/*"), "weights", "features"]
    monitor = rankmon.RankMonitor(  # 2: steps, ranks, folder
        problem, every=EVERY, probes=probes, logdir=options.logdir
    )
    watched = train(options, cnn, images, labels, monitor)
    bare = train(options, cnn, images, labels)
    tags = ("rank/", "rank_weights/", "rank_features/", "dead_units/", "loss")
    finish(options, watched, bare, tags, every=EVERY)


if __name__ == "__main__":
    main()
