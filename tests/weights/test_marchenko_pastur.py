"""Test the Marchenko-Pastur edge against the density, published constants and random matrices."""

import numpy as np
import pytest
from scipy import integrate

from rankmon.weights.marchenko_pastur import marchenko_pastur_edge, marchenko_pastur_median

BETAS = (1.0, 1 - 1e-9, 0.99, 0.75, 0.5, 0.1, 0.01, 1e-4)


def mass_below(t, beta):
    """Gavish and Donoho (2014): the integral of sqrt((b - t) (t - a)) / (2 pi beta t)."""
    a, b = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2

    def density(t):
        return np.sqrt(max((b - t) * (t - a), 0.0)) / (2 * np.pi * beta * t)

    # From the median up, where the density has no pole.
    return 1 - integrate.quad(density, t, b, limit=500, epsabs=1e-11)[0]


@pytest.mark.parametrize("beta", BETAS, ids=str)
def test_half_of_the_mass_is_below_the_median(beta):
    assert mass_below(marchenko_pastur_median(beta), beta) == pytest.approx(0.5, abs=1e-8)


def test_the_median_gives_the_published_thresholds():
    """omega(beta) = lambda(beta) / sqrt(mu), its value at 1 and its cubic, of Gavish and Donoho."""

    def omega(beta):
        root = np.sqrt(beta**2 + 14 * beta + 1)
        optimal = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))
        return optimal / np.sqrt(marchenko_pastur_median(beta))

    assert omega(1.0) == pytest.approx(2.858, abs=5e-4)
    for beta in np.linspace(0.05, 1, 20):
        cubic = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert omega(float(beta)) == pytest.approx(cubic, abs=0.02)


@pytest.mark.parametrize("shape", [(300, 300), (200, 400), (500, 50)], ids=str)
@pytest.mark.parametrize("sigma", [1.0, 1e-3])
def test_it_is_the_largest_singular_value_of_a_random_matrix(shape, sigma):
    W = sigma * np.random.default_rng(0).standard_normal(shape)
    values = np.linalg.svd(W, compute_uv=False)
    edge = marchenko_pastur_edge(values, shape)
    assert edge == pytest.approx(values[0], rel=0.04)
    assert edge == pytest.approx(sigma * sum(np.sqrt(shape)), rel=0.02)
    # Martin and Mahoney (2021): lambda_+ = sigma^2 (1 + 1 / sqrt(Q))^2 for W W^T / n, Q = n / m.
    m, n = sorted(shape)
    lambda_plus = sigma**2 * (1 + 1 / np.sqrt(n / m)) ** 2
    assert edge**2 / n == pytest.approx(lambda_plus, rel=0.04)


def test_large_singular_values_do_not_move_it():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((100, 150))
    spikes = 100 * rng.standard_normal((100, 5)) @ rng.standard_normal((5, 150))
    plain, spiked = (np.linalg.svd(W, compute_uv=False) for W in (noise, noise + spikes))
    edge = marchenko_pastur_edge(spiked, (100, 150))
    assert edge == pytest.approx(marchenko_pastur_edge(plain, (100, 150)), rel=0.06)
    assert np.sum(spiked > edge) == 5


def test_degenerate_matrices_have_an_edge():
    assert marchenko_pastur_edge(np.zeros(3), (3, 5)) == 0
    assert marchenko_pastur_edge(np.array([2.0, 0, 0]), (3, 5)) == 0
    assert marchenko_pastur_edge(np.array([2.0]), (1, 1)) > 2
    assert marchenko_pastur_edge(np.array([2.0]), (1000, 1)) == pytest.approx(2, rel=0.05)
