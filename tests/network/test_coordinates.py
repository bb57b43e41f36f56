"""Coordinates leave out directions of eigenvalue zero, and no others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import oracles
from rankmon import Problem, Tolerance, hessian_ranks, hessian_spectra
from rankmon.network.coordinates import coordinates_of

N, K = 5, 3


def normal(rng, *shape):
    return rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[:-1]), 1))


def inputs(rng, d, rank):
    """Inputs [N d] of this rank, some of whose entries are zero for all examples."""
    x = rng.standard_normal((N, rank)) @ rng.standard_normal((rank, d))
    x[:, rng.random(d) < 0.2] = 0
    return x


# Kinds of networks: each gives (apply, params, inputs).


def dense(rng, activation, *, transposed=False):
    d, m = rng.integers(6, 14), rng.integers(3, 7)
    params = {
        "w": normal(rng, d, m),
        "b": 0.1 * normal(rng, m),
        "u": normal(rng, m, m),
        "v": normal(rng, m, K),
    }
    if transposed:
        params["w"] = params["w"].T

    def apply(params, x):
        w = params["w"].T if transposed else params["w"]
        h = activation(x @ w + params["b"])
        return activation(h @ params["u"]) @ params["v"]

    return apply, params, inputs(rng, int(d), int(rng.integers(1, N + 1)))


def convolution(rng, activation):
    images = rng.standard_normal((N, 5, 5, 2))
    images[..., rng.integers(2)] = 0  # a channel that is not there
    params = {"c": normal(rng, 3, 3, 2, 3), "v": normal(rng, 27, K)}
    numbers = ("NHWC", "HWIO", "NHWC")

    def apply(params, x):
        z = jax.lax.conv_general_dilated(x, params["c"], (1, 1), "VALID", dimension_numbers=numbers)
        return activation(z).reshape(len(x), -1) @ params["v"]

    return apply, params, images


def embedding(rng, activation, *, tied=False):
    params = {"table": normal(rng, 20, 4), "w": normal(rng, 8, 4), "v": normal(rng, 20, K)}
    tokens = rng.integers(0, 6, (N, 2))

    def apply(params, x):
        h = jnp.take(params["table"], x, axis=0).reshape(len(x), -1)
        h = activation(h @ params["w"])
        return (h @ params["table"].T) @ params["v"]

    def untied(params, x):
        h = params["table"][x].reshape(len(x), -1)
        return activation(h @ params["w"])[:, :K]

    return (apply if tied else untied), params, tokens


def masked(rng, activation):
    d = 8
    mask = jnp.asarray((rng.random((d, 5)) < 0.5) * 1.0)
    params = {"w": normal(rng, d, 5), "v": normal(rng, 5, K), "unused": normal(rng, 4)}

    def apply(params, x):
        return activation(0.5 * x @ (params["w"] * mask)) @ params["v"]

    return apply, params, inputs(rng, d, 4)


def twice(rng, activation):
    """A kernel that is applied to two views of the data, and a slice of a table."""
    params = {"w": normal(rng, 9, 4), "s": normal(rng, 6, 4), "v": normal(rng, 4, K)}

    def apply(params, x):
        h = activation(x @ params["w"]) + jnp.sin(x[:, ::-1] @ params["w"])
        return (h + params["s"][2]) @ params["v"]

    return apply, params, inputs(rng, 9, 2)


def heads(rng, activation):
    """A kernel with two input axes and two output axes, by einsum."""
    params = {"w": normal(rng, 3, 4, 2, 3), "v": normal(rng, 6, K)}

    def apply(params, x):
        z = jnp.einsum("nab,abhd->nhd", x, params["w"])
        return activation(z).reshape(len(x), -1) @ params["v"]

    return apply, params, inputs(rng, 12, 2).reshape(N, 3, 4)


KINDS = {
    "dense": dense,
    "transposed": functools.partial(dense, transposed=True),
    "convolution": convolution,
    "embedding": embedding,
    "tied": functools.partial(embedding, tied=True),
    "masked": masked,
    "twice": twice,
    "heads": heads,
}
ACTIVATIONS = {"linear": lambda z: z, "relu": jax.nn.relu, "gelu": jax.nn.gelu, "tanh": jnp.tanh}


def oracle(apply, params, x, y):
    """H_L of the mean loss by dense autodiff, in float64."""
    with jax.enable_x64(True):
        theta, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))

        def loss(theta):
            return jnp.mean(jax.vmap(oracles.mse)(apply(unravel(theta), jnp.asarray(x)), y))

        return np.asarray(jax.jit(jax.hessian(loss))(theta))


def check(kind, seed):
    rng = np.random.default_rng(seed)
    activation = list(ACTIVATIONS.values())[seed % len(ACTIVATIONS)]
    apply, params, x = KINDS[kind](rng, activation)
    y = rng.standard_normal((N, K))
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    want = np.linalg.eigvalsh(oracle(apply, params, x, y))
    norm = np.max(np.abs(want))
    for engine in ("auto", "dense"):
        spectrum = hessian_spectra(problem, params, engine=engine)["H_L"]
        assert spectrum.shape == want.shape
        np.testing.assert_allclose(np.sort(spectrum), want, rtol=0, atol=1e-10 * norm)
    cut = 1e-9 * norm
    rank = hessian_ranks(problem, params, tolerance=Tolerance(absolute=cut), engine="dense")["H_L"]
    counts = [int(np.sum(np.abs(want) > factor * cut)) for factor in (10, 1, 0.1)]
    assert [rank.low, rank.rank, rank.high] == counts
    assert rank.size == len(want)
    return problem.flat(params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_eigenvalues_are_those_of_all_parameters(kind, seed):
    check(kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2, 27))
def test_eigenvalues_are_those_of_all_parameters_in_many_networks(kind, seed):
    check(kind, seed)


def reduced(apply, params, x, y=None):
    y = np.ones((len(x), K)) if y is None else y
    return coordinates_of(Problem(apply, loss="mse", inputs=x, targets=y).flat(params)).reduced


def test_a_kernel_of_data_keeps_the_span_of_its_inputs():
    rng = np.random.default_rng(0)
    params = {"w": normal(rng, 30, 4), "v": normal(rng, 4, K)}
    found = reduced(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], params, inputs(rng, 30, 2))
    assert [spec.shape for spec in found.specs] == [(4, K), (2, 4)]  # v, then w


def test_rows_that_are_not_looked_up_cost_nothing():
    rng = np.random.default_rng(0)
    params = {"table": normal(rng, 5000, 4), "v": normal(rng, 8, K)}
    tokens = rng.integers(0, 7, (N, 2))
    found = reduced(lambda p, x: p["table"][x].reshape(len(x), -1) @ p["v"], params, tokens)
    assert found.p == len(np.unique(tokens)) * 4 + 8 * K


def test_no_row_of_a_tied_table_or_of_a_softmax_is_dropped():
    rng = np.random.default_rng(0)
    params = {"table": normal(rng, 50, 4)}
    x, labels = rng.integers(0, 7, (N, 2)), rng.integers(0, 50, N)
    problem = Problem(
        lambda p, x: jnp.mean(p["table"][x], axis=1) @ p["table"].T,
        loss="cross_entropy",
        inputs=x,
        targets=labels,
    )
    assert coordinates_of(problem.flat(params)).is_whole


def test_a_network_that_depends_on_everything_is_measured_as_it_is():
    case = oracles.CASES["relu-mse"]
    flat = Problem(case.apply, **case.statement).flat(case.params)
    assert coordinates_of(flat).reduced is flat


def test_a_frozen_leaf_stays_as_it_is():
    rng = np.random.default_rng(0)
    params = {"w": normal(rng, 30, 4), "v": normal(rng, 4, K)}
    problem = Problem(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
        loss="mse",
        inputs=inputs(rng, 30, 2),
        targets=np.ones((N, K)),
        exclude="w",
    )
    assert coordinates_of(problem.flat(params)).is_whole


def test_directions_that_are_used_in_another_way_are_never_dropped():
    """A function of the parameters that reads them besides the product."""
    rng = np.random.default_rng(0)
    params = {"w": normal(rng, 30, 4), "v": normal(rng, 4, K)}

    def apply(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"] * (1 + jnp.sum(p["w"] ** 2))

    assert reduced(apply, params, inputs(rng, 30, 2)).p == 30 * 4 + 4 * K
