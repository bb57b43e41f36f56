"""Numerical ranks of spectra that are known: counts, margins and gaps; and tolerances."""

import numpy as np
import pytest

from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    Tolerance,
    numerical_rank,
    undefined_rank,
)
from refusals import refused

EPS = 2.0**-52


@pytest.mark.parametrize(
    ("values", "cut", "rank", "low", "high", "gap"),
    [
        ([], 1.0, 0, 0, 0, np.nan),
        ([0.0, 0.0], 0.0, 0, 0, 0, np.nan),
        ([0.5, 0.2], 1.0, 0, 0, 2, np.nan),
        ([5.0, 3.0], 1e-3, 2, 2, 2, np.inf),
        ([5.0, 3.0, 0.0], 1e-3, 2, 2, 2, np.inf),
        ([1.0, 1.0 + 2e-16], 1.0, 1, 0, 2, 1.0 + 2e-16),
        ([8.0, 2.0, 0.5, 0.01], 1.0, 2, 0, 3, 4.0),
        ([10.5, 9.5, 0.125, 0.095], 1.0, 2, 1, 3, 76.0),
        ([0.5, 800.0, 0.25, 400.0], 1.0, 2, 2, 4, 800.0),
        ([3.0, 0.0], 0.0, 1, 1, 1, np.inf),
        ([1e200, 1e-200], 1e-100, 1, 1, 1, np.inf),
        ([1.0, 1.0, 1.0], 1.0, 0, 0, 3, np.nan),
    ],
    ids=[
        "empty",
        "zeros",
        "all-below",
        "full",
        "exact-zeros",
        "on-the-cut",
        "near",
        "at-a-factor-of-ten",
        "any-order",
        "cut-zero",
        "gap-overflows",
        "equal-to-the-cut",
    ],
)
def test_counts_margins_and_gap(values, cut, rank, low, high, gap):
    got = numerical_rank(np.array(values), cut)
    assert (got.rank, got.low, got.high, got.size) == (rank, low, high, len(values))
    np.testing.assert_equal(got.gap, gap)
    assert got.certain == (low == rank == high)
    assert got.tolerance == cut


def test_values_left_out_are_exact_zeros():
    got = numerical_rank(np.array([2.0, 1.0]), 1e-9, size=7)
    assert (got.rank, got.size, got.gap) == (2, 7, np.inf)


def test_an_undefined_rank_claims_nothing():
    none = undefined_rank(5)
    assert (none.rank, none.low, none.high, none.size) == (None, None, None, 5)
    assert np.isnan(none.gap)
    assert np.isnan(none.tolerance)
    assert not none.certain


@pytest.mark.parametrize("factor", [1 + 1e-6, 1 - 1e-6], ids=["above", "below"])
def test_just_above_and_just_below_the_cut(factor):
    cut = DEFAULT_TOLERANCE.cut(3.0, default=8 * EPS)
    got = numerical_rank(np.array([3.0, 1.0, cut * factor]), cut)
    assert (got.rank, got.low, got.high) == (3 if factor > 1 else 2, 2, 3)
    assert not got.certain


# Tolerance


def test_the_cut_is_a_multiple_of_the_larger_norm():
    assert Tolerance().cut(4.0, default=1e-9) == 1e-9 * 4.0
    assert Tolerance().cut(4.0, default=1e-9, reference_norm=6.0) == 1e-9 * 6.0
    assert Tolerance().cut(4.0, default=1e-9, reference_norm=2.0) == 1e-9 * 4.0
    assert Tolerance(relative=1e-3).cut(4.0, default=1e-9, reference_norm=6.0) == 1e-3 * 6.0
    assert Tolerance(absolute=0.25).cut(4.0, default=1e-9, reference_norm=6.0) == 0.25
    assert Tolerance(absolute=0).cut(4.0, default=1e-9) == 0
    assert Tolerance(relative=np.float32(0.5)).cut(4.0, default=1e-9) == 2.0


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["relative", "absolute"])
def test_impossible_tolerances(name, value):
    with refused(ValueError, name, str(value)):
        Tolerance(**{name: value})


def test_a_tolerance_that_is_no_number():
    with refused(TypeError, "relative", "str"):
        Tolerance(relative="small")


def test_relative_and_absolute_together():
    with refused(ValueError, "relative", "absolute", "both"):
        Tolerance(relative=1e-3, absolute=1.0)
