"""Test the precision chosen for a network against the resolution of its outputs."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from oracles import gaussian_variables
from rankmon.problem.precision import DOUBLE, NATIVE, Precision, choose_precision, eps_of

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 3))
X = RNG.standard_normal((5, 4))
TOKENS = np.array([[1, 2, 0], [3, 0, 0]])
SEQUENCES = RNG.standard_normal((2, 3, 4)).astype(np.float32)


def resolves_small_steps(function, params):
    """Whether the outputs follow a step of 1e-9 in the parameters: rounding to float32 hides it.

    The oracle of this file: two difference quotients in float64, no tracing and no dtypes.
    """
    with jax.enable_x64(True):
        leaves, structure = jax.tree.flatten(params)
        leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
        rng = np.random.default_rng(5)
        directions = [rng.standard_normal(leaf.shape) for leaf in leaves]

        @partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
        def outputs(leaves, step):
            moved = [a + step * v for a, v in zip(leaves, directions, strict=True)]
            return function(jax.tree.unflatten(structure, moved))

        def quotient(step):
            above, below = (np.asarray(outputs(leaves, s), np.float64) for s in (step, -step))
            return (above - below) / (2 * step)

        coarse, fine = quotient(1e-5), quotient(1e-9)
    scale = np.max(np.abs(coarse))
    return bool(scale > 0 and np.max(np.abs(fine - coarse)) < 1e-3 * scale)


# Networks in plain JAX: `coarse_*` round data below float64, `fine_*` do not.


def coarse_float32(w, x):
    return (x.astype(jnp.float32) @ w.astype(jnp.float32)).astype(jnp.float64)


def coarse_bfloat16_last(w, x):
    return (x @ w).astype(jnp.bfloat16).astype(jnp.float64)


def coarse_float16(w, x):
    return x @ (w.astype(jnp.float16) * 2).astype(x.dtype)


def coarse_float32_then_bfloat16(w, x):
    return (x.astype(jnp.float32) @ w).astype(jnp.bfloat16)


def coarse_complex(w, x):
    return jnp.abs(jnp.fft.fft((x @ w).astype(jnp.complex64))).astype(jnp.float64)


def coarse_in_jit(w, x):
    return jax.jit(jax.jit(coarse_float32))(w, x)


def coarse_in_scan(w, x):
    return lax.scan(lambda c, row: (c, coarse_float32(w, row)), 0.0, x)[1]


def coarse_in_loop(w, x):
    return lax.fori_loop(0, 2, lambda _, z: jnp.tanh(z.astype(jnp.float32)).astype(z.dtype), x @ w)


def coarse_in_cond(w, x):
    return lax.cond(x[0, 0] > 9, lambda w: x @ w, lambda w: coarse_float32(w, x), w)


def coarse_in_checkpoint(w, x):
    return jax.checkpoint(coarse_float32)(w, x)


def coarse_in_vmap(w, x):
    return jax.vmap(coarse_float32, (None, 0))(w, x)


@jax.custom_jvp
def _rounded_tanh(z):
    return jnp.tanh(z.astype(jnp.float32)).astype(z.dtype)


_rounded_tanh.defjvp(lambda p, t: (_rounded_tanh(*p), t[0]))


def coarse_in_custom_jvp(w, x):
    return _rounded_tanh(x @ w)


@jax.custom_vjp
def _rounded_sine(z):
    return jnp.sin(z.astype(jnp.float32)).astype(z.dtype)


_rounded_sine.defvjp(lambda z: (_rounded_sine(z), z), lambda z, g: (g * jnp.cos(z),))


def coarse_in_custom_vjp(w, x):
    return _rounded_sine(x @ w)


def coarse_by_a_carry_that_data_reach_later(w, x):
    """In the first round of the loop the rounded carry is still a constant."""

    def body(carry, row):
        total, last = carry
        return (total + row @ w, total.astype(jnp.bfloat16)), last

    start = jnp.zeros(3, jnp.float64), jnp.zeros(3, jnp.bfloat16)
    return lax.scan(body, start, x)[1].astype(jnp.float64)


def coarse_by_a_while_carry(w, x):
    def body(carry):
        i, total, last = carry
        return i + 1, total + x[i] @ w, total.astype(jnp.float32)

    start = 0, jnp.zeros(3, jnp.float64), jnp.zeros(3, jnp.float32)
    bound = 3 + 0 * x[0, 0]
    return lax.while_loop(lambda c: c[0] < bound, body, start)[2].astype(jnp.float64)


COARSE = {
    coarse_float32: ("float32", "convert_element_type"),
    coarse_bfloat16_last: ("bfloat16", "convert_element_type"),
    coarse_float16: ("float16", "convert_element_type"),
    coarse_float32_then_bfloat16: ("bfloat16", "convert_element_type"),
    coarse_complex: ("complex64", "convert_element_type"),
    coarse_in_jit: ("float32", "convert_element_type"),
    coarse_in_scan: ("float32", "convert_element_type"),
    coarse_in_loop: ("float32", "convert_element_type"),
    coarse_in_cond: ("float32", "convert_element_type"),
    coarse_in_checkpoint: ("float32", "convert_element_type"),
    coarse_in_vmap: ("float32", "convert_element_type"),
    coarse_in_custom_jvp: ("float32", "convert_element_type"),
    coarse_in_custom_vjp: ("float32", "convert_element_type"),
    coarse_by_a_carry_that_data_reach_later: ("bfloat16", "convert_element_type"),
    coarse_by_a_while_carry: ("float32", "convert_element_type"),
}

FROZEN = RNG.standard_normal((3, 3)).astype(np.float32)


def fine_plain(w, x):
    return jnp.tanh(x @ w)


def fine_literals(w, x):
    return jnp.float32(0.5) * (x @ w) + np.float32(1.5) + 2 + jnp.zeros(3, jnp.float32)


def fine_frozen_weights(w, x):
    return (x @ w) @ jnp.asarray(FROZEN)


def fine_position_codes(w, x):
    return jnp.sin(jnp.arange(4, dtype=jnp.float32) / 7) * x @ w


def fine_fixed_noise(w, x):
    return x @ w + jax.random.normal(jax.random.key(0), (3,), jnp.float32)


def fine_mask_of_data(w, x):
    z = x @ w
    return z * (x[:, :1] > 0).astype(jnp.float32) * (2 - (z > 99).astype(jnp.float32))


def fine_one_hot_of_an_argmax(w, x):
    return x @ w * jax.nn.one_hot(jnp.argmax(x[:, :3], axis=1), 3, dtype=jnp.float32) + x @ w


def fine_constant_from_jit(w, x):
    z, c = jax.jit(lambda w: (x @ w, jnp.full(3, 0.3, jnp.float32)))(w)
    return z * jnp.sin(c)


def fine_constant_carry(w, x):
    def body(carry, row):
        total, decay = carry
        return (total + decay * (row @ w), decay * jnp.float32(0.7)), None

    start = jnp.zeros(3, jnp.float64), jnp.ones((), jnp.float32)
    return lax.scan(body, start, x)[0][0]


def fine_constant_into_cond(w, x):
    c = jnp.full(3, 0.3, jnp.float32)
    return lax.cond(x[0, 0] > 9, lambda w, c: x @ w, lambda w, c: x @ w * jnp.sin(c), w, c)


def fine_wider_and_back(w, x):
    return jnp.exp(-(x**2)) @ w + jax.nn.gelu(x) @ w + jax.scipy.special.erf(x @ w)


FINE = (
    fine_plain,
    fine_literals,
    fine_frozen_weights,
    fine_position_codes,
    fine_fixed_noise,
    fine_mask_of_data,
    fine_one_hot_of_an_argmax,
    fine_constant_from_jit,
    fine_constant_carry,
    fine_constant_into_cond,
    fine_wider_and_back,
)


def name_of(value):
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("network", COARSE, ids=name_of)
def test_rounding_below_float64_is_found_wherever_it_hides(network):
    dtype, operation = COARSE[network]
    assert not resolves_small_steps(lambda w: network(w, jnp.asarray(X)), W)
    got = choose_precision(network, W, X)
    assert got.dtype == np.float64
    assert got.eps == EPS["float32" if dtype == "complex64" else dtype]
    for key in (dtype, f"'{operation}'", "lift_dtype=True"):
        assert key in got.warning


@pytest.mark.parametrize("network", FINE, ids=name_of)
def test_constants_and_integers_do_not_count_as_rounding(network):
    assert resolves_small_steps(lambda w: network(w, jnp.asarray(X)), W)
    assert choose_precision(network, W, X) == DOUBLE
    assert choose_precision(network, W.astype(np.float32), jnp.asarray(X, jnp.float32)) == DOUBLE


# Networks in flax


class MaskedAttention(nn.Module):
    """Token masks are float32 by flax's default and made of integers alone."""

    @nn.compact
    def __call__(self, tokens):
        h = nn.Embed(5, 4)(tokens)
        padding = nn.make_attention_mask(tokens > 0, tokens > 0)
        mask = nn.combine_masks(nn.make_causal_mask(tokens), padding)
        h = nn.MultiHeadDotProductAttention(2)(h, mask=mask)
        return h * (tokens > 0).astype(jnp.float32)[..., None]


