"""Lanczos quadrature: bounds and estimates against measures known from eigenvectors."""

import numpy as np
import pytest

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
