"""Ranks of features against the sources' formulas, in NumPy and in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from rankmon.linalg.feature_ranks import (
    centered,
    feature_ranks,
    feature_singular_values,
    mean_norm,
)


def ranks(X):
    return feature_ranks(feature_singular_values(X), rows=len(X))


def by_the_formulas(X):
    """Each number as its source writes it."""
    sigma = np.linalg.svd(X, compute_uv=False)
    n, total = len(X), np.sum(sigma)
    ks = range(1, len(sigma) + 1)
    p = sigma / total
    p = p[p > 0]
    squares = sigma**2
    return {
        "effective_rank": np.prod(p**-p),
        "stable_rank": np.linalg.norm(X, "fro") ** 2 / np.linalg.norm(X, 2) ** 2,
        "srank": min(k for k in ks if np.sum(sigma[:k]) / total >= 1 - 0.01),
        "components": min(k for k in ks if np.sum(squares[:k]) / np.sum(squares) >= 0.99),
        "feature_rank": sum(np.linalg.svd(X / np.sqrt(n), compute_uv=False) > 0.01),
    }


def gaussian(n, d, *, seed=0, decay=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.exp(-decay * np.arange(d))


CASES = {
    "tall": gaussian(60, 7),
    "wide": gaussian(7, 60),
    "square": gaussian(9, 9),
    "decaying": gaussian(40, 25, decay=0.5),
    "decaying wide": gaussian(25, 40, decay=0.3),
    "low rank": gaussian(30, 3) @ gaussian(3, 20, seed=1),
    "zero rows": np.vstack([np.zeros((20, 6)), gaussian(5, 6)]),
    "zero columns": np.hstack([np.zeros((20, 6)), gaussian(20, 5)]),
    "one row": gaussian(1, 8),
    "one column": gaussian(8, 1),
    "one entry": np.array([[-3.0]]),
    "equal rows": np.tile(gaussian(1, 8), (12, 1)),
    "small": 1e-3 * gaussian(50, 6),
    "large mean": gaussian(30, 6) + 100,
}


@pytest.mark.parametrize("X", CASES.values(), ids=CASES.keys())
def test_ranks_are_those_of_the_formulas(X):
    found = ranks(X)
    for name, expected in by_the_formulas(X).items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-10), name
    assert mean_norm(X) == pytest.approx(np.mean([np.sqrt(row @ row) for row in X]))


@pytest.mark.parametrize("X", CASES.values(), ids=CASES.keys())
def test_ranks_are_ordered_and_do_not_depend_on_the_side(X):
    found, transposed = ranks(X), ranks(X.T)
    most = min(X.shape)
    assert 1 - 1e-9 <= found.stable_rank <= most + 1e-9
    assert 1 - 1e-9 <= found.effective_rank <= most + 1e-9
    assert 1 <= found.components <= found.srank <= most
    assert transposed.srank == found.srank
    assert transposed.effective_rank == pytest.approx(found.effective_rank)


@pytest.mark.parametrize("X", CASES.values(), ids=CASES.keys())
def test_rankme_differs_only_by_its_epsilon(X):
    """RankMe: p_k = sigma_k / ||sigma||_1 + 1e-7."""
    sigma = np.linalg.svd(X, compute_uv=False)
    p = sigma / np.sum(np.abs(sigma)) + 1e-7
    assert ranks(X).effective_rank == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1.0, 1e200])
def test_only_the_feature_rank_depends_on_the_scale(scale):
    X = CASES["decaying"]
    one, other = ranks(X), ranks(scale * X)
    assert (other.srank, other.components) == (one.srank, one.components)
    assert other.stable_rank == pytest.approx(one.stable_rank)
    assert other.effective_rank == pytest.approx(one.effective_rank)
    assert mean_norm(scale * X) == pytest.approx(scale * mean_norm(X))
    expected = sum(np.linalg.svd(X, compute_uv=False) > 0.01 * np.sqrt(len(X)) / scale)
    assert other.feature_rank == expected


@pytest.mark.parametrize("size", [1, 2, 50, 99, 100, 101, 199, 200, 1000])
def test_a_share_that_is_met_exactly_is_reached(size):
    """Of 100 equal singular values, 99 are 99 % of the sum and of the sum of squares."""
    rotation = np.linalg.qr(gaussian(size, size))[0]
    expected = min(k for k in range(1, size + 1) if Fraction(k, size) >= Fraction(99, 100))
    found = ranks(0.3 * rotation)
    assert (found.srank, found.components) == (expected, expected)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 1)], ids=str)
def test_a_zero_matrix_has_counts_zero_and_no_soft_ranks(shape):
    found = ranks(np.zeros(shape))
    assert (found.srank, found.components, found.feature_rank) == (0, 0, 0)
    assert np.isnan([found.stable_rank, found.effective_rank]).all()
    assert mean_norm(np.zeros(shape)) == 0


@pytest.mark.parametrize("X", CASES.values(), ids=CASES.keys())
def test_singular_values_are_those_of_the_matrix(X):
    values, expected = feature_singular_values(X), np.linalg.svd(X, compute_uv=False)
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, atol=1e-13 * expected[0])


@pytest.mark.parametrize("X", CASES.values(), ids=CASES.keys())
def test_centering_leaves_the_rank_or_one_less(X):
    parts = centered(X)
    projection = np.eye(len(X)) - 1 / len(X)
    np.testing.assert_allclose(parts.X, projection @ X, atol=1e-12 * (1 + abs(X).max()))
    assert parts.norm_of_mean == pytest.approx(np.sqrt(len(X)) * np.linalg.norm(X.mean(0)))
    before = np.linalg.matrix_rank(X)
    tolerance = 1e-12 * max(np.linalg.norm(X, 2), 1e-300)
    after = np.linalg.matrix_rank(projection @ X, tol=tolerance)
    assert after in (before - 1, before)
    assert after <= len(X) - 1
