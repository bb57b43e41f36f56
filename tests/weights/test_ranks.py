"""Ranks, determinants and soft ranks of weights with prescribed singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import linen as nn
from flax import nnx

from prescribed import orthogonal, with_singular_values
from rankmon.linalg.numerical_rank import Tolerance, as_tolerance
from rankmon.weights.ranks import weight_rank, weight_ranks
from refusals import refused

EPS = 2.0**-52


def rank_of(matrix, **options):
    return weight_rank(matrix, **options).rank


def test_a_bare_number_is_not_a_tolerance():
    with refused(TypeError, "tolerance", "float", "Tolerance(relative=...)"):
        weight_ranks({"w": np.eye(2)}, tolerance=1e-3)
    assert as_tolerance(None) == Tolerance()


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 9), (9, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("deficit", [0, 1])
def test_rank_of_prescribed_singular_values(shape, deficit):
    smaller = min(shape)
    values = np.geomspace(1, 0.1, smaller) * (np.arange(smaller) < smaller - deficit)
    got = weight_rank(with_singular_values(values, shape))
    assert (got.rank, got.size) == (smaller - deficit, smaller)
    assert got.certain


def test_the_default_cut_of_weights_takes_the_larger_side():
    assert weight_rank(2.0 * np.eye(3, 8)).tolerance == pytest.approx(8 * EPS * 2.0, rel=1e-12)
    # Storing adds noise of norm at most eps / 2 * ||W||_F = 2 * sqrt(3) / 4.
    stored = 2.0 * np.eye(8, 3)
    assert weight_rank(stored, eps=0.5).tolerance == pytest.approx(np.sqrt(3) / 2, rel=1e-12)


def test_tolerances_reach_the_count():
    matrix = np.diag([1.0, 1e-2, 1e-4])
    assert rank_of(matrix) == 3
    assert rank_of(matrix, tolerance=Tolerance(relative=1e-3)) == 2
    assert rank_of(matrix, tolerance=Tolerance(absolute=0.5)) == 1
    assert weight_ranks({"w": matrix}, tolerance=Tolerance(relative=1e-3))["w"].rank == 2


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e200, 1e-200, 1e300, 3.7])
def test_scale_and_rotation_change_no_rank(scale):
    values = np.array([1.0, 0.5, 0.5, 1e-3, 0, 0])
    plain = weight_rank(with_singular_values(values, (6, 8)))
    turned = weight_rank(scale * (orthogonal(6, 5) @ with_singular_values(values, (6, 8))))
    assert (turned.rank, turned.low, turned.high) == (plain.rank, plain.low, plain.high) == (4,) * 3
    assert turned.stable_rank == pytest.approx(plain.stable_rank, rel=1e-12)
    assert turned.effective_rank == pytest.approx(plain.effective_rank, rel=1e-12)
    assert turned.tolerance == pytest.approx(abs(scale) * plain.tolerance, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "stable", "effective"),
    [
        ([1, 1, 1, 1], 4.0, 4.0),
        ([2, 0, 0, 0], 1.0, 1.0),
        ([3, 3, 0, 0], 2.0, 2.0),
        ([2, 1, 1, 0], 1.5, 2.0**1.5),
        ([4, 2, 0, 0], 1.25, 3.0 / 2.0 ** (2.0 / 3.0)),
    ],
    ids=str,
)
def test_stable_and_effective_rank_by_hand(values, stable, effective):
    """Entropies by hand: shares 1/2, 1/4, 1/4 have 3/2 log 2; 2/3, 1/3 have log 3 - 2/3 log 2."""
    got = weight_rank(with_singular_values(values, (4, 5)))
    assert got.stable_rank == pytest.approx(stable, rel=1e-13)
    assert got.effective_rank == pytest.approx(effective, rel=1e-11)


def test_condition_numbers_by_hand():
    got = weight_rank(with_singular_values([8, 4, 2, 1], (4, 5)))
    assert got.condition_number == pytest.approx(8)
    assert weight_rank(np.diag([3.0, 0.0])).condition_number == np.inf
    assert np.isnan(weight_rank(np.zeros((2, 3))).condition_number)


def test_a_zero_matrix_has_rank_zero_and_nothing_soft():
    got = weight_rank(np.zeros((4, 4)))
    assert (got.rank, got.low, got.high, got.tolerance) == (0, 0, 0, 0.0)
    assert np.isnan([got.gap, got.stable_rank, got.effective_rank]).all()
    assert (got.det_sign, got.log_abs_det) == (0.0, -np.inf)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_an_empty_matrix_has_rank_zero(shape):
    got = weight_rank(np.zeros(shape))
    assert (got.rank, got.size) == (0, 0)
    assert np.isnan(got.stable_rank)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_no_rank_and_lapack_never_sees_it(bad, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("LAPACK was called")

    for module, name in (
        (scipy.linalg, "svdvals"),
        (scipy.linalg, "eigvalsh"),
        (np.linalg, "svd"),
        (np.linalg, "slogdet"),
    ):
        monkeypatch.setattr(module, name, refuse)
    matrix = np.eye(4, dtype=np.float32)
    matrix[1, 2] = bad
    got = weight_ranks({"w": matrix})["w"]
    assert (got.rank, got.low, got.high, got.size) == (None, None, None, 4)
    numbers = [got.gap, got.stable_rank, got.effective_rank, got.det_sign, got.log_abs_det]
    assert np.isnan(numbers).all()
    with pytest.raises(AssertionError, match="LAPACK was called"):
        weight_rank(np.eye(4))


def test_determinants_by_hand():
    for matrix, sign, log_abs in (
        (np.array([[0.0, 1], [1, 0]]), -1.0, 0.0),
        (np.array([[2.0, 1], [1, 2]]), 1.0, np.log(3.0)),
        (np.array([[-5.0]]), -1.0, np.log(5.0)),
        (np.diag([2.0, -3.0, -4.0]), 1.0, np.log(24.0)),
    ):
        got = weight_rank(matrix)
        assert got.det_sign == sign
        assert got.log_abs_det == pytest.approx(log_abs, abs=1e-15)


@pytest.mark.parametrize("scale", [10.0, 0.1, 1e150, 1e-150])
def test_determinants_past_the_range_of_floats(scale):
    """The determinant of scale * Q is +-scale^n, far outside float64 for n = 300."""
    n = 300
    q = orthogonal(n)
    got = weight_rank(scale * q)
    assert got.log_abs_det == pytest.approx(n * np.log(scale), rel=1e-12)
    reflections = weight_rank(scale * q @ np.diag([-1.0] + [1.0] * (n - 1)))
    assert got.det_sign == -reflections.det_sign
    assert abs(got.det_sign) == 1.0
    assert got.rank == n


def integer_factor(n, rank, seed=3):
    return np.random.default_rng(seed).integers(-3, 4, (n, rank))


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (integer_factor(18, 12) @ integer_factor(18, 12).T, 12),
        (integer_factor(18, 17, seed=0) @ integer_factor(18, 17, seed=1).T, 17),
        (integer_factor(40, 1) @ integer_factor(40, 1, seed=4).T, 1),
        (np.ones((2, 2)), 1),
        (np.zeros((3, 3)), 0),
        (np.zeros((1, 1)), 0),
    ],
    ids=["gram", "one-short", "rank-one", "ones", "zeros", "zero"],
)
@pytest.mark.parametrize("scale", [1.0, 2.0**-140, 2.0**100])
def test_a_singular_matrix_has_no_sign_and_no_logarithm(matrix, rank, scale):
    """Products of integer factors are exact in float32, and singular."""
    stored = (matrix * scale).astype(np.float32)
    np.testing.assert_array_equal(stored.astype(np.float64), matrix * scale)
    got = weight_ranks({"w": stored})["w"]
    assert (got.rank, got.det_sign, got.log_abs_det) == (rank, 0.0, -np.inf)


def test_a_determinant_ends_where_float64_does_and_not_at_the_coarser_cut_of_ranks():
    for small, is_singular in ((1e-8, False), (1e-13, False), (1e-17, True)):
        stored = np.diag([1.0, 0.5, 2.0, small]).astype(np.float32)[[1, 0, 2, 3]]
        got = weight_ranks({"w": stored})["w"]
        assert got.rank == 3
        want = (0.0, -np.inf) if is_singular else (-1.0, np.log(np.float64(np.float32(small))))
        assert (got.det_sign, got.log_abs_det) == (want[0], pytest.approx(want[1], rel=1e-14))


def test_only_square_matrices_have_determinants():
    got = weight_rank(np.ones((2, 3)))
    assert (got.det_sign, got.log_abs_det) == (None, None)
    nan = weight_rank(np.full((2, 3), np.nan))
    assert (nan.det_sign, nan.log_abs_det) == (None, None)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, jnp.bfloat16], ids=lambda d: np.dtype(d).name
)
def test_the_cut_follows_the_dtype_that_weights_are_stored_in(dtype):
    """Rank 20 by construction; rounding to the stored dtype adds noise of full rank."""
    for size in (60, 256):
        values = np.repeat([1.0, 0.0], [20, size - 20])
        large = with_singular_values(values, (size, size)).astype(dtype)
        assert weight_ranks({"w": large})["w"].rank == 20
    stored = with_singular_values(np.repeat([1.0, 0.0], [20, 40]), (60, 60)).astype(dtype)
    assert weight_ranks({"w": stored})["w"].rank == 20
    assert weight_ranks({"w": jnp.asarray(stored)})["w"].rank == 20
    assert rank_of(stored.astype(np.float64)) == (20 if dtype == np.float64 else 60)


def test_what_is_no_matrix_is_left_out():
    params = {
        "bias": np.ones(3),
        "scale": np.float32(2.0),
        "attention": {"bias": np.ones((2, 3))},
        "steps": np.ones((3, 3), np.int32),
        "mask": np.ones((3, 3), bool),
        "none": np.ones((0, 3)),
        "row": np.ones((1, 3)),
        "w": np.eye(3),
    }
    assert {name: r.rank for name, r in weight_ranks(params).items()} == {"row": 1, "w": 3}


def test_no_matrix_at_all():
    with refused(ValueError, "matrix", "'b': (3,)"):
        weight_ranks({"b": np.ones(3)})


def test_complex_weights_are_refused():
    with refused(TypeError, "real", "complex128", "'w'"):
        weight_ranks({"w": np.eye(2) * 1j})


def gaussian(shapes):
    """A pytree of these shapes; a module's own initialization would be compiled first."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(s.dtype), shapes)


