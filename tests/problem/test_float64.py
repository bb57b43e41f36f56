"""Lifting against the same functions written without casts, and against dense autodiff."""

import warnings
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from oracles import Case, dense_parts, mse
from rankmon import Problem, RankmonWarning, hessian_ranks, hessian_spectra
from rankmon.problem.float64 import lifted, lifted_at
from rankmon.problem.precision import DOUBLE, coarsest_operation
from refusals import assert_explains, refused, unwarned

LOW = [jnp.float32, jnp.bfloat16, jnp.float16]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Each casts inside to the dtype that it is given, float64 for the truth.


def dense(dtype, w, x):
    return jnp.tanh(x.astype(dtype) @ w.astype(dtype))


def jitted(dtype, w, x):
    return jax.jit(lambda w, x: jax.jit(dense, static_argnums=0)(dtype, w, x))(w, x)


def checkpointed(dtype, w, x):
    return jax.checkpoint(lambda w, x: dense(dtype, w, x))(w, x)


def mapped(dtype, w, x):
    return jax.vmap(lambda row: dense(dtype, w, row))(x)


def scanned(dtype, w, x):
    def step(carry, row):
        carry = jnp.sin(carry + row.astype(dtype) @ w.astype(dtype))
        return carry, carry * 2

    last, ys = lax.scan(step, jnp.zeros(w.shape[1], dtype), x, reverse=True)
    return ys + last


def looped(dtype, w, x):
    return lax.fori_loop(0, 3, lambda _, z: jnp.sin(z) * 2, dense(dtype, w, x))


def chosen(dtype, w, x):
    branches = [lambda w: dense(dtype, w, x), lambda w: 3 * dense(dtype, w, x)]
    return lax.switch(jnp.sum(x > 0) % 2, branches, w)


def rounded_only(dtype, w, x):
    bits = jnp.finfo(dtype)
    return lax.reduce_precision(x @ w, bits.nexp, bits.nmant)


def convolved(dtype, w, x):
    return nn.Conv(3, (3,), dtype=dtype, param_dtype=jnp.float64).apply(
        {"params": {"kernel": jnp.ones((3, 4, 3)) * w[0, 0], "bias": jnp.arange(3.0)}}, x[:, None]
    )


def accumulated(dtype, w, x):
    return lax.dot(x.astype(dtype), w.astype(dtype), preferred_element_type=dtype)


def square(dtype, w, x):
    """A well-conditioned symmetric matrix [4, 4] that depends on w, [4, 3]."""
    w = w.astype(dtype)
    return w @ w.T + jnp.eye(4, dtype=dtype) * jnp.arange(1, 5, dtype=dtype)


EDGES = np.array([0, 2, 1, 0, 2, 2])  # of the rows of x


def segment_sums(dtype, w, x):
    messages = dense(dtype, w, x)[np.array([0, 1, 2, 3, 4, 0])]
    return jax.ops.segment_sum(messages, EDGES, num_segments=3)


def segment_maxima(dtype, w, x):
    messages = dense(dtype, w, x)[np.array([0, 1, 2, 3, 4, 0])]
    return jax.ops.segment_max(messages, EDGES, num_segments=3)


def scattered(dtype, w, x):
    z = dense(dtype, w, x)
    zeros = jnp.zeros((4, 3), dtype)
    return zeros.at[EDGES[:5]].add(z) * zeros.at[EDGES[:3]].set(z[:3]).at[1].multiply(z[4])


def extremes_scattered(dtype, w, x):
    z = dense(dtype, w, x)
    return z.at[EDGES].min(z[::-1][:1] / 3).at[EDGES].max(z[:1] / 2)


def gradient_of_a_gather(dtype, w, x):
    def energy(z):
        return jnp.sum(jnp.sin(z[EDGES]) ** 2)

    return jax.grad(energy)(dense(dtype, w, x))


def inverse(dtype, w, x):
    return jnp.linalg.inv(square(dtype, w, x))


def solved(dtype, w, x):
    return jnp.linalg.solve(square(dtype, w, x), x[:4].astype(dtype))


def solved_by_iterations(dtype, w, x):
    return jax.scipy.sparse.linalg.cg(square(dtype, w, x), x[0].astype(dtype), tol=0, maxiter=4)[0]


def factored(dtype, w, x):
    a = square(dtype, w, x)
    q, r = jnp.linalg.qr(a)
    return q + r + jnp.linalg.cholesky(a) + jnp.linalg.eigvalsh(a) + jnp.linalg.det(a)


