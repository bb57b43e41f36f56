"""Ranks of weights from a transformation in the optimizer's chain, without a line in the loop."""

import jax
import jax.numpy as jnp
import optax

import rankmon
from loops import batches, digits, finish, parse_options
from networks import initial_weights, relu

IMAGES, BATCH, EVERY = 6000, 64, 20


def train(options, images, labels, optimizer):
    """Train, and return the weights and the optimizer's state."""

    @jax.jit
    def train_step(weights, state, images, labels):
        def loss_fn(weights):
            losses = optax.softmax_cross_entropy_with_integer_labels(relu(weights, images), labels)
            return jnp.mean(losses)

        updates, state = optimizer.update(jax.grad(loss_fn)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    weights = initial_weights(jax.random.key(0), (images.shape[1], 64, 64, 10), "Glorot")
    state = optimizer.init(weights)
    for batch in batches(options.steps, len(images), BATCH):
        weights, state = train_step(weights, state, images[batch], labels[batch])
    return weights, state


def main():
    """Train twice, with the transformation and without."""
    options = parse_options(__doc__, "optax_weights", steps=200)
    images, labels = digits(options, 500 if options.quick else IMAGES)
    images = images.reshape(len(images), -1)

    problem = rankmon.Problem(relu, loss="cross_entropy", inputs=images[:50], targets=labels[:50])
    with rankmon.RankMonitor(
        problem, every=EVERY, probes=["weights"], logdir=options.logdir
    ) as monitor:
        watch = rankmon.hooks.watch_weights(EVERY, reporter=monitor)
        weights, state = train(options, images, labels, optax.chain(watch, optax.adam(1e-3)))
        monitor.close(options.steps, weights)
    last = state[0]
    print(f"In the optimizer's own state, of step {int(last.step)}:")
    print({tag: int(x) for tag, x in last.scalars.items() if tag.startswith("rank_weights/")})
    bare, _ = train(options, images, labels, optax.adam(1e-3))
    finish(options, weights, bare, ("rank_weights/", "stable_rank/"), every=EVERY)


if __name__ == "__main__":
    main()
