"""The most that H_f's rank can be, against dense autodiff and matrices without structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import data
from rankmon import Problem, Tolerance, hessian_ranks
from rankmon.reach import most_rank

SHAPES = [(12, 9), (9, 1), (9, 5)]
P = 12 * 9 + 9 + 9 * 5
EPS = 2.0**-52
CUT = 1e-9
WIDTHS = (60, 30, 20, 6)


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
    return most_rank(lambda v: A @ v, gradients, SHAPES, CUT, eps=EPS, seed=seed)


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
    assert most_rank(lambda v: infinite, gradients, SHAPES, CUT, eps=EPS, seed=0) == P


def dense(activation, biases):
    def apply(params, x):
        for i, (W, b) in enumerate(params):
            x = x @ W + biases * b
            x = x if i == len(params) - 1 else activation(x)
        return x

    return apply


def convolution(params, x):
    images = jax.lax.conv(x.reshape(-1, 1, 6, 10), params[0], (1, 2), "SAME")
    return jnp.tanh(images).reshape(len(x), -1) @ params[1]


def shapes_of(kind):
    if kind == "convolution":
        return [(3, 1, 3, 3), (3 * 6 * 5, 6)]
    return [[pair, pair[1:]] for pair in zip(WIDTHS, WIDTHS[1:], strict=False)]


NETWORKS = {
    "linear": dense(lambda z: z, 0.0),
    "relu_bias": dense(jax.nn.relu, 1.0),
    "tanh_bias": dense(jnp.tanh, 1.0),
    "convolution": convolution,
}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_ranks_of_dense_autodiff_lie_within(kind, loss):
    rng = np.random.default_rng(1)
    shapes = shapes_of(kind)
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    weights = [rng.standard_normal(s) / np.sqrt(max(s[0], 3)) for s in leaves]
    params = jax.tree.unflatten(structure, weights)
    x, y = data(5, 60, 6, 2)
    targets = y if loss == "mse" else np.argmax(y, axis=1)
    problem = Problem(NETWORKS[kind], loss=loss, inputs=x, targets=targets)
    held = rng.standard_normal((5, 6))
    asked = {"reference": held, "tolerance": Tolerance(relative=1e-10)}
    with pytest.warns(UserWarning, match="more than a sketch shows"):
        found = hessian_ranks(problem, params, engine="sketch", time_limit=1e-6, **asked)
    truth = hessian_ranks(problem, params, engine="dense", **asked)
    p = problem.flat(params).p
    for part in ("H_L", "H_f", "H_f_fixed"):
        assert found[part].low <= truth[part].low
        assert truth[part].high <= found[part].high < p / 2
    if kind == "linear" and loss == "mse":
        assert found["H_f"].high == truth["H_f"].rank
