"""Test losses against textbook formulas with autodiff, or against long decimals if these cancel."""

from decimal import Decimal, localcontext
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from rankmon._util.jaxpr import operations_of
from rankmon.problem.losses import as_loss
from rankmon.problem.output_hessians import FactoredRoots
from refusals import refused

RNG = np.random.default_rng(0)
Z = RNG.standard_normal(4)
Y = RNG.standard_normal(4)
SOFT = np.array([0.1, 0.2, 0.3, 0.4])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@cache
def compiled(loss):
    """Value, residual and output Hessian of a `Loss` in one program, as the monitor runs them."""
    return jax.jit(lambda z, t: (loss.value(z, t), loss.residual(z, t), loss.output_hessian(z, t)))


@cache
def autodiff(textbook):
    def parts(z, target):
        return textbook(z, target), jax.grad(textbook)(z, target), jax.hessian(textbook)(z, target)

    return jax.jit(parts)


def derivatives(name, z, target):
    """Value, residual and output Hessian as NumPy arrays."""
    return [np.asarray(part) for part in compiled(as_loss(name))(z, target)]


def decimals(array):
    return [Decimal(float(a)) for a in np.ravel(array)]


def exact_cross_entropy(z, t):
    """Value, residual and output Hessian of -sum t log softmax(z), in 400-digit decimals."""
    with localcontext() as context:
        context.prec = 400
        z, t = decimals(z), decimals(t)
        odds = [(a - max(z)).exp() for a in z]
        p = [a / sum(odds) for a in odds]
        mass = sum(t)
        value = sum(-a * b.ln() for a, b in zip(t, p, strict=True) if a)
        delta = [mass * b - a for a, b in zip(t, p, strict=True)]
        k = len(z)
        b = [[mass * p[i] * ((i == j) - p[j]) for j in range(k)] for i in range(k)]
    return float(value), np.array(delta, float), np.array(b, float)


def exact_cosh(z, y):
    """Sum of log cosh, tanh and sech^2 of z - y, in decimals with the digits that 400 takes."""
    with localcontext() as context:
        context.prec = 800
        u = [a - b for a, b in zip(decimals(z), decimals(y), strict=True)]
        cosh = [(a.exp() + (-a).exp()) / 2 for a in u]
        tanh = [(a.exp() - (-a).exp()) / (2 * b) for a, b in zip(u, cosh, strict=True)]
        value, sech2 = sum(b.ln() for b in cosh), [1 / b**2 for b in cosh]
    return float(value), np.array(tanh, float), np.diag(np.array(sech2, float))


def one_hot(label, k):
    return np.eye(k)[label]


