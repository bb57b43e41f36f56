"""Quadrature bounds against measures known from eigenvectors; estimates against dense spectra."""

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
from rankmon.linalg.lanczos import StochasticSpectrum, Tridiagonal, starts
from refusals import refused


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues in a random basis, and the basis."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    return (Q * eigenvalues) @ Q.T, Q


def tridiagonal(A, v, m):
    """Lanczos with full reorthogonalization, as plain as it can be."""
    m = min(m, len(A))
    basis, alphas, betas = np.zeros((m + 1, len(A))), np.zeros(m), np.zeros(m)
    basis[0] = v / np.linalg.norm(v)
    for i in range(m):
        w = A @ basis[i]
        alphas[i] = basis[i] @ w
        for _ in range(2):
            w = w - basis[: i + 1].T @ (basis[: i + 1] @ w)
        betas[i] = np.linalg.norm(w)
        basis[i + 1] = w / betas[i] if betas[i] > 0 else w
    return alphas, betas


def spectrum_of(A, *, probes, steps, seed=0):
    vectors = starts(len(A), probes, seed=seed)
    return StochasticSpectrum.of(len(A), [tridiagonal(A, v, steps) for v in vectors])


RNG = np.random.default_rng(11)
SPECTRA = {
    "gap": np.r_[np.full(40, 0.0), RNG.uniform(1, 2, 30), -RNG.uniform(1, 3, 20)],
    "bulk": RNG.standard_normal(90),
    "decay": 10.0 ** -np.linspace(0, 12, 90) * RNG.choice([-1, 1], 90),
    "plateaus": np.repeat([5.0, 1.0, -1.0, 0.0], [3, 17, 20, 50]),
}


@pytest.mark.parametrize("steps", [3, 8, 25])
@pytest.mark.parametrize("name", SPECTRA)
def test_bounds_hold_for_every_vector(name, steps):
    values = SPECTRA[name]
    A, Q = symmetric(values)
    rng = np.random.default_rng(1)
    for _ in range(5):
        v = rng.choice([-1.0, 1.0], len(A))
        shares = (Q.T @ v) ** 2 / len(A)
        found = Tridiagonal.of(*tridiagonal(A, v, steps))
        assert found.rule()[1].sum() == pytest.approx(1)
        for x in (-2.5, -1.5, -0.5, -1e-3, 1e-6, 1e-3, 0.5, 1.5, 4.0):
            least, most = found.before(x)
            assert least - 1e-9 <= shares[values < x].sum()
            assert most + 1e-9 >= shares[values <= x].sum()


def test_what_is_open_in_a_gap_falls_fast():
    A, _ = symmetric(SPECTRA["gap"])
    v = np.ones(len(A))
    opened = [np.diff(Tridiagonal.of(*tridiagonal(A, v, m)).before(0.5))[0] for m in (4, 8, 16)]
    assert opened[0] > 5 * opened[1] > 25 * opened[2]


def test_few_eigenvalues_are_found_exactly_and_end_the_recurrence():
    A, _ = symmetric(SPECTRA["plateaus"])
    found = spectrum_of(A, probes=400, steps=12)
    assert all(len(t.diagonal) == 4 for t in found.tridiagonals)
    nodes, _ = found.tridiagonals[0].rule()
    np.testing.assert_allclose(nodes, [-1, 0, 1, 5], atol=1e-12)
    assert found.norm == pytest.approx(5)
    for cut, truth in ((0.5, 40), (2.0, 3), (5.1, 0)):
        assert found.count(cut).low - 1e-9 <= truth <= found.count(cut).high + 1e-9
        assert found.count(cut).value == pytest.approx(truth, abs=0.6)


@pytest.mark.parametrize("values", [np.zeros(5), np.ones(7), np.array([2.0])])
def test_matrices_of_one_eigenvalue(values):
    A, _ = symmetric(values)
    found = spectrum_of(A, probes=3, steps=20)
    assert found.count(0.5).value == pytest.approx(np.sum(values > 0.5))
    assert found.count(0.5).low == pytest.approx(found.count(0.5).high)
    assert found.trace().value == pytest.approx(values.sum())
    assert found.norm == pytest.approx(values.max())


def test_intervals_hold_as_often_as_they_say():
    values = RNG.standard_normal(80)
    A, _ = symmetric(values)
    truth = np.sum(np.abs(values) > 0.7)
    held = traced = 0
    for seed in range(200):
        found = spectrum_of(A, probes=6, steps=12, seed=seed)
        count, trace = found.count(0.7), found.trace(confidence=0.9)
        held += count.low <= truth <= count.high
        traced += trace.low <= values.sum() <= trace.high
        assert 0 <= count.low <= count.value <= count.high <= 80
    assert held >= 190
    assert 165 <= traced <= 195  # of 200 at 0.9: three deviations on either side


def test_density_integrates_to_one_and_has_the_bulk_where_it_is():
    values = np.r_[np.full(30, -2.0), np.full(60, 3.0)]
    A, _ = symmetric(values)
    found = spectrum_of(A, probes=50, steps=10)
    points = np.linspace(-6, 8, 2001)
    density = found.density(points, width=0.3)
    assert np.trapezoid(density, points) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(density[points < 0], points[points < 0]) == pytest.approx(1 / 3, abs=0.05)


def test_wrong_requests():
    found = StochasticSpectrum(4, (Tridiagonal.of(np.ones(1), np.zeros(1)),) * 2)
    with refused(ValueError, "above", "-1"):
        found.count(-1.0)
    with refused(ValueError, "confidence", "95"):
        found.trace(confidence=95)
    with refused(ValueError, "width", "0.0"):
        found.density(np.zeros(3), width=0.0)


# Of networks


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


# The engine


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
