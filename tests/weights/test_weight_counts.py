"""Test ranks of weights against NumPy's singular values, or prescribed ones if large."""

import numpy as np
import pytest
import scipy.linalg

from rankmon import weight_counts, weight_ranks
from rankmon.linalg.numerical_rank import Tolerance
from rankmon.weights.ranks import weight_count, weight_rank
from refusals import refused

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


# The sides of what is large, and of what is so where rows and columns of zeros are left out.
LARGE, SPARSE = 1030, 1060


def prescribed(sigma, shape):
    """A matrix with these singular values, between Householder reflections."""
    W = np.zeros(shape)
    np.fill_diagonal(W, sigma)
    for side in (0, 1):
        u = RNG.standard_normal(shape[side])
        u /= np.linalg.norm(u)
        W = W - 2 * (np.multiply.outer(u, u @ W) if side == 0 else np.multiply.outer(W @ u, u))
    return W


def large(name):
    """A matrix and its singular values; those of no rank are zeros but for what rounding adds."""
    full, low = np.linspace(1, 0.1, LARGE), np.repeat([1.0, 0.0], [500, LARGE - 500])
    if name == "dead units":
        W, kept = np.zeros((SPARSE, SPARSE)), RNG.permutation(SPARSE)[:LARGE]
        W[np.ix_(kept, np.sort(kept))] = prescribed(full, (LARGE, LARGE))
        return W.astype(np.float32), full
    sigma, shape, dtype = {
        "wide": (full, (LARGE, 1100), np.float32),
        "low, tall": (low, (1100, LARGE), np.float32),
        "low, float64": (low, (LARGE, LARGE), np.float64),
        "huge": (1e200 * full, (LARGE, LARGE), np.float64),
        "across the cut": (np.logspace(0, -10, LARGE), (LARGE, LARGE), np.float32),
    }[name]
    return prescribed(sigma, shape).astype(dtype), sigma


CERTIFIED = ("wide", "low, tall", "dead units", "huge")
COMPUTED = ("low, float64", "across the cut")  # the cut is rounding, or too near


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


@pytest.fixture
def computed(monkeypatch):
    """The shapes of the matrices of which singular values were computed."""
    shapes = []

    def recorded(function):
        def recording(matrix, *rest, **options):
            shapes.append(matrix.shape)
            return function(matrix, *rest, **options)

        return recording

    for module, name in ((np.linalg, "svd"), (np.linalg, "eigvalsh"), (scipy.linalg, "svdvals")):
        monkeypatch.setattr(module, name, recorded(getattr(module, name)))
    return shapes


@pytest.mark.parametrize("name", [*CERTIFIED, *COMPUTED])
def test_large_counts_need_no_singular_value_where_none_is_near_the_cut(name, computed):
    W, sigma = large(name)
    eps = float(np.finfo(W.dtype).eps)
    got, default = weight_count(W, eps=eps), max(W.shape) * 2.0**-52 * sigma[0]
    if W.dtype == np.float32:
        default += eps / 2 * np.linalg.norm(W.astype(np.float64))
    assert got.tolerance == pytest.approx(default, rel=1e-6)
    assert got.size == min(W.shape)
    if name == "across the cut":  # storing moves each by less than the cut
        assert np.sum(sigma > 2 * default) <= got.rank <= np.sum(sigma > default / 2)
        assert got.low < got.rank < got.high
    else:
        assert (got.low, got.rank, got.high) == (np.sum(sigma > 0),) * 3
    if name in CERTIFIED:
        assert got.gap == (np.inf if got.rank == len(sigma) else 100.0)
    assert computed == ([] if name in CERTIFIED else [W.shape])


@pytest.mark.parametrize(
    ("near", "counts"), [(3.0, (500, 501, 501)), (0.3, (500, 500, 501))], ids=["above", "below"]
)
def test_one_value_near_the_cut_is_in_the_margin(near, counts):
    sigma = np.repeat([1.0, near * 1e-3, 0.0], [500, 1, LARGE - 501])
    W = prescribed(sigma, (LARGE, LARGE))
    got = weight_count(W, tolerance=Tolerance(absolute=1e-3))
    assert (got.low, got.rank, got.high) == counts


def test_small_counts_are_of_singular_values(computed):
    W, _ = CASES["full"]
    weight_count(W)
    assert computed == [W.shape]


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
    got = weight_ranks(params, largest=3)
    want = weight_ranks(params)
    assert got.keys() == want.keys() == {"a", "c"}
    assert got["c"] == want["c"]
    counted, measured = got["a"], want["a"]
    for name in ("low", "rank", "high", "size", "view"):
        assert getattr(counted, name) == getattr(measured, name)
    assert np.isnan([counted.stable_rank, counted.effective_rank, counted.condition_number]).all()


@pytest.mark.parametrize("side", [60, 61])
def test_the_smaller_side_decides(side):
    square = weight_ranks({"W": gaussian(60, 60)}, largest=side)["W"]
    assert square.log_abs_det is not None
    assert weight_ranks({"W": gaussian(60, 70)}, largest=side)["W"].stable_rank > 1
    assert weight_ranks({"W": gaussian(62, 62)}, largest=side)["W"].det_sign is None


@pytest.mark.parametrize(
    ("options", "kind", "keys"),
    [
        ({"largest": 1e3}, TypeError, ("largest", "integer", "float")),
        ({"largest": True}, TypeError, ("largest", "integer", "True")),
        ({"largest": -1}, ValueError, ("largest", "at least 0", "-1")),
        ({"tolerance": 1e-3}, TypeError, ("tolerance", "float", "Tolerance(")),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_read(options, kind, keys):
    with refused(kind, *keys):
        weight_ranks(None, **options)


def test_the_old_name_gives_the_same_counts():
    params = {"a": gaussian(60, 70).astype(np.float32), "c": np.ones((3, 4))}
    with pytest.warns(DeprecationWarning, match=r"weight_ranks\(\.\.\., largest=") as said:
        got = weight_counts(params)
    assert [warning.filename for warning in said] == [__file__]
    eps = np.finfo(np.float32).eps
    assert got == {"a": weight_count(params["a"], eps=eps), "c": weight_count(params["c"])}