def eigenvectors(dtype, w, x):
    values, vectors = jnp.linalg.eigh(square(dtype, w, x))
    return (vectors * jnp.exp(-values)) @ vectors.T


def singular(dtype, w, x):
    return (
        jnp.linalg.svd(square(dtype, w, x), compute_uv=False) + jnp.linalg.pinv(w.astype(dtype))[0]
    )


def reduced(dtype, w, x):
    """By a program of its own: the sum of squares, on top of the start."""
    return lax.reduce(dense(dtype, w, x), jnp.asarray(0.5, dtype), lambda a, b: a * b + a + b, [0])


def windows(dtype, w, x):
    z = dense(dtype, w, x)[None, :, :, None]
    pooled = nn.max_pool(z, (2, 2)) + nn.avg_pool(z, (2, 2))
    steepest = jax.grad(lambda z: jnp.sum(nn.max_pool(z, (2, 2)) ** 2))(z)
    return pooled.sum() + steepest[0, :, :, 0]


def cumulative(dtype, w, x):
    z = dense(dtype, w, x)
    return jnp.cumsum(z, 0) + lax.cummax(z) + lax.cumlogsumexp(z) + jnp.cumprod(z, 0)


def associative(dtype, w, x):
    return lax.associative_scan(lambda a, b: a * b + b, dense(dtype, w, x))


def ordered(dtype, w, x):
    z = dense(dtype, w, x)
    first, second = lax.sort((z, 2 * z), num_keys=1, dimension=0)
    return first * second + lax.top_k(z.T, 2)[0].sum() + jnp.sort(z, axis=1) + jnp.median(z)


def while_small(dtype, w, x):
    z = dense(dtype, w, x)

    def step(state):
        count, z = state
        return count + 1, jnp.sin(z) * 2

    return lax.while_loop(lambda s: s[0] < 3, step, (0, z))[1]


def transformed(dtype, w, x):
    return jnp.fft.irfft(jnp.fft.rfft(dense(dtype, w, x), axis=0)[:2], axis=0) + lax.lgamma(
        2 + dense(dtype, w, x)[:2]
    )


FUNCTIONS = [
    dense, jitted, checkpointed, mapped, scanned, looped, chosen, rounded_only, convolved,
    accumulated,
]  # fmt: skip
# Operations that carry a program of their own, or that linear algebra has in two dtypes alone.
PROGRAMS = [
    segment_sums, segment_maxima, scattered, extremes_scattered, gradient_of_a_gather, inverse,
    solved, solved_by_iterations, factored, eigenvectors, singular, reduced, windows,
    cumulative, associative, ordered, while_small, transformed,
]  # fmt: skip
# The dtypes of each: all of them for the plain product, one for what it stands in.
DTYPES = {f: LOW if f is dense else [LOW[i % 3]] for i, f in enumerate(FUNCTIONS)}
DTYPES |= {f: [jnp.float32] for f in PROGRAMS}


def name_of(value):
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("function", "dtypes"), DTYPES.items(), ids=name_of)
def test_values_and_derivatives_are_those_without_casts(function, dtypes):
    w, x = normal(4, 3), normal(5, 4, seed=1)

    def with_jacobian(f):
        """The values of f at w and their Jacobian, of one trace."""
        jacobian, values = jax.jacfwd(lambda w: (f(w), f(w)), has_aux=True)(w)
        return values, jacobian

    def low(dtype, w):
        return lifted(lambda w, x: function(dtype, w, x).astype(jnp.float64))(w, x)

    with DOUBLE.scope():
        got, truth = jax.jit(
            lambda: (
                [with_jacobian(partial(low, dtype)) for dtype in dtypes],
                with_jacobian(lambda w: function(jnp.float64, w, x).astype(jnp.float64)),
            )
        )()
        for dtype, found in zip(dtypes, got, strict=True):
            assert coarsest_operation(jax.make_jaxpr(partial(low, dtype))(w)) is None, dtype
            for array, want in zip(found, truth, strict=True):
                assert array.dtype == np.float64
                np.testing.assert_allclose(array, want, rtol=1e-12, atol=1e-12, err_msg=str(dtype))


def windows_of_a_program(dtype, w, x):
    product = lambda a, b: a * b + a + b  # noqa: E731
    z = dense(dtype, w, x)
    return lax.reduce_window(z, np.asarray(0, dtype), product, (2, 1), (1, 1), "VALID")