@pytest.mark.parametrize(
    ("name", "textbook", "target"),
    [
        ("mse", oracles.mse, Y),
        ("cosh", oracles.cosh, Y),
        ("cross_entropy", oracles.cross_entropy, np.int32(2)),
        ("cross_entropy", oracles.soft_cross_entropy, SOFT),
        ("cross_entropy", oracles.soft_cross_entropy, one_hot(1, 4)),
        ("cross_entropy", oracles.soft_cross_entropy, 0.999 * SOFT),
    ],
    ids=["mse", "cosh", "label", "soft", "one_hot", "soft-not-normalized"],
)
def test_derivatives_equal_autodiff_of_the_textbook(name, textbook, target):
    want = autodiff(textbook)(Z, target)
    for got, expected in zip(derivatives(name, Z, target), want, strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


def logits(probability_of_the_rest):
    """Logits of three classes; the second has all but this probability."""
    return np.array([0.0, -np.log(probability_of_the_rest), 0.7])


@pytest.mark.parametrize(
    ("z", "t"),
    [
        (logits(1e-12), one_hot(1, 3)),
        (logits(1e-17), one_hot(1, 3)),
        (logits(1e-17), one_hot(0, 3)),
        (logits(1e-200), one_hot(1, 3)),
        (np.array([500.0, 500.5, -150.0]), one_hot(0, 3)),
        (np.array([-8000.0, -7990.0, -7980.0]), one_hot(2, 3)),
        (logits(1e-12), np.array([0.25, 0.5, 0.25])),
        (np.array([3.0, -4.0]), one_hot(0, 2)),
    ],
    ids=["1e-12", "1e-17", "1e-17-wrong", "1e-200", "large", "shifted", "soft", "two"],
)
def test_cross_entropy_keeps_the_digits_of_its_smallest_entries(z, t):
    got = derivatives("cross_entropy", z, t)
    for part, want in zip(got, exact_cross_entropy(z, t), strict=True):
        # exp of a difference loses that many eps of itself, whatever the formula.
        np.testing.assert_allclose(part, want, rtol=1e-15 * (10 + np.ptp(z)), atol=0)


def test_the_naive_residual_would_fail_where_this_one_is_held_to_its_digits():
    z = logits(1e-17)
    odds = np.exp(z - z.max())
    naive = float((odds / odds.sum())[1] - 1.0)
    _, delta, b = derivatives("cross_entropy", z, np.int32(1))
    assert naive == 0.0
    assert -1e-16 < delta[1] < -1e-17
    assert b[1, 1] == pytest.approx(-delta[1], rel=1e-13)


def test_one_hot_targets_of_any_dtype_equal_labels():
    """One-hot integers [k] must not be taken for k labels."""
    loss = as_loss("cross_entropy")
    rows = {
        np.dtype(dtype).name: one_hot(3, 4).astype(dtype)
        for dtype in (np.int8, np.int32, np.uint8, np.float32, np.bool_)
    }
    parts = (loss.value, loss.residual, loss.output_hessian)
    found = jax.jit(lambda z, rows: {k: [f(z, t) for f in parts] for k, t in rows.items()})(Z, rows)
    want = derivatives("cross_entropy", Z, np.int32(3))
    for dtype, got in found.items():
        for part, expected in zip(got, want, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-15, err_msg=dtype)


@pytest.mark.parametrize("target", [np.int32(0), np.int32(1), one_hot(1, 3), SOFT[[0, 1, 3]]])
def test_logits_of_minus_infinity_are_impossible_classes(target):
    z = np.array([0.3, -0.2, -np.inf])
    target = target if target.ndim == 0 else target * (z > -1)
    value, delta, b = derivatives("cross_entropy", z, target)
    want = derivatives("cross_entropy", z[:2], target if target.ndim == 0 else target[:2])
    np.testing.assert_allclose(value, want[0], rtol=1e-15)
    np.testing.assert_allclose(delta, [*want[1], 0.0], rtol=1e-15)
    np.testing.assert_allclose(b, np.pad(want[2], (0, 1)), rtol=1e-15)


def test_the_loss_of_an_impossible_class_is_infinite_not_nan():
    value, delta, _ = derivatives("cross_entropy", np.array([0.0, -np.inf, -np.inf]), np.int32(1))
    assert value == np.inf
    np.testing.assert_array_equal(delta, [1.0, -1.0, 0.0])


def test_softmax_annihilates_constants_and_cross_entropy_is_convex():
    z = 3 * RNG.standard_normal(4)
    _, delta, b = derivatives("cross_entropy", z, np.int32(0))
    assert abs(delta.sum()) < 1e-15
    np.testing.assert_allclose(b.sum(axis=1), 0, atol=1e-16)
    np.testing.assert_array_equal(b, b.T)
    eigenvalues = np.linalg.eigvalsh(b)
    assert eigenvalues[0] == pytest.approx(0, abs=1e-16)
    assert eigenvalues[1] > 1e-4


@pytest.mark.parametrize("u", [0.0, 1e-300, 1e-9, 1e-4, 0.3, 1.0, 1.0000001, 5.0, 40.0, 300.0])
def test_cosh_keeps_its_digits_at_every_size(u):
    z, y = np.array([u, -u, 0.5]), np.array([0.0, 0.0, 0.25])
    for part, want in zip(derivatives("cosh", z, y), exact_cosh(z, y), strict=True):
        np.testing.assert_allclose(part, want, rtol=1e-15 * (10 + 2 * u), atol=0)


@pytest.mark.parametrize("u", [1e-9, 1e-7, 1e-3])
def test_cosh_of_a_small_residual_alone(u):
    """Without a larger output to hide behind: u^2 / 2 to all digits."""
    z, y = np.array([u, 0.0, 0.0]), np.zeros(3)
    value, delta, _ = derivatives("cosh", z, y)
    want_value, want_delta, _ = exact_cosh(z, y)
    assert value == pytest.approx(want_value, rel=1e-14, abs=0)
    assert delta[0] == pytest.approx(want_delta[0], rel=1e-14, abs=0)


@pytest.mark.parametrize("u", [400.0, 800.0, 1e300])
def test_cosh_overflows_nowhere(u):
    value, delta, b = derivatives("cosh", np.array([u, -u, 0.0]), np.zeros(3))
    assert value == pytest.approx(2 * (u - np.log(2.0)), rel=1e-15)
    np.testing.assert_array_equal(delta, [1.0, -1.0, 0.0])
    np.testing.assert_array_equal(b, np.diag([0.0, 0.0, 1.0]))


def test_mse_is_half_the_square_and_its_hessian_the_identity():
    z, y = np.array([3.0, -1.0, 0.5, 0.0]), np.array([1.0, 1.0, 0.5, 0.0])
    value, delta, b = derivatives("mse", z, y)
    assert value == 4.0
    np.testing.assert_array_equal(delta, [2.0, -2.0, 0.0, 0.0])
    np.testing.assert_array_equal(b, np.eye(4))


def test_single_precision_stays_single_precision():
    for name, target in (("mse", Y), ("cosh", Y), ("cross_entropy", SOFT)):
        z, target = Z.astype(np.float32), target.astype(np.float32)
        loss = as_loss(name)
        for part in (loss.value, loss.residual, loss.output_hessian):
            assert jax.eval_shape(part, z, target).dtype == jnp.float32, name


def test_a_callable_is_differentiated():
    target = {"at": Y, "width": SOFT}
    value, residual, output_hessian = compiled(as_loss(oracles.student_t))(Z, target)
    u, w = Z - Y, SOFT
    np.testing.assert_allclose(value, np.sum(np.log1p(u**2 / w)), rtol=1e-14)
    np.testing.assert_allclose(residual, 2 * u / (w + u**2), rtol=1e-13)
    second = 2 * (w - u**2) / (w + u**2) ** 2
    np.testing.assert_allclose(output_hessian, np.diag(second), rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (oracles.mse, "custom:mse"),
        (lambda z, y: jnp.sum(z), "custom:<lambda>"),
        (partial(oracles.mse), "custom:partial"),
    ],
    ids=["function", "lambda", "partial"],
)
def test_a_callable_is_never_taken_for_a_named_loss(function, name):
    assert as_loss(function).name == name
    assert not as_loss(function).has_dense_targets


