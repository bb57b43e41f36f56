"""Test sketches of matrices with prescribed spectra."""

import math

import numpy as np
import pytest

from rankmon.linalg.sketch import Sketch, side_for, sketched, spectral_norm

P = 700
CUT = 1e-10


def matrix(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues, and zeros, in a random basis."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((P, len(eigenvalues))))
    return (Q * eigenvalues) @ Q.T


def sketch_of(A, side, seed=0, **sizes):
    sizes = {"batch": 128, "rows": 64} | sizes
    return sketched(lambda v: {"A": v @ A}, P, side, seed=seed, **sizes)["A"]


RNG = np.random.default_rng(7)
SPECTRA = {
    "zero": np.zeros(1),
    "one": np.ones(1),
    "repeated": np.repeat([1.0, -1.0, 1e-3], 20),
    "graded": RNG.choice([-1.0, 1.0], 60) * 10.0 ** RNG.uniform(-6, 1, 60),
    "far_below_the_cut": np.r_[np.ones(30), np.full(200, 1e-16)],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_exact_where_the_gap_is_clear(name):
    values = SPECTRA[name]
    truth = int(np.sum(np.abs(values) > CUT))
    side = 2 * side_for(truth)
    found = sketch_of(matrix(values), side).counted(CUT)
    assert (found.low, found.rank, found.high) == (truth, truth, truth)
    assert (found.size, found.side, found.complete, found.certain) == (P, side, True, True)


@pytest.mark.parametrize("seed", range(20))
def test_intervals_hold_where_eigenvalues_lie_about_the_cut(seed):
    """No gap: every factor of 1.2 from 1 to 1e-20 has an eigenvalue."""
    values = 1.2 ** -np.arange(250.0)
    found = sketch_of(matrix(values, seed), 550, seed).counted(CUT)
    assert found.complete
    assert found.low <= np.sum(values > 10 * CUT)
    assert found.low <= found.rank <= found.high
    assert found.high >= np.sum(values > CUT / 10)
    assert found.low >= np.sum(values > 1e5 * CUT)  # nor do they say nothing
    assert found.high <= np.sum(values > CUT / 1e5)


def test_bounds_of_each_singular_value_hold():
    values = np.sort(10.0 ** np.random.default_rng(3).uniform(-8, 0, 150))[::-1]
    A = matrix(values)
    for seed in range(10):
        sketch = sketch_of(A, 400, seed)
        assert np.all(sketch.at_most()[:150] >= values * (1 - 1e-9))
        for c in 10.0 ** np.arange(-9.0, 1):
            assert sketch.exceeding(c) <= np.sum(values > c)


@pytest.mark.parametrize("rank", [300, P])
def test_a_sketch_too_small_says_so(rank):
    sketch = sketch_of(matrix(np.ones(rank)), 100)
    found = sketch.counted(CUT)
    assert not found.complete
    assert (found.low, found.rank, found.high) == (100, 100, P)
    assert math.isnan(found.gap)
    assert sketch.next_side(CUT) == 200


def test_the_next_side_is_enough_once_the_end_is_in_sight():
    A = matrix(np.ones(80))
    sketch = sketch_of(A, 100)
    assert not sketch.counted(CUT).complete
    assert sketch_of(A, sketch.next_side(CUT)).counted(CUT).rank == 80


def test_sketches_larger_than_the_matrix():
    values = np.r_[np.ones(500), np.full(P - 500, 1e-18)]
    assert sketch_of(matrix(values), 1100).counted(CUT).rank == 500


def test_several_matrices_share_their_vectors():
    A, B = matrix(np.ones(5)), matrix(np.ones(9), seed=1)

    def products(v):
        return {"A": v @ A, "B": v @ B, "A + B": v @ (A + B)}

    both = sketched(products, P, 150, batch=50, rows=40, seed=3)
    assert {name: s.counted(CUT).rank for name, s in both.items()} == {"A": 5, "B": 9, "A + B": 14}
    alone = sketch_of(A, 150, seed=3, batch=50, rows=40)
    np.testing.assert_allclose(both["A"].values[:5], alone.values[:5], rtol=1e-12)


def test_overflow_is_not_a_rank():
    def products(v):
        return {"A": np.full(v.shape, np.inf)}

    sketch = sketched(products, P, 70, batch=64, rows=64, seed=0)["A"]
    assert not sketch.is_finite


@pytest.mark.parametrize("values", [[3.0, -7.0, 1.0], [2.0] * 40, [1e-200, 1e-201], [0.0]])
def test_norms(values):
    A = matrix(np.array(values))
    assert spectral_norm(lambda v: A @ v, P, seed=0) == pytest.approx(max(map(abs, values)), 1e-3)


def test_norms_of_small_and_infinite_matrices():
    assert spectral_norm(lambda v: -4.0 * v, 1, seed=0) == 4.0
    assert spectral_norm(lambda v: np.array([[0.0, 1], [1, -3]]) @ v, 2, seed=0) == pytest.approx(
        (3 + np.sqrt(13)) / 2
    )
    assert spectral_norm(lambda v: 0 * v, 4, seed=0) == 0.0
    assert math.isnan(spectral_norm(lambda v: v * np.inf, 5, seed=0))


def test_estimates_are_of_the_right_size():
    values = np.array([100.0, 10.0, 1.0])
    assert Sketch(values, P).side == 3
    estimates = sketch_of(matrix(values), 400).estimates()
    np.testing.assert_allclose(estimates[:3], values, rtol=0.3)


@pytest.mark.parametrize("p", [1, 3, 20, 64])
def test_the_matrix_itself_where_a_sketch_would_have_its_side(p):
    """Exact counts, and never more than p: 64 rows of a sketch said up to 37 for p = 20."""
    truth = (p + 1) // 2
    Q, _ = np.linalg.qr(np.random.default_rng(p).standard_normal((p, p)))
    A = (Q * np.r_[-np.ones(truth), np.zeros(p - truth)]) @ Q.T
    found = sketched(lambda v: {"A": v @ A}, p, p, batch=7, rows=4, seed=0)["A"].counted(CUT)
    assert (found.low, found.rank, found.high) == (truth, truth, truth)
    assert (found.size, found.side, found.complete) == (p, p, True)


@pytest.mark.parametrize("side", [150, 400, P])
def test_a_cut_below_rounding_does_not_count_it(side):
    """With a cut of 1e-300 every singular value of the sketch was counted, up to its side."""
    values = np.r_[np.ones(30), np.full(20, 1e-3)]
    sketch = sketch_of(matrix(values), side)
    found = sketch.counted(1e-300, finest=10 * 2.0**-52)
    assert (found.low, found.rank, found.high) == (50, 50, P)
