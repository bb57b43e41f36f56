"""Closed-form eigenvalues against those of the Hessian's parts by dense autodiff."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from linear_families import LinearNetwork, blocks, chain, matrix_power, tied_autoencoder, tied_chain
from oracles import data, mlp
from rankmon.theory import ResidualBlocks, ResidualChain, TiedAutoencoder
from rankmon.theory.spectra import (
    Plateaus,
    functional_plateaus,
    match_plateaus,
    outer_plateaus,
    outer_spectrum,
)
from refusals import refused

ACTIVATIONS = {
    "linear": (None, None),
    "relu": (jax.nn.relu, lambda x: np.maximum(x, 0)),
    "tanh": (jnp.tanh, np.tanh),
}


def parameters(dims, *, bias, seed=0):
    """Those of a network with biases, which are 0 if it should have none."""
    _, params = mlp(dims, bias=True, seed=seed)
    return params if bias else [{**layer, "b": 0 * layer["b"]} for layer in params]


@cache
def derivatives(dims, activation: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The Jacobian [n k p], and the Hessian of sum <delta, F>, of a network with biases."""
    apply, params = mlp(dims, ACTIVATIONS[activation][0], bias=True)
    with jax.enable_x64(True):
        _, unravel = ravel_pytree(params)

    def network(theta, x):
        return apply(unravel(theta), x)

    def paired(theta, x, delta):
        return jnp.sum(delta * network(theta, x))

    return jax.jit(jax.jacfwd(network)), jax.jit(jax.hessian(paired))


def of_the_weights(params, bias):
    """Which parameters the network has: without biases, the weights alone."""
    kinds = [
        {"w": np.ones(layer["w"].size), "b": np.full(layer["b"].size, bias)} for layer in params
    ]
    return np.flatnonzero(np.concatenate([kind[name] for kind in kinds for name in ("b", "w")]))


def flat(params):
    return np.concatenate([layer[name].ravel() for layer in params for name in ("b", "w")])


@cache
def jacobian(dims, activation="linear", *, bias=False, n=20, seed=0):
    """Parameters, inputs [n d] and the Jacobian [n k p] by autodiff."""
    params = parameters(dims, bias=bias, seed=seed)
    x, _ = data(n, dims[0], dims[-1], seed=seed + 1)
    with jax.enable_x64(True):
        J = np.asarray(derivatives(dims, activation)[0](flat(params), x))
    return params, x, J[:, :, of_the_weights(params, bias)]


def outer_eigenvalues(J):
    """Those of H_o under mse, whose output Hessians are the identity."""
    rows = J.reshape(-1, J.shape[-1])
    return np.linalg.eigvalsh(rows.T @ rows / len(J))


def received(params, x, activation):
    """The last layer's input [n M], by NumPy."""
    for layer in params[:-1]:
        x = x @ layer["w"] + layer["b"]
        x = x if activation == "linear" else ACTIVATIONS[activation][1](x)
    return x


@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize(
    "dims", [(5, 3), (5, 4, 3), (5, 2, 4), (3, 6, 5, 4), (6, 2, 5, 3, 4)], ids=str
)
def test_outer_spectrum_is_that_of_H_o(dims, n):
    params, x, J = jacobian(dims)
    x, J = x[:n], J[:n]
    want = outer_eigenvalues(J)[::-1]
    got = outer_spectrum([layer["w"].T for layer in params], x)
    assert got.shape == (dims[-1] * min(n, dims[0]),)
    assert np.all(np.diff(got) <= 0)
    size = max(len(want), len(got))
    padded = [np.pad(v, (0, size - len(v))) for v in (np.maximum(want, 0), got)]
    np.testing.assert_allclose(*padded, rtol=0, atol=1e-13 * want[0])


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dims", [(4, 2, 5), (5, 6, 3, 7)], ids=str)
def test_outer_plateaus_are_in_the_spectrum_of_H_o(dims, activation, bias):
    params, x, J = jacobian(dims, activation, bias=bias, n=12, seed=3)
    plateaus = outer_plateaus(received(params, x, activation), dims[-1], bias=bias)
    assert plateaus.width == dims[-1] - dims[-2]
    assert len(plateaus.levels) == dims[-2] + bias
    measured = outer_eigenvalues(J)
    for level in plateaus.levels[plateaus.levels > 0]:
        near = np.abs(measured - level) <= 1e-9 * level
        assert near.sum() >= plateaus.width
        if activation != "relu":  # units that are never active together add to a level
            assert near.sum() == plateaus.width
    assert all(match.holds for match in match_plateaus(plateaus, measured))


