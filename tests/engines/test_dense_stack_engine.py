"""Test the contracted parts of the Hessian against autodiff, and the digits of their factors."""

import contextlib
import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from oracles import Case, dense_parts, student_t
from rankmon._util.text import bytes_text
from rankmon.engines.dense_stack import StackCurvature
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT, dense_bytes
from rankmon.network.coordinates import Coordinates
from rankmon.network.recognized_stack import recognized_stack
from rankmon.problem.output_hessians import DenseHessians
from rankmon.problem.point import Point
from rankmon.problem.problem import Problem
from refusals import refused

N = 7
relu, tanh, silu, sigmoid = jax.nn.relu, jnp.tanh, jax.nn.silu, jax.nn.sigmoid


def network(dims, functions, biases=None):
    """A chain of layers, kernels stored (in, out); functions and biases layer by layer."""
    rng = np.random.default_rng([*dims])
    params = []
    for i, (fan_in, out) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        layer = {"w": rng.standard_normal((fan_in, out)) * np.sqrt(2 / (fan_in + out))}
        if biases is not None and biases[i]:
            layer["b"] = 0.3 * rng.standard_normal(out)
        params.append(layer)

    def apply(params, x):
        for layer, f in zip(params, functions, strict=True):
            x = x @ layer["w"] + layer["b"] if "b" in layer else x @ layer["w"]
            x = x if f is None else f(x)
        return x

    return jax.jit(apply), params


def targets_of(loss, n, k):
    """(targets, the loss that `Problem` takes, its textbook form)."""
    y = np.random.default_rng(1).standard_normal((n, k))
    return {
        "mse": (y, "mse", oracles.mse),
        "cosh": (y, "cosh", oracles.cosh),
        "labels": (np.arange(n) % k, "cross_entropy", oracles.cross_entropy),
        "soft": (
            np.exp(y) / np.exp(y).sum(1, keepdims=True),
            "cross_entropy",
            oracles.soft_cross_entropy,
        ),
        "student_t": ({"at": y, "width": np.abs(y) + 0.5}, student_t, student_t),
    }[loss]


def case_of(name, dims, functions, biases=None, *, loss="mse", n=N, weights=None):
    apply, params = network(dims, functions, biases)
    x = np.random.default_rng(2).standard_normal((n, dims[0]))
    targets, stated, textbook = targets_of(loss, n, dims[-1])
    return Case(name, apply, params, x, targets, stated, textbook, weights)


MASK = np.array([1, 0, 2, 0.5, 0, 1, 3.0])
DIMS, WIDE = (4, 3, 4, 2), (9, 4, 2)
ALL, SOME = (True,) * 3, (False, True, False)
# Every activation, loss, place of a bias and shape of a network, not each with each.
CASES = [
    case_of("one-layer", (4, 2), (None,), (True,), loss="labels"),
    case_of("wide-tanh-labels", WIDE, (tanh, None), (False, True), loss="labels"),
    case_of("wide-linear-weights", WIDE, (None, None), (False, True), weights=MASK),
    case_of("wide-silu-cosh-sigmoid", WIDE, (silu, sigmoid), (False, True), loss="cosh"),
    case_of("wide-custom", WIDE, (tanh, None), (False, True), loss="student_t"),
    case_of("relu", DIMS, (relu, relu, None)),
    case_of("output-tanh-custom-weights", DIMS, (relu, None, tanh), loss="student_t", weights=MASK),
    case_of("bias-soft-weights", DIMS, (silu, relu, None), ALL, loss="soft", weights=MASK),
    case_of("bias-output-sigmoid", DIMS, (tanh, relu, sigmoid), ALL),
    case_of("bias-of-one-layer", DIMS, (tanh, silu, None), SOME, loss="cosh"),
    case_of("four-layers", (4, 3, 2, 3, 2), (tanh, relu, silu, None), (True, False, True, False)),
    case_of("widths-of-one", (1, 2, 1), (tanh, silu), (True, False)),
    case_of("one-example", (3, 2), (sigmoid,), n=1),
]
ids = [case.name for case in CASES]


def named(name):
    return next(case for case in CASES if case.name == name)


def curvature_of(flat, memory_limit):
    return StackCurvature(
        Coordinates.whole(flat), recognized_stack(flat), memory_limit=memory_limit
    )