class AdditiveMask(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        penalty = (1.0 - (tokens > 0).astype(jnp.float32)) * -0.3
        codes = jnp.sin(tokens.astype(jnp.float32)[..., None] / jnp.arange(1.0, 5.0))
        return nn.Dense(3)(nn.Embed(5, 4)(tokens) + codes) + penalty[..., None]


def flax_network(module, inputs):
    variables = gaussian_variables(module, inputs)
    others = {k: v for k, v in variables.items() if k != "params"}

    def network(params, inputs):
        return module.apply({"params": params, **others}, inputs)

    return network, variables["params"]


@pytest.mark.parametrize(
    ("module", "inputs", "dtype"),
    [
        (nn.Dense(3), SEQUENCES, None),
        (nn.Dense(3, dtype=jnp.float32), SEQUENCES, "float32"),
        (nn.Dense(3, dtype=jnp.bfloat16), SEQUENCES, "bfloat16"),
        (nn.Dense(3, param_dtype=jnp.bfloat16), SEQUENCES, None),
        (nn.Sequential([nn.Dense(3), nn.Dense(2, dtype=jnp.float16)]), SEQUENCES, "float16"),
        (nn.Conv(3, (2,)), SEQUENCES, None),
        (nn.Conv(3, (2,), dtype=jnp.float32), SEQUENCES, "float32"),
        (nn.MultiHeadDotProductAttention(2), SEQUENCES, None),
        (nn.MultiHeadDotProductAttention(2, dtype=jnp.float32), SEQUENCES, "float32"),
        (nn.BatchNorm(use_running_average=True), SEQUENCES, None),
        (nn.BatchNorm(use_running_average=True, dtype=jnp.float32), SEQUENCES, "float32"),
        (nn.LayerNorm(), SEQUENCES, None),
        (nn.Embed(5, 4), TOKENS, None),
        (nn.Embed(5, 4, dtype=jnp.float32), TOKENS, "float32"),
        (MaskedAttention(), TOKENS, None),
        (AdditiveMask(), TOKENS, None),
    ],
    ids=[
        "Dense",
        "Dense-float32",
        "Dense-bfloat16",
        "Dense-stored-bfloat16",
        "Dense-mixed",
        "Conv",
        "Conv-float32",
        "attention",
        "attention-float32",
        "BatchNorm",
        "BatchNorm-float32",
        "LayerNorm",
        "Embed",
        "Embed-float32",
        "masked-attention",
        "additive-mask",
    ],
)
def test_flax_modules(module, inputs, dtype):
    network, params = flax_network(module, inputs)
    with jax.enable_x64(True):
        assert resolves_small_steps(lambda p: network(p, as_double(inputs)), params) == (
            dtype is None
        )
    got = choose_precision(network, params, inputs)
    assert got.dtype == np.float64
    assert got.eps == EPS[dtype or "float64"]
    assert (got.warning is None) == (dtype is None)
    assert dtype is None or dtype in got.warning


def as_double(inputs):
    return inputs.astype(np.float64) if inputs.dtype.kind == "f" else inputs


def test_recurrent_carries_in_float32_are_measured_as_they_are():
    network, params = flax_network(nn.RNN(nn.GRUCell(3)), SEQUENCES)
    with jax.enable_x64(True), pytest.raises(TypeError, match="carry"):
        jax.eval_shape(network, jax.tree.map(np.float64, params), as_double(SEQUENCES))
    got = choose_precision(network, params, SEQUENCES)
    assert (got.dtype, got.eps) == (None, EPS["float32"])
    for key in ("float64", "TypeError", "carry", "1.2e-07", "lift_dtype=True"):
        assert key in got.warning
    with got.scope():
        assert jax.eval_shape(network, params, SEQUENCES).dtype == jnp.float32


def test_a_carry_stored_in_float64_follows_the_parameters():
    module = nn.RNN(nn.GRUCell(3, param_dtype=jnp.float64))
    with jax.enable_x64(True):
        network, params = flax_network(module, as_double(SEQUENCES))
        assert resolves_small_steps(lambda p: network(p, as_double(SEQUENCES)), params)
    assert choose_precision(network, params, SEQUENCES) == DOUBLE


def test_host_arrays_of_float64_do_not_make_a_native_float32_trace_fine():
    """With x64 off JAX takes float64 host arrays as float32; so must the eps."""

    def network(w, x):
        return x @ w * lax.scan(lambda c, a: (c + a.sum(), None), jnp.float32(0), w)[0]

    got = choose_precision(network, W, X)
    assert (got.dtype, got.eps) == (None, EPS["float32"])


def test_an_error_in_the_users_own_precision_is_the_users():
    def network(w, x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine"):
        choose_precision(network, W, X)


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [*EPS.items(), ("complex64", 2.0**-23), ("complex128", 2.0**-52), ("int32", 2.0**-52)],
    ids=str,
)
def test_eps_is_the_spacing_at_one(dtype, eps):
    assert eps_of(jnp.dtype(dtype)) == eps


# Lifting and scopes


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (jnp.ones(2, jnp.bfloat16), np.float64),
        (np.ones(2, np.float32), np.float64),
        (np.ones(2, np.complex64), np.complex128),
        (np.ones(2, np.int32), np.int32),
        (np.ones(2, bool), np.bool_),
        (1.5, np.float64),
    ],
    ids=str,
)
def test_lifting_changes_floats_alone(leaf, dtype):
    assert DOUBLE.lift(leaf).dtype == dtype
    assert NATIVE.lift(leaf).dtype == np.asarray(leaf).dtype
    np.testing.assert_array_equal(DOUBLE.lift(leaf), np.asarray(leaf))


