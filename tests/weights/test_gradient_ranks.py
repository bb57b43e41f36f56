"""Test norms, directions and ranks of gradients against NumPy and exact sums."""

import math
from fractions import Fraction

import numpy as np
import pytest

from prescribed import with_singular_values
from rankmon import Tolerance
from rankmon.weights.gradients import (
    alignment,
    direction,
    frobenius_norm,
    gradient_rank,
    ratio,
)

DEFAULT = Tolerance()
EPS = np.finfo(np.float64).eps


def ranked(matrix, noise=0.0, eps=EPS, tolerance=DEFAULT, largest=2048):
    return gradient_rank(matrix, noise=noise, eps=eps, tolerance=tolerance, largest=largest)


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200], ids=str)
def test_norms_neither_overflow_nor_vanish(scale):
    array = np.random.default_rng(0).integers(-9, 10, (4, 3)) * scale
    squares = sum((Fraction(float(x)) ** 2 for x in array.flat), Fraction(0))
    exact = math.sqrt(squares / Fraction(scale) ** 2) * scale
    assert frobenius_norm(array) == pytest.approx(exact, rel=1e-15)


def test_norms_of_nothing_and_of_numbers_that_are_not_finite():
    assert frobenius_norm(np.zeros((3, 2))) == 0
    assert frobenius_norm(np.zeros((0, 2))) == 0
    assert math.isnan(frobenius_norm(np.array([1.0, np.nan])))
    assert math.isnan(frobenius_norm(np.array([1.0, np.inf])))


def test_ratios():
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(0.0, 2.0) == 0
    assert ratio(1e-300, 0.0) == math.inf
    assert math.isnan(ratio(0.0, 0.0))
    assert math.isnan(ratio(math.nan, 0.0))
    assert math.isnan(ratio(1.0, math.nan))


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200], ids=str)
def test_alignment_is_the_cosine(scale):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 6, 4))
    cosine = np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2))
    assert alignment(direction(scale * a), direction(b)) == pytest.approx(cosine, abs=1e-7)
    assert alignment(direction(a), direction(scale * a)) == pytest.approx(1, abs=1e-14)
    assert alignment(direction(a), direction(-a)) == pytest.approx(-1, abs=1e-14)
    assert direction(scale * a).dtype == np.float32


def test_nothing_is_aligned_with_a_gradient_without_direction():
    one = direction(np.ones((2, 2)))
    for array in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.array([[np.inf, 0], [0, 1]])):
        assert not direction(array).any()
        assert math.isnan(alignment(direction(array), one))


@pytest.mark.parametrize("scale", [1.0, 1e-180, 1e150], ids=str)
@pytest.mark.parametrize("largest", [2048, 3], ids=["spectrum", "certified"])
def test_rank_and_stable_rank(scale, largest):
    values = np.array([4.0, 2.0, 1.0, 1e-6, 1e-17, 0.0])
    matrix = scale * with_singular_values(values, (9, 6), seed=2)
    rank, stable = ranked(matrix, largest=largest)
    assert (rank.rank, rank.low, rank.high, rank.size) == (4, 4, 4, 6)
    assert rank.tolerance == pytest.approx(9 * EPS * 4.0 * scale, rel=1e-9)
    assert stable == pytest.approx(np.sum(values**2) / 16, rel=1e-9)


@pytest.mark.parametrize("largest", [2048, 3], ids=["spectrum", "certified"])
def test_what_rounding_errors_make_does_not_count(largest):
    values = np.array([4.0, 2.0, 1.0, 1e-3, 1e-5])
    matrix = with_singular_values(values, (7, 5), seed=3)
    # The cut is ten times eps * noise: at 1e-4, and above all values.
    for noise, expected in ((1e-5 / EPS, 4), (10 / EPS, 0)):
        rank, stable = ranked(matrix, noise=noise, largest=largest)
        assert rank.rank == expected
        assert rank.tolerance == pytest.approx(10 * EPS * noise, rel=1e-9)
        assert stable == pytest.approx(np.sum(values**2) / 16, rel=1e-9)
    coarse, _ = ranked(matrix, noise=1.0, eps=1e-3, largest=largest)
    assert (coarse.rank, coarse.tolerance) == (3, pytest.approx(1e-2))


def test_the_users_cut():
    matrix = np.diag([4.0, 2.0, 1.0])
    assert ranked(matrix, noise=1e9, tolerance=Tolerance(absolute=1.5))[0].rank == 2
    assert ranked(matrix, noise=1e9, tolerance=Tolerance(relative=0.1))[0].rank == 3


def test_rows_of_zeros_change_nothing():
    rng = np.random.default_rng(4)
    table = np.zeros((50, 6))
    table[[3, 30]] = rng.standard_normal((2, 6))
    rank, stable = ranked(table)
    values = np.linalg.svd(table, compute_uv=False)
    assert (rank.rank, rank.size, rank.gap) == (2, 6, math.inf)
    assert stable == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-12)


@pytest.mark.parametrize("largest", [2048, 1], ids=["spectrum", "certified"])
def test_zero_and_undefined(largest):
    rank, stable = ranked(np.zeros((4, 3)), largest=largest)
    assert (rank.rank, rank.low, rank.high, rank.size, rank.tolerance) == (0, 0, 0, 3, 0.0)
    assert math.isnan(stable)
    for matrix, noise in ((np.full((4, 3), np.nan), 0.0), (np.ones((4, 3)), math.nan)):
        rank, stable = ranked(matrix, noise=noise, largest=largest)
        assert (rank.rank, rank.low, rank.high) == (None, None, None)
        assert math.isnan(stable)
