"""Neural collapse against the formulas of Papyan, Han and Donoho, written out class by class."""

from itertools import permutations

import numpy as np
import pytest

from rankmon import Tolerance
from rankmon.measure.collapse import Classes, neural_collapse, simplex

EPS = np.finfo(np.float64).eps


def paper(h, labels, weights, W, z):
    """Figures 2 to 7 of PNAS 117 (2020) 24652, with a dense pseudo-inverse; all classes occur."""
    n, C = len(h), len(W)
    weights = weights / weights.sum()
    mu = [np.average(h[labels == c], axis=0, weights=weights[labels == c]) for c in range(C)]
    mu_G = sum(mu) / C
    S_W = sum(weights[i] * np.outer(h[i] - mu[labels[i]], h[i] - mu[labels[i]]) for i in range(n))
    S_B = sum(np.outer(m - mu_G, m - mu_G) for m in mu) / C
    values, vectors = np.linalg.eigh(S_B)
    keep = values > 1e-12 * values.max()
    S_B_inverse = vectors[:, keep] @ np.diag(1 / values[keep]) @ vectors[:, keep].T
    M = np.array([m - mu_G for m in mu])

    def cosine(u, v):
        return u @ v / (np.linalg.norm(u) * np.linalg.norm(v))

    def nc2(rows):
        norms = np.array([np.linalg.norm(row) for row in rows])
        cosines = np.array([cosine(rows[a], rows[b]) for a, b in permutations(range(C), 2)])
        return norms.std() / norms.mean(), cosines.std(), np.abs(cosines + 1 / (C - 1)).mean()

    nearest = np.array([np.argmin([np.linalg.norm(x - m) for m in mu]) for x in h])
    return {
        "nc1": np.trace(S_W @ S_B_inverse) / C,
        "means": nc2(M),
        "classifier": nc2(W),
        "nc3": np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2,
        "nc4": weights[nearest != np.argmax(z, axis=1)].sum(),
        "rank_means": int(keep.sum()),
    }


def measured(h, labels, weights, W, z, **options):
    found = neural_collapse(h, Classes.of(labels, weights), W, np.argmax(z, axis=1), **options)
    return {
        "nc1": found.nc1,
        "means": tuple(vars(found.means).values()),
        "classifier": tuple(vars(found.classifier).values()),
        "nc3": found.nc3,
        "nc4": found.nc4,
        "rank_means": found.rank_means.rank,
    }


def assert_agree(found, expected):
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name


def drawn(n, d, C, *, seed=0, sizes=None, weighted=False, rank=None):
    """Features, labels, weights, classifier and outputs of a classifier that is not collapsed."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % C if sizes is None else np.repeat(np.arange(C), sizes)
    rng.shuffle(labels)
    centers = rng.standard_normal((C, d))
    if rank is not None:
        centers = rng.standard_normal((C, rank)) @ rng.standard_normal((rank, d))
    h = 3 + centers[labels] + rng.standard_normal((n, d))
    weights = rng.random(n) + 0.1 if weighted else np.ones(n)
    W = rng.standard_normal((C, d))
    return h, labels, weights, W, h @ W.T + rng.standard_normal(C)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((60, 8, 5), {}),
        ((60, 8, 5), {"weighted": True}),
        ((6, 40, 3), {}),
        ((40, 3, 6), {}),
        ((30, 5, 2), {}),
        ((30, 1, 2), {}),
        ((31, 7, 4), {"sizes": [1, 2, 8, 20]}),
        ((31, 7, 4), {"sizes": [1, 2, 8, 20], "weighted": True}),
        ((4, 6, 4), {}),
    ],
    ids=[
        "balanced",
        "weighted",
        "n < d",
        "d < C - 1",
        "two classes",
        "one feature",
        "unbalanced",
        "unbalanced weighted",
        "single examples",
    ],
)
def test_the_paper_s_formulas(shape, options):
    for seed in range(3):
        data = drawn(*shape, seed=seed, **options)
        assert_agree(measured(*data), paper(*data))


def test_near_a_collapse_no_digits_are_lost():
    data = drawn(200, 9, 4)
    h, labels, _, _, _ = data
    means = np.array([h[labels == c].mean(0) for c in range(4)])
    near = means[labels] + 1e-7 * (h - means[labels])
    assert_agree(measured(near, *data[1:]), paper(near, *data[1:]))
    assert measured(near, *data[1:])["nc1"] < 1e-12


def collapsed(C, d, *, seed=0, each=3):
    """A complete collapse: features on a simplex far from the origin, and its classifier."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, C)))[0]
    corners = (np.eye(C) - 1 / C) @ basis.T
    labels = np.repeat(np.arange(C), each)
    h = 5 * corners[labels] + 7.0
    W = 0.3 * corners
    return h, labels, np.ones(len(h)), W, (h - 7.0) @ W.T