@pytest.mark.parametrize("precision", [DOUBLE, NATIVE], ids=["double", "native"])
@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.int32], ids=lambda d: np.dtype(d).name
)
def test_lifted_arrays_are_copies(precision, dtype):
    mine = np.ones(3, dtype)
    lifted = precision.lift(mine)
    mine[:] = 7
    np.testing.assert_array_equal(lifted, np.ones(3))


OPTIONS = (
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_matmul_precision",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_disable_jit",
    "jax_transfer_guard",
)


def options():
    return {name: getattr(jax.config, name) for name in OPTIONS}


@pytest.mark.parametrize("precision", [DOUBLE, NATIVE], ids=["double", "native"])
def test_a_scope_leaves_every_option_as_it_was(precision):
    before = options()
    with pytest.raises(KeyError), precision.scope():
        raise KeyError
    assert options() == before
    with jax.enable_x64(True), jax.debug_nans(True), jax.numpy_dtype_promotion("strict"):
        inside = options()
        with precision.scope():
            assert not jax.config.jax_debug_nans
            assert jax.config.jax_enable_x64
        assert options() == inside
    assert options() == before


STRICT = {
    "strict": lambda: jax.numpy_dtype_promotion("strict"),
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "no-jit": jax.disable_jit,
    "transfers": lambda: jax.transfer_guard("disallow"),
    "x64": lambda: jax.enable_x64(True),
    "no-x64": lambda: jax.enable_x64(False),
}