def bind(case, memory_limit=DEFAULT_MEMORY_LIMIT):
    """(curvature, parameter leaves, output Hessians, residuals)."""
    problem = Problem(case.apply, **case.statement)
    flat = problem.flat(case.params)
    leaves = flat.leaves(case.params)
    split = flat.split(leaves)
    curvature = StackCurvature(
        Coordinates.whole(flat), recognized_stack(flat), memory_limit=memory_limit
    )
    return curvature, leaves, flat.output_hessians(*split), flat.loss_and_residuals(*split)[1]


@dataclass(frozen=True, eq=False)
class Held(Point):
    """A point whose output Hessians and residuals are given."""

    given: tuple = ()

    @property
    def functional_residuals(self):
        return self.given[1]

    @property
    def output_hessians(self):
        return self.given[0]


def parts_of(curvature, leaves, b, deltas):
    """H_o, and H_f for these residuals."""
    return curvature.parts(Held(curvature.flat, 0, leaves, given=(b, deltas)))


@functools.cache
def bound(name):
    return bind(named(name))


def held(flat):
    return np.random.default_rng(7).standard_normal((flat.positions, flat.k))


def assert_close(got, want, scale):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(scale, 1e-300))


@pytest.mark.parametrize("name", ids)
def test_parts_equal_autodiff(name):
    curvature, leaves, b, delta = bound(name)
    reference = held(curvature.flat)
    want, at = dense_parts(named(name), reference), np.ix_(curvature.order, curvature.order)
    parts = parts_of(curvature, leaves, b, [delta, reference])
    functional, functional_held = parts.functional
    scale = np.max(np.abs(want["H_L"]))
    assert_close(parts.outer, want["H_o"][at], scale)
    assert_close(functional, want["H_f"][at], scale)
    assert_close(parts.outer + functional, want["H_L"][at], scale)
    assert_close(functional_held, want["H_f_fixed"][at], scale)
    for H in (parts.outer, functional, functional_held):
        assert_close(H, H.T, 1e-2 * scale)
    n, k = curvature.flat.positions, curvature.flat.k
    # Softmax does not see a common shift of its logits.
    rows, kept = n * k, n * (k - (named(name).loss == "cross_entropy"))
    values = parts.outer_values
    convex = named(name).loss is not student_t
    eigenvalues = np.linalg.eigvalsh(parts.outer)[::-1]
    assert not convex or eigenvalues[-1] > -1e-13 * eigenvalues[0]
    assert (values is not None) == (convex and 2 * rows <= curvature.flat.p)
    if values is not None:
        assert values.shape == (kept,)
        assert np.all(np.diff(values) <= 0)
        assert_close(values, eigenvalues[:kept], eigenvalues[0])
        assert_close(eigenvalues[kept:], 0.0, eigenvalues[0])


@pytest.mark.parametrize("name", ["relu", "bias-of-one-layer", "four-layers", "widths-of-one"])
def test_order_is_layer_by_layer_with_the_bias_as_last_column(name):
    curvature, leaves, *_ = bound(name)
    theta, _ = curvature.flat.split(leaves)
    layers = [
        np.concatenate([layer["w"].T, *([layer["b"][:, None]] if "b" in layer else [])], axis=1)
        for layer in named(name).params
    ]
    np.testing.assert_array_equal(np.sort(curvature.order), np.arange(curvature.flat.p))
    np.testing.assert_array_equal(theta[curvature.order], np.concatenate([*map(np.ravel, layers)]))


def test_the_result_does_not_depend_on_how_the_network_is_written():
    case = named("bias-output-sigmoid")
    stored = {f"{9 - i}": (layer["w"].T, layer["b"]) for i, layer in enumerate(case.params)}

    @jax.jit
    def columns(params, x):
        h = x.T
        for i, f in enumerate((tanh, relu, sigmoid)):
            W, b = params[f"{9 - i}"]
            h = jax.checkpoint(f)(W @ h + b[:, None])
        return h.T

    curvature, leaves, b, delta = bound("bias-output-sigmoid")
    want = parts_of(curvature, leaves, b, [delta])
    other, leaves, *_ = bind(replace(case, apply=columns, params=stored))
    got = parts_of(other, leaves, b, [delta])
    assert not np.array_equal(other.order, curvature.order)
    assert_close(got.outer, want.outer, np.max(np.abs(want.outer)))
    assert_close(got.functional[0], want.functional[0], np.max(np.abs(want.functional[0])))


