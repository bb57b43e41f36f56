"""An Equinox MLP on MNIST, with dropout; numbers mark the three lines that monitor it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import rankmon
from loops import batches, digits, finish, parse_options

IMAGES, BATCH, PROBE, EVERY = 6000, 64, 100, 20


class MLP(eqx.Module):
    """A hidden layer, dropout and a head."""

    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, inputs, key):
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(inputs, 16, key=keys[0])
        self.dropout = eqx.nn.Dropout(0.1)
        self.head = eqx.nn.Linear(16, 10, key=keys[1])

    def __call__(self, x, key=None):
        """Return the logits [10] of an image [h, w, 1]."""
        return self.head(self.dropout(jax.nn.relu(self.hidden(jnp.ravel(x))), key=key))


OPTIMIZER = optax.adam(1e-3)


@eqx.filter_jit
def train_step(model, state, images, labels, key):
    """Return the model and the optimizer's state after one step of Adam."""

    def loss_fn(model):
        logits = jax.vmap(model)(images, jax.random.split(key, len(images)))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    updates, state = OPTIMIZER.update(eqx.filter_grad(loss_fn)(model), state)
    return eqx.apply_updates(model, updates), state


def train(options, model, images, labels, monitor=None):
    """Train, and return the arrays of the model."""
    state = OPTIMIZER.init(eqx.filter(model, eqx.is_array))
    for step, batch in enumerate(batches(options.steps, len(images), BATCH)):
        if monitor is not None:
            monitor(step, model)  # 3: measures if the step is due
        key = jax.random.fold_in(jax.random.key(1), step)
        model, state = train_step(model, state, images[batch], labels[batch], key)
    if monitor is not None:
        monitor.close(options.steps, model)
    return eqx.filter(model, eqx.is_array)


def main():
    """Train twice, with the monitor and without."""
    options = parse_options(__doc__, "equinox_mlp", steps=200)
    images, labels = digits(options, 500 if options.quick else IMAGES)
    model = MLP(images[0].size, jax.random.key(0))

    probe = {"inputs": images[:PROBE], "targets": labels[:PROBE]}
    problem = rankmon.Problem.from_equinox(model, loss="cross_entropy", **probe)  # 1: the network
    probes = [rankmon.HessianProbe(include="head/*"), "weights", "features"]
    monitor = rankmon.RankMonitor(  # 2: steps, ranks, folder
        problem, every=EVERY, probes=probes, logdir=options.logdir
    )
    watched = train(options, model, images, labels, monitor)
    bare = train(options, model, images, labels)
    tags = ("rank/", "rank_weights/", "rank_features/", "loss")
    finish(options, watched, bare, tags, every=EVERY)


if __name__ == "__main__":
    main()
