"""Test the gradient against `jax.grad` of the textbook loss, and the size of its rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from oracles import CASES, data
from rankmon import Problem
from rankmon.problem.gradient import GradientProgram
from refusals import refused
from shared_problems import flat_of


def textbook_gradient(case) -> np.ndarray:
    """The gradient of the weighted mean of the textbook loss, by automatic differentiation."""

    def mean_loss(params):
        z = case.apply(params, case.inputs)
        z = z.reshape(-1, z.shape[-1])
        axes = np.ndim(case.weights) if case.weights is not None else 1
        targets = jax.tree.map(
            lambda t: jnp.asarray(t).reshape(len(z), *np.shape(t)[axes:]), case.targets
        )
        w = jnp.ones(len(z)) if case.weights is None else jnp.asarray(case.weights).ravel()
        return jnp.sum(w * jax.vmap(case.textbook)(z, targets)) / jnp.sum(w)

    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
        return np.asarray(ravel_pytree(jax.grad(mean_loss)(params))[0])


@pytest.mark.parametrize(
    "name",
    [
        "relu_bias-mse",
        "tanh-cross_entropy",
        "tanh-one_hot",
        "tanh-cosh",
        "tanh-custom",
        "linear-weights",
        "conv-mse",
        "tokens-cross_entropy",
        "batch_statistics-mse",
    ],
)
def test_it_is_that_of_the_textbook_loss(name):
    case, flat = CASES[name], flat_of(name)
    theta, fixed = flat.split(flat.leaves(case.params))
    got = GradientProgram.of(flat).at(theta, fixed)
    want = textbook_gradient(case)
    np.testing.assert_allclose(got.values, want, rtol=1e-11, atol=1e-13 * np.abs(want).max())
    assert got.values.dtype == got.perturbations.dtype == np.float64
    assert np.all(np.isfinite(got.perturbations))


def linear(x, y, **options) -> tuple[Problem, np.ndarray]:
    problem = Problem(lambda W, x: x @ W, loss="mse", inputs=x, targets=y, **options)
    return problem, np.linalg.lstsq(x, y, rcond=None)[0]


def evaluated(problem, params):
    flat = problem.flat(params)
    return GradientProgram.of(flat).at(*flat.split(flat.leaves(params)))


def test_the_perturbation_has_its_expected_size():
    """E ||h||_F^2 = sum_i w_i^2 ||x_i||^2 (||delta_i||^2 + ||z_i||^2) for z = W^T x under mse."""
    x, y = data(200, 7, 5)
    weights = np.random.default_rng(5).uniform(0, 2, 200) * (np.arange(200) % 4 > 0)
    problem, _ = linear(x, y, weights=weights)
    W = np.random.default_rng(6).standard_normal((7, 5))
    got = evaluated(problem, W).perturbations
    w, z = weights / weights.sum(), x @ W
    expected = np.sum(w**2 * np.sum(x**2, 1) * (np.sum((z - y) ** 2, 1) + np.sum(z**2, 1)))
    assert np.mean(np.sum(got**2, axis=1)) == pytest.approx(expected, rel=0.3)
    assert len(got) > 1
    assert not np.allclose(got[0], got[1])


@pytest.mark.parametrize("n", [5, 60], ids=["interpolated", "stationary"])
def test_it_stays_where_the_gradient_vanishes(n):
    problem, best = linear(*data(n, 7, 5))
    found = evaluated(problem, best)
    assert np.abs(found.values).max() < 1e-14
    assert np.abs(found.perturbations).max() > 1e-2


def test_it_is_the_same_whatever_the_users_random_numbers():
    problem, best = linear(*data(9, 3, 2))
    one = evaluated(problem, best)
    with jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
        other = evaluated(Problem(**vars_of(problem)), best)
    np.testing.assert_array_equal(one.values, other.values)
    assert np.all(np.isfinite(other.perturbations))


def vars_of(problem):
    return {
        "apply": problem.apply,
        "loss": "mse",
        "inputs": problem.inputs,
        "targets": problem.targets,
    }


def test_a_network_without_reverse_mode_is_refused():
    def apply(W, x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 1.0, lambda c: c + 1.0, x @ W)

    x, y = data(4, 3, 2)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    with refused(ValueError, "reverse mode", "gradients probe"):
        GradientProgram.of(problem.flat(np.ones((3, 2))))