def test_several_residuals_at_once_are_what_each_is_alone():
    curvature, leaves, b, delta = bound("bias-of-one-layer")
    other = held(curvature.flat)
    outer = parts_of(curvature, leaves, b, []).outer
    together = parts_of(curvature, leaves, b, [delta, other, 2 * other - delta])
    np.testing.assert_array_equal(together.outer, outer)
    first, second, combined = together.functional
    np.testing.assert_array_equal(first, parts_of(curvature, leaves, b, [delta]).functional[0])
    np.testing.assert_array_equal(second, parts_of(curvature, leaves, b, [other]).functional[0])
    assert_close(combined, 2 * second - first, np.max(np.abs(combined)))


def test_every_call_takes_its_own_parameters():
    case = named("bias-soft-weights")
    curvature, leaves, b, delta = bound("bias-soft-weights")
    parts_of(curvature, leaves, b, [delta])
    moved = replace(case, params=jax.tree.map(lambda a: 0.5 * a + 0.1, case.params))
    fresh, leaves, b, delta = bind(moved)
    got, want = parts_of(curvature, leaves, b, [delta]), parts_of(fresh, leaves, b, [delta])
    np.testing.assert_array_equal(got.outer, want.outer)
    np.testing.assert_array_equal(got.functional[0], want.functional[0])


def test_functional_vanishes_at_zero_residual_and_for_one_linear_layer():
    curvature, leaves, b, delta = bound("bias-output-sigmoid")
    assert not np.any(parts_of(curvature, leaves, b, [0 * delta]).functional[0])
    curvature, leaves, b, delta = bound("one-layer")
    assert not np.any(parts_of(curvature, leaves, b, [delta]).functional[0])


def least_room(curvature, chunk):
    """The fewest bytes, to 8, of workspace that hold so many examples at once."""
    for room in range(8, 10**6, 8):
        with contextlib.suppress(MemoryError):
            if curvature._largest_chunk(room) == chunk:
                return room
    raise AssertionError(f"expected a room for {chunk} examples")


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("four-layers", 1),
        ("bias-soft-weights", 2),
        ("bias-output-sigmoid", 3),
        ("wide-linear-weights", 2),
    ],
)
def test_chunks_change_nothing(name, chunk):
    whole, leaves, b, delta = bound(name)
    flat, deltas = whole.flat, [delta, held(whole.flat)]
    limit = dense_bytes(flat.p) + least_room(whole, chunk)
    tight = curvature_of(flat, limit)
    assert tight._chunk == chunk < whole._chunk == N
    want, got = parts_of(whole, leaves, b, deltas), parts_of(tight, leaves, b, deltas)
    assert_close(got.outer, want.outer, np.max(np.abs(want.outer)))
    for H, same in zip(got.functional, want.functional, strict=True):
        assert_close(H, same, np.max(np.abs(same)))
    assert (got.outer_values is None) == (want.outer_values is None)
    if want.outer_values is not None:
        assert_close(got.outer_values, want.outer_values, want.outer_values[0])


def test_values_of_a_wide_jacobian_keep_the_digits_that_the_matrix_loses():
    """One layer, one output: the Jacobian is the inputs, of prescribed singular values."""
    n, d = 6, 14
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (n, d))
    spectrum = np.logspace(0, -12, n)
    x = left * spectrum @ right.T
    apply, params = network((d, 1), (None,))
    case = Case("graded", apply, params, x, np.ones((n, 1)), "mse", oracles.mse)
    curvature, leaves, b, _ = bind(case)
    parts = parts_of(curvature, leaves, b, [])
    # Singular values are good to eps of the largest; eigenvalues of the square are, too.
    atol = 10 * np.finfo(np.float64).eps / np.sqrt(n)
    np.testing.assert_allclose(np.sqrt(parts.outer_values), spectrum / np.sqrt(n), 0, atol)
    np.testing.assert_allclose(parts.outer_values, spectrum**2 / n, rtol=1e-2)
    lost = spectrum**2 < np.finfo(np.float64).eps
    eigenvalues = np.linalg.eigvalsh(parts.outer)[::-1][:n]
    assert np.count_nonzero(lost) == 2
    assert np.all(np.abs(eigenvalues / parts.outer_values - 1)[lost] > 0.5)


@pytest.mark.parametrize(("n", "wide"), [(3, True), (4, False)], ids=["just-wide", "just-not"])
def test_values_are_given_where_the_jacobian_has_half_as_many_rows_as_columns(n, wide):
    curvature, leaves, b, _ = bind(case_of("boundary", (6, 2), (None,), n=n))
    assert (parts_of(curvature, leaves, b, []).outer_values is not None) == wide


