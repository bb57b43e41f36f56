"""Train a network on one task after another, with a monitor that measures at both ends of each."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import rankmon

BATCH = 32
PROBES = [rankmon.WeightsProbe(track=("start",)), "features", "gradients"]


@dataclass(frozen=True)
class Variant:
    """What is trained, and how.

    Attributes:
      color: of its curves.
      pulled: whether L2 Init adds pull * ||theta - theta_0||^2 to the loss.
      norm: whether layer normalization precedes each ReLU.
      renames: whether a task only renames the ten classes. Otherwise it permutes the labels of all
        images, so that they can only be memorized.
    """

    color: str
    pulled: bool = False
    norm: bool = False
    renames: bool = False

    def labels(self, labels, rng):
        """Return the labels of the next task."""
        return rng.permutation(10)[labels] if self.renames else rng.permutation(labels)


@dataclass(frozen=True)
class Setting:
    """The sizes of a run; `probe` is the number of images on which the monitor measures."""

    data: str
    side: int
    images: int
    width: int
    tasks: int
    steps: int
    rate: float
    pull: float
    probe: int
    seeds: int


class MLP(nn.Module):
    """Two hidden layers with ReLUs, and with layer normalization before each if `norm`."""

    width: int
    norm: bool

    @nn.compact
    def __call__(self, x):
        """Return the logits [n, 10] of images [n, d]."""
        for _ in range(2):
            x = nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(x)
            x = nn.relu(nn.LayerNorm()(x) if self.norm else x)
        return nn.Dense(10, name="head")(x)


def stated(mlp, images):
    """Return a problem whose labels are those of the task, given as `extra`.

    Targets of a problem are fixed. So the logits of each image are rotated until that of its label
    comes first, and 0 is the target of all.
    """

    def apply(params, inputs, labels):
        logits = mlp.apply({"params": params}, inputs)
        return jnp.take_along_axis(logits, (labels[:, None] + jnp.arange(10)) % 10, axis=1)

    targets = np.zeros(len(images), np.int32)
    return rankmon.Problem(apply, loss="cross_entropy", inputs=images, targets=targets)


def programs(mlp, variant, setting, start, images):
    """Return two functions: to train on batches of the images, and to get the accuracy on all."""
    images, pull = jnp.asarray(images), setting.pull if variant.pulled else 0.0

    def loss_fn(params, batch, labels):
        logits = mlp.apply({"params": params}, images[batch])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        apart = jax.tree.map(lambda now, then: jnp.sum((now - then) ** 2), params, start)
        return jnp.mean(losses) + pull * sum(jax.tree.leaves(apart))

    def run(params, labels, batches):
        def step(params, batch):
            grads = jax.grad(loss_fn)(params, batch, labels)
            return jax.tree.map(lambda p, g: p - setting.rate * g, params, grads), None

        return jax.lax.scan(step, params, batches)[0]

    def accuracy(params, labels):
        return jnp.mean(jnp.argmax(mlp.apply({"params": params}, images), axis=1) == labels)

    return jax.jit(run), jax.jit(accuracy)


def train(variant, setting, seed, images, labels, logdir):
    """Train on all tasks, and measure at the first and last step of each.

    Returns:
      The records at the tasks' first steps, at their last steps, and the accuracies [tasks] that
      training on permuted labels gives from there in as many steps.
    """
    mlp, rng = MLP(setting.width, variant.norm), np.random.default_rng(seed)
    params = mlp.init(jax.random.key(seed), images[:1])["params"]
    run, accuracy = programs(mlp, variant, setting, params, images)
    problem, probe = stated(mlp, images[: setting.probe]), slice(setting.probe)
    starts, ends, reached = [], [], []
    with rankmon.RankMonitor(problem, logdir=logdir, every=1, probes=PROBES) as monitor:
        for task in range(setting.tasks):
            now = variant.labels(labels, rng)
            batches = rng.integers(0, len(images), (setting.steps, BATCH))
            if variant.renames:
                others = rng.permutation(labels)
                reached.append(float(accuracy(run(params, others, batches), others)))
            step = task * setting.steps
            for records, part in ((starts, batches[:-1]), (ends, batches[-1:])):
                own = {"task": task + 1, "accuracy": float(accuracy(params, now))}
                records.append(monitor(step, params, extra=now[probe], scalars=own))
                params, step = run(params, now, part), step + len(part)
            if not variant.renames:
                reached.append(float(accuracy(params, now)))
    return starts, ends, np.array(reached)
