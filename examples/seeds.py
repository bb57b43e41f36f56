"""Eight seeds at once under `jax.vmap`: a run for each, and their median with its range."""

import jax
import jax.numpy as jnp
import optax

import rankmon
from loops import batches, digits, finish, parse_options
from networks import initial_weights, relu

SEEDS, IMAGES, BATCH, PROBE, EVERY = 8, 6000, 64, 50, 100


def train(options, images, labels, monitor=None):
    """Train all seeds, and return their weights."""
    optimizer = optax.adam(1e-3)

    def start(key):
        weights = initial_weights(key, (images.shape[1], 10, 10, 10), "Glorot")
        return weights, optimizer.init(weights)

    def train_step(weights, state, images, labels):
        def loss_fn(weights):
            losses = optax.softmax_cross_entropy_with_integer_labels(relu(weights, images), labels)
            return jnp.mean(losses)

        updates, state = optimizer.update(jax.grad(loss_fn)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    weights, state = jax.vmap(start)(jax.random.split(jax.random.key(0), SEEDS))
    steps = jax.jit(jax.vmap(train_step, in_axes=(0, 0, None, None)))
    for step, batch in enumerate(batches(options.steps, len(images), BATCH)):
        if monitor is not None:
            monitor(step, weights)  # the first axis of every leaf is that of the seeds
        weights, state = steps(weights, state, images[batch], labels[batch])
    if monitor is not None:
        monitor.close(options.steps, weights)
    return weights


def main():
    """Train twice, with the monitor and without."""
    options = parse_options(__doc__, "seeds", steps=400)
    every = 12 if options.quick else EVERY
    images, labels = digits(options, 500 if options.quick else IMAGES)
    images = images[:, ::2, ::2].reshape(len(images), -1)

    probe = {"inputs": images[:PROBE], "targets": labels[:PROBE]}
    problem = rankmon.Problem(relu, loss="cross_entropy", **probe)
    probes = ["hessian", "weights", "features"]
    monitor = rankmon.SeedsMonitor(
        problem, seeds=SEEDS, every=every, probes=probes, logdir=options.logdir
    )
    watched = train(options, images, labels, monitor)
    bare = train(options, images, labels)
    options.logdir = options.logdir / "median"
    tags = ("rank/", "rank_weights/", "dead_units/", "loss")
    finish(options, watched, bare, tags, every=every)


if __name__ == "__main__":
    main()
