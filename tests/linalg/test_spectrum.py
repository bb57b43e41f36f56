"""Test spectra of known matrices, and the error of approximations by the largest eigenvalues."""

import numpy as np
import pytest

from prescribed import orthogonal
from rankmon.linalg.spectrum import reconstruction_error, singular_values, symmetric_spectrum
from refusals import refused


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [3.0, -2.0, 1.0, 0.5],
        [1.0, 1.0, 1.0, -1.0],
        [0.0, 0.0, 0.0, 0.0],
        [5.0, 0.0, 0.0, -5.0],
        [1e200, -1e199, 1e190, 0.0],
        [1e-200, -1e-201, 1e-202, 0.0],
        [-7.0],
    ],
    ids=["mixed", "repeated", "zero", "gap", "huge", "tiny", "one"],
)
def test_symmetric_spectrum_gives_signed_values_by_falling_magnitude(eigenvalues):
    q = orthogonal(len(eigenvalues))
    matrix = (q * eigenvalues) @ q.T
    got = symmetric_spectrum((matrix + matrix.T) / 2)
    assert np.all(np.diff(np.abs(got)) <= 0)
    largest = np.max(np.abs(eigenvalues))
    np.testing.assert_allclose(np.sort(got), np.sort(eigenvalues), rtol=0, atol=1e-14 * largest)


@pytest.mark.parametrize("order", ["C", "F"])
def test_symmetric_spectrum_reads_the_lower_triangle_and_writes_nothing(order):
    rng = np.random.default_rng(0)
    full = rng.standard_normal((6, 6))
    lower = np.tril(full) + np.tril(full, -1).T
    matrix = np.array(np.where(np.tri(6, dtype=bool), full, 1e6), order=order)
    kept = matrix.copy()
    np.testing.assert_allclose(
        np.sort(symmetric_spectrum(matrix)), np.linalg.eigvalsh(lower), atol=1e-13
    )
    np.testing.assert_array_equal(matrix, kept)


def test_spectra_are_float64_whatever_comes():
    matrix = np.diag([1.0, 1e-12, 2.0]).astype(np.float32)
    for function in (symmetric_spectrum, singular_values):
        got = function(matrix)
        assert got.dtype == np.float64
        assert got[-1] == pytest.approx(1e-12, rel=1e-6)


@pytest.mark.parametrize("function", [symmetric_spectrum, singular_values])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_spectra_of_what_is_not_finite_are_refused(function, bad):
    matrix = np.eye(3)
    matrix[2, 0] = bad
    with refused(ValueError, "finite"):
        function(matrix)


@pytest.mark.parametrize(
    "eigenvalues",
    [[5.0, -3.0, 2.0, 0.0], [1.0], [1e200, -1e190, 1e180], [1e-180, 1e-190, -1e-200]],
    ids=["signs", "one", "huge", "tiny"],
)
def test_reconstruction_error_is_that_of_the_best_approximations(eigenvalues):
    q = orthogonal(len(eigenvalues))
    got = reconstruction_error(np.array(eigenvalues))
    scaled = np.array(eigenvalues) / np.max(np.abs(eigenvalues))
    by_magnitude = np.argsort(-np.abs(scaled))
    want = []
    for k in range(len(eigenvalues) + 1):
        dropped = np.zeros(len(eigenvalues))
        dropped[by_magnitude[k:]] = scaled[by_magnitude[k:]]
        want.append(np.linalg.norm((q * dropped) @ q.T) / np.linalg.norm((q * scaled) @ q.T))
    np.testing.assert_allclose(got, want, atol=1e-15)
    assert got[0] == 1
    assert got[-1] == 0


def test_reconstruction_error_keeps_the_digits_of_a_small_tail():
    got = reconstruction_error(np.array([1.0, 1e-12, 1e-12]))
    np.testing.assert_allclose(got[1:3], [np.sqrt(2) * 1e-12, 1e-12], rtol=1e-12)


def test_reconstruction_error_of_nothing_and_of_what_is_no_spectrum():
    assert np.isnan(reconstruction_error(np.zeros(3))).all()
    for bad in (np.eye(2), np.array([1.0, np.nan])):
        with refused(ValueError, "eigenvalues", str(bad.shape)):
            reconstruction_error(bad)