@pytest.mark.parametrize("C", [2, 3, 10])
def test_a_complete_collapse_is_zero_throughout(C):
    found = measured(*collapsed(C, 12))
    assert found.pop("rank_means") == C - 1
    np.testing.assert_allclose(np.hstack(list(found.values())), 0, atol=1e-13)


@pytest.mark.parametrize("present", [2, 4, 7])
def test_a_collapse_is_one_without_some_classes(present):
    h, labels, weights, W, z = collapsed(8, 12)
    kept = labels >= 8 - present
    found = measured(h[kept], labels[kept], weights[kept], W, z[kept])
    assert found.pop("rank_means") == present - 1
    np.testing.assert_allclose(np.hstack(list(found.values())), 0, atol=1e-13)


def test_decisions_for_classes_without_examples_disagree():
    h, labels, weights, W, z = collapsed(5, 6)
    kept = labels > 0
    z[np.flatnonzero(kept)[:3], 0] = 100
    found = measured(h[kept], labels[kept], weights[kept], W, z[kept])
    assert found["nc4"] == pytest.approx(3 / kept.sum())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_class_means_of_low_rank(rank):
    """All examples lie at their means, so that the rank is exact up to rounding errors."""
    rng = np.random.default_rng(rank)
    means = 1e3 + rng.standard_normal((6, rank)) @ rng.standard_normal((rank, 20))
    labels = np.tile(np.arange(6), 4)
    W = rng.standard_normal((6, 20))
    found = neural_collapse(means[labels], Classes.of(labels, np.ones(24)), W, labels)
    ranks = found.rank_means
    assert ranks.rank == ranks.low == ranks.high == rank
    assert found.nc1 < 1e-20
    assert found.nc4 == 0


