"""Features and dead units: against networks written out by hand, layer by layer, in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from oracles import gaussian_variables
from rankmon import FeaturesProbe, Problem, RankMonitor, Tolerance
from refusals import refused

RNG = np.random.default_rng(0)


def measured(problem, params, **options):
    with RankMonitor(problem, every=1, probes=[FeaturesProbe(**options)]) as monitor:
        return monitor(0, params).scalars


def relu_mlp(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["W"] + layer["b"])
    return x @ params[-1]["W"] + params[-1]["b"]


def mlp_params(dims, rng):
    return [
        {"W": rng.standard_normal(pair), "b": 0.1 * rng.standard_normal(pair[1])}
        for pair in zip(dims, dims[1:], strict=False)
    ]


def by_hand(params, x):
    """The features that each layer receives, and where each ReLU is positive."""
    received, positive = [], []
    for layer in params:
        received.append(x)
        z = x @ layer["W"] + layer["b"]
        positive.append(z > 0)
        x = np.maximum(z, 0)
    return received, positive[:-1]


def test_a_perceptron_with_dead_units_and_inputs_of_low_rank():
    params = mlp_params((7, 9, 8, 3), RNG)
    params[0]["b"][:2] -= 1e3
    params[1]["b"][5] -= 1e3
    x = RNG.standard_normal((30, 4)) @ RNG.standard_normal((4, 7))
    problem = Problem(relu_mlp, loss="mse", inputs=x, targets=np.zeros((30, 3)))
    scalars = measured(problem, params)
    received, positive = by_hand(params, x)
    for i, features in enumerate(received):
        assert scalars[f"rank_features/{i}/W"] == np.linalg.matrix_rank(features)
        assert scalars[f"rank_low/features/{i}/W"] == scalars[f"rank_high/features/{i}/W"]
    assert [scalars[f"rank_features/{i}/W"] for i in range(2)] == [4, 7]
    for i, units in enumerate(positive):
        dead = ~units.any(0)
        assert scalars[f"dead_units/{i}/W"] == dead.sum()
        assert scalars[f"dead_share/{i}/W"] == pytest.approx(dead.mean())
    assert scalars["dead_units/0/W"] >= 2
    assert scalars["dead_units/1/W"] >= 1


def test_examples_of_weight_zero_do_not_count():
    params = mlp_params((6, 5, 2), RNG)
    x = RNG.standard_normal((12, 6))
    weights = np.r_[np.ones(3), np.zeros(9)]
    problem = Problem(relu_mlp, loss="mse", inputs=x, targets=np.zeros((12, 2)), weights=weights)
    scalars = measured(problem, params)
    received, positive = by_hand(params, x[:3])
    assert scalars["rank_features/0/W"] == 3
    assert scalars["rank_features/1/W"] == np.linalg.matrix_rank(received[1])
    assert scalars["dead_units/0/W"] == (~positive[0].any(0)).sum()


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.relu(nn.Conv(2, (3, 3), padding="VALID")(x))
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_convolutions_have_a_row_an_example_and_a_unit_a_channel():
    x = RNG.standard_normal((10, 6, 6, 1)).astype(np.float32)
    x[5:] = x[:5]
    module = Convolutions()
    variables = gaussian_variables(module, x)
    bias = variables["params"]["Conv_0"]["bias"]
    bias[:] = np.array([0.1, -100.0, 0, -0.1])
    problem = Problem.from_linen(module, loss="mse", inputs=x, targets=np.zeros((10, 3)))
    scalars = measured(problem, variables)
    _, kept = jax.jit(partial(module.apply, capture_intermediates=True))(variables, x)
    between = np.asarray(kept["intermediates"]["BatchNorm_0"]["__call__"][0], np.float64)
    assert scalars["rank_features/Conv_0/kernel"] == 5
    assert scalars["rank_features/Conv_1/kernel"] == np.linalg.matrix_rank(
        between.reshape(10, -1), tol=1e-4
    )
    assert scalars["rank_features/Dense_0/kernel"] == 5
    assert scalars["dead_units/Conv_0/kernel"] == 1
    assert scalars["dead_share/Conv_0/kernel"] == 0.25


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Embed(11, 8)(x)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(3)(x)


def test_attention_has_a_row_a_position():
    x = RNG.integers(0, 11, (6, 4))
    module = Attention()
    params = gaussian_variables(module, x)["params"]
    problem = Problem.from_linen(
        module, loss="cross_entropy", inputs=x, targets=RNG.integers(0, 3, (6, 4))
    )
    scalars = measured(problem, params)
    embedded = np.asarray(params["Embed_0"]["embedding"])[x].reshape(24, 8)
    rank = np.linalg.matrix_rank(embedded)
    for part in ("query", "key", "value"):
        name = f"attention/{part}/kernel"
        assert scalars[f"rank_features/{name}"] == rank
    assert scalars["rank_features/Dense_1/kernel"] <= 5
    assert "dead_units/Dense_0/kernel" in scalars


def test_a_parameter_used_twice_is_numbered():
    def tied(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["W"]) @ params["W"])

    x = RNG.standard_normal((9, 4))
    problem = Problem(tied, loss="mse", inputs=x, targets=np.zeros((9, 4)))
    scalars = measured(problem, {"W": RNG.standard_normal((4, 4))})
    assert {tag for tag in scalars if tag.startswith(("rank_features", "dead_units"))} == {
        "rank_features/W", "rank_features/W (2)", "dead_units/W", "dead_units/W (2)",
    }  # fmt: skip


@pytest.mark.parametrize(
    "activation",
    [jax.nn.celu, lambda z: jnp.maximum(z, 0) + 0.1 * jnp.minimum(z, 0), jnp.tanh],
    ids=["celu", "leaky", "tanh"],
)
def test_other_activations_have_no_dead_units_and_no_bound(activation):
    params = [RNG.standard_normal((6, 8)), RNG.standard_normal((8, 4))]
    problem = Problem(
        lambda p, x: activation(x @ p[0]) @ p[1],
        loss="mse",
        inputs=RNG.standard_normal((20, 6)),
        targets=np.zeros((20, 4)),
    )
    scalars = measured(problem, params)
    assert not any(tag.startswith(("dead_units", "rank_bound")) for tag in scalars)


def test_maxima_that_are_no_relus_are_left_out():
    def apply(params, x):
        x = nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x @ params["W"])
        return jnp.maximum(params["t"], 0) * x + params["E"][jnp.maximum(jnp.arange(5), 0)][:1]

    problem = Problem(
        apply, loss="mse", inputs=RNG.standard_normal((9, 4)), targets=np.zeros((9, 3))
    )
    params = {"W": RNG.standard_normal((4, 3)), "t": np.ones(()), "E": RNG.standard_normal((5, 3))}
    scalars = measured(problem, params)
    assert not any(tag.startswith("dead_units") for tag in scalars)


def test_units_before_examples_are_no_units():
    def apply(params, x):
        return (params[1] @ jnp.maximum(params[0] @ x.T, 0)).T

    x = RNG.standard_normal((9, 6))
    x[:4] = 0
    problem = Problem(apply, loss="mse", inputs=x, targets=np.zeros((9, 4)))
    scalars = measured(problem, [RNG.standard_normal((8, 6)), RNG.standard_normal((4, 8))])
    assert not any(tag.startswith(("dead_units", "rank_bound")) for tag in scalars)
    assert scalars["rank_features/0"] == 5


def test_a_channel_alive_on_an_example_of_weight_zero_is_dead():
    x = np.ones((4, 3, 3, 1))
    x[3] = -1
    module = nn.Conv(2, (1, 1), use_bias=False)
    params = {"kernel": np.array([[[[1.0, -1.0]]]])}

    def apply(params, x):
        return nn.relu(module.apply({"params": params}, x)).mean((1, 2))

    def dead(weights):
        problem = Problem(apply, loss="mse", inputs=x, targets=np.ones((4, 2)), weights=weights)
        return measured(problem, params)["dead_units/kernel"]

    assert (dead(None), dead(np.array([1, 1, 1, 0]))) == (0, 1)


def test_what_is_not_finite_is_nan():
    params = mlp_params((6, 5, 2), RNG)
    params[1]["W"][0, 0] = np.nan
    problem = Problem(
        relu_mlp, loss="mse", inputs=RNG.standard_normal((4, 6)), targets=np.zeros((4, 2))
    )
    with pytest.warns(UserWarning, match="infinite"):
        scalars = measured(problem, params)
    assert np.isnan(scalars["rank_features/0/W"])
    assert np.isnan(scalars["dead_units/0/W"])


def test_the_cut_is_the_users():
    x = np.diag([1.0, 5e-3, 3e-4, 1e-6])
    problem = Problem(lambda p, x: x @ p, loss="mse", inputs=x, targets=np.zeros((4, 3)))
    tolerance = Tolerance(relative=1e-3)
    scalars = measured(problem, RNG.standard_normal((4, 3)), tolerance=tolerance)
    tags = ("rank_features", "rank_low/features", "rank_high/features")
    assert [scalars[f"{tag}/params"] for tag in tags] == [2, 1, 3]


def test_a_network_without_layers_is_refused():
    problem = Problem(
        lambda p, x: x * p["scale"], loss="mse", inputs=np.ones((4, 3)), targets=np.ones((4, 3))
    )
    with refused(ValueError, "ReLU", "features probe"):
        RankMonitor(problem, every=1, probes=["features"])(0, {"scale": np.ones(3)})


# Kernels that are computed from parameters


class Normalized(nn.Module):
    """A layer whose kernel is computed, between two plain ones."""

    kind: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5)(x))
        inner = nn.Dense(4)
        if self.kind == "weight":
            x = nn.WeightNorm(inner)(x)
        else:
            x = nn.SpectralNorm(inner)(x, update_stats=False)
        return nn.Dense(3)(nn.relu(x))


def weight_normed(layer, variables):
    kernel = layer["kernel"]
    scale = variables["params"]["WeightNorm_0"]["Dense_1/kernel/scale"]
    return scale * kernel / np.sqrt(np.sum(kernel**2, axis=0))


def spectral_normed(layer, variables):
    """By one step of the power iteration from the stored vector."""
    v = variables["batch_stats"]["SpectralNorm_0"]["Dense_1/kernel/u"] @ layer["kernel"].T
    return layer["kernel"] / np.linalg.norm(v / np.linalg.norm(v) @ layer["kernel"])


@pytest.mark.parametrize(
    ("kind", "normed"), [("weight", weight_normed), ("spectral", spectral_normed)]
)
def test_layers_beside_and_of_normalized_kernels(kind, normed):
    x = RNG.standard_normal((12, 6)).astype(np.float32)
    module = Normalized(kind)
    variables = gaussian_variables(module, x)
    problem = Problem.from_linen(module, loss="mse", inputs=x, targets=np.zeros((12, 3)))
    params = variables["params"]
    params["Dense_1"]["bias"][:2] = -1e3
    scalars = measured(problem, variables)
    hidden = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    z = hidden @ normed(params["Dense_1"], variables) + params["Dense_1"]["bias"]
    received = {"Dense_0": x, "Dense_1": hidden, "Dense_2": np.maximum(z, 0)}
    ranks = {tag: value for tag, value in scalars.items() if tag.startswith("rank_features/")}
    assert ranks == {
        f"rank_features/{name}/kernel": np.linalg.matrix_rank(rows, tol=1e-4)
        for name, rows in received.items()
    }
    dead = {tag: value for tag, value in scalars.items() if tag.startswith("dead_units/")}
    assert dead == {
        f"dead_units/{name}/kernel": (rows <= 0).all(0).sum()
        for name, rows in (("Dense_0", hidden), ("Dense_1", z))
    }


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (lambda p: p["W"] * p["scale"], "W"),
        (lambda p: p["W"] + p["A"] @ p["B"], "W"),
        (lambda p: p["scale"] * p["V"].T, "V"),
        (lambda p: p["stack"][1], "stack"),
    ],
    ids=["scaled", "low-rank", "tied", "sliced"],
)
def test_computed_kernels_have_the_name_of_the_largest_parameter(kernel, name):
    shapes = {"W": (4, 5), "A": (4, 1), "B": (1, 5), "V": (5, 4), "scale": (), "stack": (2, 4, 5)}
    params = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    x = RNG.standard_normal((9, 3)) @ RNG.standard_normal((3, 4))
    problem = Problem(
        lambda p, x: jax.nn.relu(x @ kernel(p)), loss="mse", inputs=x, targets=np.zeros((9, 5))
    )
    scalars = measured(problem, params)
    ranks = {tag: rank for tag, rank in scalars.items() if tag.startswith("rank_features/")}
    assert ranks == {f"rank_features/{name}": 3}
    dead = (np.asarray(x @ kernel(params)) <= 0).all(0).sum()
    assert scalars[f"dead_units/{name}"] == dead


def test_units_of_a_network_of_one_example_are_seen():
    """Under vmap products have the kernel first, as Equinox writes its layers."""

    def of_one(params, x):
        return params["V"] @ jax.nn.relu(params["W"] @ x + params["b"])

    params = {"W": RNG.standard_normal((5, 4)), "V": RNG.standard_normal((3, 5))}
    params["b"] = np.array([0, -1e3, 0, -1e3, 0.1])
    x = RNG.standard_normal((9, 4))
    problem = Problem(
        lambda p, x: jax.vmap(lambda one: of_one(p, one))(x),
        loss="mse",
        inputs=x,
        targets=np.zeros((9, 3)),
    )
    scalars = measured(problem, params)
    hidden = np.maximum(x @ params["W"].T + params["b"], 0)
    assert scalars["rank_features/W"] == 4
    assert scalars["rank_features/V"] == np.linalg.matrix_rank(hidden)
    assert scalars["dead_units/W"] == (hidden == 0).all(0).sum()
