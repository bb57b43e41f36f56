"""A Haiku MLP on MNIST, with dropout; numbers mark the three lines that monitor it."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import rankmon
from loops import batches, digits, finish, parse_options

IMAGES, BATCH, PROBE, EVERY = 6000, 64, 100, 20


def mlp(images, is_training):
    """Return logits [n, 10] of images [n, h, w, 1]."""
    x = jax.nn.relu(hk.Linear(16, name="hidden")(hk.Flatten()(images)))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.1, x)
    return hk.Linear(10, name="head")(x)


NETWORK, OPTIMIZER = hk.transform(mlp), optax.adam(1e-3)


@jax.jit
def train_step(params, state, images, labels, key):
    """Return the parameters and the optimizer's state after one step of Adam."""

    def loss_fn(params):
        logits = NETWORK.apply(params, key, images, is_training=True)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    updates, state = OPTIMIZER.update(jax.grad(loss_fn)(params), state)
    return optax.apply_updates(params, updates), state


def train(options, images, labels, monitor=None):
    """Train, and return the parameters."""
    params = NETWORK.init(jax.random.key(0), images[:1], is_training=False)
    state = OPTIMIZER.init(params)
    for step, batch in enumerate(batches(options.steps, len(images), BATCH)):
        if monitor is not None:
            monitor(step, params)  # 3: measures if the step is due
        key = jax.random.fold_in(jax.random.key(1), step)
        params, state = train_step(params, state, images[batch], labels[batch], key)
    if monitor is not None:
        monitor.close(options.steps, params)
    return params


def main():
    """Train twice, with the monitor and without."""
    options = parse_options(__doc__, "haiku_mlp", steps=200)
    images, labels = digits(options, 500 if options.quick else IMAGES)

    probe = {"inputs": images[:PROBE], "targets": labels[:PROBE]}
    problem = rankmon.Problem.from_haiku(NETWORK, loss="cross_entropy", **probe)  # 1: the network
    probes = [rankmon.HessianProbe(include="head/*"), "weights", "features"]
    monitor = rankmon.RankMonitor(  # 2: steps, ranks, folder
        problem, every=EVERY, probes=probes, logdir=options.logdir
    )
    watched = train(options, images, labels, monitor)
    bare = train(options, images, labels)
    tags = ("rank/", "rank_weights/", "rank_features/", "loss")
    finish(options, watched, bare, tags, every=EVERY)


if __name__ == "__main__":
    main()
