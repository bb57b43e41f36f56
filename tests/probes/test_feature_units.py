"""Ranks of features and units in networks: against networks written out by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy.special import erf, expit

from oracles import gaussian_variables
from rankmon import FeaturesProbe, Problem, RankMonitor, Tolerance

RNG = np.random.default_rng(0)
RANKS = (
    "rank_features",
    "effective_rank_features",
    "stable_rank_features",
    "srank_features",
    "components_features",
    "feature_rank",
    "norm_features",
)
UNITS = ("dormant_share_0.1", "dormant_share_0.025", "saturated_share")


def measured(problem, params, **options):
    with RankMonitor(problem, every=1, probes=[FeaturesProbe(**options)]) as monitor:
        return monitor(0, params).scalars


def described(problem, params, **options):
    facts = FeaturesProbe(**options).prepare(problem.flat(params)).describe().facts
    return {fact.name: fact.text for fact in facts}


def by_the_formulas(X):
    """The ranks of features as their sources write them."""
    X = np.asarray(X, np.float64)
    sigma = np.linalg.svd(X, compute_uv=False)
    p = sigma[sigma > 0] / np.sum(sigma)
    ks = range(1, len(sigma) + 1)
    return {
        "rank_features": np.linalg.matrix_rank(X),
        "effective_rank_features": np.exp(-np.sum(p * np.log(p))),
        "stable_rank_features": np.sum(X**2) / sigma[0] ** 2,
        "srank_features": min(k for k in ks if np.sum(sigma[:k]) / np.sum(sigma) >= 0.99),
        "components_features": min(k for k in ks if np.sum(sigma[k:] ** 2) <= 0.01 * np.sum(X**2)),
        "feature_rank": np.sum(np.linalg.svd(X / np.sqrt(len(X)), compute_uv=False) > 0.01),
        "norm_features": np.mean(np.sqrt(np.sum(X**2, axis=1))),
    }


def family(scalars, name):
    return {tag.split("/", 1)[1]: v for tag, v in scalars.items() if tag.startswith(f"{name}/")}


def agree(scalars, layer, X):
    for name, expected in by_the_formulas(X).items():
        assert scalars[f"{name}/{layer}"] == pytest.approx(expected, rel=1e-9), (name, layer)


def relu_mlp(params, x):
    for W in params[:-1]:
        x = jax.nn.relu(x @ W)
    return x @ params[-1]


def weights(*dims):
    return [RNG.standard_normal(pair) for pair in zip(dims, dims[1:], strict=False)]


def of(apply, x, k, **options):
    return Problem(apply, loss="mse", inputs=x, targets=np.zeros((len(x), k)), **options)


# Ranks


@pytest.mark.parametrize("n", [1, 4, 40])
@pytest.mark.parametrize("centered", [False, True], ids=["raw", "centered"])
def test_ranks_of_each_layers_input(n, centered):
    params = weights(6, 9, 5, 3)
    x = RNG.standard_normal((n, 6)) + 2
    scalars = measured(of(relu_mlp, x, 3), params, centered=centered)
    for i, W in enumerate(params):
        X = x - np.mean(x, axis=0) if centered else x
        if centered and n == 1:
            assert [scalars[f"{name}/{i}"] for name in RANKS[3:]] == [0, 0, 0, 0]
            assert np.isnan(scalars[f"effective_rank_features/{i}"])
        else:
            agree(scalars, i, X)
        x = np.maximum(x @ W, 0)


def test_centering_takes_one_from_the_rank_at_most():
    x = RNG.standard_normal((30, 3)) @ RNG.standard_normal((3, 6))
    moved = x + RNG.standard_normal(6)
    params = weights(6, 3)
    raw, shifted = (measured(of(relu_mlp, X, 3), params) for X in (x, moved))
    assert (raw["rank_features/0"], shifted["rank_features/0"]) == (3, 4)
    for X in (x, moved):
        assert measured(of(relu_mlp, X, 3), params, centered=True)["rank_features/0"] == 3


def test_equal_rows_are_zero_once_centered():
    """Their difference from the mean is a rounding error, which has no rank."""
    x = np.tile(RNG.standard_normal(6) * 1e3 + 0.1, (7, 1))
    scalars = measured(of(relu_mlp, x, 3), weights(6, 4, 3), centered=True)
    for i in range(2):
        tags = (f"rank_features/{i}", f"rank_low/features/{i}", *(f"{n}/{i}" for n in RANKS[3:6]))
        assert [scalars[tag] for tag in tags] == [0] * 5
        assert np.isnan(scalars[f"stable_rank_features/{i}"])
        assert scalars[f"norm_features/{i}"] < 1e-9


def test_a_dead_layer_has_rank_zero():
    scalars = measured(of(relu_mlp, -np.ones((5, 2)), 3), [np.ones((2, 4)), np.ones((4, 3))])
    assert [scalars[f"{name}/1"] for name in (RANKS[0], *RANKS[3:])] == [0] * 5
    assert np.isnan([scalars[f"{name}/1"] for name in RANKS[1:3]]).all()
    assert [scalars[f"{name}/0"] for name in UNITS[:2]] == [1, 1]
    assert scalars["dead_share/0"] == 1


def test_the_cut_is_relative_to_the_norm_before_centering():
    x = np.diag([3.0, 1.0, 1e-3]) + 1
    centered = x - x.mean(0)
    sigma = np.linalg.svd(centered, compute_uv=False)
    scale = max(sigma[0], np.sqrt(3) * np.linalg.norm(x.mean(0)))
    tolerance = Tolerance(relative=sigma[1] / scale * 1.001)
    assert tolerance.relative < sigma[1] / sigma[0]
    options = {"tolerance": tolerance, "centered": True}
    assert measured(of(relu_mlp, x, 3), weights(3, 3), **options)["rank_features/0"] == 1


def test_centered_is_a_bool():
    with pytest.raises(TypeError, match="centered"):
        FeaturesProbe(centered="yes")


# Units


def leaky(z):
    return np.where(z > 0, z, 0.01 * z)


def gelu(z):
    return z * (1 + erf(z / np.sqrt(2))) / 2


ACTIVATIONS = {
    # name: in JAX, in NumPy, its derivative, the largest derivative
    "relu": (jax.nn.relu, lambda z: np.maximum(z, 0), None, None),
    "tanh": (jnp.tanh, np.tanh, lambda z: np.cosh(z) ** -2.0, 1),
    "sigmoid": (jax.nn.sigmoid, expit, lambda z: expit(z) * expit(-z), 1 / 4),
    "silu": (
        jax.nn.silu,
        lambda z: z * expit(z),
        lambda z: expit(z) + z * expit(z) * expit(-z),
        1.09984,
    ),
    "gelu": (
        lambda z: jax.nn.gelu(z, approximate=False),
        gelu,
        lambda z: (gelu(z + 1e-6) - gelu(z - 1e-6)) / 2e-6,
        1.12890,
    ),
    "elu": (
        jax.nn.elu,
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.exp(np.minimum(z, 0)),
        1,
    ),
    "leaky_relu": (jax.nn.leaky_relu, leaky, lambda z: np.where(z > 0, 1, 0.01), 1),
}
SHIFTS = np.array([0, -1, -3, -8, -40, 1, 3, 8, 40, -0.75, 0, 0])
SCALES = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 1e-3, 1e-2, 1e-4])


def shares(h, slopes=None):
    """The shares of dormant units by equation 1 of Sokar et al., and of saturated ones."""
    magnitudes = np.mean(np.abs(h), axis=tuple(range(h.ndim - 1)))
    scores = magnitudes / (np.sum(magnitudes) / h.shape[-1])
    result = {f"dormant_share_{tau}": np.mean(scores <= tau) for tau in (0.1, 0.025)}
    if slopes is not None:
        flat = [not any(s >= 0.05 for s in unit) for unit in slopes.reshape(-1, h.shape[-1]).T]
        result["saturated_share"] = np.mean(flat)
    return result


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_units_after_each_activation(name):
    in_jax, in_numpy, derivative, largest = ACTIVATIONS[name]
    x = RNG.standard_normal((20, 5))
    W = RNG.standard_normal((5, 12)) * SCALES / 4
    params = {"W": W, "b": SHIFTS, "V": RNG.standard_normal((12, 3))}
    problem = of(lambda p, x: in_jax(x @ p["W"] + p["b"]) @ p["V"], x, 3)
    scalars, z = measured(problem, params), x @ W + SHIFTS
    expected = shares(in_numpy(z), derivative and np.abs(derivative(z)) / largest)
    assert {tag for tag in UNITS if f"{tag}/W" in scalars} == expected.keys()
    for tag, share in expected.items():
        assert scalars[f"{tag}/W"] == share, tag
    if derivative:
        assert 0 < expected["saturated_share"] < 1
    assert ("dead_units/W" in scalars) == (name == "relu")


@pytest.mark.parametrize(("slope", "expected"), [(0.01, 0.5), (0.049, 0.5), (0.051, 0), (0.3, 0)])
def test_a_leaky_relu_is_saturated_if_it_is_negative_on_all_and_its_slope_is_small(slope, expected):
    problem = of(lambda p, x: jax.nn.leaky_relu(x @ p, slope), np.ones((3, 1)), 2)
    assert measured(problem, np.array([[1.0, -1.0]]))["saturated_share/params"] == expected


def test_one_unit_is_dormant_only_if_it_is_zero():
    problem = of(lambda p, x: jnp.tanh(x @ p), np.ones((3, 1)), 1)
    for value, share in ((1e-9, 0), (0.0, 1)):
        scalars = measured(problem, np.array([[value]]))
        assert [scalars[f"{tag}/params"] for tag in UNITS] == [share, share, 0]


def test_examples_of_weight_zero_do_not_count():
    x = np.array([[1.0, 0], [0, 30.0], [0, 30.0]])
    apply = lambda p, x: jnp.tanh(x @ p)  # noqa: E731
    scalars = [
        measured(of(apply, x, 2, weights=w), np.eye(2)) for w in (None, np.array([2.0, 0, 0]))
    ]
    assert [one["rank_features/params"] for one in scalars] == [2, 1]
    assert [one["dormant_share_0.1/params"] for one in scalars] == [0, 0.5]
    assert [one["norm_features/params"] for one in scalars] == [pytest.approx(61 / 3), 1]


def test_activations_of_one_layer_are_numbered():
    def apply(p, x):
        z = x @ p["W"]
        return (jax.nn.relu(z) + jnp.tanh(z)[::-1]) @ p["V"]

    params = {"W": RNG.standard_normal((4, 5)), "V": RNG.standard_normal((5, 3))}
    problem = of(apply, RNG.standard_normal((6, 4)), 3)
    scalars = measured(problem, params)
    assert family(scalars, "dormant_share_0.1").keys() == {"W", "W (2)"}
    (name,) = family(scalars, "saturated_share")
    text = described(problem, params)["layers with dormant and saturated units"]
    assert f"{name} (tanh)" in text


def test_units_belong_to_the_layer_that_the_activation_depends_on():
    def apply(p, x):  # the gate comes first in the program, and has the width of the other layer
        gate, up = x @ p["gate"], x @ p["up"]
        return (jax.nn.silu(gate) * up) @ p["down"]

    params = {"gate": RNG.standard_normal((4, 5)), "up": RNG.standard_normal((4, 5))}
    params |= {"down": RNG.standard_normal((5, 3))}
    params["gate"][:, 2:] = 1e-9
    x = RNG.standard_normal((6, 4))
    scalars = measured(of(apply, x, 3), params)
    assert [family(scalars, tag).keys() for tag in UNITS] == [{"gate"}] * 3
    assert scalars["dormant_share_0.1/gate"] == 3 / 5


def test_units_of_unknown_activations_are_left_out():
    functions = [jax.nn.mish, jax.nn.relu6, jnp.sin, jax.nn.silu]

    def apply(params, x):
        for function, W in zip(functions, params, strict=True):
            x = function(x @ W)
        return x

    problem, params = of(apply, RNG.standard_normal((6, 4)), 3), weights(4, 5, 6, 7, 3)
    scalars = measured(problem, params)
    assert [family(scalars, tag).keys() for tag in UNITS] == [{"3"}] * 3
    facts = described(problem, params)
    assert facts["layers with dormant and saturated units"].startswith("3 (SiLU); saturated")
    assert facts["features, rows x columns"] == "0 6 x 4, 1 6 x 5, 2 6 x 6, 3 6 x 7"


def test_numbers_that_are_not_finite():
    problem = of(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], RNG.standard_normal((6, 4)), 3)
    params = weights(4, 5, 3)
    known = measured(problem, params)
    params[0][0, 0] = np.inf
    with pytest.warns(UserWarning, match="infinite"):
        scalars = measured(problem, params)
    names = (*RANKS, *UNITS)
    assert {tag for tag in scalars if tag.startswith(names)} == {
        tag for tag in known if tag.startswith(names)
    }
    assert all(np.isnan(scalars[tag]) for tag in scalars if tag.startswith(names))


# Layers of libraries


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Conv(6, (3, 3))(x), approximate=False)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = jax.checkpoint(lambda z: z * nn.sigmoid(z))(nn.Conv(4, (3, 3))(x))
        x = nn.remat(nn.Dense)(5)(x.mean((1, 2)))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=True)(nn.elu(x)))


def test_convolutions_of_linen():
    x = RNG.standard_normal((10, 6, 6, 2)).astype(np.float32)
    module = Convolutions()
    variables = gaussian_variables(module, x)
    bias = variables["params"]["Conv_0"]["bias"]
    bias[:2] = (-30, 30)
    problem = Problem.from_linen(module, loss="mse", inputs=x, targets=np.zeros((10, 3)))
    scalars = measured(problem, variables)
    _, kept = module.apply(variables, x, capture_intermediates=True)
    kept = {
        name: np.asarray(v["__call__"][0], np.float64)
        for name, v in kept["intermediates"].items()
        if isinstance(v, dict)
    }
    for layer, function in (("Conv_0", "gelu"), ("Conv_1", "silu")):
        _, values, derivative, largest = ACTIVATIONS[function]
        z = kept[layer]
        expected = shares(values(z), np.abs(derivative(z)) / largest)
        for tag, share in expected.items():
            assert scalars[f"{tag}/{layer}/kernel"] == share, (tag, layer)
    assert scalars["saturated_share/Conv_0/kernel"] >= 1 / 6
    assert family(scalars, "saturated_share").keys() == {
        f"{name}/kernel" for name in ("Conv_0", "Conv_1", "CheckpointDense_0")
    }
    rows = kept["BatchNorm_0"].reshape(10, -1)
    assert scalars["norm_features/Conv_1/kernel"] == pytest.approx(
        np.mean(np.linalg.norm(rows, axis=1)), rel=1e-5
    )
    text = described(problem, variables)["features, rows x columns"]
    assert "Conv_1/kernel 10 x 216" in text


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(5, rngs=rngs)
        self.two = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.silu(self.norm(self.one(x))))


def test_layers_of_nnx():
    model = Perceptron(nnx.Rngs(0))
    x = RNG.standard_normal((6, 4)).astype(np.float32)
    problem = Problem.from_nnx(model, loss="mse", inputs=x, targets=np.zeros((6, 3)))
    scalars = measured(problem, model)
    z = np.asarray(model.norm(model.one(x)), np.float64)
    (name,) = family(scalars, "saturated_share")
    assert name.startswith("one/kernel")
    for tag, share in shares(z * expit(z), np.zeros_like(z) + 1).items():
        assert scalars[f"{tag}/{name}"] == share


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Embed(11, 8)(x)
        x = x + nn.MultiHeadDotProductAttention(2)(x)
        return nn.Dense(3)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_positions_are_rows(masked):
    x = RNG.integers(0, 11, (6, 4))
    module = Attention()
    params = gaussian_variables(module, x)["params"]
    params["Dense_1"]["bias"][2] = -40
    weights = (RNG.uniform(size=(6, 4)) < 0.5).astype(float) if masked else None
    problem = Problem.from_linen(
        module, loss="cross_entropy", inputs=x, targets=np.zeros((6, 4), int), weights=weights
    )
    scalars = measured(problem, params)
    _, kept = module.apply({"params": params}, x, capture_intermediates=True)
    z = np.asarray(kept["intermediates"]["Dense_1"]["__call__"][0], np.float64).reshape(24, 6)
    z = z[weights.ravel() > 0] if masked else z
    slopes = np.abs(jax.vmap(jax.vmap(jax.grad(jax.nn.gelu)))(z)) / 1.12899
    expected = shares(np.asarray(jax.nn.gelu(z)), slopes)
    assert {tag: scalars[f"{tag}/Dense_1/kernel"] for tag in UNITS} == expected
    assert 1 / 6 <= expected["saturated_share"] < 1
    assert f"Dense_1/kernel {len(z)} x 8" in described(problem, params)["features, rows x columns"]
