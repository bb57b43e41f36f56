"""Test which kernels are found to be applied to one vector, and that h (x) g is their gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from oracles import data, mlp
from rankmon import Problem
from rankmon.network.dense_kernels import DenseKernels


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (2, 2))(x))
        return nn.Dense(2)(nn.LayerNorm()(nn.Dense(4)(x.reshape(len(x), -1))))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(2)(x)
        return nn.Dense(2)(jnp.mean(x, axis=1))


@jax.custom_vjp
def product_with_own_rule(x, W):
    return x @ W


product_with_own_rule.defvjp(lambda x, W: (x @ W, (x, W)), lambda kept, g: (g, 2 * kept[1]))


def kernels_of(apply, params, x, **options):
    shape = jax.eval_shape(apply, params, x).shape
    problem = Problem(apply, loss="mse", inputs=x, targets=np.zeros(shape), **options)
    flat = problem.flat(params)
    example = jax.ShapeDtypeStruct((1, *flat.inputs.shape[1:]), flat.inputs.dtype)
    return flat, DenseKernels(flat, example)


def names_of(apply, params, x, **options):
    flat, found = kernels_of(apply, params, x, **options)
    return {flat.specs[kernel.leaf].name for kernel in found.kernels}


X, _ = data(5, 6, 3)
W = {"a": np.ones((6, 4)), "b": np.ones((4, 3))}


@pytest.mark.parametrize(
    ("apply", "params", "expected"),
    [
        (*mlp((6, 4, 3), jnp.tanh, bias=True), {"0/w", "1/w"}),
        (lambda p, x: (p["b"].T @ jnp.tanh(p["a"].T @ x.T)).T, W, {"a", "b"}),
        (lambda p, x: jax.vmap(lambda v: p["b"].T @ (v @ p["a"]))(x), W, {"a", "b"}),
        (lambda p, x: jax.checkpoint(lambda x: x @ p["a"])(x) @ p["b"], W, {"a", "b"}),
        (lambda p, x: x @ p["a"] @ p["b"] + jnp.sum(p["a"]), W, {"b"}),
        (lambda p, x: x @ p["a"] + x @ p["a"], {"a": W["a"]}, set()),
        (lambda p, x: (x @ (2 * p["a"])) @ p["b"], W, {"b"}),
        (lambda p, x: x @ p["a"][:, :3], {"a": W["a"]}, set()),
        (lambda p, x: x @ (p["a"] @ p["b"]), W, set()),
        (lambda p, x: product_with_own_rule(x, p["a"]) @ p["b"], W, {"b"}),
        (lambda p, x: x.reshape(-1, 2, 3) @ p["c"], {"c": np.ones((3, 2))}, set()),
        (
            lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, p["s"])[0] @ p["d"],
            {"s": np.ones((2, 6, 6)), "d": np.ones((6, 2))},
            {"d"},
        ),
        (
            lambda p, x: jnp.einsum("ni,ihd->nhd", x, p["q"]).reshape(len(x), -1),
            {"q": np.ones((6, 2, 3))},
            {"q"},
        ),
    ],
    ids=[
        "layers",
        "columns",
        "vmap",
        "checkpoint",
        "also-summed",
        "twice",
        "scaled",
        "sliced",
        "of-kernels",
        "own-rule",
        "positions",
        "scan",
        "three-axes",
    ],
)
def test_kernels_that_meet_one_vector_an_example(apply, params, expected):
    assert names_of(apply, params, X) == expected


def zeros_for(module, x):
    """Parameters of the right shapes: only what the network does with them is looked at."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_modules():
    images = np.ones((3, 4, 4, 1))
    params = zeros_for(ConvNet(), images)
    found = names_of(lambda p, x: ConvNet().apply({"params": p}, x), params, images)
    assert found == {"Dense_0/kernel", "Dense_1/kernel"}
    tokens = np.ones((3, 5, 4))
    params = zeros_for(Attention(), tokens)
    found = names_of(lambda p, x: Attention().apply({"params": p}, x), params, tokens)
    assert found == {"Dense_0/kernel"}


def test_only_what_is_differentiated():
    apply, params = mlp((6, 4, 3))
    assert names_of(apply, params, X, include=["1/*"]) == {"1/w"}


@pytest.mark.parametrize(
    ("apply", "params"),
    [
        mlp((6, 4, 3), jnp.tanh, bias=True),
        (lambda p, x: jnp.tanh(p["b"].T @ jnp.sin(p["a"].T @ x.T)).T, W),
        (
            lambda p, x: jnp.tanh(jnp.einsum("nij,jhi->nh", x.reshape(-1, 2, 3), p["c"])),
            {"c": np.arange(24.0).reshape(3, 4, 2) / 20},
        ),
    ],
    ids=["layers", "columns", "three-axes"],
)
def test_products_are_the_gradient_in_the_leaf_s_own_layout(apply, params):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        flat, found = kernels_of(apply, params, X)
        u = np.random.default_rng(0).standard_normal(
            (len(X), jax.eval_shape(apply, params, X).shape[1])
        )

        @jax.jit
        def both(params):
            def unit(x, v):
                outputs, pull_back, met = jax.vjp(
                    lambda shifts: found.traced(jax.tree.leaves(params), x[None], shifts),
                    {kernel.leaf: kernel.zero for kernel in found.kernels},
                    has_aux=True,
                )
                return outputs[0], met, pull_back(v[None])[0]

            z, met, signals = jax.vmap(unit)(X, u)
            products = {
                kernel.leaf: kernel.gradient(
                    met[kernel.leaf], signals[kernel.leaf].reshape(len(X), -1)
                )
                for kernel in found.kernels
            }
            plain = jax.grad(lambda p: jnp.vdot(u, apply(p, X)))(params)
            return z - apply(params, X), products, jax.tree.leaves(plain)

        difference, products, plain = both(params)
    assert np.max(np.abs(difference)) < 1e-14
    assert products
    for leaf, product in products.items():
        np.testing.assert_allclose(product, plain[leaf], rtol=1e-10)
