"""Test that programs are compiled to what they say: jaxlib 0.10 gets float32 products wrong."""

import jax
import jax.flatten_util
import numpy as np
import pytest

from rankmon._util.expected_time import compiled

N, DIMS, VECTORS = 256, (64, 48, 10), 32


@pytest.fixture(scope="module")
def network():
    """Return theta and a function of theta, a ReLU network with biases on a batch."""
    rng = np.random.default_rng(0)
    params = [
        (rng.normal(size=(m, k)).astype(np.float32) / m**0.5, np.zeros(k, np.float32))
        for m, k in zip(DIMS, DIMS[1:], strict=False)
    ]
    x = rng.normal(size=(N, DIMS[0])).astype(np.float32)
    theta, split = jax.flatten_util.ravel_pytree(params)

    def outputs(theta):
        (first, bias), (last, shift) = split(theta)
        return jax.nn.relu(x @ first + bias) @ last + shift

    return theta, outputs


@pytest.mark.parametrize("vectors", [1, 16, VECTORS])
def test_a_block_of_gauss_newton_products_is_that_of_its_vectors(network, vectors):
    theta, outputs = network

    def product(theta, v):
        z, jv = jax.jvp(outputs, (theta,), (v,))
        share = jax.nn.softmax(z)
        b = share * (jv - (share * jv).sum(1, keepdims=True)) / N
        return jax.vjp(outputs, theta)[1](b)[0]

    block = np.random.default_rng(1).normal(size=(vectors, theta.size)).astype(np.float32)
    program = compiled("a test", jax.jit(jax.vmap(product, (None, 0))).trace(theta, block))
    one_by_one = np.stack([product(theta, v) for v in block])
    np.testing.assert_allclose(program(theta, block), one_by_one, atol=1e-5)
