"""The transformer of `mesh.py`, its data, its shards, and its training with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

VOCABULARY, LENGTH, BATCH = 64, 16, 64


def sequences(n, seed):
    """Draw n arithmetic sequences modulo the vocabulary, and the same one token later."""
    start, step = np.random.default_rng(seed).integers(VOCABULARY, size=(2, n, 1))
    tokens = (start + step * np.arange(LENGTH + 1)) % VOCABULARY
    return tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32)


def initial(width, depth):
    """Draw the parameters, in float32."""
    rng = np.random.default_rng(0)

    def weight(m, n):
        return (rng.standard_normal((m, n)) / np.sqrt(m)).astype(np.float32)

    shapes = dict.fromkeys("qkvo", (width, width)) | {
        "a": (width, 4 * width),
        "b": (4 * width, width),
    }
    blocks = [{name: weight(*shape) for name, shape in shapes.items()} for _ in range(depth)]
    ends = {"tokens": (VOCABULARY, width), "places": (LENGTH, width), "out": (width, VOCABULARY)}
    return {"blocks": blocks} | {name: weight(*shape) for name, shape in ends.items()}


def transformer(params, tokens):
    """Return the logits [n, length, vocabulary] of the next token at each place."""

    def normed(x):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    x = params["tokens"][tokens] + params["places"]
    later = jnp.triu(jnp.ones((LENGTH, LENGTH), bool), 1)
    for block in params["blocks"]:
        q, k, v = (normed(x) @ block[name] for name in "qkv")
        scores = jnp.where(later, -jnp.inf, q @ jnp.swapaxes(k, 1, 2) / np.sqrt(q.shape[-1]))
        x = x + jax.nn.softmax(scores) @ v @ block["o"]
        x = x + jax.nn.gelu(normed(x) @ block["a"]) @ block["b"]
    return normed(x) @ params["out"]


def fully_sharded(tree, mesh):
    """Split the longer axis of each array over all devices."""

    def placed(leaf):
        spec = [None] * np.ndim(leaf)
        if spec:
            spec[int(np.argmax(leaf.shape))] = "data"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(placed, tree)


def train(params, steps, monitor=None):
    """Train by Adam, and return the parameters, sharded as they were."""
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def train_step(params, state, tokens, targets):
        def loss_fn(params):
            logits = transformer(params, tokens)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))

        updates, state = optimizer.update(jax.grad(loss_fn)(params), state)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        if monitor is not None:
            monitor(step, params)
        params, state = train_step(params, state, *sequences(BATCH, step))
        # Host devices share few threads: collectives of two steps would wait for each other.
        jax.block_until_ready(params)
    if monitor is not None:
        monitor.close(steps, params)
    return params
