"""Activations in all kinds of programs: those that are recognized, as what, with what slopes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from rankmon import Problem, RankmonWarning
from rankmon.network.elementwise import found_activations
from rankmon.network.known_activations import GRID, Activation, recognized

RNG = np.random.default_rng(0)
HAND_WRITTEN = {
    "max": (lambda z: jnp.maximum(z, 0), "ReLU"),
    "select": (lambda z: jnp.where(z > 0, z, 0), "ReLU"),
    "mask": (lambda z: z * (z > 0), "ReLU"),
    "halves": (lambda z: (z + jnp.abs(z)) / 2, "ReLU"),
    "negated": (lambda z: jax.nn.relu(-z), "ReLU"),
    "leaky max": (lambda z: jnp.maximum(z, 0.2 * z), "leaky ReLU"),
    "leaky sum": (lambda z: jnp.maximum(z, 0) + 0.1 * jnp.minimum(z, 0), "leaky ReLU"),
    "nearly ReLU": (lambda z: jnp.maximum(z, 1e-7 * z), "leaky ReLU"),
    "swish": (lambda z: z * jax.nn.sigmoid(z), "SiLU"),
    "quotient": (lambda z: z / (1 + jnp.exp(-z)), "SiLU"),
    "quick GELU": (lambda z: z * jax.nn.sigmoid(1.702 * z), "SiLU"),
    "erf": (lambda z: 0.5 * z * (1 + jax.lax.erf(z / np.sqrt(2))), "GELU"),
    "logistic": (lambda z: 1 / (1 + jnp.exp(-z)), "sigmoid"),
    "half tanh": (lambda z: (jnp.tanh(z) + 1) / 2, "sigmoid"),
    "exponentials": (lambda z: (jnp.exp(2 * z) - 1) / (jnp.exp(2 * z) + 1), "tanh"),
    "scaled": (lambda z: 1.7 * jnp.tanh(z * 2 / 3), "tanh"),
    "elu": (lambda z: jnp.where(z > 0, z, jnp.exp(jnp.minimum(z, 0)) - 1), "ELU"),
}
OF_JAX = {
    "relu": (jax.nn.relu, "ReLU"),
    "leaky_relu": (jax.nn.leaky_relu, "leaky ReLU"),
    "leaky_relu 0.3": (lambda z: jax.nn.leaky_relu(z, 0.3), "leaky ReLU"),
    "elu": (jax.nn.elu, "ELU"),
    "elu 0.4": (lambda z: jax.nn.elu(z, 0.4), "ELU"),
    "celu": (lambda z: jax.nn.celu(z, 2.0), "ELU"),
    "selu": (jax.nn.selu, "ELU"),
    "tanh": (jax.nn.tanh, "tanh"),
    "sigmoid": (jax.nn.sigmoid, "sigmoid"),
    "silu": (jax.nn.silu, "SiLU"),
    "swish": (jax.nn.swish, "SiLU"),
    "gelu": (lambda z: jax.nn.gelu(z, approximate=False), "GELU"),
    "gelu tanh": (jax.nn.gelu, "GELU (tanh)"),
}
KNOWN = OF_JAX | HAND_WRITTEN
UNKNOWN = {
    "identity": lambda z: z,
    "zero": lambda z: 0 * z,
    "constant": lambda z: 0 * z + 1,
    "abs": jnp.abs,
    "square": jnp.square,
    "squared relu": lambda z: jax.nn.relu(z) ** 2,
    "relu6": jax.nn.relu6,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "soft_sign": jax.nn.soft_sign,
    "squareplus": jax.nn.squareplus,
    "sin": jnp.sin,
    "erf": jax.lax.erf,
    "arctan": jnp.arctan,
    "shifted relu": lambda z: jax.nn.relu(z - 0.1),
    "raised relu": lambda z: jax.nn.relu(z) + 0.1,
    "clipped far away": lambda z: jnp.clip(z, -200, 200),
    "shrink": lambda z: z - jnp.tanh(z),
    "tanh of relu": lambda z: jnp.tanh(jax.nn.relu(z)),
    "bent outwards": lambda z: jnp.where(z > 0, z, -0.2 * z),
    "nearly GELU": lambda z: jax.nn.gelu(z) + 1e-3 * jnp.exp(-(z**2)),
    "undefined": lambda z: z / 0,
}


def found(apply, params, x, **options):
    problem = Problem(apply, loss="mse", inputs=x, targets=np.zeros(_shape(apply, params, x)))
    return found_activations(problem.flat(params))


def _shape(apply, params, x):
    return jax.eval_shape(apply, params, x).shape


def names_in(apply, params, x):
    return [one.function.name for one in found(apply, params, x)]


# Recognition by values


@pytest.mark.parametrize(("function", "name"), KNOWN.values(), ids=KNOWN.keys())
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["double", "single"])
def test_a_function_is_recognized_with_its_slopes(function, name, dtype):
    with jax.enable_x64(True):
        activation = recognized(np.asarray(function(jnp.asarray(GRID, dtype))))
        assert activation is not None
        assert activation.name == name
        z = np.linspace(-7, 7, 4001)
        values = function(jnp.asarray(z))
        np.testing.assert_allclose(activation(z), values, rtol=2e-6, atol=2e-6)
        slopes = np.abs(jax.vmap(jax.grad(function))(z))
        expected = slopes / np.max(slopes)  # every function here has its steepest slope within
        smooth = np.abs(z) > 1e-9  # at kinks, automatic differentiation takes a mean
        np.testing.assert_allclose(
            np.asarray(activation.relative_slope(jnp.asarray(z)))[smooth],
            expected[smooth],
            atol=3e-5,
        )


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_other_functions_are_not_recognized(function):
    with jax.enable_x64(True):
        assert recognized(np.asarray(function(jnp.asarray(GRID)))) is None


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "SiLU", "GELU", "GELU (tanh)", "ELU"])
@pytest.mark.parametrize("inner", [1 / 16, -0.3, 1.0, 4.0])
@pytest.mark.parametrize("outer", [1e-3, -1.0, 50.0])
def test_factors_are_found(name, inner, outer):
    activation = Activation(name, inner, outer, 1.7 if name == "ELU" else 0.0)
    same = recognized(activation(GRID))
    assert same is not None
    assert same.name == name
    if name == "tanh":  # tanh is odd
        inner, outer = abs(inner), outer * np.sign(inner)
    assert (same.inner, same.outer) == pytest.approx((inner, outer))
    assert same.negative == pytest.approx(activation.negative)


def test_slopes_are_finite_at_any_argument():
    z = jnp.array([-3e38, -1e30, 0, 1e30, 3e38])
    for function, _ in KNOWN.values():
        activation = recognized(np.asarray(function(jnp.asarray(GRID, jnp.float32))))
        slopes = activation.relative_slope(z)
        assert jnp.all((slopes >= 0) & (slopes <= 1 + 1e-6))


# Recognition in programs

PARAMS = {"W": RNG.standard_normal((4, 5)), "b": RNG.standard_normal(5)}
PARAMS["V"] = RNG.standard_normal((5, 3))
X = RNG.standard_normal((6, 4))


def perceptron(activation):
    return lambda p, x: activation(x @ p["W"] + p["b"]) @ p["V"]


@pytest.mark.parametrize(("function", "name"), KNOWN.values(), ids=KNOWN.keys())
def test_an_activation_is_found_once(function, name):
    assert names_in(perceptron(function), PARAMS, X) == [name]


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unknown_activation_is_not_found(function):
    assert names_in(perceptron(function), PARAMS, X) == []


def gated_halves(z):
    """Both halves come from one operation with two results."""
    one, other, rest = jnp.split(z, [2, 4], axis=1)
    return jnp.concatenate([jax.nn.silu(one) * other, one, rest], axis=1)


@jax.custom_jvp
def relu_with_rule(z):
    return jnp.maximum(z, 0)


relu_with_rule.defjvps(lambda tangent, _, z: tangent * (z > 0))


@jax.custom_vjp
def tanh_with_rule(z):
    return jnp.tanh(z)


tanh_with_rule.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: ((1 - jnp.tanh(z) ** 2) * g,))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.jit(jax.nn.silu), "SiLU"),
        (jax.checkpoint(jax.nn.gelu), "GELU (tanh)"),
        (jax.jit(jax.checkpoint(jax.jit(lambda z: z * jax.nn.sigmoid(z)))), "SiLU"),
        (relu_with_rule, "ReLU"),
        (tanh_with_rule, "tanh"),
        (jax.vmap(jax.nn.elu), "ELU"),
        (jnp.vectorize(jax.nn.sigmoid), "sigmoid"),
    ],
    ids=["jit", "remat", "nested", "custom_jvp", "custom_vjp", "vmap", "vectorize"],
)
def test_calls_are_entered(function, name):
    assert names_in(perceptron(function), PARAMS, X) == [name]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (lambda z: jnp.tanh(jax.lax.stop_gradient(z)), ["tanh"]),
        (lambda z: jax.nn.relu(z).astype(jnp.float32).astype(z.dtype), ["ReLU"]),
        (lambda z: jax.nn.relu(z.reshape(2, 3, 5)).reshape(6, 5), ["ReLU"]),
        (lambda z: jax.nn.relu(z) * jnp.arange(5.0), ["ReLU"]),
        (lambda z: jax.nn.relu(z) + z[::-1], ["ReLU"]),
        (lambda z: jax.nn.relu(z) + 0.5 * z, ["leaky ReLU"]),  # with slopes 1.5 and 0.5
        (lambda z: jnp.where(jnp.arange(5) > 2, jax.nn.relu(z) / 0.5, 0), ["ReLU"]),
        (lambda z: jnp.tanh(z) + jax.nn.relu(z)[::-1], ["tanh", "ReLU"]),
        (lambda z: jax.nn.relu(z) + jax.nn.relu(-z)[::-1], ["ReLU", "ReLU"]),
        (lambda z: jax.nn.relu(z)[::-1] + (2 * jax.nn.relu(z))[:, ::-1], ["ReLU"]),
        (lambda z: jax.nn.sigmoid(z) * z[::-1], ["sigmoid"]),
        (lambda z: gated_halves(z), ["SiLU"]),
        (lambda z: jax.nn.softmax(z), []),
        (lambda z: (z - z.mean()) * jax.lax.rsqrt(z.var() + 1e-6), []),
        (lambda z: jax.lax.cond(z.sum() > 0, jnp.tanh, jnp.sin, z), []),
        (lambda z: jax.lax.fori_loop(0, 2, lambda _, y: jnp.tanh(y), z), []),
        (lambda z: z + jax.random.normal(jax.random.key(0), z.shape), []),
        (lambda z: jax.nn.relu(jnp.round(z).astype(int)).astype(float), []),
    ],
    ids=[
        "stopped", "converted", "reshaped", "scaled by units", "residual reversed", "residual",
        "dropout", "two functions", "both signs", "twice", "gate", "halves", "softmax",
        "normalization", "cond", "loop", "noise", "integers",
    ],
)  # fmt: skip
def test_parts_of_programs(activation, expected):
    assert names_in(perceptron(activation), PARAMS, X) == expected


@pytest.mark.parametrize(("function", "name"), OF_JAX.values(), ids=OF_JAX.keys())
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_activations_in_half_precision(function, name, dtype):
    def apply(p, x):
        z = x.astype(dtype) @ p["W"].astype(dtype) + p["b"].astype(dtype)
        return function(z).astype(jnp.float32) @ p["V"].astype(jnp.float32)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankmonWarning)
        assert names_in(apply, PARAMS, X) == [name]


def test_callbacks_without_results_are_passed():
    def apply(p, x):
        jax.debug.callback(lambda z: None, x)
        return jnp.tanh(x @ p["W"]) @ p["V"]

    assert names_in(apply, PARAMS, X) == ["tanh"]


def test_activations_of_inputs_and_parameters():
    def apply(p, x):
        return jnp.tanh(jax.nn.relu(x) @ (p["W"] * jax.nn.sigmoid(p["b"]))) @ p["V"]

    assert names_in(apply, PARAMS, X) == ["tanh"]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Conv(4, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.silu(nn.Conv(4, (3, 3))(x))
        x = nn.remat(nn.Dense)(5)(x.reshape(len(x), -1))
        x = nn.Dropout(0.3, deterministic=True)(nn.elu(nn.LayerNorm()(x)))
        x = nn.PReLU()(nn.Dense(5)(x))
        return nn.sigmoid(nn.Dense(3)(x))


def test_layers_of_linen():
    x = RNG.standard_normal((6, 5, 5, 2))
    variables = Block().init(jax.random.key(0), x)
    problem = Problem.from_linen(Block(), loss="mse", inputs=x, targets=np.zeros((6, 3)))
    names = [one.function.name for one in found_activations(problem.flat(variables))]
    # LayerNorm takes max(0, variance), which is of no layer; the slope of PReLU is a parameter.
    assert names == ["GELU (tanh)", "SiLU", "ReLU", "ELU", "sigmoid"]


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(4, 5, rngs=rngs)
        self.two = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.leaky_relu(self.one(x)))


def test_layers_of_nnx():
    model = Perceptron(nnx.Rngs(0))
    problem = Problem.from_nnx(model, loss="mse", inputs=X, targets=np.zeros((6, 3)))
    (one,) = found_activations(problem.flat(model))
    assert one.function.name == "leaky ReLU"
    assert one.function.negative == pytest.approx(0.01)
