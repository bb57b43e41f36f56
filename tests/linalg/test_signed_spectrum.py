"""Summaries of signed spectra that are known, against exact sums and counts one at a time."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from prescribed import orthogonal
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.signed_spectrum import NEGATIVE_SHARE, SHARES, SignedSpectrum
from rankmon.linalg.spectrum import symmetric_spectrum

SPECTRA = {
    "mixed": [4.0, -3.0, 1.0, -0.3, 0.039, -0.039, 1e-9, 0.0],
    "definite": [2.0, 1.0, 0.5, 0.0, 0.0],
    "negative": [-2.0, -1.0, -1e-3],
    "cancels": [1.0, -1.0, 1e-17],
    "one": [-7.0],
    "huge": [3e200, -2e200, 1e199, 0.0],
    "tiny": [3e-300, -2e-300, 1e-301, 0.0],
    "wide": [1e200, -1.0, 1e-200],
    "denormal": [1e-310, -5e-324],
}


def numbers(found: SignedSpectrum) -> dict[str, Estimate]:
    """Every estimate by name."""
    single = {name: one for name, one in vars(found).items() if name != "above"}
    return single | {f"above {share}": one for share, one in found.above.items()}


@pytest.mark.parametrize("name", SPECTRA)
def test_every_number_is_that_of_exact_arithmetic(name):
    values = SPECTRA[name]
    norm, cut = max(map(abs, values)), 1e-6 * max(map(abs, values))
    found = SignedSpectrum.of_eigenvalues(np.array(values), norm=norm, cut=cut)
    exact = [Fraction(value) for value in values]
    squares = sum(value**2 for value in exact)
    sizes = [abs(value) for value in exact]
    shares = [float(size / sum(sizes)) for size in sizes if size]
    # Scaled by a power of two, so that the root is of a float.
    scale = Fraction(2) ** math.floor(math.log2(norm))
    want = {
        "largest": max(values),
        "smallest": min(values),
        "frobenius": float(Fraction(math.sqrt(squares / scale**2)) * scale),
        "stable_rank": float(squares / max(sizes) ** 2),
        "effective_rank": math.exp(-sum(share * math.log(share) for share in shares if share)),
        "clearly_negative": sum(
            value < -Fraction(NEGATIVE_SHARE) * Fraction(norm) for value in exact
        ),
        "negative": sum(value < -Fraction(cut) for value in exact),
        **{
            f"above {share}": sum(size > Fraction(share) * Fraction(norm) for size in sizes)
            for share in SHARES
        },
    }
    got = numbers(found)
    trace = got.pop("trace").value
    # A sum that cancels is right to the rounding of its terms.
    assert abs(Fraction(trace) - sum(exact)) <= Fraction(1e-15) * sum(sizes)
    assert got.keys() == want.keys()
    for key, expected in want.items():
        assert got[key].value == pytest.approx(expected, rel=1e-14, abs=0), key
        assert got[key].is_exact, key
        assert got[key].confidence == 1


def test_shares_are_of_the_norm_of_the_whole_hessian():
    """All parts share one cut: a part of a tenth of the norm of H_L, and one of ten times it."""
    values = np.array([1.0, -0.5, 0.05, -0.005])
    small = SignedSpectrum.of_eigenvalues(values, norm=10.0, cut=0.01)
    assert [small.above[share].value for share in SHARES] == [0, 2, 3]
    assert (small.clearly_negative.value, small.negative.value) == (1, 1)
    large = SignedSpectrum.of_eigenvalues(values, norm=0.1, cut=0.001)
    assert [large.above[share].value for share in SHARES] == [3, 4, 4]
    assert (large.clearly_negative.value, large.negative.value) == (2, 2)


def test_of_a_matrix():
    q = orthogonal(40)
    prescribed = np.concatenate([np.linspace(-1, 3, 30), np.zeros(10)])
    matrix = (q * prescribed) @ q.T
    matrix = (matrix + matrix.T) / 2
    found = SignedSpectrum.of_eigenvalues(symmetric_spectrum(matrix), norm=3.0, cut=1e-12)
    assert found.trace.value == pytest.approx(np.trace(matrix), rel=1e-13)
    assert found.frobenius.value == pytest.approx(np.linalg.norm(matrix), rel=1e-13)
    assert found.largest.value == pytest.approx(3, rel=1e-13)
    assert found.smallest.value == pytest.approx(-1, rel=1e-13)
    assert found.negative.value == np.sum(prescribed < 0)
    assert found.above[0.01].value == np.sum(np.abs(prescribed) > 0.03)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.0]], ids=["three", "one"])
@pytest.mark.parametrize("norm", [0.0, 2.0])
def test_a_zero_matrix_has_no_soft_ranks(values, norm):
    found = SignedSpectrum.of_eigenvalues(np.array(values), norm=norm, cut=1e-9 * norm)
    got = numbers(found)
    soft = {"stable_rank", "effective_rank"}
    assert all(math.isnan(got[key].value) and got[key].confidence == 1 for key in soft)
    assert {one.value for key, one in got.items() if key not in soft} == {0}


def test_zeros_that_are_left_out_count_as_eigenvalues():
    """An engine may give the N k eigenvalues of H_o that can be non-zero."""
    values = np.array([3.0, 1.0])
    padded = SignedSpectrum.of_eigenvalues(np.append(values, np.zeros(5)), norm=3.0, cut=1e-9)
    assert SignedSpectrum.of_eigenvalues(values, norm=3.0, cut=1e-9, size=7) == padded
    assert padded.smallest.value == 0
    assert SignedSpectrum.of_eigenvalues(values, norm=3.0, cut=1e-9).smallest.value == 1
    below = SignedSpectrum.of_eigenvalues(-values, norm=3.0, cut=1e-9, size=7)
    assert (below.largest.value, below.smallest.value) == (0, -3)


def test_the_order_of_the_values_does_not_matter():
    values = np.array([1.0, -3.0, 0.0, 2.5, -1e-5])
    kept = values.copy()
    one = SignedSpectrum.of_eigenvalues(values, norm=3.0, cut=1e-9)
    other = SignedSpectrum.of_eigenvalues(values[::-1], norm=3.0, cut=1e-9)
    for key, number in numbers(one).items():
        assert number.value == pytest.approx(numbers(other)[key].value, rel=1e-15), key
    np.testing.assert_array_equal(values, kept)


def test_values_whose_intervals_say_too_little_are_left_out():
    exact = SignedSpectrum.of_eigenvalues(np.array([2.0, -1.0, 0.5]), norm=2.0, cut=1e-9)
    assert exact.without_vague_values() == exact
    wide = Estimate(0.001, 0.001, 3.6, 0.95)
    short = replace(
        exact,
        largest=wide,
        smallest=Estimate(-0.5, -0.7, -0.5, 0.95),
        stable_rank=Estimate(40.0, 11.0, 41.0, 0.95),
        above={0.1: Estimate(400.0, 13.0, 900.0, 0.95), 0.01: Estimate(1.0, 0.0, 3.0, 0.95)},
    ).without_vague_values()
    assert math.isnan(short.largest.value)
    assert (short.largest.low, short.largest.high) == (0.001, 3.6)
    assert short.smallest.value == -0.5
    assert short.stable_rank.value == 40
    assert math.isnan(short.above[0.1].value)
    assert short.above[0.01].value == 1  # off by two at the most
    assert short.trace == exact.trace
    inner = Estimate(-0.1, -7.9, -0.1, 0.95)  # a third of the norm, and eighty times itself
    assert math.isnan(
        replace(exact, largest=Estimate.exact(25.0), smallest=inner)
        .without_vague_values()
        .smallest.value
    )


def test_counts_at_shares_of_a_norm_that_is_hardly_known():
    values = np.array([1.0, 0.5, 0.05, 0.02, 1e-4])
    low, high = (SignedSpectrum.of_eigenvalues(values, norm=n, cut=1e-9) for n in (0.3, 1.0))
    both = low.spanning_counts(high)
    assert (both.above[0.1].low, both.above[0.1].high) == (2, 3)
    assert (both.above[0.01].low, both.above[0.01].high) == (4, 4)
    assert both.largest == low.largest


def test_what_is_known_of_rank_and_sign_narrows_estimates():
    exact = SignedSpectrum.of_eigenvalues(np.array([2.0, 1.0, 0.5, 0.0]), norm=2.0, cut=1e-9)
    rough = replace(
        exact,
        smallest=Estimate(-0.1, -0.5, 0.01, 0.95),
        stable_rank=Estimate(2.0, 1.0, 900.0, 0.95),
        above={0.1: Estimate(40.0, 2.0, 900.0, 0.95), 0.01: Estimate(3.0, 3.0, 3.0, 0.95)},
        clearly_negative=Estimate(1.0, 0.0, 900.0, 0.95),
    )
    ranked = rough.with_rank_at_most(5)
    assert ranked.above[0.1] == Estimate(5.0, 2.0, 5.0, 0.95)
    assert ranked.above[0.01] == rough.above[0.01]
    assert ranked.stable_rank.high == ranked.clearly_negative.high == 5
    assert ranked.smallest == rough.smallest
    positive = rough.without_negative()
    assert positive.smallest == Estimate(0.0, 0.0, 0.01, 0.95)
    assert positive.largest == exact.largest
    assert replace(rough, trace=Estimate(3.0, -9.0, 15.0, 0.95)).without_negative().trace.low == 2
    assert (positive.clearly_negative.low, positive.clearly_negative.high) == (0, 0)
