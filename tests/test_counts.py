"""Counts of large weights against NumPy's singular values, where what is large is lowered."""

import numpy as np
import pytest

import rankmon
from rankmon import weight_counts
from rankmon.counts import weight_count
from rankmon.rank import Tolerance, weight_rank

RNG = np.random.default_rng(0)


def gaussian(m, n):
    return RNG.standard_normal((m, n))


def low_rank(m, r, n):
    return gaussian(m, r) @ gaussian(r, n)


def decaying(n, last):
    U, V = (np.linalg.qr(gaussian(n, n))[0] for _ in range(2))
    return (U * np.logspace(0, last, n)) @ V


def with_dead_units():
    W = gaussian(120, 120)
    W[10:40], W[:, 5:9] = 0.0, 0.0
    return W


CASES = {
    "full": (gaussian(120, 120), np.float32),
    "wide": (gaussian(80, 130), np.float32),
    "very wide": (low_rank(70, 60, 400), np.float32),
    "very tall": (low_rank(400, 60, 70), np.float32),
    "low": (low_rank(120, 50, 130), np.float32),
    "low, float64": (low_rank(120, 50, 130), np.float64),
    "dead units": (with_dead_units(), np.float32),
    "across the cut": (decaying(120, -10), np.float32),
    "huge": (1e200 * gaussian(90, 90), np.float64),
    "tiny": (1e-200 * low_rank(90, 30, 90), np.float64),
    "zero": (np.zeros((80, 80)), np.float32),
}


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr("rankmon.counts._LARGE", 50)


def counted(sigma, cut):
    return tuple(int(np.sum(sigma > c)) for c in (10 * cut, cut, cut / 10))


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_singular_values(name):
    W, dtype = CASES[name]
    W = W.astype(dtype)
    sigma = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    eps = float(np.finfo(dtype).eps)
    got, cut = weight_count(W, eps=eps), weight_rank(W, eps=eps).tolerance
    assert got.tolerance == pytest.approx(cut, rel=1e-12)
    assert got.size == min(W.shape)
    assert (got.low, got.rank, got.high) == counted(sigma, cut)
    if 0 < got.rank < len(sigma):
        assert min(got.gap, 1e3) <= sigma[got.rank - 1] / max(sigma[got.rank], 1e-300)


def test_no_singular_value_is_computed_where_counts_suffice(monkeypatch):
    def refused(matrix):
        raise AssertionError("computed")

    monkeypatch.setattr("rankmon.counts.singular_values", refused)
    for name in ("full", "wide", "low", "very wide", "very tall", "dead units"):
        W, dtype = CASES[name]
        weight_count(W.astype(dtype), eps=float(np.finfo(dtype).eps))
    for name in ("low, float64", "across the cut"):  # the cut is rounding, or too near
        with pytest.raises(AssertionError, match="computed"):
            weight_count(CASES[name][0])
    monkeypatch.setattr("rankmon.counts._LARGE", 10_000)
    with pytest.raises(AssertionError, match="computed"):
        weight_count(CASES["full"][0])


@pytest.mark.parametrize(
    "tolerance",
    [Tolerance(absolute=1.0), Tolerance(relative=1e-3), Tolerance(absolute=0.0)],
    ids=str,
)
def test_another_cut(tolerance):
    W = CASES["across the cut"][0]
    sigma = np.linalg.svd(W, compute_uv=False)
    got = weight_count(W, tolerance=tolerance)
    cut = tolerance.absolute if tolerance.relative is None else tolerance.relative * sigma[0]
    assert got.tolerance == pytest.approx(cut, rel=1e-12)
    assert got.rank == np.sum(sigma > cut)


def test_what_is_not_finite_has_no_rank():
    W = gaussian(60, 60)
    W[3, 4] = np.nan
    assert weight_count(W).rank is None


def test_of_a_pytree():
    params = {"a": gaussian(60, 70).astype(np.float32), "b": np.ones(3), "c": np.ones((3, 4))}
    got = weight_counts(params)
    want = rankmon.weight_ranks(params)
    assert got.keys() == want.keys() == {"a", "c"}
    for name, rank in want.items():
        assert (got[name].low, got[name].rank, got[name].high) == (rank.low, rank.rank, rank.high)
        assert got[name].size == rank.size
    with pytest.raises(TypeError, match="expected tolerance to be a rankmon.Tolerance"):
        weight_counts(params, tolerance=1e-3)