def names_and_shapes(module, *inputs):
    params = gaussian(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    flat = jax.tree_util.tree_leaves_with_path(params["params"])
    leaves = {"/".join(k.key for k in path): np.asarray(leaf, float) for path, leaf in flat}
    return weight_ranks(params), leaves


def test_a_convolution_is_patches_by_channels():
    ranks, leaves = names_and_shapes(nn.Conv(5, (2, 3)), jnp.ones((1, 4, 4, 2)))
    want = np.linalg.svd(leaves["kernel"].reshape(2 * 3 * 2, 5), compute_uv=False)
    assert list(ranks) == ["kernel"]
    assert ranks["kernel"].size == ranks["kernel"].rank == 5
    assert ranks["kernel"].tolerance == pytest.approx(2.0**-24 * np.linalg.norm(want), rel=1e-6)
    assert ranks["kernel"].stable_rank == pytest.approx(np.sum(want**2) / want[0] ** 2, rel=1e-6)


def attention_views(leaves):
    """The maps that attention's kernels (6 inputs, 2 heads of 2) stand for, each as a matrix."""
    shapes = {"query": (6, 4), "key": (6, 4), "value": (6, 4), "out": (4, 6)}
    return {f"{name}/kernel": leaves[f"{name}/kernel"].reshape(s) for name, s in shapes.items()}


def test_attentions_projections_are_inputs_by_heads():
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
    ranks, leaves = names_and_shapes(module, jnp.ones((1, 3, 6)))
    assert leaves["query/kernel"].shape == (6, 2, 2)
    assert leaves["query/bias"].shape == (2, 2)
    check_against_views(ranks, attention_views(leaves))


def test_attentions_projections_in_nnx():
    module = nnx.eval_shape(
        lambda: nnx.MultiHeadAttention(
            num_heads=2, in_features=6, qkv_features=4, decode=False, rngs=nnx.Rngs(0)
        )
    )
    state = gaussian(nnx.state(module, nnx.Param))
    leaves = {
        f"{name}/kernel": np.asarray(state[name]["kernel"][...], float)
        for name in ("query", "key", "value", "out")
    }
    check_against_views(weight_ranks(state), attention_views(leaves))


def check_against_views(ranks, views):
    assert set(ranks) == set(views)
    for name, matrix in views.items():
        values = np.linalg.svd(matrix, compute_uv=False)
        assert ranks[name].size == ranks[name].rank == 4
        assert ranks[name].stable_rank == pytest.approx(
            np.sum(values**2) / values[0] ** 2, rel=1e-6
        ), name


def test_dense_embedding_and_recurrent_kernels_are_themselves():
    ranks, leaves = names_and_shapes(
        nn.Sequential([nn.Embed(7, 4), nn.RNN(nn.GRUCell(3)), nn.Dense(2)]), jnp.ones((1, 5), int)
    )
    matrices = {name: leaf for name, leaf in leaves.items() if leaf.ndim == 2}
    assert set(ranks) == set(matrices)
    assert len(ranks) > 5
    for name, leaf in matrices.items():
        assert ranks[name].size == min(leaf.shape), name
        assert ranks[name].rank == np.linalg.matrix_rank(leaf.astype(np.float32)), name