def test_which_losses_want_targets_of_the_outputs_shape():
    dense = {name: as_loss(name).has_dense_targets for name in ("mse", "cosh", "cross_entropy")}
    assert dense == {"mse": True, "cosh": True, "cross_entropy": False}


def test_an_unknown_name_is_told_the_known_ones():
    with refused(ValueError, "cosh", "cross_entropy", "mse", "'MSE'"):
        as_loss("MSE")


def test_what_is_neither_a_name_nor_callable_is_refused():
    with refused(TypeError, "callable", "int"):
        as_loss(3)


# Without k x k arrays


def products(z, t):
    """The root's product with each basis vector, and C C^T of the host's columns."""
    loss, k = as_loss("cross_entropy"), len(z)
    by_product = jax.vmap(lambda v: loss.hessian_product(z, t, v))(np.eye(k))
    root = jax.tree.map(lambda a: np.asarray(a)[None], loss.root(z, t))
    C = FactoredRoots(root).columns(np.zeros(k - 1, int), np.arange(k - 1)).T
    return np.asarray(by_product), C @ C.T


@pytest.mark.parametrize(
    ("z", "t"),
    [
        (logits(1e-12), one_hot(1, 3)),
        (logits(1e-200), one_hot(0, 3)),
        (np.array([500.0, 500.5, -150.0]), np.array([0.25, 0.5, 0.25])),
        (np.array([3.0, -4.0]), one_hot(0, 2)),
        (np.zeros(7), one_hot(6, 7)),
        (np.linspace(-30, 30, 6), 0.9 * one_hot(2, 6) + 0.1 / 6),
    ],
    ids=["1e-12", "1e-200", "large-soft", "two", "uniform", "smoothed"],
)
def test_the_root_of_cross_entropy_loses_no_digits_where_one_class_has_all_the_mass(z, t):
    _, _, want = exact_cross_entropy(z, t)
    for got in products(z, t):
        tolerance = 1e-15 * (10 + np.ptp(z)) * np.max(np.abs(want))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


def sizes(program):
    """The sizes of all arrays in a program."""
    return [v.aval.size for eqn in operations_of(program) for v in eqn.outvars]


def smoothed(z, label):
    t = 0.9 * jax.nn.one_hot(label, z.shape[0]) + 0.1 / z.shape[0]
    return -jnp.sum(t * jax.nn.log_softmax(z))


def logistic(z, t):
    return jnp.sum(jax.nn.softplus(z) - t * z)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mse", np.ones(300)),
        ("cosh", np.ones(300)),
        ("cross_entropy", np.int32(2)),
        ("cross_entropy", np.full(300, 1 / 300)),
        (smoothed, np.int32(2)),
        (logistic, np.ones(300)),
    ],
    ids=["mse", "cosh", "label", "soft", "custom-smoothed", "custom-sigmoid"],
)
def test_nothing_but_the_whole_output_hessian_is_larger_than_the_outputs(name, target):
    loss, z = as_loss(name), np.linspace(-2, 2, 300)

    def parts(z, v):
        return loss.value(z, target), loss.residual(z, target), loss.hessian_product(z, target, v)

    assert max(sizes(jax.make_jaxpr(parts)(z, z).jaxpr)) == 300
    v = RNG.standard_normal(300)
    product = jax.jit(loss.hessian_product)(z, target, v)
    np.testing.assert_allclose(product, loss.output_hessian(z, target) @ v, rtol=0, atol=1e-14)
