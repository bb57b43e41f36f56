"""Estimates by Krylov spaces: exact where they can be, and intervals that hold."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats

from rankmon.linalg.block_lanczos import BlockLanczos
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.krylov import Limits, krylov_spectrum
from rankmon.linalg.lanczos import Tridiagonal
from rankmon.linalg.random_measures import Measures

P = 500
RNG = np.random.default_rng(7)
ORDER = np.arange(1.0, P + 1)
# Gaussian starts know no basis: diagonal matrices are all there is to try.
SPECTRA = {
    "power": ORDER**-1.3 * RNG.choice([1, -0.3], P),
    "slow": ORDER**-0.7 * RNG.choice([1, -0.3], P),
    "pairs": np.r_[ORDER[: P // 2] ** -1.1, -(ORDER[: P // 2] ** -1.1)],
    "decay": np.exp(-ORDER / 15) * RNG.choice([1, -0.3], P),
    "bulk": np.r_[1.0, 0.03 * RNG.standard_normal(P - 1)],
    "plateaus": np.repeat([1, 0.3, 0.1001, 0.0999, 0.05, -0.02, 0], [3, 17, 20, 30, 50, 50, 330]),
    "few": np.r_[1, 0.5, 0.02, -0.015, 1e-4 * RNG.standard_normal(P - 4)],
}
NOISE = {np.float64: 1e-13, np.float32: 1e-6}


def estimated(values, *, dtype=np.float64, **options):
    diagonal = values.astype(dtype)
    return krylov_spectrum(
        lambda v: v * diagonal, len(values), dtype=dtype, noise=NOISE[dtype], **options
    )


def truths(values, signed):
    """Each estimate beside the true value."""
    norm, square = np.max(np.abs(values)), np.sum(values**2)
    yield signed.largest, np.max(values)
    yield signed.smallest, np.min(values)
    yield signed.trace, np.sum(values)
    yield signed.frobenius, math.sqrt(square)
    yield signed.stable_rank, square / norm**2
    for share, count in signed.above.items():
        yield count, np.sum(np.abs(values) > share * norm)
    yield signed.clearly_negative, np.sum(values < -0.01 * norm)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, np.float64) for name in SPECTRA), ("power", np.float32)]
)
def test_intervals_hold(name, dtype):
    """Each of the 10 as often as it says, but for what a few seeds leave to chance."""
    values, seeds = SPECTRA[name], 10
    hits = []
    for seed in range(seeds):
        found = estimated(values, dtype=dtype, limits=Limits(rows=96), seed=seed)
        assert found is not None
        pairs = list(truths(values, found.signed()))
        assert all(estimate.low <= estimate.value <= estimate.high for estimate, _ in pairs)
        hits.append([e.low - 1e-12 <= true <= e.high + 1e-12 for e, true in pairs])
    assert np.all(np.sum(hits, axis=0) >= seeds - 3)  # 0.1 % by chance, of 95 %
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("width", [2, 16])
def test_intervals_of_one_space_hold(name, width):
    values, seeds = SPECTRA[name], 10
    hits, options = [], {"certified": False, "limits": Limits(rows=64), "width": width}
    for seed in range(seeds):
        pairs = list(truths(values, estimated(values, seed=seed, **options).signed()))
        assert all(estimate.low <= estimate.value <= estimate.high for estimate, _ in pairs)
        hits.append([e.low - 1e-12 <= true <= e.high + 1e-12 for e, true in pairs])
    assert np.all(np.sum(hits, axis=0) >= seeds - 3)  # 0.1 % by chance, of 95 %
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("name", ["power", "slow", "bulk"])
def test_one_space_counts_well_without_a_second(name):
    """The values, not the intervals: 128 products, of which the trace takes none."""
    values, products, off = SPECTRA[name], [], []

    def product(v):
        products.append(len(v))
        return v * values

    for seed in range(20):
        options = {"certified": False, "moments": 0, "limits": Limits(rows=128), "seed": seed}
        found = krylov_spectrum(product, P, **options)
        cut = 0.01 * found.norm
        off.append(found.count(-cut, cut).value / np.sum(np.abs(values) > cut) - 1)
    assert sum(products) <= 20 * 128
    assert np.median(np.abs(off)) < 0.05
    assert math.isnan(found.trace().value)
    assert math.isnan(found.signed().stable_rank.value)


@pytest.mark.parametrize("name", ["power", "slow", "decay"])
def test_extremes_alone_take_few_products(name):
    values, products = SPECTRA[name], []

    def product(v):
        products.append(len(v))
        return v * values

    options = {"certified": False, "moments": 0, "width": 1, "goal": 1.0, "accuracy": 1e-3}
    found = krylov_spectrum(product, P, **options)
    assert sum(products) <= 40
    assert found.largest().value == pytest.approx(np.max(values), rel=1e-4)
    assert found.smallest().value == pytest.approx(np.min(values), rel=1e-3)
    assert found.largest().high >= np.max(values)


@pytest.mark.parametrize("name", ["power", "decay", "few", "pairs", "plateaus"])
def test_counts_above_the_goal_are_settled(name):
    values = SPECTRA[name]
    found = estimated(values, limits=Limits(rows=288))
    norm = np.max(np.abs(values))
    assert found.norm == pytest.approx(norm, 1e-8)
    for share in (0.1, 0.01):
        cut = share * norm
        count, true = found.count(-cut, cut), np.sum(np.abs(values) > cut)
        assert count.value == pytest.approx(true, abs=1)
        assert count.high - count.low <= max(1, 0.05 * true)
    assert found.largest().high - found.largest().low < 1e-5 * norm


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_complete_basis_is_exact(dtype):
    values = SPECTRA["power"][:70]
    found = estimated(values, dtype=dtype).signed()
    for estimate, true in truths(values, found):
        assert estimate.value == pytest.approx(true, rel=1e-5)
        assert estimate.high - estimate.low <= 1e-4


def test_a_norm_and_a_trace_from_elsewhere():
    """A part far below H_L has nothing above its shares, after the first products."""
    values = 1e-6 * SPECTRA["pairs"]
    products = []

    def product(v):
        products.append(len(v))
        return v * values

    found = krylov_spectrum(product, P, norm=1.0)
    assert sum(products) < 200
    signed = found.signed((1.0, 1.0), trace=Estimate.exact(0.0))
    assert all(count.high == 0 for count in signed.above.values())
    assert signed.trace.low == signed.trace.high == 0


def test_a_zero_matrix():
    signed = estimated(np.zeros(P)).signed()
    assert signed.largest.high == signed.smallest.low == signed.frobenius.high == 0
    assert all(count.high == 0 for count in signed.above.values())


def test_what_is_not_finite_has_no_estimate():
    assert krylov_spectrum(lambda v: v * np.inf, P) is None
    assert krylov_spectrum(lambda v: v * np.nan, 20) is None


def test_the_seed_decides_alone():
    first, again, other = (estimated(SPECTRA["slow"], seed=seed).trace() for seed in (3, 3, 4))
    assert first == again != other


def test_the_deadline_is_kept():
    """A clock that each product moves by a second."""
    now = [0.0]

    def product(v):
        now[0] += 1
        return v * SPECTRA["slow"]

    limits = Limits(deadline=9.0, clock=lambda: now[0])
    found = krylov_spectrum(product, P, limits=limits)
    assert now[0] <= 9
    # Even a single step claims nothing that is wrong.
    for deadline in (0.0, 3.0):
        hurried = krylov_spectrum(product, P, limits=Limits(deadline, clock=lambda: now[0]))
        assert hurried.largest().high >= np.max(SPECTRA["slow"])
        assert hurried.smallest().low <= np.min(SPECTRA["slow"])
    assert found.count(-0.1, 0.1).low <= np.sum(np.abs(SPECTRA["slow"]) > 0.1)


def test_bounds_of_the_vectors_weights():
    values = SPECTRA["power"]
    start = np.random.default_rng(0).standard_normal((4, P))
    space = BlockLanczos(lambda v: v * values, start, most=P, noise=1e-13)
    for _ in range(8):
        space.grow()
    pairs = space.ritz()
    for tolerance in (0.0, 1e-4):
        measures = Measures.of(space, pairs, pairs.residuals <= tolerance)
        for cut in (0.5, 0.1, 0.02, 0.003):
            least, most = measures.beyond(-cut, cut)
            true = np.sum(start[:, np.abs(values) > cut] ** 2)
            assert least - 1e-3 <= true <= most + 1e-3


@pytest.mark.parametrize("x", [-0.02, 0.3, 4.0, math.inf])
def test_shares_of_all_vectors_are_those_of_each(x):
    """Entries of all sizes, recurrences that end early, and none at all."""
    rng = np.random.default_rng(5)
    for m in (1, 4, 9):
        diagonal = rng.standard_normal((6, m))
        beside = np.abs(rng.standard_normal((6, m))) * 10.0 ** rng.uniform(-6, 0, (6, m))
        beside[:2, m // 2] = 0
        known = np.zeros(0), np.zeros((6, 0))
        measures = Measures(*known, np.ones(6), partial(tuple, (diagonal, beside)), ())
        each = [Tridiagonal.of(a, b) for a, b in zip(diagonal, beside, strict=True)]
        pairs = [(1.0, 1.0) if math.isinf(x) else one.before(x) for one in each]
        least, most = measures.beyond(x, math.inf)
        np.testing.assert_allclose([least, most], np.sum(pairs, axis=0), atol=1e-12)


@pytest.mark.parametrize("weight", [0.1, 20.0, 300.0])
def test_dimensions_of_a_weight(weight):
    measures = Measures(np.zeros(0), np.zeros((4, 0)), np.zeros(4), tuple, ())
    most, least = measures.most(weight, 0.01, P), measures.least(weight, 0.01, P)
    likely = scipy.stats.chi2(4 * np.arange(1, P + 1)).cdf(weight)
    assert most == np.sum(likely >= 0.01)
    assert least == 1 + np.sum(1 - likely < 0.01)


def test_counts_hold_in_narrow_spaces_of_many_steps():
    """Most pairs are taken for eigenpairs there: what is left of a vector seems to end."""
    p, share, missed = 1500, 1e-3, []
    rng = np.random.default_rng(0)
    values = np.zeros(p)
    values[: p // 2] = 10 ** -rng.uniform(0, 5, p // 2) * rng.choice([1, -1], p // 2)
    for seed in range(8):
        found = krylov_spectrum(
            lambda rows: rows * values, p, limits=Limits(rows=200), width=2, seed=seed
        )
        for cut in (0.1, 0.01, share):
            count = found.count(-cut * found.norm, cut * found.norm)
            true = np.sum(np.abs(values) > cut * found.norm)
            missed += [(seed, cut)] if not count.low <= true <= count.high else []
    assert len(missed) <= 1  # of 24 intervals of 95 %
