"""Lanczos estimates of networks' Hessians against their spectra, and the engine of such ranks."""

import builtins
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rankmon
from oracles import Case, cross_entropy, data, dense_parts, mlp
from rankmon import Problem, Tolerance, hessian_ranks, stochastic_spectra, theory
from rankmon.hessian.gauss_newton import OuterRank
from refusals import refused


def network(activation, dims, n, *, bias=False):
    apply, params = mlp(dims, activation, bias=bias)
    x, y = data(n, dims[0], dims[-1])
    return Problem(apply, loss="mse", inputs=x, targets=y), params


# The steps of the engine "slq", which then finds the programs compiled.
STEPS = 96
LINEAR = (6, 30, 3)


@cache
def measured(name):
    """A problem with parameters, the eigenvalues of its parts, and what 64 vectors tell of them."""
    sizes = {"probes": 64, "steps": STEPS}
    if name == "linear":
        problem, params = network(None, LINEAR, 40)
        exact = rankmon.hessian_spectra(problem, params, engine="deep_linear")
        return problem, params, exact, stochastic_spectra(problem, params, **sizes)
    apply, params = mlp((14, 14, 4), jnp.tanh, bias=True)
    x, held = data(30, 14, 4)
    of_case = ("cross_entropy", cross_entropy, np.arange(30) % 3 / 2)
    case = Case(name, apply, params, x, np.arange(30) % 4, *of_case)
    problem = Problem(apply, **case.statement)
    parts = dense_parts(case, held)
    found = stochastic_spectra(problem, params, reference=held, **sizes)
    return problem, params, {part: np.linalg.eigvalsh(parts[part]) for part in found}, found


@pytest.mark.parametrize("relative", [0.05, 0.01])
@pytest.mark.parametrize("name", ["linear", pytest.param("tanh", marks=pytest.mark.slow)])
def test_three_percent_of_the_exact_count(name, relative):
    """Of 64 vectors and 96 steps, where the count is of more than 50."""
    _, _, exact, found = measured(name)
    many = 0
    for part, values in exact.items():
        norm = np.max(np.abs(values))
        cut = relative * norm
        truth, count = int(np.sum(np.abs(values) > cut)), found[part].count(cut)
        assert count.low <= truth <= count.high
        assert truth < 50 or count.value == pytest.approx(truth, rel=0.03)
        many += truth >= 50
        assert found[part].norm == pytest.approx(norm, 1e-9)
        trace = found[part].trace(confidence=0.999)
        assert trace.low - 1e-9 <= values.sum() <= trace.high + 1e-9
    assert many >= 2


def test_parts_that_break_down_at_once():
    """One layer on orthonormal inputs: H_o is a multiple of the identity, and H_f is zero."""
    problem = Problem(lambda W, x: x @ W, loss="mse", inputs=np.eye(4), targets=np.ones((4, 2)))
    found = stochastic_spectra(problem, np.ones((4, 2)), probes=4, steps=8)
    for part in ("H_L", "H_o"):
        assert found[part].norm == pytest.approx(0.25)
        assert found[part].count(0.2).value == pytest.approx(8)
        assert found[part].trace().low == pytest.approx(2)
    assert found["H_f"].norm == 0
    assert found["H_f"].count(1e-300).high == 0


def test_plateaus_of_the_functional_term():
    """S8: of L = 2, H_f has each singular value of Omega M_1 times, with either sign."""
    problem, params, _, spectra = measured("linear")
    x, found = problem.inputs, spectra["H_f"]
    residual = x @ params[0]["w"] @ params[1]["w"] - problem.targets
    plateaus = np.linalg.svd(residual.T @ x / len(x), compute_uv=False)
    nodes, _ = found.tridiagonals[0].rule()
    assert np.all(np.min(np.abs(np.abs(nodes)[:, None] - np.append(plateaus, 0)), axis=1) < 1e-9)
    middle = np.sqrt(plateaus[:-1] * plateaus[1:])
    for at, cut in enumerate(middle, start=1):
        assert found.count(cut).low <= 2 * 30 * at <= found.count(cut).high
        assert found.count(cut).value == pytest.approx(2 * 30 * at, rel=0.03)


@cache
def small():
    return network(None, (4, 3, 2), 5)


def test_not_finite_no_estimate():
    problem, params = small()
    found = stochastic_spectra(problem, jax.tree.map(lambda w: w * np.nan, params))
    assert math.isnan(found["H_L"].norm)
    assert math.isnan(found["H_L"].count(1.0).value)
    huge = stochastic_spectra(problem, jax.tree.map(lambda w: np.asarray(w) * 1e200, params))
    assert math.isnan(huge["H_o"].count(1.0).high)


def test_wrong_input():
    problem, params = small()
    with pytest.raises(ValueError, match="probes"):
        stochastic_spectra(problem, params, probes=1)
    with pytest.raises(TypeError, match="steps"):
        stochastic_spectra(problem, params, steps=3.0)
    with refused(MemoryError, "18", "memory_limit"):
        stochastic_spectra(problem, params, memory_limit=1000)


def test_without_matfree_it_says_what_to_install(monkeypatch):
    problem, params = network(None, (4, 3, 2), 5)  # one that has no programs yet
    ours = builtins.__import__

    def without(name, *rest):
        if name.startswith("matfree"):
            raise ImportError(name)
        return ours(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with refused(ImportError, "rankmon[scale]"):
        stochastic_spectra(problem, params)


@pytest.mark.parametrize("name", ["linear", pytest.param("tanh", marks=pytest.mark.slow)])
def test_the_engine_counts_at_a_coarse_cut(name):
    problem, params, exact, _ = measured(name)
    found = hessian_ranks(problem, params, tolerance=Tolerance(relative=0.01), engine="slq")
    assert list(found) == ["H_L", "H_o", "H_f"]
    for part, rank in found.items():
        values = np.abs(exact[part])
        cut = 0.01 * max(values.max(), np.max(np.abs(exact["H_L"])))
        assert rank.tolerance == pytest.approx(cut, 1e-6)
        assert rank.low <= np.sum(values > 10 * cut)
        assert np.sum(values > cut / 10) <= rank.high
        assert rank.rank == pytest.approx(np.sum(values > cut), rel=0.05)
    assert isinstance(found["H_o"], OuterRank)  # as the engine "sketch" has it
    assert found["H_o"].rank == np.sum(np.abs(exact["H_o"]) > found["H_o"].tolerance)


def test_the_engine_takes_few_vectors_where_time_is_short():
    problem, params, _, _ = measured("linear")
    quick = hessian_ranks(problem, params, engine="slq", time_limit=1e-6)
    assert quick["H_L"].low <= theory.rank_loss(LINEAR) <= quick["H_L"].high
    poisoned = jax.tree.map(lambda w: w * np.nan, params)
    assert hessian_ranks(problem, poisoned, engine="slq")["H_L"].rank is None