def test_a_dead_unit_gives_a_level_of_zero():
    h = np.random.default_rng(0).standard_normal((9, 3)) * [1.0, 0.0, 2.0]
    plateaus = outer_plateaus(h, 5)
    assert plateaus.levels[-1] == pytest.approx(0, abs=1e-30)
    assert outer_plateaus(h[:1], 5).levels.shape == (3,)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dims", [(5, 4, 3), (3, 6, 5), (4, 2, 1)], ids=str)
def test_functional_plateaus_are_all_of_H_f(dims, bias):
    params = parameters(dims, bias=bias)
    x, y = data(12, dims[0], dims[-1])
    delta = mlp(dims, bias=True)[0](params, x) - y
    with jax.enable_x64(True):
        H_f = np.asarray(derivatives(dims, "linear")[1](flat(params), x, delta / 12))
    own = of_the_weights(params, bias)
    measured = np.linalg.eigvalsh(H_f[np.ix_(own, own)])
    ones = np.ones((12, int(bias)))
    plateaus = functional_plateaus(delta.T @ np.hstack([x, ones]) / 12, dims[1])
    assert plateaus.width == dims[1]
    want = np.sort(np.repeat(plateaus.levels, plateaus.width))
    live = np.sort(measured[np.abs(measured) > 1e-12 * np.abs(measured).max()])
    np.testing.assert_allclose(live, want, rtol=1e-11)
    assert all(match.found == match.width for match in match_plateaus(plateaus, measured))


def test_matches_say_where_and_how_often():
    plateaus = Plateaus(np.array([2.0, 1.0, 0.0, -3.0]), width=2)
    spectrum = np.array([2.0, 2.0 + 1e-10, 1.0, 1.0 + 1e-6, -3.0, -3.0, -3.0, 0.0])
    two, one, three = match_plateaus(plateaus, spectrum)
    assert (two.found, two.holds) == (2, True)
    assert two.error == pytest.approx(5e-11, rel=1e-5)
    assert (one.found, one.holds) == (1, False)
    assert one.error == pytest.approx(1e-6, rel=1e-5)
    assert (three.found, three.holds, three.error) == (3, True, 0.0)
    assert all(m.holds for m in match_plateaus(plateaus, spectrum, tolerance=1e-5))
    assert not replace(two, found=1).holds


def test_what_does_not_fit_is_refused():
    x = np.ones((4, 3))
    with refused(ValueError, "chain of weights", "d = 3", "transpose"):
        outer_spectrum([np.ones((3, 5)), np.ones((2, 3))], x)
    with refused(ValueError, "weight", "none"):
        outer_spectrum([], x)
    with refused(ValueError, "weight", "NaN"):
        outer_spectrum([np.full((2, 3), np.nan)], x)
    with refused(ValueError, "outputs", "K = 3", "3 features"):
        outer_plateaus(x, 3)
    with refused(ValueError, "features", "2 axes", "(4,)"):
        outer_plateaus(x[:, 0], 3)
    with refused(ValueError, "hidden", "0"):
        functional_plateaus(x, 0)
    with refused(ValueError, "7 eigenvalues", "4"):
        match_plateaus(Plateaus(np.ones(1), 7), np.ones(4))


@pytest.mark.parametrize("number", [2.0, "2", True, None, np.ones(2)], ids=str)
def test_widths_are_integers(number):
    x = np.ones((4, 3))
    with refused(TypeError, "outputs", repr(number)):
        outer_plateaus(x, number)
    with refused(TypeError, "hidden", repr(number)):
        functional_plateaus(x, number)


