"""Closed-form eigenvalues against those of the Hessian's parts by dense autodiff."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import Case, data, dense_parts, mlp, mse
from rankmon.spectral_theory import (
    Plateaus,
    functional_plateaus,
    match_plateaus,
    outer_plateaus,
    outer_spectrum,
)


def case_of(dims, activation=None, *, bias=False, n=12, seed=0):
    apply, params = mlp(dims, activation, bias=bias, seed=seed)
    x, y = data(n, dims[0], dims[-1], seed=seed + 1)
    return Case("", apply, params, x, y, "mse", mse)


def eigenvalues(case, part):
    return np.linalg.eigvalsh(dense_parts(case)[part])


def received(case):
    """What the last layer receives: the network with an identity as its last layer."""
    width = case.params[-1]["w"].shape[0]
    last = {"w": np.eye(width)} | ({"b": np.zeros(width)} if "b" in case.params[-1] else {})
    with jax.enable_x64(True):
        return np.asarray(case.apply([*case.params[:-1], last], case.inputs))


@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize(
    "dims", [(5, 3), (5, 4, 3), (5, 2, 4), (3, 6, 5, 4), (6, 2, 5, 3, 4)], ids=str
)
def test_outer_spectrum_is_that_of_H_o(dims, n):
    case = case_of(dims, n=n)
    want = np.sort(eigenvalues(case, "H_o"))[::-1]
    got = outer_spectrum([layer["w"].T for layer in case.params], case.inputs)
    assert got.shape == (dims[-1] * min(n, dims[0]),)
    assert np.all(np.diff(got) <= 0)
    size = max(len(want), len(got))
    padded = [np.pad(v, (0, size - len(v))) for v in (np.maximum(want, 0), got)]
    np.testing.assert_allclose(*padded, rtol=0, atol=1e-13 * want[0])


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    "activation", [None, jax.nn.relu, jnp.tanh], ids=["linear", "relu", "tanh"]
)
@pytest.mark.parametrize("dims", [(4, 2, 5), (5, 6, 3, 7)], ids=str)
def test_outer_plateaus_are_in_the_spectrum_of_H_o(dims, activation, bias):
    case = case_of(dims, activation, bias=bias, seed=3)
    plateaus = outer_plateaus(received(case), dims[-1], bias=bias)
    assert plateaus.width == dims[-1] - dims[-2]
    assert len(plateaus.levels) == dims[-2] + bias
    measured = eigenvalues(case, "H_o")
    for level in plateaus.levels[plateaus.levels > 0]:
        near = np.abs(measured - level) <= 1e-9 * level
        assert near.sum() >= plateaus.width
        if activation is not jax.nn.relu:  # units that are never active together add to a level
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
    case = case_of(dims, bias=bias)
    x = np.concatenate([case.inputs, np.ones((12, 1))], axis=1) if bias else case.inputs
    omega = dense_parts(case)["delta"].T @ x / len(x)
    plateaus = functional_plateaus(omega, dims[1])
    assert plateaus.width == dims[1]
    measured = eigenvalues(case, "H_f")
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
    with pytest.raises(ValueError, match="expected a chain of weights .* from d = 3 .*transpose"):
        outer_spectrum([np.ones((3, 5)), np.ones((2, 3))], x)
    with pytest.raises(ValueError, match="expected at least one weight matrix"):
        outer_spectrum([], x)
    with pytest.raises(ValueError, match="expected every weight .* with NaN"):
        outer_spectrum([np.full((2, 3), np.nan)], x)
    with pytest.raises(ValueError, match="expected more outputs than features, got K = 3 and 3"):
        outer_plateaus(x, 3)
    with pytest.raises(ValueError, match=r"expected features as a finite array of 2 axes.*\(4,\)"):
        outer_plateaus(x[:, 0], 3)
    with pytest.raises(ValueError, match="expected a hidden width of at least 1, got 0"):
        functional_plateaus(x, 0)
    with pytest.raises(ValueError, match="expected at least 7 eigenvalues, got 4"):
        match_plateaus(Plateaus(np.ones(1), 7), np.ones(4))