@pytest.mark.parametrize("context", STRICT.values(), ids=STRICT)
def test_a_double_scope_computes_in_float64_under_every_setting_of_the_user(context):
    with context(), DOUBLE.scope():
        network = jax.jit(lambda w, x: x @ w + jnp.ones(3, jnp.float32) / np.zeros(()))
        z = network.lower(W, X).compile()(W, X)
    assert z.dtype == np.float64
    assert np.isinf(np.asarray(z)).all()
    assert options()["jax_enable_x64"] is False


def test_a_native_scope_keeps_the_users_x64():
    with NATIVE.scope():
        assert jnp.ones(2).dtype == jnp.float32
    with jax.enable_x64(True), NATIVE.scope():
        assert jnp.ones(2).dtype == jnp.float64


def test_products_in_a_scope_ignore_a_lower_matmul_precision():
    with jax.default_matmul_precision("bfloat16"), DOUBLE.scope():
        jaxpr = str(jax.make_jaxpr(jnp.matmul)(X, W))
    assert "HIGHEST" in jaxpr


def test_scopes_are_local_to_their_thread():
    """A measurement in a thread does not turn on float64 in the thread that trains."""
    entered, leave, seen = threading.Event(), threading.Event(), {}

    def measure():
        with DOUBLE.scope():
            entered.set()
            leave.wait(30)
            seen["dtype"] = (jnp.asarray(X) @ jnp.asarray(W)).dtype

    worker = threading.Thread(target=measure)
    worker.start()
    assert entered.wait(30)
    trained = jax.jit(lambda w, x: jnp.tanh(x @ w))(W, X)
    leave.set()
    worker.join()
    assert trained.dtype == jnp.float32
    assert seen["dtype"] == jnp.float64


def test_a_precision_is_a_value():
    assert Precision(np.dtype(np.float64), EPS["float64"]) == DOUBLE
    assert hash(Precision(None, EPS["float32"])) != hash(NATIVE)