def test_windows_of_a_program_of_their_own():
    """Their values: JAX has no Jacobian of these."""
    w, x = normal(4, 3), normal(5, 4, seed=1)
    with DOUBLE.scope():
        low = lifted(partial(windows_of_a_program, jnp.float32))
        np.testing.assert_allclose(low(w, x), windows_of_a_program(jnp.float64, w, x), rtol=1e-12)
        assert coarsest_operation(jax.make_jaxpr(low)(w, x)) is None


@jax.custom_jvp
def straight_through(z):
    return jnp.round(z.astype(jnp.float32)).astype(z.dtype)


# Its second derivative is that of the rule: cos(z).
straight_through.defjvp(lambda p, t: (straight_through(*p), t[0] * jnp.sin(p[0])))


def _power(z, power):
    return z.astype(jnp.bfloat16).astype(z.dtype) ** power


reversed_gradient = jax.custom_vjp(_power)
reversed_gradient.defvjp(
    lambda z, power: (_power(z, power), z.astype(jnp.float32)),
    lambda z, g: (-g * (z**3).astype(g.dtype), None),
)


def test_derivatives_that_a_function_brings_along_stay_its_own():
    x = normal(6)
    with DOUBLE.scope():

        def f(x):
            return jnp.sum(lifted(straight_through)(x))

        gradient, hessian = jax.jit(lambda x: (jax.grad(f)(x), jax.hessian(f)(x)))(x)
        np.testing.assert_allclose(gradient, np.sin(x), rtol=1e-14)
        np.testing.assert_allclose(hessian, np.diag(np.cos(x)), rtol=1e-14)

        def g(x):
            return jnp.sum(lifted(reversed_gradient)(x, np.int32(2)))

        value, (gradient, along) = jax.jit(
            lambda x: (g(x), jax.jvp(jax.grad(g), (x,), (jnp.ones(6),)))
        )(x)
        np.testing.assert_allclose(value, np.sum(x**2), rtol=1e-14)
        np.testing.assert_allclose(gradient, -(x**3), rtol=1e-14)
        np.testing.assert_allclose(along, -3 * x**2, rtol=1e-14)
        assert coarsest_operation(jax.make_jaxpr(jax.grad(g))(x)) is None


def test_what_exists_in_one_dtype_only_stays_as_it_is():
    def noisy(x):
        noise = jax.random.uniform(jax.random.key(3), x.shape, jnp.float32)
        return x.astype(jnp.float32) + noise

    def bits(x):
        return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)

    x = normal(7)
    with DOUBLE.scope():
        zeros = np.zeros(7)
        noise, noised, seen = jax.jit(lambda: (noisy(zeros), lifted(noisy)(x), lifted(bits)(x)))()
        np.testing.assert_array_equal(noised, x + np.asarray(noise, np.float64))
        np.testing.assert_array_equal(seen, x.astype(np.float32).view(np.int32))
        # Data that pass through such an operation are still counted at its eps.
        through = jax.make_jaxpr(lifted(lambda x: lax.bitcast_convert_type(bits(x), jnp.float32)))(
            x
        )
    assert through.out_avals[0].dtype == np.float64


def test_a_function_is_lifted_as_it_was_traced_in_its_own_dtypes():
    def recurrent(w, x):  # its carry is float32 whatever comes in: it has no trace in float64
        return lax.scan(lambda c, row: (jnp.tanh(c + row @ w), None), jnp.zeros(3), x)[0]

    w, x = normal(4, 3).astype(np.float32), normal(5, 4, seed=1).astype(np.float32)
    function = lifted_at(recurrent, w, x)
    with DOUBLE.scope():
        got = jax.jit(function)(w.astype(np.float64), x.astype(np.float64))
    exact = np.zeros(3)
    for row in x.astype(np.float64):
        exact = np.tanh(exact + row @ w.astype(np.float64))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, exact, rtol=1e-14)


# Problems


class Mixed(nn.Module):
    """Mixed precision as it is usual: float32 parameters, products in `dtype`, float32 outputs."""

    dtype: jnp.dtype | None
    activation: callable

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Dense(4, dtype=self.dtype)(x))
        return nn.Dense(3, dtype=self.dtype)(x).astype(x.dtype if self.dtype is None else "float32")


X, Y = normal(12, 6).astype(np.float32), normal(12, 3, seed=1).astype(np.float32)


def stated(dtype, activation=nn.relu, **options):
    options = {"loss": "mse", "targets": Y, **options}
    return Problem.from_linen(Mixed(dtype, activation), inputs=X, **options)


