"""The rank of H_o from its Jacobian's blocks, against dense autodiff of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import oracles
from oracles import data, mlp
from rankmon import (
    OuterRank,
    Problem,
    RankmonWarning,
    Tolerance,
    hessian_ranks,
    outer_rank,
    theory,
)
from rankmon.hessian.gauss_newton import OuterSpectrum
from refusals import refused

EPS = 2.0**-52
PLAIN = {"mse": oracles.mse, "cross_entropy": oracles.cross_entropy}


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(2, (2, 2))(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


@functools.cache
def network(name):
    if name == "conv":
        rng = np.random.default_rng(0)
        shapes = {"Conv_0": {"kernel": (2, 2, 1, 2), "bias": (2,)}}
        shapes["Dense_0"] = {"kernel": (18, 3), "bias": (3,)}
        params = {
            layer: {name: 0.4 * rng.standard_normal(shape) for name, shape in leaves.items()}
            for layer, leaves in shapes.items()
        }
        return lambda p, x: Conv().apply({"params": p}, x.reshape(-1, 3, 3, 1)), params
    activation = {"relu": jax.nn.relu, "tanh_bias": jnp.tanh, "linear": None}[name]
    return mlp((9, 6, 5, 3), activation, bias=name == "tanh_bias")


def case(name, loss, n):
    apply, params = network(name)
    x, y = data(n, 9, 3)
    return apply, params, x, (np.arange(n) % 3 if loss == "cross_entropy" else y)


@functools.cache
def stated(name, loss, n):
    """(the problem, its parameters)."""
    apply, params, x, targets = case(name, loss, n)
    return Problem(apply, loss=loss, inputs=x, targets=targets), params


def outer_matrix(apply, params, x, targets, plain, weights=None):
    """H_o as its definition says, in the order of the parameters."""
    with jax.enable_x64(True):
        theta, unravel = ravel_pytree(jax.tree.map(lambda a: np.asarray(a, np.float64), params))

        @jax.jit
        def parts(theta, x, targets):
            def outputs(theta):
                return apply(unravel(theta), x)

            b = jax.vmap(jax.hessian(plain))(outputs(theta), targets)
            return b, jax.jacrev(outputs)(theta)

        b, J = (np.asarray(part) for part in parts(theta, x, targets))
    w = np.ones(len(x)) if weights is None else weights
    return np.einsum("n,nkp,nkl,nlq->pq", w / w.sum(), J, b, J, optimize=True)


def counts(H, cut):
    values = np.abs(np.linalg.eigvalsh(H))
    return tuple(int(np.sum(values > c)) for c in (10 * cut, cut, cut / 10))


# Either loss with few examples, fewer than parameters, and with many.
@pytest.mark.parametrize(
    ("name", "loss", "n"),
    [
        ("linear", "mse", 4),
        ("relu", "mse", 60),
        ("tanh_bias", "mse", 60),
        ("tanh_bias", "cross_entropy", 7),
        ("conv", "mse", 5),
        ("conv", "cross_entropy", 40),
    ],
)
def test_rank_is_that_of_the_dense_matrix(name, loss, n):
    apply, params, x, targets = case(name, loss, n)
    H = outer_matrix(apply, params, x, targets, PLAIN[loss])
    problem, _ = stated(name, loss, n)
    cut = 1e3 * len(H) * EPS * np.linalg.norm(H, 2)  # above what dense eigenvalues are off by
    low, rank, high = counts(H, cut)
    assert low == rank == high
    for method in ("gram", "qr", "auto"):
        got = outer_rank(problem, params, tolerance=Tolerance(absolute=cut), method=method)
        assert (got.low, got.rank, got.high, got.size) == (low, rank, high, len(H)), method
    default = outer_rank(problem, params)
    assert default.rank == rank
    assert default.tolerance == pytest.approx(cut / 1e3, rel=1e-9)


@pytest.mark.parametrize("n", [33, 40])
def test_losses_that_are_not_convex(n):
    apply, params, x, y = case("linear", "mse", n)
    targets = {"at": y, "width": np.abs(y) + 0.5}
    H = outer_matrix(apply, params, x, targets, oracles.student_t)
    assert np.linalg.eigvalsh(H)[0] < -1e-3 * np.linalg.norm(H, 2)
    problem = Problem(apply, loss=oracles.student_t, inputs=x, targets=targets)
    cut = 1e3 * len(H) * EPS * np.linalg.norm(H, 2)
    got = outer_rank(problem, params, tolerance=Tolerance(absolute=cut))
    assert (got.low, got.rank, got.high) == counts(H, cut)
    able, unable = ("qr", "gram") if 3 * n <= len(H) == 99 else ("gram", "qr")
    assert got.method == able
    assert got.tolerance == cut
    with refused(ValueError, f"method '{able}'", f"'{unable}'"):
        outer_rank(problem, params, method=unable)


def test_weights_and_filters():
    apply, params, x, y = case("tanh_bias", "mse", 6)
    weights = np.array([1, 0, 2, 0, 0.5, 1])
    H = outer_matrix(apply, params, x, y, oracles.mse, weights)
    some = Problem(apply, loss="mse", inputs=x, targets=y, weights=weights)
    assert outer_rank(some, params).rank == np.linalg.matrix_rank(H, hermitian=True) == 12
    first = Problem(apply, loss="mse", inputs=x, targets=y, weights=weights, include=["0/*"])
    kept = np.concatenate(
        [np.full(s.size, s.name.startswith("0/")) for s in some.flat(params).specs]
    )
    block = H[np.ix_(kept, kept)]
    got = outer_rank(first, params)
    assert got.rank == np.linalg.matrix_rank(block, hermitian=True)
    assert got.size == len(block)


def graded():
    """H_o with the eigenvalues 1, 1e-8, 1e-16 and 1e-24, over n."""
    x = np.diag([1.0, 1e-4, 1e-8, 1e-12])
    x = np.concatenate([x, np.zeros((4, 96))], axis=1)
    problem = Problem(lambda w, x: x @ w, loss="mse", inputs=x, targets=np.zeros((4, 1)))
    return problem, np.ones((100, 1))


@pytest.mark.parametrize(
    ("cut", "rank", "method"), [(1e-5, 1, "gram"), (1e-12, 2, "gram"), (1e-20, 3, "qr")]
)
def test_the_cut_decides_which_digits_are_needed(cut, rank, method):
    got = outer_rank(*graded(), tolerance=Tolerance(absolute=cut / 4))
    assert (got.low, got.rank, got.high, got.method) == (rank, rank, rank, method)
    assert got.finest_cut <= got.tolerance
    assert isinstance(got, OuterRank)


def test_the_gram_matrix_says_what_it_cannot_tell():
    got = outer_rank(*graded(), tolerance=Tolerance(absolute=1e-20), method="gram")
    assert got.finest_cut > got.tolerance
    assert got.low <= 3 <= got.high  # the truth
    assert (got.low, got.high) == (2, 4)
    fine = outer_rank(*graded(), tolerance=Tolerance(absolute=1e-20), method="qr")
    assert fine.finest_cut < 1e-25
    assert fine.certain


@pytest.mark.parametrize("p", [3_000, 25_000, 1_000_000])
def test_a_bottleneck_of_any_width_has_the_rank_that_theory_says(p):
    width = (p - 5 * 10) // (150 + 5)
    dims = (150, width, 5, 10)
    apply, params = mlp(dims)
    x, y = data(16, 150, 10)
    got = outer_rank(Problem(apply, loss="mse", inputs=x, targets=y), params)
    assert got.rank == theory.rank_outer(dims, r=16) == 105
    assert got.certain
    assert got.method == ("qr" if p == 3_000 else "gram")
    assert 0.9 * p < got.size <= p


def test_it_is_that_of_all_ranks():
    problem, params = stated("relu", "mse", 60)
    want = hessian_ranks(problem, params)["H_o"]
    got = outer_rank(problem, params, tolerance=Tolerance(absolute=want.tolerance))
    assert (got.low, got.rank, got.high, got.size) == (want.low, want.rank, want.high, want.size)


def test_what_is_not_finite_has_no_rank():
    problem, params = stated("tanh_bias", "mse", 60)
    for bad in (np.nan, np.inf):
        spoiled = [{k: v * bad for k, v in layer.items()} for layer in params]
        assert outer_rank(problem, spoiled).rank is None
    problem, weights = stated("linear", "mse", 4)  # which multiplies them until they overflow
    huge = [{"w": 1e110 * layer["w"]} for layer in weights]
    for method in ("gram", "qr"):
        got = outer_rank(problem, huge, method=method)
        assert got.rank is None
        assert np.isnan(got.finest_cut)


def test_a_network_without_influence_has_rank_zero():
    problem = Problem(
        lambda w, x: x + 0 * w, loss="mse", inputs=np.ones((3, 2)), targets=np.ones((3, 2))
    )
    got = outer_rank(problem, np.ones(2))
    assert (got.low, got.rank, got.high) == (0, 0, 0)


def test_what_does_not_fit_is_refused():
    problem, params = stated("linear", "mse", 4)
    with refused(ValueError, "method", "'svd'"):
        outer_rank(problem, params, method="svd")
    with refused(TypeError, "tolerance", "rankmon.Tolerance"):
        outer_rank(problem, params, tolerance=1e-3)
    with refused(MemoryError, "N k = 12", "p = 99", "memory_limit"):
        outer_rank(problem, params, memory_limit=1000)
    with refused(MemoryError, "QR steps of 12 columns", "memory_limit"):
        outer_rank(problem, params, method="qr", memory_limit=30_000)


def carried(w, x):
    """A recurrence whose carry is float32, and its bits: neither traced nor lifted to float64."""
    start = jnp.zeros(x.shape[:1] + (3,), jnp.float32)

    def step(h, column):
        return jnp.tanh(h @ w["h"] + column[:, None] * w["x"]), None

    h = jax.lax.scan(step, start, x.T)[0]
    return h + 0 * jax.lax.bitcast_convert_type(h, jnp.int32)


def unrolled(w, x):
    h = jnp.zeros(x.shape[:1] + (3,))
    for column in x.T:
        h = jnp.tanh(h @ w["h"] + column[:, None] * w["x"])
    return h


def rounded(w, x):
    return jnp.tanh((x.astype(jnp.float32) @ w["x"].astype(jnp.float32)) @ w["h"].astype("float32"))


@pytest.mark.parametrize(
    ("apply", "plain", "shape", "told"),
    [
        (carried, unrolled, (3,), "traced in float64"),
        (rounded, lambda w, x: jnp.tanh((x @ w["x"]) @ w["h"]), (4, 3), "in float32"),
    ],
    ids=["native", "coarse"],
)
def test_networks_that_compute_below_float64_are_counted_at_their_eps(apply, plain, shape, told):
    rng = np.random.default_rng(0)
    w = {"x": rng.standard_normal(shape), "h": rng.standard_normal((3, 3))}
    w = jax.tree.map(lambda a: a.astype(np.float32), w)
    x, y = data(5, 4, 3)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    with pytest.warns(RankmonWarning, match=told):
        got = outer_rank(problem, w)
    without = Problem(plain, loss="mse", inputs=x, targets=y)
    exact = outer_rank(without, w, tolerance=Tolerance(absolute=got.tolerance))
    assert (got.low, got.rank, got.high) == (exact.low, exact.rank, exact.high)
    fine = outer_rank(without, w)
    assert got.tolerance / fine.tolerance == pytest.approx(2.0**-23 / EPS, rel=1e-3)


def test_parameters_may_be_lifted_already_or_live_on_a_device():
    apply, params, x, y = case("relu", "mse", 5)
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), params)
    want = outer_rank(problem, single)
    flat = problem.flat(single)
    on_device = jax.tree.map(jnp.asarray, single)
    assert outer_rank(problem, on_device) == want
    spectrum = OuterSpectrum(flat, memory_limit=2**30)
    assert spectrum.rank(flat.leaves(single), Tolerance(), "auto") == want
    assert spectrum.rank(jax.tree.leaves(on_device), Tolerance(), "auto") == want