def test_flags_and_arrays_are_what_they_should_be():
    x, W = np.ones((4, 3)), np.ones((5, 3))
    for bias in (2, "1", None):
        with refused(TypeError, "bias", "True or False", repr(bias)):
            outer_plateaus(x, 5, bias=bias)
    for weights in (None, 5, W):
        with refused(TypeError, "weights", type(weights).__name__, "W^1"):
            outer_spectrum(weights, x)
    with refused(TypeError, "every weight", "str"):
        outer_spectrum(["W"], x)
    with refused(TypeError, "inputs", "NoneType"):
        outer_spectrum([W], None)
    for tolerance in (-1.0, np.nan, "1", None):
        with refused((TypeError, ValueError), "tolerance", repr(tolerance)):
            match_plateaus(Plateaus(np.ones(1), 1), np.ones(4), tolerance=tolerance)
    assert outer_plateaus(x, np.int64(5), bias=np.True_).width == 2


# Residual and tied linear networks.

FAMILIES = [
    chain((3, 4, 2)),
    blocks(3, (1, 2)),
    tied_chain(3, 2, 4, 2),
    matrix_power(3, 3),
    tied_autoencoder(3, 2),
    tied_autoencoder(3, 5),
]


def test_outer_spectrum_of_residual_and_tied_networks() -> None:
    rng, n = np.random.default_rng(4), 6
    for network in FAMILIES:
        x = rng.standard_normal((n, network.family.inputs))
        weights = [rng.standard_normal(shape) for shape in network.shapes]
        found = outer_spectrum(weights, x, family=network.family)
        expected = outer_eigenvalues(network.jacobian(weights, x))[::-1]
        size = min(len(found), len(expected))
        np.testing.assert_allclose(found[:size], expected[:size], atol=1e-11 * found[0])
        assert np.all(found[size:] < 1e-11 * found[0])


def test_a_residual_chain_is_the_plain_chain_at_translated_weights() -> None:
    rng, family = np.random.default_rng(5), ResidualChain((3, 4, 2))
    weights = [rng.standard_normal((4, 3)), rng.standard_normal((2, 4))]
    x = rng.standard_normal((7, 3))
    translated = [W + np.eye(*W.shape) for W in weights]
    residual = outer_spectrum(weights, x, family=family)
    np.testing.assert_allclose(residual, outer_spectrum(translated, x), atol=1e-12 * residual[0])


@pytest.mark.parametrize(
    ("network", "tied"),
    [(blocks(4, (3,)), False), (tied_autoencoder(4, 3), True)],
    ids=["block", "autoencoder"],
)
def test_functional_plateaus_of_one_block_and_of_a_tied_autoencoder(
    network: LinearNetwork, tied: bool
) -> None:
    rng = np.random.default_rng(6)
    omega = rng.standard_normal((4, 4))
    with jax.enable_x64(True):
        weights = [jnp.asarray(rng.standard_normal(shape)) for shape in network.shapes]
        flat_weights, unravel = ravel_pytree(weights)
        H_f = jax.jit(jax.hessian(lambda t: jnp.sum(omega * network.matrix(unravel(t)))))
        eigenvalues = np.linalg.eigvalsh(H_f(flat_weights))
    plateaus = functional_plateaus(omega, 3, tied=tied)
    levels = np.sort(np.repeat(plateaus.levels, plateaus.width))
    np.testing.assert_allclose(eigenvalues, levels, atol=1e-12)


def test_networks_without_a_closed_spectrum_are_refused() -> None:
    x = np.ones((3, 4))
    with refused(ValueError, "(2, 4), (4, 2)", "(4, 2), (2, 4)", "transpose"):
        outer_spectrum([np.ones((4, 2)), np.ones((2, 4))], x, family=ResidualBlocks(4, (2,)))
    with refused(ValueError, "d = 5", "got 4"):
        outer_spectrum([np.ones((2, 5))], x, family=TiedAutoencoder(5, 2))
    with refused(ValueError, "residual or tied", "str", "hessian_spectra"):
        outer_spectrum([np.ones((4, 4))], x, family="W^2")
    with refused(ValueError, "square Omega", "(2, 4)", "tied"):
        functional_plateaus(np.ones((2, 4)), 3, tied=True)
    with refused(TypeError, "tied", "True or False"):
        functional_plateaus(np.ones((4, 4)), 3, tied=1)
