"""The last layer against the network's outputs, and networks that have none of this form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from oracles import gaussian_variables
from rankmon import Problem
from rankmon.network.last_layer import last_layer

RNG = np.random.default_rng(0)
N, T, D, M, K = 6, 5, 4, 7, 3
VECTORS = RNG.standard_normal((N, D))
TOKENS = RNG.standard_normal((N, T, D))
IDS = RNG.integers(0, K, (N, T))
PARAMS = {
    "U": RNG.standard_normal((D, M)),
    "W": RNG.standard_normal((M, K)),
    "V": RNG.standard_normal((K, M)),
    "cube": RNG.standard_normal((T, M, K)),
    "b": RNG.standard_normal(K),
    "t": np.float64(-1.7),
}


def hidden(p, x):
    return jnp.tanh(x @ p["U"])


def by_norm(w):
    return w / jnp.linalg.norm(w, axis=0)


# name -> network, inputs, the kernel's name, features and kernel written by hand
FOUND = {
    "plain": (lambda p, x: hidden(p, x) @ p["W"], VECTORS, "W", hidden, lambda p: p["W"]),
    "bias": (lambda p, x: p["b"] + hidden(p, x) @ p["W"], VECTORS, "W", hidden, lambda p: p["W"]),
    "first layer": (lambda p, x: x @ p["U"], VECTORS, "U", lambda p, x: x, lambda p: p["U"]),
    "jit": (jax.jit(lambda p, x: hidden(p, x) @ p["W"]), VECTORS, "W", hidden, lambda p: p["W"]),
    "vmap": (
        lambda p, x: jax.vmap(lambda h: p["W"].T @ h + p["b"])(hidden(p, x)),
        VECTORS,
        "W",
        hidden,
        lambda p: p["W"],
    ),
    "kernel first": (
        lambda p, x: (p["V"] @ hidden(p, x).T).T,
        VECTORS,
        "V",
        hidden,
        lambda p: p["V"].T,
    ),
    "scaled by a parameter": (
        lambda p, x: (hidden(p, x) @ p["W"] + p["b"]) * p["t"],
        VECTORS,
        "W",
        hidden,
        lambda p: p["W"] * p["t"],
    ),
    "negative temperature": (
        lambda p, x: p["b"] - hidden(p, x) @ p["W"] / (2 * p["t"]),
        VECTORS,
        "W",
        hidden,
        lambda p: -p["W"] / (2 * p["t"]),
    ),
    "weight normalization": (
        lambda p, x: hidden(p, x) @ by_norm(p["W"]),
        VECTORS,
        "W",
        hidden,
        lambda p: by_norm(p["W"]),
    ),
    "pooled features": (
        lambda p, x: hidden(p, x).mean(1) @ p["W"] + p["b"],
        TOKENS,
        "W",
        lambda p, x: hidden(p, x).mean(1),
        lambda p: p["W"],
    ),
    "tokens": (lambda p, x: hidden(p, x) @ p["W"] + p["b"], TOKENS, "W", hidden, lambda p: p["W"]),
    "merged tokens": (
        lambda p, x: (hidden(p, x).reshape(-1, M) @ p["W"] + p["b"]).reshape(N, T, K),
        TOKENS,
        "W",
        hidden,
        lambda p: p["W"],
    ),
    "several axes": (
        lambda p, x: jnp.tensordot(hidden(p, x), p["cube"], axes=2) + p["b"],
        TOKENS,
        "cube",
        lambda p, x: hidden(p, x).reshape(N, -1),
        lambda p: p["cube"].reshape(-1, K),
    ),
    "tied table": (
        lambda p, ids: jnp.einsum("ntd,vd->ntv", jnp.tanh(p["V"][ids]), p["V"]) + p["b"],
        IDS,
        "V",
        lambda p, ids: np.tanh(p["V"][ids]),
        lambda p: p["V"].T,
    ),
    "fixed classifier": (
        lambda p, x: hidden(p, x) @ np.eye(M, K),
        VECTORS,
        "constant",
        hidden,
        lambda p: np.eye(M, K),
    ),
}


def found(apply, params, inputs):
    """The last layer of a network, which is evaluated at these parameters, and its outputs."""
    shape = jax.eval_shape(apply, params, inputs).shape
    problem = Problem(apply, loss="mse", inputs=inputs, targets=np.zeros(shape))
    flat = problem.flat(params)
    layer = last_layer(flat)
    if layer is None:
        return None
    leaves = flat.leaves(params)
    with flat.precision.scope():
        evaluated = layer.evaluate(leaves, flat.inputs)
        return layer, evaluated, np.asarray(flat.apply_leaves(leaves, flat.inputs))


@pytest.mark.parametrize("name", FOUND)
def test_features_and_kernel_are_those_written_by_hand(name):
    apply, inputs, kernel, features, weights = FOUND[name]
    layer, evaluated, outputs = found(apply, PARAMS, inputs)
    assert layer.kernel == kernel
    with jax.enable_x64(True):
        by_hand = np.asarray(features(PARAMS, inputs)).reshape(len(outputs), -1)
        np.testing.assert_allclose(evaluated.features, by_hand, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(evaluated.kernel, np.asarray(weights(PARAMS)), rtol=1e-13)
    assert layer.width == by_hand.shape[1]
    biases = outputs - np.asarray(evaluated.features) @ np.asarray(evaluated.kernel)
    assert np.ptp(biases, axis=0).max() < 1e-13
    np.testing.assert_array_equal(evaluated.decisions, np.argmax(outputs, axis=1))


OTHER = {
    "softmax": lambda p, x: jax.nn.softmax(hidden(p, x) @ p["W"]),
    "soft cap": lambda p, x: 30 * jnp.tanh(hidden(p, x) @ p["W"] / 30),
    "skip connection": lambda p, x: hidden(p, x) @ p["W"] + x[:, :K],
    "bias of each row": lambda p, x: hidden(p, x) @ p["W"] + jnp.arange(N)[:, None] * p["b"],
    "reversed rows": lambda p, x: (hidden(p, x) @ p["W"])[::-1],
    "two products": lambda p, x: hidden(p, x) @ p["W"] + hidden(p, x) @ p["V"].T,
    "scaled by data": lambda p, x: hidden(p, x) @ p["W"] * x[:, :1],
    "scaled columns": lambda p, x: hidden(p, x) @ p["W"] * p["b"],
    "divided": lambda p, x: p["t"] / (hidden(p, x) @ p["W"]),
    "rounded": lambda p, x: (hidden(p, x) @ p["W"]).astype(jnp.int32).astype(jnp.float32),
    "no product": lambda p, x: x[:, :K] * p["b"],
    "loop": lambda p, x: jax.lax.scan(lambda c, w: (c, c @ w), hidden(p, x), p["W"][None])[1][0],
}


@pytest.mark.parametrize("name", OTHER)
def test_other_outputs_have_no_last_layer(name):
    assert found(OTHER[name], PARAMS, VECTORS) is None


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: (hidden(p, x) @ p["W"]).mean(1),
        lambda p, x: jnp.swapaxes(hidden(p, jnp.swapaxes(x, 0, 1)) @ p["W"], 0, 1),
        lambda p, x: (hidden(p, x) @ p["W"]).reshape(N, T * K),
        lambda p, x: jnp.swapaxes(hidden(p, x) @ p["W"], 1, 2),
    ],
    ids=["pooled outputs", "rows in another order", "merged outputs", "outputs as positions"],
)
def test_rows_that_are_not_the_positions_have_no_last_layer(apply):
    assert found(apply, PARAMS, TOKENS) is None


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.relu(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(K, name="head")(x.mean((1, 2)))


def test_batch_statistics_are_held_fixed_and_positive_in_the_check():
    x = RNG.standard_normal((N, 6, 6, 1)).astype(np.float32)
    module = Convolutions()
    variables = gaussian_variables(module, x)
    problem = Problem.from_linen(module, loss="mse", inputs=x, targets=np.zeros((N, K)))
    layer = last_layer(problem.flat(variables))
    assert (layer.kernel, layer.width) == ("head/kernel", 4)


def test_outputs_that_are_not_finite_decide_nothing():
    apply = FOUND["plain"][0]
    params = PARAMS | {"W": np.where(np.eye(M, K), np.inf, PARAMS["W"])}
    _, evaluated, _ = found(apply, params, VECTORS)
    np.testing.assert_array_equal(evaluated.decisions, -1)
