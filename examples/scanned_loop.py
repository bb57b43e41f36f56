"""A compiled loop: one program runs from each due step to the next, for any schedule."""

import jax
import jax.numpy as jnp
import optax

import rankmon
from loops import batches, digits, finish, parse_options
from networks import initial_weights, relu

IMAGES, BATCH, PROBE, EVERY = 6000, 64, 50, 200


def main():
    """Train by `monitor.scan`, then by `jax.lax.scan`."""
    options = parse_options(__doc__, "scanned_loop", steps=1000)
    every = 10 if options.quick else EVERY
    images, labels = digits(options, 500 if options.quick else IMAGES)
    images = jnp.asarray(images[:, ::2, ::2].reshape(len(images), -1))
    labels = jnp.asarray(labels)
    optimizer = optax.adam(1e-3)

    def train_step(carry, batch):
        def loss_fn(weights):
            logits = relu(weights, images[batch])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]))

        weights, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(weights)
        updates, state = optimizer.update(grads, state, weights)
        return (optax.apply_updates(weights, updates), state), loss

    weights = initial_weights(jax.random.key(0), (images.shape[1], 10, 10, 10), "Glorot")
    carry = weights, optimizer.init(weights)
    xs = batches(options.steps, len(images), BATCH)

    probe = {"inputs": images[:PROBE], "targets": labels[:PROBE]}
    problem = rankmon.Problem(relu, loss="cross_entropy", **probe)
    with rankmon.RankMonitor(
        problem, every=every, probes=["hessian", "weights", "features"], logdir=options.logdir
    ) as monitor:
        watched = monitor.scan(
            train_step, carry, options.steps, xs=xs, params_of=lambda carry: carry[0]
        )
    bare = jax.jit(lambda carry: jax.lax.scan(train_step, carry, xs))(carry)
    tags = ("rank/", "rank_weights/", "rank_features/", "dead_units/", "loss")
    finish(options, watched, bare, tags, every=every)


if __name__ == "__main__":
    main()
