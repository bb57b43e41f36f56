"""Certified counts against prescribed singular values and NumPy's own."""

import numpy as np
import pytest

from prescribed import with_singular_values
from rankmon.linalg.certified_rank import certified_count, spectral_norm
from rankmon.linalg.gram import Gram


def count(W, above, below):
    return certified_count(W, Gram.of([W], len(W)), above=above, below=below)


FULL = np.linspace(1, 1e-3, 40)
LOW = np.concatenate([np.linspace(1, 1e-2, 25), np.full(15, 1e-8)])


@pytest.mark.parametrize("shape", [(40, 40), (40, 90)], ids=str)
def test_counts_are_those_of_what_is_prescribed(shape):
    assert count(with_singular_values(FULL, shape), 0.9e-3, 0.0) == 40
    assert count(with_singular_values(FULL, shape), 1.1e-3, 1e-5) is None
    assert count(with_singular_values(LOW, shape), 1e-3, 1.2e-8) == 25
    assert count(with_singular_values(LOW, shape), 1e-3, 0.8e-8) is None
    assert count(with_singular_values(LOW, shape), 2e-2, 1.2e-8) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_count_is_never_wrong(seed):
    rng = np.random.default_rng(seed)
    sigma = 10.0 ** rng.uniform(-9, 0, 30)
    W = with_singular_values(sigma, (30, 35), seed)
    below, above = np.sort(10.0 ** rng.uniform(-10, 0, 2))
    got = count(W, above, below)
    if got is not None:
        assert got == np.sum(sigma > above) == np.sum(sigma > below)


def test_gaps_are_seen_where_they_are():
    rng = np.random.default_rng(1)
    seen = []
    for gap_at in range(1, 30):
        high, low = 10.0 ** rng.uniform(-2, 0, gap_at), 10.0 ** rng.uniform(-9, -8, 30 - gap_at)
        W = with_singular_values(np.concatenate([high, low]), (30, 35), gap_at)
        seen.append(count(W, 1e-3, 1e-7))
    assert seen == list(range(1, 30))


def test_a_graded_spectrum_costs_no_digit_of_what_is_left_over():
    sigma = np.concatenate([np.logspace(0, -4.5, 25), np.full(15, 1e-9)])
    assert count(with_singular_values(sigma, (40, 40)), 1e-5, 1.5e-9) == 25


def test_what_rounding_could_have_lifted_is_not_certified():
    W = np.diag([1.0, 1.0, 1e-8])
    gram = Gram(W @ W.T, 0.0)
    assert np.all(np.diag(np.linalg.cholesky(gram.matrix)) > 0)
    assert certified_count(W, gram, above=0.0, below=0.0) is None
    assert certified_count(np.eye(3), Gram(np.eye(3), 0.0), above=0.5, below=0.0) == 3
    assert certified_count(np.eye(3), Gram(np.eye(3), 2.0), above=0.5, below=0.0) is None


def test_rounding_of_what_is_left_over_counts():
    W = with_singular_values(np.concatenate([np.ones(20), np.zeros(20)]), (40, 40))
    assert count(W, 1e-3, 1e-11) == 20
    assert np.linalg.svd(W, compute_uv=False)[20] < 1e-15
    assert count(W, 1e-3, 1e-15) is None


@pytest.mark.parametrize("s", [1, 2, 3, 40])
def test_norm(s):
    W = np.random.default_rng(s).standard_normal((s, 50))
    assert spectral_norm(W @ W.T) == pytest.approx(np.linalg.norm(W, 2), rel=1e-12)