PARAMS = {
    f"Dense_{i}": {
        "kernel": normal(*shape, seed=i).astype(np.float32) / 2,
        "bias": normal(shape[1], seed=i + 3).astype(np.float32) / 2,
    }
    for i, shape in enumerate([(6, 4), (4, 3)])
}


@cache
def without_casts():
    """The problem with ReLUs and nothing that casts."""
    return stated(None)


def assert_same_spectra(problem, other, params=PARAMS, atol=1e-13):
    got = hessian_spectra(problem, params)
    for part, values in hessian_spectra(other, params).items():
        np.testing.assert_allclose(got[part], values, atol=atol * abs(values[0]), err_msg=part)


@pytest.mark.parametrize(
    ("dtype", "activation"),
    [(jnp.float32, nn.relu), (jnp.bfloat16, nn.silu), (jnp.float16, lambda x: x)],
    ids=["float32-relu", "bfloat16-silu", "float16-id"],
)
def test_a_mixed_precision_network_has_the_spectra_of_the_one_without_casts(dtype, activation):
    exact = without_casts() if activation is nn.relu else stated(None, activation)
    low = stated(dtype, activation, lift_dtype=True)  # and no warning
    assert_same_spectra(low, exact)
    ranks = hessian_ranks(low, PARAMS)
    for part, rank in hessian_ranks(exact, PARAMS).items():
        assert ranks[part].rank == rank.rank, part


def test_without_it_the_cast_is_measured_and_said():
    with pytest.warns(RankmonWarning, match="lift_dtype=True"):
        ranks = hessian_ranks(stated(jnp.float32), PARAMS)
    exact = hessian_ranks(without_casts(), PARAMS)
    assert ranks["H_L"].tolerance > 1e4 * exact["H_L"].tolerance


def test_a_loss_that_casts_is_lifted_too():
    def low(z, y):
        return -jnp.sum(y.astype(jnp.bfloat16) * jax.nn.log_softmax(z.astype(jnp.bfloat16)))

    def exact(z, y):
        return -jnp.sum(y * jax.nn.log_softmax(z))

    def linear(params, x):
        return x @ params["kernel"]

    params, given = {"kernel": normal(6, 3)}, {"inputs": X, "targets": Y}
    lifting = Problem(linear, loss=low, lift_dtype=True, **given)
    assert_same_spectra(lifting, Problem(linear, loss=exact, **given), params)


def test_a_recurrent_network_with_a_float32_carry_is_measured_in_float64():
    def apply(params, x):  # [n, steps, d]
        carry = jnp.zeros((len(x), 2), jnp.float32)
        step = lambda c, row: (jnp.tanh(c @ params["U"] + row @ params["W"]), None)  # noqa: E731
        return lax.scan(step, carry, jnp.swapaxes(x, 0, 1))[0]

    def unrolled(params, x):
        carry = jnp.zeros((len(x), 2))
        for i in range(x.shape[1]):
            carry = jnp.tanh(carry @ params["U"] + x[:, i] @ params["W"])
        return carry

    params = {"U": normal(2, 2).astype(np.float32), "W": normal(2, 2, seed=1).astype(np.float32)}
    given = {"loss": "mse", "inputs": normal(5, 3, 2), "targets": normal(5, 2)}
    flat = Problem(apply, lift_dtype=True, **given).flat(params)
    exact = Problem(unrolled, **given).flat(params)
    theta, fixed = flat.split(flat.leaves(params))

    def derivatives(flat):
        """Outputs, and the Hessian of the mean loss, by dense autodiff."""

        def loss(theta):
            z = flat.outputs(theta, fixed, flat.inputs)
            return jnp.mean(jnp.sum((z - flat.targets) ** 2, 1)) / 2, z

        hessian, z = jax.jacfwd(jax.grad(loss, has_aux=True), has_aux=True)(theta)
        return hessian, z

    assert flat.precision == exact.precision == DOUBLE
    with DOUBLE.scope():
        got, want = jax.jit(lambda: (derivatives(flat), derivatives(exact)))()
    for array, truth in zip(got, want, strict=True):
        np.testing.assert_allclose(array, truth, atol=1e-12 * np.max(np.abs(truth)))


def test_only_true_and_false_are_taken():
    with refused(TypeError, "lift_dtype", "True or False", "'float64'"):
        stated(None, lift_dtype="float64")


# Graphs


