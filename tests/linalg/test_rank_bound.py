"""Test the upper bound on the rank of H_f against dense autodiff and unstructured matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from oracles import data
from rankmon import Problem, Tolerance, hessian_ranks, theory
from rankmon.linalg.rank_bound import SeenOnHost, most_rank

SHAPES = [(12, 9), (9, 1), (9, 5)]
P = 12 * 9 + 9 + 9 * 5
EPS = 2.0**-52
CUT = 1e-9
WIDTHS = (30, 16, 10, 3)


def bound(product, gradients, shapes, cut, seed):
    rng = np.random.default_rng([seed, 2])
    seen = SeenOnHost(product, gradients, [a * b for a, b in shapes], rng)
    return most_rank(seen, shapes, cut, eps=EPS, rng=rng)


def layer(rng, a, b, n):
    """H_f of one kernel, and of what comes before and after it, with n inputs; and gradients."""
    inputs, backwards = rng.standard_normal((n, a)), rng.standard_normal((n, b))
    before, after = rng.standard_normal((n, a, P - a * b)), rng.standard_normal((n, b, P - a * b))
    block = np.einsum("na,nbq->abq", inputs, after) + np.einsum("naq,nb->abq", before, backwards)
    A = np.zeros((P, P))
    A[: a * b, a * b :] = block.reshape(a * b, -1)
    A[a * b :, : a * b] = A[: a * b, a * b :].T
    A[a * b :, a * b :] = rng.standard_normal((P - a * b, P - a * b))
    o = rng.standard_normal((8, n))
    gradients = rng.standard_normal((8, P))
    gradients[:, : a * b] = np.einsum("on,na,nb->oab", o, inputs, backwards).reshape(8, -1)
    return A + A.T, gradients


def most(A, gradients, seed=0):
    return bound(lambda v: A @ v, gradients, SHAPES, CUT, seed)


@pytest.mark.parametrize("seed", range(10))
def test_directions_that_a_batch_of_two_reaches(seed):
    A, gradients = layer(np.random.default_rng(seed), 12, 9, 2)
    found = most(A, gradients, seed)
    assert found == 2 * 9 + 12 * 2 - 2 * 2 + 9 + 9 * 5
    assert np.linalg.matrix_rank(A) <= found


@pytest.mark.parametrize("seed", range(20))
def test_what_gradients_do_not_show_is_not_left_out(seed):
    """A part of rank one, small but above the cut, in a direction that no gradient has."""
    rng = np.random.default_rng(seed)
    A, gradients = layer(rng, 12, 9, 2)
    z = rng.standard_normal(P)
    assert most(A + 2 * CUT / (z @ z) * np.outer(z, z), gradients, seed) == P
    symmetric = rng.standard_normal((P, P))
    assert most(symmetric + symmetric.T, gradients, seed) == P


def test_a_zero_block_counts_its_neighbors_twice():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((P, P))
    A[:108, :108] = 0
    gradients = rng.standard_normal((8, P))
    assert most(A + A.T, gradients) == 2 * (P - 108)
    A[3, 5] = 2 * CUT
    assert most(A + A.T, gradients) == P


def test_zero_and_infinity():
    gradients = np.ones((8, P))
    assert most(np.zeros((P, P)), gradients) == 0
    infinite = np.full(P, np.inf)
    assert bound(lambda v: infinite, gradients, SHAPES, CUT, 0) == P


def dense(activation):
    def apply(params, x):
        for i, (W, b) in enumerate(params):
            x = x @ W + b
            x = x if i == len(params) - 1 else activation(x)
        return x

    return apply


def convolution(params, x):
    kernel, b, W = params
    images = jax.lax.conv(x.reshape(-1, 1, 3, 10), kernel, (1, 2), "SAME") + b[:, None, None]
    return jnp.tanh(images).reshape(len(x), -1) @ W


def linear(params, x):
    """With a kernel of four axes, and a leaf of which the outputs do not depend."""
    kernel, first, second, _ = params
    return x @ kernel.reshape(WIDTHS[:2]) @ first @ second


def shapes_of(kind):
    if kind == "convolution":
        return [(3, 1, 3, 3), (3,), (3 * 3 * 5, 3)]
    if kind == "linear":
        return [(3, 5, 2, 16), *zip(WIDTHS[1:], WIDTHS[2:], strict=False), (3,)]
    return [[pair, pair[1:]] for pair in zip(WIDTHS, WIDTHS[1:], strict=False)]


NETWORKS = {
    "linear": linear,
    "relu_bias": dense(jax.nn.relu),
    "tanh_bias": dense(jnp.tanh),
    "convolution": convolution,
}


def parameters(kind, rng):
    leaves, structure = jax.tree.flatten(shapes_of(kind), is_leaf=lambda s: isinstance(s, tuple))
    weights = [rng.standard_normal(s) / np.sqrt(max(s[0], 3)) for s in leaves]
    return jax.tree.unflatten(structure, weights)


@pytest.mark.parametrize("kind", ["relu_bias", "tanh_bias", "convolution"])
def test_ranks_of_dense_autodiff_lie_within(kind):
    rng = np.random.default_rng(1)
    params, (x, _) = parameters(kind, rng), data(3, 30, 3, 2)
    shapes = [
        (leaf.size, 1) if leaf.ndim == 1 else (leaf.size // leaf.shape[-1], leaf.shape[-1])
        for leaf in jax.tree.leaves(params)
    ]

    @jax.jit
    def program(theta, delta, draws):
        def weighted(theta, cotangent):
            return jnp.vdot(cotangent, NETWORKS[kind](unravel(theta), x))

        gradients = jax.vmap(lambda o: jax.grad(weighted)(theta, o * delta))(draws)
        return jax.hessian(weighted)(theta, delta), gradients

    with jax.enable_x64(True):
        theta, unravel = ravel_pytree(params)
        for delta in rng.standard_normal((2, 3, 3)):
            draws = rng.standard_normal((8, 3, 1))
            H, gradients = (np.asarray(found) for found in program(theta, delta, draws))
            cut = 1e-10 * np.linalg.norm(H, 2)
            found = bound(lambda v, H=H: H @ v, gradients, shapes, cut, 0)
            assert np.linalg.matrix_rank(H, tol=cut, hermitian=True) <= found < len(H) / 2


def test_the_engine_past_its_time_says_what_it_knows():
    rng, ranks = np.random.default_rng(1), {"r": 3, "s": 3}
    params, (x, y) = parameters("linear", rng), data(3, 30, 3, 2)
    problem = Problem(linear, loss="mse", inputs=x, targets=y)
    asked = {"reference": rng.standard_normal((3, 3)), "tolerance": Tolerance(relative=1e-10)}
    with pytest.warns(UserWarning, match="H_L, H_f, H_f_fixed"):
        found = hessian_ranks(problem, params, engine="sketch", time_limit=1e-6, **asked)
    for part in ("H_L", "H_f", "H_f_fixed"):
        assert not found[part].complete
        assert found[part].rank == found[part].low
        assert found[part].high < problem.flat(params).p / 2
    assert found["H_L"].low >= 60  # of a sketch of 64 rows
    assert found["H_L"].low <= theory.rank_loss(WIDTHS, **ranks) <= found["H_L"].high
    assert found["H_o"].rank == theory.rank_outer(WIDTHS, r=3)
    for part in ("H_f", "H_f_fixed"):
        assert found[part].low <= theory.rank_functional(WIDTHS, **ranks) == found[part].high
