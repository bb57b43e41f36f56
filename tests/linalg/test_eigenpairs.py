"""Some eigenpairs from products, against prescribed spectra."""

import numpy as np
import pytest

from rankmon.linalg.eigenpairs import dense_eigenpairs, extreme_eigenpairs

P = 300


def matrix_with(values, seed=0):
    """A symmetric matrix of order P with these eigenvalues; the others are zero."""
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((P, len(values))))
    return (Q * values) @ Q.T


def found_in(A, k, which, **options):
    pairs = extreme_eigenpairs(
        lambda v: A @ v, P, k, which, **{"accuracy": 1e-12, "seed": 0} | options
    )
    scale = np.linalg.norm(A, 2)
    np.testing.assert_allclose(A @ pairs.vectors, pairs.vectors * pairs.values, atol=1e-9 * scale)
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(k), atol=1e-9)
    off = np.linalg.norm(A @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, off, atol=1e-13 * scale)
    return pairs.values / scale


MIXED = np.concatenate([np.linspace(1, 0.1, 60), np.linspace(-0.7, -0.05, 40)])


@pytest.mark.parametrize(
    ("which", "want"),
    [
        ("LM", MIXED[np.argsort(-np.abs(MIXED))]),
        ("LA", np.sort(MIXED)[::-1]),
        ("SA", np.sort(MIXED)),
    ],
    ids=["LM", "LA", "SA"],
)
@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_ends_of_a_spectrum_in_their_order(which, want, scale):
    A = matrix_with(scale * MIXED)
    np.testing.assert_allclose(found_in(A, 6, which), want[:6], atol=1e-12)
    dense = dense_eigenpairs(A, 6, which)
    np.testing.assert_allclose(dense.values / scale, want[:6], atol=1e-12)


@pytest.mark.parametrize("which", ["LM", "LA"])
@pytest.mark.parametrize("seed", [0, 1])
def test_multiple_eigenvalues_are_found_as_often_as_they_occur(which, seed):
    values = np.repeat([1.0, 0.5, 0.25, 0.125], 5)
    want = values[:13]
    np.testing.assert_allclose(found_in(matrix_with(values), 13, which, seed=seed), want, atol=1e-9)


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_more_eigenpairs_than_the_rank_are_zeros(which):
    values = np.array([3.0, 2.0, 1.0, -2.5])
    key = {"LM": np.abs, "LA": lambda v: v, "SA": lambda v: -v}[which]
    want = np.concatenate([values, np.zeros(20)])
    want = want[np.argsort(-key(want), kind="stable")][:8] / 3.0
    np.testing.assert_allclose(found_in(matrix_with(values), 8, which), want, atol=1e-9)


def test_a_zero_matrix_and_one_that_is_not_finite():
    zero = extreme_eigenpairs(lambda v: 0 * v, P, 3, "LM", accuracy=1e-12, seed=0)
    assert not np.any(zero.values)
    np.testing.assert_array_equal(zero.vectors.T @ zero.vectors, np.eye(3))
    for broken in (
        extreme_eigenpairs(lambda v: v * np.nan, P, 3, "LM", accuracy=1e-12, seed=0),
        dense_eigenpairs(np.full((5, 5), np.inf), 3, "LM"),
    ):
        assert np.isnan(broken.values).all()
        assert np.isnan(broken.residuals).all()


def test_a_coarse_accuracy_takes_fewer_products():
    A, counts = matrix_with(MIXED), []
    for accuracy in (1e-12, 1e-2):
        count = 0

        def product(v):
            nonlocal count
            count += 1
            return A @ v

        pairs = extreme_eigenpairs(product, P, 4, "LM", accuracy=accuracy, seed=0)
        assert np.all(pairs.residuals <= max(accuracy, 1e-11))
        counts.append(count)
    assert counts[1] < counts[0]
