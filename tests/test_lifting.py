"""Lifting against the same functions written without casts, and against dense autodiff."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rankmon import Problem, RankmonWarning, hessian_ranks, hessian_spectra
from rankmon._lifting import lifted, lifted_at
from rankmon._precision import DOUBLE, coarsest_operation

LOW = [jnp.float32, jnp.bfloat16, jnp.float16]
by_dtype = pytest.mark.parametrize("dtype", LOW, ids=["float32", "bfloat16", "float16"])


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


FUNCTIONS = [
    dense, jitted, checkpointed, mapped, scanned, looped, chosen, rounded_only, convolved,
    accumulated,
]  # fmt: skip
by_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


@by_dtype
@by_function
def test_values_and_derivatives_are_those_without_casts(function, dtype):
    w, x = normal(4, 3), normal(5, 4, seed=1)
    with DOUBLE.scope():

        def low(w):
            return lifted(lambda w, x: function(dtype, w, x).astype(jnp.float64))(w, x)

        def exact(w):
            return function(jnp.float64, w, x).astype(jnp.float64)

        for derivative in (lambda f: f, jax.jacfwd):
            got, truth = derivative(low)(w), derivative(exact)(w)
            assert got.dtype == np.float64
            np.testing.assert_allclose(got, truth, rtol=1e-12, atol=1e-12)
        assert coarsest_operation(jax.make_jaxpr(low)(w)) is None


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

        np.testing.assert_allclose(jax.grad(f)(x), np.sin(x), rtol=1e-14)
        np.testing.assert_allclose(jax.hessian(f)(x), np.diag(np.cos(x)), rtol=1e-14)

        def g(x):
            return jnp.sum(lifted(reversed_gradient)(x, np.int32(2)))

        np.testing.assert_allclose(g(x), np.sum(x**2), rtol=1e-14)
        np.testing.assert_allclose(jax.grad(g)(x), -(x**3), rtol=1e-14)
        _, along = jax.jvp(jax.grad(g), (x,), (np.ones(6),))
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
        noise = np.asarray(noisy(np.zeros(7)), np.float64)
        np.testing.assert_array_equal(lifted(noisy)(x), x + noise)
        np.testing.assert_array_equal(lifted(bits)(x), x.astype(np.float32).view(np.int32))
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
        exact = recurrent(w.astype(np.float64), x.astype(np.float64))
        got = function(w.astype(np.float64), x.astype(np.float64))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, exact, rtol=1e-14)


# Problems


class Mixed(nn.Module):
    """Mixed precision as it is usual: float32 parameters, products in `dtype`, float32 outputs."""

    dtype: jnp.dtype | None
    activation: callable

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Dense(5, dtype=self.dtype)(x))
        x = self.activation(nn.Dense(4, dtype=self.dtype)(x))
        return nn.Dense(3, dtype=self.dtype)(x).astype(x.dtype if self.dtype is None else "float32")


X, Y = normal(30, 6).astype(np.float32), normal(30, 3, seed=1).astype(np.float32)


def problem(dtype, activation=nn.relu, **options):
    options = {"loss": "mse", "targets": Y, **options}
    return Problem.from_linen(Mixed(dtype, activation), inputs=X, **options)


PARAMS = Mixed(None, nn.relu).init(jax.random.key(0), X)["params"]


@pytest.mark.parametrize("activation", [nn.relu, nn.silu, lambda x: x], ids=["relu", "silu", "id"])
@by_dtype
def test_a_mixed_precision_network_has_the_spectra_of_the_one_without_casts(dtype, activation):
    exact = hessian_spectra(problem(None, activation), PARAMS)
    got = hessian_spectra(problem(dtype, activation, lift_dtype=True), PARAMS)  # and no warning
    for part, values in exact.items():
        np.testing.assert_allclose(got[part], values, atol=1e-13 * abs(values[0]))
    ranks = hessian_ranks(problem(dtype, activation, lift_dtype=True), PARAMS)
    for part, rank in hessian_ranks(problem(None, activation), PARAMS).items():
        assert ranks[part].rank == rank.rank


def test_without_it_the_cast_is_measured_and_said():
    with pytest.warns(RankmonWarning, match="lift_dtype=True"):
        ranks = hessian_ranks(problem(jnp.float32), PARAMS)
    assert ranks["H_L"].tolerance > 1e4 * hessian_ranks(problem(None), PARAMS)["H_L"].tolerance


def test_a_loss_that_casts_is_lifted_too():
    def low(z, y):
        return -jnp.sum(y.astype(jnp.bfloat16) * jax.nn.log_softmax(z.astype(jnp.bfloat16)))

    def exact(z, y):
        return -jnp.sum(y * jax.nn.log_softmax(z))

    got = hessian_spectra(problem(None, loss=low, lift_dtype=True), PARAMS)
    for part, values in hessian_spectra(problem(None, loss=exact), PARAMS).items():
        np.testing.assert_allclose(got[part], values, atol=1e-13 * abs(values[0]))


def test_a_recurrent_network_with_a_float32_carry_is_measured_in_float64():
    def apply(params, x):  # [n, steps, d]
        carry = jnp.zeros((len(x), 3), jnp.float32)
        step = lambda c, row: (jnp.tanh(c @ params["U"] + row @ params["W"]), None)  # noqa: E731
        return lax.scan(step, carry, jnp.swapaxes(x, 0, 1))[0]

    def unrolled(params, x):
        carry = jnp.zeros((len(x), 3))
        for i in range(x.shape[1]):
            carry = jnp.tanh(carry @ params["U"] + x[:, i] @ params["W"])
        return carry

    params = {"U": normal(3, 3).astype(np.float32), "W": normal(2, 3).astype(np.float32)}
    given = {"loss": "mse", "inputs": normal(9, 4, 2), "targets": normal(9, 3)}
    got = hessian_spectra(Problem(apply, lift_dtype=True, **given), params)
    for part, values in hessian_spectra(Problem(unrolled, **given), params).items():
        np.testing.assert_allclose(got[part], values, atol=1e-12 * abs(values[0]))


def test_only_true_and_false_are_taken():
    with pytest.raises(TypeError, match="expected lift_dtype to be True or False, got 'float64'"):
        problem(None, lift_dtype="float64")
