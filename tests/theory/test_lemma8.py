"""Lemma 8 against automatic differentiation, an accurate ODE solution and hand calculation."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from rankmon import lemma8
from rankmon.theory.lemma8 import DeterminantPath
from refusals import refused

CASES = [(1, 4), (2, 3), (3, 4), (4, 3), (5, 2)]
IDS = [f"L{layers}-M{width}" for layers, width in CASES]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def centered_data(width, *, examples=40, seed=0):
    """Anisotropic Gaussian inputs whose classes have mean zero, labels, and one-hot targets."""
    rng = np.random.default_rng(seed)
    labels = np.arange(examples) % width
    x = rng.normal(size=(examples, width)) @ rng.normal(size=(width, width)) / np.sqrt(width)
    for c in range(width):
        x[labels == c] -= x[labels == c].sum(axis=0) / (labels == c).sum()
    return x, labels, np.eye(width)[labels]


def key(seed):
    """A key whose random numbers compile in a third of the time that the default one takes."""
    return jax.random.key(seed, impl="rbg")


@cache
def stack(layers, width, *, seed=0, singular_values=None, dtype=None):
    """A balanced stack, compiled as a whole; `singular_values` a tuple."""
    return compiled_stack(layers, width, singular_values, dtype)(key(seed))


@cache
def compiled_stack(layers, width, singular_values, dtype):
    options = {"singular_values": singular_values, "dtype": dtype}
    return jax.jit(partial(lemma8.balanced_stack, layers=layers, width=width, **options))


def values_of(width):
    return tuple(np.linspace(0.5, 1.5, width))


def numpy_gradients(weights, x, y):
    """Gradient of the mean of 1/2 ||F(x) - y||^2 by hand-written backpropagation."""
    activations = [x.T]
    for W in weights:
        activations.append(W @ activations[-1])
    back, gradients = (activations[-1] - y.T) / len(x), []
    for W, a in zip(reversed(weights), reversed(activations[:-1]), strict=True):
        gradients.append(back @ a.T)
        back = W.T @ back
    return gradients[::-1]


def flow(weights, x, y, times):
    """Weights along the gradient flow at the given times, each [t l m m], by DOP853."""
    start = np.stack([np.asarray(W) for W in weights])

    def velocity(_, state):
        return -np.stack(numpy_gradients(list(state.reshape(start.shape)), x, y)).ravel()

    solution = solve_ivp(
        velocity,
        (times[0], times[-1]),
        start.ravel(),
        method="DOP853",
        t_eval=times,
        rtol=1e-11,
        atol=1e-13,
    )
    assert solution.success
    return solution.y.T.reshape(-1, *start.shape)


def fold(times, traces, log_abs_det):
    path = DeterminantPath.start(times[0], log_abs_det, traces[0])
    for time, trace in zip(times[1:], traces[1:], strict=True):
        path = path.advance(time, trace)
    return path


# The data


def test_class_means_agree_with_loops():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, size=30)
    means = lemma8.class_means(x, labels, 5)
    largest = 0.0
    for c in range(5):
        rows = [x[i] for i in range(30) if labels[i] == c]
        expected = sum(rows) / len(rows) if rows else np.zeros(4)
        np.testing.assert_allclose(means[c], expected, rtol=1e-13)
        largest = max(largest, sum(v * v for v in expected) ** 0.5)
    scale = (sum(v * v for row in x for v in row) / 30) ** 0.5
    assert lemma8.class_mean_size(x, labels, 5) == pytest.approx(largest / scale, rel=1e-13)


def test_class_means_are_float64_outside_the_scope():
    x = np.array([[1.0], [1.0 + 1e-12]])
    with jax.enable_x64(False):
        means = lemma8.class_means(x, np.array([0, 1]), 2)
    np.testing.assert_array_equal(means, x)


def test_measures_of_centered_and_shifted_classes():
    x, labels, y = centered_data(4)
    assert lemma8.class_mean_size(x, labels, 4) < 1e-15
    assert lemma8.target_input_correlation(x, y) < 1e-15
    # All of a data set centered as a whole, but not by class, is not what (a) asks for.
    shifted = x + np.where(labels == 0, 3.0, -1.0)[:, None]
    assert np.linalg.norm(shifted.mean(axis=0)) < 1e-14
    assert lemma8.class_mean_size(shifted, labels, 4) > 0.5
    assert lemma8.target_input_correlation(shifted, y) > 0.3


def test_target_input_correlation_is_scale_free_and_at_most_one():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    covariance = sum(np.outer(b, a) for a, b in zip(x, y, strict=True)) / 7
    scale = np.sqrt((x**2).sum() / 7 * (y**2).sum() / 7)
    expected = np.sqrt((covariance**2).sum()) / scale
    assert lemma8.target_input_correlation(x, y) == pytest.approx(expected, rel=1e-13)
    assert lemma8.target_input_correlation(1e6 * x, 1e-9 * y) == pytest.approx(expected, rel=1e-13)
    line = np.outer(rng.normal(size=7), x[0])
    assert lemma8.target_input_correlation(line, line) == pytest.approx(1, rel=1e-13)


def test_measures_of_vanishing_and_non_finite_data():
    labels, y = np.array([0, 1]), np.eye(2)
    assert lemma8.class_mean_size(np.zeros((2, 3)), labels, 2) == 0
    assert lemma8.target_input_correlation(np.zeros((2, 3)), y) == 0
    assert np.isnan(lemma8.class_mean_size(np.full((2, 3), np.nan), labels, 2))
    assert np.isnan(lemma8.target_input_correlation(np.full((2, 3), np.nan), y))


# Balance


@pytest.mark.parametrize(("layers", "width"), CASES, ids=IDS)
def test_balanced_stack_is_balanced_with_its_singular_values(layers, width):
    values = np.array(values_of(width))
    weights = stack(layers, width, singular_values=values_of(width))
    assert len(weights) == layers
    for W in weights:
        np.testing.assert_allclose(np.linalg.svd(W)[1], values[::-1], rtol=1e-13)
        assert abs(np.linalg.det(W)) == pytest.approx(np.prod(values), rel=1e-12)
    for lower, upper in zip(weights, weights[1:], strict=False):
        upper, lower = np.asarray(upper), np.asarray(lower)
        difference = upper.T @ upper - lower @ lower.T
        assert np.linalg.norm(difference) < 1e-13
    balance = np.asarray(lemma8.balancedness(weights))
    assert balance.shape == (layers - 1,)
    assert (balance < 1e-13).all()


@pytest.mark.parametrize("width", [1, 2, 7])
def test_default_singular_values_are_distinct_with_determinant_one(width):
    (W,) = stack(1, width)
    values = np.linalg.svd(W)[1]
    assert abs(np.linalg.slogdet(W)[1]) < 1e-13
    assert (np.diff(values) < -0.05).all()
    assert values[0] <= 2**0.5
    assert values[-1] >= 2**-0.5


def test_balanced_stack_depends_on_its_key_and_follows_the_dtype():
    one, two = stack(2, 3, seed=0), stack(2, 3, seed=1)
    assert np.linalg.norm(np.asarray(one[0]) - np.asarray(two[0])) > 0.1
    assert one[0].dtype == jnp.float64
    single = partial(lemma8.balanced_stack, layers=2, width=3, dtype=jnp.float32)
    assert jax.eval_shape(single, key(0))[1].dtype == jnp.float32
    with jax.enable_x64(False):
        default = partial(lemma8.balanced_stack, layers=2, width=3)
        assert jax.eval_shape(default, key(0))[0].dtype == jnp.float32


def test_balanced_stack_is_the_same_compiled_or_not():
    eager = lemma8.balanced_stack(key(0), layers=2, width=3)
    np.testing.assert_allclose(eager, stack(2, 3), rtol=1e-12, atol=1e-14)


def test_balancedness_agrees_with_loops_on_rectangular_weights():
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=shape) for shape in [(3, 5), (4, 3), (2, 4)]]
    expected = []
    for lower, upper in zip(weights, weights[1:], strict=False):
        above, below = np.einsum("ai,aj->ij", upper, upper), np.einsum("ia,ja->ij", lower, lower)
        larger = max(np.sqrt((above**2).sum()), np.sqrt((below**2).sum()))
        expected.append(np.sqrt(((above - below) ** 2).sum()) / larger)
    compiled = jax.jit(lemma8.balancedness)
    np.testing.assert_allclose(compiled(weights), expected, rtol=1e-13)
    tiny = [1e-140 * W for W in weights]
    np.testing.assert_allclose(compiled(tiny), expected, rtol=1e-13)


def test_balancedness_of_vanishing_and_non_finite_weights():
    zero, one, nan = np.zeros((2, 2)), np.eye(2), np.full((2, 2), np.nan)
    np.testing.assert_array_equal(lemma8.balancedness([zero, zero, one, zero]), [0, 1, 1])
    np.testing.assert_array_equal(np.isnan(lemma8.balancedness([one, nan, one])), [True, True])


# The traces


@jax.jit
def loss_gradients(weights, x, y):
    def loss(weights):
        outputs = x
        for W in weights:
            outputs = outputs @ W.T
        return 0.5 * jnp.mean(jnp.sum((outputs - y) ** 2, axis=1))

    return jax.grad(loss)(weights)


def log_det_rates(weights, x, y):
    """Rates d log|det W^l| / dt = tr(W^-1 dW/dt) along the gradient flow, by autodiff."""
    gradients = loss_gradients(tuple(weights), x, y)
    return np.array(
        [-np.trace(np.linalg.solve(W, G)) for W, G in zip(weights, gradients, strict=True)]
    )


@pytest.mark.parametrize(("layers", "width"), CASES, ids=IDS)
def test_trace_B_is_the_rate_of_log_abs_det(layers, width):
    x, _, y = centered_data(width)
    Sigma = x.T @ x / len(x)
    weights = stack(layers, width, singular_values=values_of(width))
    traces = np.asarray(lemma8.trace_B(weights, Sigma))
    np.testing.assert_allclose(-traces, log_det_rates(weights, x, y), rtol=1e-11)
    np.testing.assert_allclose(jax.jit(lemma8.trace_B)(weights, Sigma), traces, rtol=1e-12)
    # Balanced weights share their determinants' absolute values, hence their traces.
    np.testing.assert_allclose(traces, traces[0], rtol=1e-12)
    assert traces[0] > 0


def test_trace_B_agrees_with_its_definition_off_balance():
    rng = np.random.default_rng(4)
    W1, W2, W3 = rng.normal(size=(3, 4, 4))
    x, _, y = centered_data(4)
    Sigma = x.T @ x / len(x)
    expected = [
        np.einsum("ai,aj,bj,bk,ki->", W1, W1, W1, W1, Sigma),
        np.einsum("ai,aj,jb,bc,ic->", W2, W2, W1, Sigma, W1),
        np.einsum("ij,jb,bc,dc,id->", W2, W1, Sigma, W1, W2),
    ]
    traces = lemma8.trace_B([W1, W2, W3], Sigma)
    np.testing.assert_allclose(traces, expected, rtol=1e-12)
    # Without balance only the last layer's trace, a product with no power of W^L, is the rate.
    rates = log_det_rates((W1, W2, W3), x, y)
    assert abs(traces[0] + rates[0]) > 0.1 * abs(rates[0])
    assert traces[2] == pytest.approx(-rates[2], rel=1e-11)


def test_trace_B_misses_the_class_means_by_what_the_proof_says():
    x, labels, y = centered_data(4)
    shifted = x + np.diag([3.0, 2.0, 1.0, -1.0])[labels]
    W1, W2, W3 = (np.asarray(W) for W in stack(3, 4, seed=1))
    traces = lemma8.trace_B((W1, W2, W3), shifted.T @ shifted / len(x))
    rates = log_det_rates((W1, W2, W3), shifted, y)
    # The residual-input covariance is W^{3:1} Sigma - E[y x^T]: seen from the last layer.
    missing = np.trace(np.linalg.inv(W3) @ (y.T @ shifted / len(x)) @ (W2 @ W1).T)
    assert abs(missing) > 0.1
    assert float(traces[2] + rates[2]) == pytest.approx(missing, rel=1e-10)


# The flow


@pytest.mark.parametrize(("layers", "width"), [(2, 3), (3, 4)], ids=["L2-M3", "L3-M4"])
def test_path_follows_an_accurate_solution_of_the_flow(layers, width):
    x, _, y = centered_data(width)
    Sigma = x.T @ x / len(x)
    # Probes crowd where the traces change fast: at the start.
    times = 4 * np.linspace(0, 1, 3001) ** 2
    solution = flow(stack(layers, width), x, y, times)
    measured = np.linalg.slogdet(solution)[1]
    traces = np.asarray(
        jax.jit(jax.vmap(lemma8.trace_B, (0, None)))(
            tuple(solution[:, layer] for layer in range(layers)), jnp.asarray(Sigma)
        )
    )
    path = fold(times, traces, measured[0])
    assert measured[-1].max() < measured[0].min() - 1
    assert np.abs(path.predicted - measured[-1]).max() < 1e-6
    assert np.abs(path.predicted - measured[-1]).max() < path.error.max() + 1e-9
    balance = lemma8.balancedness(tuple(solution[-1]))
    assert balance.max() < 1e-9
    signs = np.linalg.slogdet(solution)[0]
    np.testing.assert_array_equal(signs, np.broadcast_to(signs[0], signs.shape))


def descend(weights, x, y, *, steps, horizon):
    weights = [np.asarray(W) for W in weights]
    for _ in range(steps):
        gradients = numpy_gradients(weights, x, y)
        weights = [W - horizon / steps * G for W, G in zip(weights, gradients, strict=True)]
    return float(lemma8.balancedness(weights).max())


def test_discrete_steps_drift_from_balance_in_proportion_to_the_step():
    x, _, y = centered_data(4)
    weights = stack(3, 4)
    coarse, fine, finest = (
        descend(weights, x, y, steps=steps, horizon=1.0) for steps in (20, 400, 800)
    )
    assert coarse > 1e-3
    assert coarse > 10 * fine
    assert fine / finest == pytest.approx(2, rel=0.02)


# The quadrature


EXACT = {
    "exp": (np.exp, np.exp),
    "decay": (lambda t: np.exp(-3 * t), lambda t: -np.exp(-3 * t) / 3),
    "power": (lambda t: (1 + t) ** -1.5, lambda t: -2 * (1 + t) ** -0.5),
}
SPACINGS = {
    "even": np.linspace(0, 2, 41),
    "squares": 2 * np.linspace(0, 1, 41) ** 2,
    "log": np.expm1(np.linspace(0, np.log(3), 41)),
    "three": np.linspace(0, 0.2, 3),
}


@pytest.mark.parametrize("times", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize(("f", "F"), EXACT.values(), ids=EXACT)
def test_quadrature_error_is_estimated_within_a_factor_of_two(f, F, times):
    path = fold(times, np.stack([f(times), 2 * f(times)], axis=1), np.array([5.0, 7.0]))
    exact = np.array([5.0, 7.0]) - np.array([1.0, 2.0]) * (F(times[-1]) - F(times[0]))
    off = np.abs(path.predicted - exact)
    assert (off > 1e-8).all()
    assert (path.error > off / 2).all()
    assert (path.error < 2 * off).all()


def test_path_is_exact_on_lines_and_matches_numpy_trapezoid():
    times = np.array([0.5, 0.6, 1.7, 1.9, 4.0])
    path = fold(times, (2 + 3 * times)[:, None], [1.0])
    assert path.predicted[0] == pytest.approx(1 - 2 * 3.5 - 1.5 * (16 - 0.25), rel=1e-13)
    assert path.error[0] < 1e-12
    traces = np.random.default_rng(5).normal(size=(5, 3))
    np.testing.assert_allclose(
        fold(times, traces, np.zeros(3)).predicted, -np.trapezoid(traces, times, axis=0), rtol=1e-12
    )


def test_error_is_unknown_until_three_probes():
    path = DeterminantPath.start(0.0, [0.0], [1.0])
    assert path.predicted == [0.0]
    assert np.isnan(path.error)
    path = path.advance(1.0, [4.0])
    assert path.predicted == [-2.5]
    assert np.isnan(path.error)
    # f'' = 2 * ((9 - 4) - (4 - 1)) / 2 = 2 over two intervals of length 1.
    assert path.advance(2.0, [9.0]).error == pytest.approx([2 / 12 * 2], rel=1e-13)


@pytest.mark.parametrize("repeat", [0, 1, 2, 3])
def test_a_probe_at_the_same_time_changes_nothing(repeat):
    times, traces = np.array([0.0, 1.0, 1.5, 3.0]), np.array([[1.0], [4.0], [2.0], [0.5]])
    path = DeterminantPath.start(times[0], [0.0], traces[0])
    for index in range(4):
        path = path.advance(times[index], traces[index]) if index else path
        if index == repeat:
            path = path.advance(times[index], traces[index] + 1)
    plain = fold(times, traces, [0.0])
    np.testing.assert_array_equal(path.predicted, plain.predicted)
    np.testing.assert_array_equal(path.error, plain.error)
    assert path.probes == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_numbers_are_data(bad):
    path = fold(np.arange(4.0), np.array([[1.0, 1], [1, bad], [1, 1], [1, 1]]), [0.0, 0.0])
    assert path.predicted[0] == -3
    assert not np.isfinite(path.predicted[1])
    singular = fold(np.arange(3.0), np.ones((3, 1)), [-np.inf])
    assert singular.predicted == [-np.inf]
    lasting = fold(np.arange(4.0), np.full((4, 1), bad), [bad])
    assert not np.isfinite(lasting.predicted)
    assert np.isnan(lasting.error)


def test_path_is_a_pytree_of_one_structure_that_survives_a_restart():
    times, traces = np.arange(5.0) ** 2, np.random.default_rng(6).normal(size=(5, 2))
    half = fold(times[:2], traces[:2], np.zeros(2))
    empty = DeterminantPath.empty(2)
    assert empty.probes == 0
    assert np.isnan(empty.predicted).all()
    whole = fold(times, traces, np.zeros(2))
    for path in (empty, half, whole):
        leaves, structure = jax.tree.flatten(path)
        assert structure == jax.tree.structure(empty)
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
        assert [(a.shape, a.dtype) for a in leaves] == [
            (a.shape, a.dtype) for a in jax.tree.leaves(empty)
        ]
    saved = {name: value.copy() for name, value in dataclasses.asdict(half).items()}
    restored = DeterminantPath(**saved)
    for time, trace in zip(times[2:], traces[2:], strict=True):
        restored = restored.advance(time, trace)
    np.testing.assert_array_equal(restored.predicted, whole.predicted)
    np.testing.assert_array_equal(restored.error, whole.error)


def test_path_keeps_nothing_of_its_arguments():
    trace, log_abs_det = np.ones(2), np.zeros(2)
    path = DeterminantPath.start(0.0, log_abs_det, trace).advance(1.0, trace)
    trace[:], log_abs_det[:] = 9, 9
    np.testing.assert_array_equal(path.advance(2.0, [1.0, 1.0]).predicted, [-2, -2])


# Which assumptions hold


def test_assumptions_hold_for_a_balanced_stack_on_centered_classes():
    x, _, y = centered_data(4)
    found = lemma8.assumptions(stack(3, 4), x, y)
    assert (found.centered, found.balanced, found.square, found.hold) == (True,) * 4
    assert found.tolerance == 1e-6
    single = lemma8.assumptions(stack(3, 4)[:1], x, y, tolerance=0.0)
    assert single.imbalance == 0
    assert single.balanced


def test_float32_meets_the_default_tolerance():
    x, labels, y = centered_data(4, examples=400)
    x = x.astype(np.float32) + np.float32(1)
    for c in range(4):
        x[labels == c] -= x[labels == c].mean(axis=0)
    found = lemma8.assumptions(stack(3, 4, dtype=jnp.float32), x, y)
    assert 0 < found.target_input
    assert 1e-9 < found.imbalance
    assert found.hold


@pytest.mark.parametrize("broken", ["centered", "balanced", "square"])
def test_each_assumption_can_fail_alone(broken):
    x, labels, y = centered_data(4)
    weights = stack(3, 4)
    if broken == "centered":
        x = x + labels[:, None]
    elif broken == "balanced":
        weights = (weights[0], 1.1 * weights[1], weights[2])
    else:
        V = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 4)))[0]
        weights = (V @ np.asarray(weights[0]), np.asarray(weights[1]) @ V.T)
    found = lemma8.assumptions(weights, x, y)
    assert not found.hold
    for name in ("centered", "balanced", "square"):
        assert getattr(found, name) == (name != broken)


def test_measures_that_are_not_numbers_are_not_met():
    x, _, y = centered_data(2)
    found = lemma8.assumptions([np.full((2, 2), np.nan), np.eye(2)], x, y)
    assert not found.balanced
    assert not lemma8.assumptions([np.eye(2), np.eye(2)], x * np.nan, y).centered


# Errors

X, Y, EYE = np.ones((6, 2)), np.ones((6, 2)), np.eye(2)


@pytest.mark.parametrize(
    ("call", "error", "key"),
    [
        (lambda: lemma8.class_means(X, [0] * 5 + [2], 2), ValueError, "got 0..2"),
        (lambda: lemma8.class_means(X, [-1] + [0] * 5, 2), ValueError, "got -1..0"),
        (lambda: lemma8.class_means(X, [0.0] * 6, 2), TypeError, "float64"),
        (lambda: lemma8.class_means(X, [0] * 5, 2), ValueError, "one per input"),
        (lambda: lemma8.class_means(X[0], [0] * 2, 2), ValueError, "one row an example"),
        (lambda: lemma8.target_input_correlation(X, Y[:5]), ValueError, "got 5 for 6"),
        (lambda: lemma8.target_input_correlation(X, Y[:, 0]), ValueError, "targets of 2 axes"),
        (lambda: lemma8.balancedness([]), ValueError, "one or more matrices"),
        (lambda: lemma8.balancedness([np.ones(3)]), ValueError, "one or more matrices"),
        (lambda: lemma8.balancedness([EYE, np.ones((2, 3))]), ValueError, "transpose kernels"),
        (lambda: lemma8.trace_B([np.ones((3, 2))], EYE), ValueError, "square weights"),
        (lambda: lemma8.trace_B([np.ones((3, 2)), np.ones((2, 3))], EYE), ValueError, "square"),
        (lambda: lemma8.trace_B([EYE], np.eye(3)), ValueError, "expected Sigma"),
        (lambda: lemma8.assumptions([EYE], np.ones((6, 3)), Y), ValueError, "expected inputs"),
        (lambda: lemma8.assumptions([EYE], X, np.ones((6, 3))), ValueError, "expected inputs"),
        (lambda: lemma8.assumptions([], X, Y), ValueError, "one or more matrices"),
        (lambda: stack(0, 2), ValueError, "got 0"),
        (lambda: stack(2, 0), ValueError, "got 0"),
        (lambda: stack(2.0, 2), TypeError, "layers to be an integer, got 2.0"),
        (lambda: stack(2, "2"), TypeError, "width to be an integer, got '2'"),
        (lambda: stack(True, 9), TypeError, "layers to be an integer, got True"),
        (lambda: stack(2, 2, singular_values=(1.0,)), ValueError, "singular values"),
        (lambda: stack(2, 2, singular_values=(1.0, -1.0)), ValueError, "singular values"),
        (lambda: DeterminantPath.start(0, [0.0], [0.0, 1.0]), ValueError, "per layer"),
        (lambda: DeterminantPath.start(0, 0.0, 0.0), ValueError, "per layer"),
        (lambda: DeterminantPath.start(np.nan, [0.0], [0.0]), ValueError, "finite flow time"),
        (lambda: DeterminantPath.empty(1).advance(0, [0.0]), ValueError, "start"),
        (lambda: DeterminantPath.start(1, [0.0], [0.0]).advance(2, [1, 2]), ValueError, "traces"),
        (lambda: DeterminantPath.start(1, [0.0], [0.0]).advance(0.5, [1]), ValueError, "from 1"),
        (lambda: DeterminantPath.start(1, [0.0], [0.0]).advance(np.nan, [1]), ValueError, "nan"),
        (lambda: DeterminantPath.start(1, [0.0], [0.0]).advance(np.inf, [1]), ValueError, "inf"),
    ],
)
def test_errors_say_what_came(call, error, key):
    with refused(error, key):
        call()
