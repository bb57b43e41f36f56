"""The neural tangent kernel against Jacobians by plain autodiff of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from linear_families import blocks, matrix_power, tied_autoencoder, tied_chain
from oracles import CASES, data, mlp
from rankmon import (
    Problem,
    Tolerance,
    hessian_spectra,
    ntk_gram,
    ntk_rank,
    reconstruction_error,
    theory,
)
from refusals import refused
from shared_problems import problem_of

# One of each network, some with weights or another loss, which must not enter.
NETWORKS = [
    "linear-weights",
    "linear_bias-mse",
    "relu-mse",
    "relu_bias-mse",
    "tanh-cosh",
    "tanh_bias-mse",
    "conv-mse",
    "tokens-cross_entropy",
    "batch_statistics-mse",
]
EPS = 2.0**-52


@functools.cache
def jacobian_of(name):
    case = CASES[name]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
        theta, unravel = ravel_pytree(params)
        inputs = jax.tree.map(jnp.asarray, case.inputs)
        jacobian = jax.jit(jax.jacfwd(lambda t: case.apply(unravel(t), inputs).ravel()))
        return np.asarray(jacobian(theta))


@pytest.mark.parametrize("name", NETWORKS)
def test_gram_matrix_is_that_of_the_jacobian(name):
    J = jacobian_of(name)
    got = ntk_gram(problem_of(name), CASES[name].params)
    np.testing.assert_allclose(got, J @ J.T, rtol=0, atol=1e-12 * np.max(J @ J.T))
    assert got.dtype == np.float64


@pytest.mark.parametrize("engine", ["stack", "dense"])
@pytest.mark.parametrize("name", ["linear_bias-mse", "tanh-cosh"])
def test_both_engines_give_it(name, engine):
    J = jacobian_of(name)
    got = ntk_gram(problem_of(name), CASES[name].params, engine=engine)
    np.testing.assert_allclose(got, J @ J.T, rtol=0, atol=1e-12 * np.max(J @ J.T))


@pytest.mark.parametrize("name", ["linear_bias-mse", "conv-mse", "batch_statistics-mse"])
def test_rank_is_that_of_the_jacobian(name):
    J = jacobian_of(name)
    got = ntk_rank(problem_of(name), CASES[name].params)
    assert got.rank == np.linalg.matrix_rank(J)
    assert got.size == min(J.shape)
    assert got.tolerance == pytest.approx(max(J.shape) * EPS * np.linalg.norm(J, 2), rel=1e-9)


@pytest.mark.parametrize(("n", "engine"), [(1, "dense"), (4, "stack"), (9, "stack"), (40, "dense")])
def test_one_output_gives_the_rank_of_the_inputs(n, engine):
    apply, params = mlp((9, 5, 4, 1))
    x, y = data(n, 9, 1)
    rank = ntk_rank(Problem(apply, loss="mse", inputs=x, targets=y), params, engine=engine)
    assert rank.certain
    assert rank.rank == theory.rank_outer((9, 5, 4, 1), r=min(n, 9)) == min(n, 9)


def test_singular_values_below_the_gram_matrix_digits_are_counted():
    x = np.diag([1.0, 1e-5, 1e-10])
    problem = Problem(lambda w, x: x @ w, loss="mse", inputs=x, targets=np.zeros((3, 1)))
    assert ntk_rank(problem, np.ones((3, 1))).rank == 3
    assert ntk_rank(problem, np.ones((3, 1)), tolerance=Tolerance(absolute=1e-7)).rank == 2
    assert np.linalg.matrix_rank(ntk_gram(problem, np.ones((3, 1)))) == 2


def test_included_parameters_alone_enter():
    case = CASES["tanh-mse"]
    problem = Problem(case.apply, **case.statement, include=["0/*"])
    got = ntk_gram(problem, case.params)
    J = jacobian_of("tanh-cosh")[:, : case.params[0]["w"].size]  # the same network
    np.testing.assert_allclose(got, J @ J.T, rtol=0, atol=1e-12 * np.max(got))


def test_parameters_that_are_not_finite_have_no_rank():
    apply, params = mlp((4, 3, 2))
    x, y = data(5, 4, 2)
    params[0]["w"] = params[0]["w"] * np.nan
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    assert ntk_rank(problem, params).rank is None
    assert np.isnan(ntk_gram(problem, params)).any()


def test_what_does_not_fit_is_refused():
    case, problem = CASES["conv-mse"], problem_of("conv-mse")
    with refused(ValueError, "engine", "'magic'"):
        ntk_rank(problem, case.params, engine="magic")
    with refused(ValueError, "stack of dense layers", "engine='auto'"):
        ntk_gram(problem, case.params, engine="stack")
    jacobian = 8 * 12 * sum(leaf.size for leaf in jax.tree.leaves(case.params))
    with refused(MemoryError, "12 rows", "memory_limit"):  # its singular values take a copy
        ntk_rank(problem, case.params, memory_limit=jacobian)
    with refused(TypeError, "tolerance", "rankmon.Tolerance"):
        ntk_rank(problem, case.params, tolerance=1e-3)


@pytest.mark.parametrize(
    "network",
    [blocks(4, (1, 2)), tied_chain(4, 2, 3, 2), matrix_power(4, 2), tied_autoencoder(4, 3)],
    ids=lambda network: network.family.name,
)
def test_residual_and_tied_networks_have_the_rank_of_their_formula(network):
    rng = np.random.default_rng(6)
    weights = [rng.standard_normal(shape) for shape in network.shapes]
    x, y = rng.standard_normal((3, 4)), np.zeros((3, network.family.outputs))
    problem = Problem(lambda W, x: (network.matrix(W) @ x.T).T, loss="mse", inputs=x, targets=y)
    assert ntk_rank(problem, weights).rank == network.family.ranks(r=3)["H_o"].value


def test_the_error_of_a_reconstruction_ends_at_the_predicted_rank():
    network, rng = blocks(4, (2, 2)), np.random.default_rng(7)
    weights = [rng.standard_normal(shape) for shape in network.shapes]
    x = rng.standard_normal((9, 4))
    y = (network.matrix(weights) @ x.T).T - rng.standard_normal((9, 2)) @ rng.standard_normal(
        (2, 4)
    )
    problem = Problem(lambda W, x: (network.matrix(W) @ x.T).T, loss="mse", inputs=x, targets=y)
    errors = reconstruction_error(hessian_spectra(problem, weights)["H_L"])
    rank = network.family.ranks(s=2)["H_L"].value
    assert errors[rank] < 1e-12 < errors[rank - 1]
