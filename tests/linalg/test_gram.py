"""Spectra of a wide matrix from its blocks, against prescribed ones and longer floats."""

import numpy as np
import pytest

from prescribed import with_singular_values
from rankmon.linalg.gram import Gram, KhatriRao, factor_spectrum, triangular_factor

EPS = 2.0**-52


def cut_at(A, *places):
    return np.split(A, places, axis=1)


def khatri_rao(left, right):
    """The rows h_i (x) g_ir, written out by numpy's own Kronecker product."""
    return np.stack([np.kron(h, g) for h, rows in zip(left, right, strict=True) for g in rows])


def factors(n, a, r, b, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, a)), rng.standard_normal((n, r, b))


SIGMA = np.logspace(0, -14, 15)


def test_a_streamed_qr_keeps_the_digits_that_the_gram_matrix_loses():
    A = with_singular_values(SIGMA, (len(SIGMA), 4000))
    blocks = cut_at(A, 7, 900, 901, 3000)
    exact, lossy = factor_spectrum(triangular_factor(blocks, 15)), Gram.of(blocks, 15).spectrum()
    for found in (exact, lossy):
        assert np.all(np.abs(found.values - SIGMA**2) <= found.errors)
        told = SIGMA**2 >= found.finest_cut / 10
        assert np.all(np.abs(found.values - SIGMA**2)[told] <= SIGMA[told] ** 2 / 2)
    assert np.sum(SIGMA**2 >= exact.finest_cut) == 14
    assert np.sum(SIGMA**2 >= lossy.finest_cut) == 6


@pytest.mark.parametrize("places", [(), (1,), (2000, 2001), tuple(range(50, 3000, 50))])
def test_how_the_columns_are_cut_changes_nothing(places):
    A = np.random.default_rng(1).standard_normal((30, 3000))
    want = np.linalg.svd(A, compute_uv=False) ** 2
    for found in (
        Gram.of(cut_at(A, *places), 30).spectrum(),
        factor_spectrum(triangular_factor(cut_at(A, *places), 30)),
    ):
        np.testing.assert_allclose(found.values, want, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
def test_the_error_of_forming_bounds_what_longer_floats_find(scale):
    rng = np.random.default_rng(2)
    plain = scale * rng.standard_normal((12, 5000))
    left, right = factors(4, 300, 3, 400)
    gram = Gram.of([plain, KhatriRao(scale * left, right)], 12)
    A = np.concatenate([plain, khatri_rao(scale * left, right)], axis=1).astype(np.longdouble)
    assert np.finfo(np.longdouble).eps < EPS / 1000
    off = np.linalg.norm((A @ A.T - gram.matrix).astype(np.float64), 2)
    assert 0 < off <= gram.error
    assert gram.error <= 2000 * EPS * np.trace(gram.matrix)


@pytest.mark.parametrize("scale", [1e-60, 1.0, 1e60])
def test_factors_are_multiplied_almost_without_rounding(scale):
    left, right = factors(4, 5000, 3, 400)
    left[0] *= np.logspace(-8, 8, 5000)
    left[1], right[2, 1] = 0.0, 0.0
    gram = Gram.of([KhatriRao(scale * left, right)], 12)
    A = khatri_rao((scale * left).astype(np.longdouble), right.astype(np.longdouble))
    off = np.linalg.norm((A @ A.T - gram.matrix).astype(np.float64), 2)
    assert off <= gram.error <= 16 * EPS * np.trace(gram.matrix)


@pytest.mark.parametrize(
    "shape",
    [(5, 3, 2, 4), (3, 40, 2, 5), (3, 2, 4, 60), (3, 40, 4, 60), (1, 1, 1, 1), (6, 1, 1, 300)],
    ids=str,
)
def test_products_need_not_be_written_out(shape):
    left, right = factors(*shape)
    written = khatri_rao(left, right)
    m = len(written)
    other = np.random.default_rng(3).standard_normal((m, 4))
    want = written @ written.T + other @ other.T
    blocks = [KhatriRao(left, right), other]
    scale = np.max(np.abs(want))
    np.testing.assert_allclose(Gram.of(blocks, m).matrix, want, rtol=0, atol=1e-13 * scale)
    R = triangular_factor(blocks, m)
    np.testing.assert_allclose(R.T @ R, want, rtol=0, atol=1e-13 * scale)
    assert len(R) <= m


def test_signs_give_the_eigenvalues_of_an_indefinite_form():
    rng = np.random.default_rng(4)
    A, signs = rng.standard_normal((9, 50)), np.array([1, -1, 1, 1, -1, 1, -1, -1, 1.0])
    want = np.sort(np.abs(np.linalg.eigvalsh(A.T @ (signs[:, None] * A))))[::-1][:9]
    found = factor_spectrum(triangular_factor([A], 9), signs)
    assert np.all(np.abs(found.values - want) <= found.errors)
    np.testing.assert_allclose(found.values, want, rtol=1e-12)
    difference = Gram.of([A[signs > 0].T], 50) - Gram.of([A[signs < 0].T], 50)
    got = difference.spectrum()
    np.testing.assert_allclose(got.values[:9], want, rtol=1e-12)
    assert np.all(got.values[9:] <= got.errors[9:])


def test_fewer_columns_than_rows_leave_zeros():
    A = np.random.default_rng(5).standard_normal((8, 3))
    want = np.append(np.linalg.svd(A, compute_uv=False) ** 2, np.zeros(5))
    for found in (Gram.of([A], 8).spectrum(), factor_spectrum(triangular_factor([A], 8))):
        assert np.all(np.abs(found.values - want) <= found.errors)


def test_a_zero_matrix_has_exact_zeros():
    A = np.zeros((4, 10))
    for found in (Gram.of([A], 4).spectrum(), factor_spectrum(triangular_factor([A], 4))):
        assert not np.any(found.values)
        assert not np.any(found.errors)