def test_no_values_where_an_output_hessian_is_indefinite():
    curvature, leaves, b, _ = bound("wide-custom")
    matrices = b.at(slice(None))
    assert np.linalg.eigvalsh(matrices).min() < -0.1
    assert 2 * N * 2 <= curvature.flat.p
    assert parts_of(curvature, leaves, b, []).outer_values is None
    assert parts_of(curvature, leaves, given(np.abs(matrices)), []).outer_values is not None


def test_too_large_is_refused_with_the_size_and_the_memory():
    flat = bound("relu")[0].flat
    need = bytes_text(dense_bytes(flat.p))
    with refused(MemoryError, f"p = {flat.p}", need, "memory_limit"):
        StackCurvature(
            Coordinates.whole(flat), recognized_stack(flat), memory_limit=dense_bytes(flat.p)
        )


def test_too_little_room_for_one_example_is_refused_with_the_size_and_the_memory():
    curvature, *_ = bound("relu")
    flat, stack = curvature.flat, recognized_stack(curvature.flat)
    room = least_room(curvature, 1)
    limit = dense_bytes(flat.p) + room
    assert StackCurvature(Coordinates.whole(flat), stack, memory_limit=limit)._chunk == 1
    with refused(MemoryError, bytes_text(room - 8), bytes_text(room), "memory_limit"):
        StackCurvature(Coordinates.whole(flat), stack, memory_limit=limit - 8)


@pytest.mark.parametrize(
    ("functions", "loss", "n"),
    [
        ((None, relu, None), "mse", N),
        ((None, relu, None), "mse", 2),
        ((None, relu, None), "labels", 2),
        ((silu, silu, None), "student_t", 2),
        ((silu, tanh, sigmoid), "cosh", 2),
    ],
    ids=["relu", "relu-wide", "relu-labels", "silu-custom", "silu-tanh-sigmoid"],
)
def test_overflow_is_found_in_the_result(functions, loss, n):
    case = case_of("large", DIMS, functions, (True, False, True), loss=loss, n=n)
    curvature, leaves, *_ = bind(case)
    flat = curvature.flat
    for scale in (1e80, 1e120, 1e160, 1e300):
        large = [scale * leaf for leaf in leaves]
        theta, fixed = flat.split(large)
        _, delta = flat.loss_and_residuals(theta, fixed)
        parts = parts_of(curvature, large, flat.output_hessians(theta, fixed), [delta])
        if functions == (None, relu, None) and scale > 1e100:
            assert not np.all(np.isfinite(parts.outer + parts.functional[0])), scale
        if loss == "mse" and functions[-1] is None and scale > 1e100:
            assert not np.all(np.isfinite(parts.outer)), scale
            assert not np.all(np.isfinite(parts.functional[0])), scale


def given(b):
    """Output Hessians that are these arrays."""
    return DenseHessians(len(b), b.__getitem__)


def random_roots(n, k, rank, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k, rank))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150], ids=str)
def test_roots_of_semidefinite_output_hessians(rank, scale):
    factors = random_roots(5, 3, rank)
    b = scale * factors @ factors.transpose(0, 2, 1)
    weights = np.array([0.3, 0.0, 0.1, 0.4, 0.2])
    roots = given(b).roots(weights).transposed
    assert roots.shape == (5, 3, 3)
    np.testing.assert_array_equal(roots[1], 0.0)
    squares = np.einsum("nji,njk->nik", roots, roots)
    assert_close(squares, weights[:, None, None] * b, np.max(np.abs(b)))


def test_roots_where_an_eigenvalue_is_negative_to_rounding_only():
    b = np.array([np.diag([1.0, 2.0, -1e-17]), np.eye(3)])
    found = given(b).roots(np.array([0.5, 0.5]))
    assert found.signs is None
    squares = np.einsum("nji,njk->nik", *[found.transposed] * 2)
    assert_close(squares, 0.5 * b, 1.0)


@pytest.mark.parametrize(
    "bad",
    [
        np.diag([1.0, -1.0, 0.0]),
        np.diag([1.0, 1.0, -1e-12]),
        -np.eye(3),
        np.diag([1.0, np.nan, 1.0]),
        np.diag([1.0, np.inf, 1.0]),
    ],
    ids=["indefinite", "slightly", "negative", "nan", "infinite"],
)
@pytest.mark.parametrize("at", [0, 2])
def test_no_real_roots_where_one_output_hessian_has_none(bad, at):
    b = np.stack([np.eye(3)] * 3)
    b[at] = bad
    roots = given(b).roots(np.full(3, 1 / 3))
    assert roots is None or roots.signs is not None
