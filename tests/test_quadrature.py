"""Quadrature bounds against measures known from eigenvectors; estimates against dense spectra."""

import builtins
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rankmon
from oracles import CASES, data, dense_parts, mlp
from rankmon import Problem, Tolerance, hessian_ranks, stochastic_spectra
from rankmon.quadrature import StochasticSpectrum, Tridiagonal, starts


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues in a random basis, and the basis."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    return (Q * eigenvalues) @ Q.T, Q


def tridiagonal(A, v, m):
    """Lanczos with full reorthogonalization, as plain as it can be."""
    basis, alphas, betas = [v / np.linalg.norm(v)], [], []
    for _ in range(min(m, len(A))):
        w = A @ basis[-1]
        alphas.append(basis[-1] @ w)
        for _ in range(2):
            w = w - np.stack(basis).T @ (np.stack(basis) @ w)
        betas.append(np.linalg.norm(w))
        basis.append(w / betas[-1] if betas[-1] > 0 else w)
    return np.array(alphas), np.array(betas)


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
    found = spectrum_of(A, probes=400, steps=30)
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
    with pytest.raises(ValueError, match="expected above to be a cut >= 0, got -1"):
        found.count(-1.0)
    with pytest.raises(ValueError, match="expected 0 < confidence < 1"):
        found.trace(confidence=95)
    with pytest.raises(ValueError, match="expected width to be positive"):
        found.density(np.zeros(3), width=0.0)


# Of networks


def network(activation, bias, dims=(20, 15, 10, 5), n=60):
    apply, params = mlp(dims, activation, bias=bias)
    x, y = data(n, dims[0], dims[-1])
    return Problem(apply, loss="mse", inputs=x, targets=y), params


@pytest.mark.parametrize("relative", [0.05, 0.01])
@pytest.mark.parametrize(
    ("activation", "bias"),
    [(None, False), (jax.nn.relu, True), (jnp.tanh, True)],
    ids=["linear", "relu", "tanh"],
)
def test_three_percent_of_the_dense_count(activation, bias, relative):
    """Of 64 vectors and 128 steps, where the count is of more than 50."""
    problem, params = network(activation, bias)
    exact = rankmon.hessian_spectra(problem, params, engine="dense")
    found = stochastic_spectra(problem, params, probes=64, steps=128)
    for part, values in exact.items():
        cut = relative * abs(values[0])
        truth, count = int(np.sum(np.abs(values) > cut)), found[part].count(cut)
        assert count.low <= truth <= count.high
        assert truth < 50 or count.value == pytest.approx(truth, rel=0.03)
        assert found[part].norm == pytest.approx(abs(values[0]), 1e-9)
        trace = found[part].trace(confidence=0.999)
        assert trace.low - 1e-9 <= values.sum() <= trace.high + 1e-9


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
    dims = (6, 30, 3)
    apply, params = mlp(dims)
    x, y = data(40, 6, 3)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    residual = apply(params, x) - y
    plateaus = np.linalg.svd(residual.T @ x / len(x), compute_uv=False)
    found = stochastic_spectra(problem, params, probes=200, steps=20)["H_f"]
    nodes, weights = found.tridiagonals[0].rule()
    assert np.all(np.min(np.abs(np.abs(nodes)[:, None] - np.append(plateaus, 0)), axis=1) < 1e-9)
    middle = np.sqrt(plateaus[:-1] * plateaus[1:])
    for at, cut in enumerate(middle, start=1):
        assert found.count(cut).low <= 2 * 30 * at <= found.count(cut).high
        assert found.count(cut).value == pytest.approx(2 * 30 * at, rel=0.03)


def test_all_parts_of_a_held_reference_with_cross_entropy():
    case = CASES["tokens-cross_entropy"]
    problem = Problem(case.apply, **case.statement)
    flat = problem.flat(case.params)
    held = np.random.default_rng(2).standard_normal((flat.positions, flat.k))
    found = stochastic_spectra(problem, case.params, reference=held, probes=8, steps=flat.p)
    matrices = dense_parts(case, held)
    for part, spectrum in found.items():
        values = np.abs(np.linalg.eigvalsh(matrices[part]))
        assert spectrum.norm == pytest.approx(values.max(), 1e-9)
        count = spectrum.count(0.1 * values.max(), confidence=0.9999)
        assert count.low <= np.sum(values > 0.1 * values.max()) <= count.high


def test_not_finite_no_estimate():
    problem, params = network(None, False, dims=(4, 3, 2), n=5)
    found = stochastic_spectra(problem, jax.tree.map(lambda w: w * np.nan, params))
    assert math.isnan(found["H_L"].norm)
    assert math.isnan(found["H_L"].count(1.0).value)
    huge = stochastic_spectra(problem, jax.tree.map(lambda w: np.asarray(w) * 1e200, params))
    assert math.isnan(huge["H_o"].count(1.0).high)


def test_wrong_input():
    problem, params = network(None, False, dims=(4, 3, 2), n=5)
    with pytest.raises(ValueError, match="expected probes to be at least 2, got 1"):
        stochastic_spectra(problem, params, probes=1)
    with pytest.raises(TypeError, match="expected steps to be an integer, got float"):
        stochastic_spectra(problem, params, steps=3.0)
    with pytest.raises(MemoryError, match="expected 18 vectors of p = 18 parameters"):
        stochastic_spectra(problem, params, memory_limit=1000)


def test_without_matfree_it_says_what_to_install(monkeypatch):
    problem, params = network(None, False, dims=(4, 3, 2), n=5)
    ours = builtins.__import__

    def without(name, *rest):
        if name.startswith("matfree"):
            raise ImportError(name)
        return ours(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'rankmon\[scale\]'"):
        stochastic_spectra(problem, params)


# The engine


def test_the_engine_counts_at_a_coarse_cut():
    problem, params = network(jnp.tanh, True)
    tolerance = Tolerance(relative=0.01)
    exact = hessian_ranks(problem, params, tolerance=tolerance, engine="dense")
    found = hessian_ranks(problem, params, tolerance=tolerance, engine="slq")
    for part, rank in found.items():
        assert rank.tolerance == pytest.approx(exact[part].tolerance, 1e-6)
        assert rank.low <= exact[part].low <= exact[part].high <= rank.high
        assert rank.rank == pytest.approx(exact[part].rank, rel=0.05)
    sketched = hessian_ranks(problem, params, tolerance=tolerance, engine="sketch")
    assert found["H_o"].rank == sketched["H_o"].rank


def test_the_engine_takes_few_vectors_where_time_is_short():
    problem, params = network(None, False)
    quick = hessian_ranks(problem, params, engine="slq", time_limit=1e-6)
    assert quick["H_L"].low <= 300 <= quick["H_L"].high  # exact: theory.rank_loss
    poisoned = jax.tree.map(lambda w: w * np.nan, params)
    assert hessian_ranks(problem, poisoned, engine="slq")["H_L"].rank is None