NODES = normal(8, 2, seed=3).astype(np.float32)
ENDS = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 0, 3], [1, 2, 3, 4, 5, 6, 7, 0, 4, 7]])
GRAPH = {
    "W": normal(2, 4, seed=1).astype(np.float32),
    "V": normal(4, 4, seed=2).astype(np.float32),
    "U": normal(4, 3, seed=4).astype(np.float32),
    "b": normal(1, seed=5).astype(np.float32),
}
LABELS = normal(8, 3, seed=6).astype(np.float32)


def graph_network(params, x, ends=ENDS):
    """Two rounds of messages along the edges: a sum, and the difference to the largest."""
    sources, targets = ends
    h = jnp.tanh(x @ params["W"] + params["b"])
    h = jnp.tanh(jax.ops.segment_sum(h[sources], targets, num_segments=8) @ params["V"] + h)
    return (h - jax.ops.segment_max(h[sources], targets, num_segments=8)) @ params["U"]


@cache
def graph_parts():
    return dense_parts(Case("graph", graph_network, GRAPH, NODES, LABELS, "mse", mse))


def assert_exact(problem, params, parts):
    """The ranks are those of dense autodiff, and nothing is said."""
    with unwarned():
        found = hessian_ranks(problem, params)
    for part, rank in found.items():
        values = np.abs(np.linalg.eigvalsh(parts[part]))
        assert rank.rank == np.sum(values > rank.tolerance), part
        assert rank.tolerance < 1e-12 * max(values.max(), np.abs(parts["H_L"]).max() * 37)


@pytest.mark.parametrize("lift_dtype", [False, True])
def test_a_graph_network_has_its_ranks_lifted_or_not(lift_dtype):
    given = {"loss": "mse", "inputs": NODES, "targets": LABELS, "lift_dtype": lift_dtype}
    assert_exact(Problem(graph_network, **given), GRAPH, graph_parts())


def test_a_network_with_an_inverse_in_it():
    def apply(w, x):
        return x @ jnp.linalg.inv(jnp.eye(6) * 3 + w @ w.T)[:, :3]

    params = normal(6, 2, seed=8).astype(np.float32)
    problem = Problem(apply, loss="mse", inputs=X, targets=Y, lift_dtype=True)
    assert_exact(problem, params, dense_parts(Case("inverse", apply, params, X, Y, "mse", mse)))


# What JAX keeps of NumPy's int64


def test_an_edge_list_of_numpy_in_a_jitted_network():
    """JAX keeps the array as int32 from its first use on, and fails in float64's scope."""

    def network(ends):
        def apply(params, x):
            h = jnp.tanh(x @ params["W"] + params["b"])
            h = jnp.tanh(h[ends].sum((0, 1)) @ params["V"] + h)
            return (h - h[ends].max((0, 1))) @ params["U"]

        return apply

    apply = jax.jit(network(ENDS.copy()))
    apply(GRAPH, NODES)
    parts = dense_parts(Case("edges", network(ENDS), GRAPH, NODES, LABELS, "mse", mse))
    assert_exact(Problem(apply, loss="mse", inputs=NODES, targets=LABELS), GRAPH, parts)


def test_a_sum_of_a_numpy_array_in_a_jitted_network():
    counts = np.array([[1, 2], [3, 4]])

    @jax.jit
    def apply(w, x):
        return jnp.tanh(x @ w) * (jnp.sum(counts) / 10 + jnp.max(counts, axis=0)[0])

    w = normal(6, 3, seed=9).astype(np.float32)
    apply(w, X)
    parts = dense_parts(Case("sum", lambda w, x: 4.0 * jnp.tanh(x @ w), w, X, Y, "mse", mse))
    assert_exact(Problem(apply, loss="mse", inputs=X, targets=Y), w, parts)


@pytest.mark.parametrize(
    "use",
    [
        lambda h, a: h * a,
        lambda h, a: h + a[0],
        lambda h, a: h @ (a.T @ a)[:3, :3],
        lambda h, a: jnp.maximum(h, a[1]),
        lambda h, a: jnp.where(a > 0, h, a),
        lambda h, a: h - jnp.sum(jnp.asarray(a) ** 2),
    ],
    ids=["product", "sum", "matrix", "maximum", "where", "moments"],
)
def test_a_float64_array_of_numpy_that_a_network_closes_over(use):
    """JAX keeps it as float32 from its first use in training on."""
    array = normal(len(X), 3, seed=4).round(1)

    def network(array):
        return lambda w, x: jnp.tanh(use(x @ w, array))

    w = normal(6, 3, seed=9).astype(np.float32)
    apply = network(array.copy())
    jax.jit(apply)(w, X.astype(np.float32))
    single = array.astype(np.float32).astype(np.float64)
    parts = dense_parts(Case("closed over", network(single), w, X, Y, "mse", mse))
    got = hessian_ranks(Problem(apply, loss="mse", inputs=X, targets=Y), w)
    for part, rank in got.items():
        spectrum = np.abs(np.linalg.eigvalsh(parts[part]))
        assert rank.rank == np.sum(spectrum > rank.tolerance), part
        assert rank.tolerance < 1e-10