def test_cancellation_in_the_means_is_below_the_cut():
    """Features far larger than the differences of the means leave rounding errors in M."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(5), 40)
    h = np.repeat(rng.standard_normal((1, 30)), 200, axis=0) * 1e6
    h[labels == 2, 3] += 1.0
    noise = 1e8 * rng.standard_normal((20, 1, 30))
    h = (h.reshape(20, 10, 30) + noise).reshape(200, 30)  # the same in both examples of a class
    found = neural_collapse(h, Classes.of(labels, np.ones(200)), np.eye(5, 30), labels)
    assert found.rank_means.rank == 1


@pytest.mark.parametrize("bits", [8, 24])
def test_rounding_errors_of_coarse_features_are_below_the_cut(bits):
    """Classes whose means have rank 2 before the features are rounded."""
    eps = 2.0 ** (1 - bits)
    rng = np.random.default_rng(bits)
    means = 1 + rng.standard_normal((6, 2)) @ rng.standard_normal((2, 20))
    labels = np.tile(np.arange(6), 50)
    h = means[labels] * (1 + eps / 2 * rng.uniform(-1, 1, (300, 20)))
    W = rng.standard_normal((6, 20))
    classes = Classes.of(labels, np.ones(300))
    assert neural_collapse(h, classes, W, labels).rank_means.rank == 5
    found = neural_collapse(h, classes, W, labels, eps=eps)
    assert found.rank_means.rank == 2
    assert found.nc1 < 300 * eps**2
    assert found.nc4 == 0


def test_equal_means_far_from_the_origin_are_equally_near():
    """The means of two classes differ by rounding errors only."""
    rng = np.random.default_rng(0)
    points = 1e6 + rng.standard_normal((7, 5))
    other = 1e6 + 3 + rng.standard_normal((7, 5))
    h = np.concatenate([points, points[::-1], other])
    labels = np.repeat([0, 1, 2], 7)
    classes = Classes.of(labels, np.ones(21))
    for decided in ([0] * 14, [1] * 14, [0, 1] * 7):
        decisions = np.array([*decided, *[2] * 7])
        assert neural_collapse(h, classes, np.eye(3, 5), decisions).nc4 == 0


SAME = {
    "zero": np.zeros((12, 4)),
    "equal": np.repeat(np.random.default_rng(0).standard_normal((1, 4)), 12, axis=0) * 0.1,
}


@pytest.mark.parametrize("name", SAME)
def test_equal_features_are_undefined_not_collapsed(name):
    labels = np.arange(12) % 3
    W = np.random.default_rng(1).standard_normal((3, 4))
    found = measured(SAME[name], labels, np.ones(12), W, np.zeros((12, 3)))
    assert found["rank_means"] == 0
    undefined = [found["nc1"], *found["means"], found["nc3"], found["nc4"]]
    assert np.all(np.isnan(undefined)), undefined
    assert np.all(np.isfinite(found["classifier"]))


def test_means_that_coincide_are_the_opposite_of_a_collapse():
    h = np.tile(np.array([[1.0, 2.0], [-1.0, 0.5], [0.0, -2.5]]), (3, 1))
    labels = np.repeat(np.arange(3), 3)
    found = measured(h, labels, np.ones(9), np.eye(3, 2), np.zeros((9, 3)))
    assert found["nc1"] == float("inf")
    assert found["rank_means"] == 0
    assert np.isnan(found["nc4"])


def test_a_mean_at_the_center_has_no_angles():
    h = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    found = measured(h, np.arange(3), np.ones(3), np.eye(3, 2), np.eye(3))
    assert found["means"][0] == pytest.approx(np.std([1, 1, 0]) / np.mean([1, 1, 0]))
    assert np.all(np.isnan(found["means"][1:]))
    assert found["rank_means"] == 1


def test_a_mean_at_the_center_up_to_rounding_errors_has_no_angles():
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, 9))
    h = 1e5 / 3 + np.array([u, -u, v, -v, 0 * u])
    labels = np.arange(5)
    found = measured(h, labels, np.ones(5), np.eye(5, 9), np.eye(5))
    assert found["rank_means"] == 2
    assert np.isfinite(found["means"][0])
    assert np.all(np.isnan(found["means"][1:]))


def test_a_zero_classifier_is_undefined():
    h, labels, weights, W, z = drawn(30, 5, 3)
    found = measured(h, labels, weights, 0 * W, 0 * z)
    assert np.all(np.isnan([*found["classifier"], found["nc3"]]))
    one_row = W.copy()
    one_row[1] = 0
    found = measured(h, labels, weights, one_row, z)
    assert np.isfinite(found["classifier"][0])
    assert np.all(np.isnan(found["classifier"][1:]))
    assert np.isfinite(found["nc3"])


@pytest.mark.parametrize("where", ["features", "classifier", "decisions"])
def test_what_is_not_finite_is_nan(where):
    h, labels, weights, W, z = drawn(30, 5, 3)
    decisions = np.argmax(z, axis=1)
    if where == "features":
        h[4, 2] = np.nan
    elif where == "classifier":
        W[1, 1] = np.inf
    else:
        decisions[5] = -1
    found = neural_collapse(h, Classes.of(labels, weights), W, decisions)
    assert np.isnan(found.nc1) == (where == "features")
    assert np.isnan(found.nc3) == (where != "decisions")
    assert np.isnan(found.nc4) == (where != "classifier")
    assert np.isnan(found.classifier.norms) == (where == "classifier")
    assert (found.rank_means.rank is None) == (where == "features")


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1e8, 1e200])
def test_units_of_features_and_classifier_do_not_matter(scale):
    h, labels, weights, W, z = drawn(40, 6, 4, weighted=True)
    found = measured(scale * h, labels, weights, W / scale, z)
    assert_agree(found, paper(h, labels, weights, W, z))


def test_the_cut_is_the_users():
    means = np.vstack([np.diag([1.0, 1e-2, 1e-5]), -np.diag([1.0, 1e-2, 1e-5])])
    data = means, Classes.of(np.arange(6), np.ones(6)), np.eye(6, 3), np.arange(6)
    relative = neural_collapse(*data, tolerance=Tolerance(relative=1e-3)).rank_means
    assert (relative.rank, relative.low, relative.high) == (2, 1, 2)
    absolute = neural_collapse(*data, tolerance=Tolerance(absolute=1e-6)).rank_means
    assert (absolute.rank, absolute.tolerance) == (3, 1e-6)
    assert neural_collapse(*data).rank_means.rank == 3


def test_the_rank_is_at_most_c_minus_1_for_any_cut():
    h, labels, weights, W, z = drawn(40, 9, 4)
    found = measured(h, labels, weights, W, z, tolerance=Tolerance(absolute=0.0))
    assert_agree(found, paper(h, labels, weights, W, z))


def test_many_vectors_are_compared_in_parts():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2500, 3))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(2500, dtype=bool)]
    found = simplex(rows, 2500)
    assert found.angles == pytest.approx(cosines.std())
    assert found.cosines == pytest.approx(np.abs(cosines + 1 / 2499).mean())