def test_a_loss_that_closes_over_one_is_told_what_to_write():
    pairs = np.array([[0, 1], [1, 2]])

    @jax.jit
    def loss(z, y):
        return jnp.sum((z[pairs] - y[pairs]) ** 2)

    loss(Y[0], Y[1])
    problem = Problem(lambda w, x: x @ w, loss=loss, inputs=X, targets=Y)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outer = hessian_ranks(problem, normal(6, 3, seed=9))["H_o"]
    texts = [str(warning.message) for warning in said]
    if texts:  # JAX 0.8 takes the array as int64 there
        assert any("int32" in text and "jnp.asarray" in text for text in texts)
        assert not any("lift_dtype" in text for text in texts)
    assert (outer.tolerance > 1e-9) == bool(texts)


# What is lifted without being asked, and what is left


def recurrent(dtype, params, x):
    """Its carry is float32 whatever comes in."""
    step = lambda c, row: (  # noqa: E731
        jnp.tanh(c @ params + row.astype(dtype).astype("float32") @ params),
        None,
    )
    return lax.scan(step, jnp.zeros((len(x), 3), "float32"), jnp.swapaxes(x, 0, 1))[0]


def unrolled(params, x):
    carry = jnp.zeros((len(x), 3))
    for i in range(x.shape[1]):
        carry = jnp.tanh(carry @ params + x[:, i] @ params)
    return carry


SEQUENCES, SQUARE = normal(5, 4, 3), normal(3, 3, seed=1).astype(np.float32)
RECURRENT = {"loss": "mse", "inputs": SEQUENCES, "targets": normal(5, 3, seed=2)}


def test_what_has_no_trace_in_float64_is_lifted_if_it_casts_to_nothing_coarser():
    case = Case("rnn", unrolled, SQUARE, *(RECURRENT[n] for n in ("inputs", "targets")), "mse", mse)
    problem = Problem(partial(recurrent, jnp.float32), **RECURRENT)
    assert_exact(problem, SQUARE, dense_parts(case))
    with pytest.warns(RankmonWarning, match="lift_dtype=True"):
        mixed = Problem(partial(recurrent, jnp.bfloat16), **RECURRENT)
        assert hessian_ranks(mixed, SQUARE)["H_L"].tolerance > 1e-3


def test_what_cannot_be_lifted_is_said_without_the_advice_to_lift():
    def apply(w, x):
        z = (x @ w).astype(jnp.float32)
        return z + lax.bitcast_convert_type(lax.bitcast_convert_type(z, jnp.int32), jnp.float32)

    def through_a_callback(w, x):
        z = (x @ w).astype(jnp.float32)
        return z + 0 * jax.pure_callback(np.sin, jax.ShapeDtypeStruct(z.shape, z.dtype), z)

    for network in (apply, through_a_callback):
        problem = Problem(network, loss="mse", inputs=X, targets=Y, lift_dtype=True)
        said = problem.flat(normal(6, 3)).warning
        assert "float32" in said
        assert "pass lift_dtype" not in said
        assert "could not lift" in said


def test_a_lifted_network_of_other_outputs_is_said():
    def apply(w, x):
        z = jax.nn.sigmoid((x @ w).astype(jnp.float32))
        return lax.fori_loop(0, 40, lambda _, z: 3.9 * z * (1 - z), z)  # chaos

    flat = Problem(apply, loss="mse", inputs=X, targets=Y, lift_dtype=True).flat(normal(6, 3))
    assert_explains(flat.warning, "rounding", "lift_dtype=True")
    assert flat.precision.eps == DOUBLE.eps
    assert without_casts().flat(PARAMS).warning is None
    assert stated(jnp.float32, lift_dtype=True).flat(PARAMS).warning is None


def test_shapes_alone_are_lifted_without_being_tried():
    with unwarned():
        shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
        assert stated(jnp.bfloat16, lift_dtype=True).flat(shapes).precision == DOUBLE
