"""Test leaves viewed as matrices: kernels, several layers in one leaf, attention heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from oracles import gaussian_variables
from rankmon import Problem, RankMonitor, WeightsProbe
from rankmon.network.kernel_axes import kernel_axes
from rankmon.network.matrix_views import MatrixAxes, matrix_shape
from rankmon.problem.pytree import is_matrix, leaf_specs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, 6))


def kernels(ranks, shape=(6, 6)):
    """A stack of matrices of these ranks."""
    m, n = shape
    return np.stack([RNG.standard_normal((m, r)) @ RNG.standard_normal((r, n)) for r in ranks])


def scanned(params, x):
    def layer(x, W):
        return jnp.tanh(x @ W), None

    return jax.lax.scan(layer, x, params["W"])[0]


def unrolled(params, x):
    for i in range(3):
        x = jnp.tanh(x @ params["W"][i])
    return x


def indexed(params, x):
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ params["W"][i]), x)


def counted(params, x):
    def step(state):
        i, x = state
        return i + 1, jnp.tanh(x @ params["W"][i])

    return jax.lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]


def vmapped(params, x):
    experts = jax.vmap(lambda W, x: jnp.tanh(x @ W))
    return jnp.mean(experts(params["W"], jnp.stack([x, 2 * x, -x])), axis=0)


def weights_of(apply, params, **options):
    problem = Problem(apply, loss="mse", inputs=X, targets=np.zeros((7, 6)))
    with RankMonitor(problem, every=1, probes=[WeightsProbe(**options)]) as monitor:
        scalars = monitor(0, params).scalars
    return {tag: value for tag, value in scalars.items() if tag.startswith("rank_weights/")}


@pytest.mark.parametrize("apply", [scanned, unrolled, indexed, vmapped], ids=lambda f: f.__name__)
def test_stacked_layers_are_split(apply):
    params = {"W": kernels([6, 4, 1])}
    assert weights_of(apply, params) == {
        "rank_weights/W/0": 6, "rank_weights/W/1": 4, "rank_weights/W/2": 1,
    }  # fmt: skip


def test_a_leaf_that_is_used_as_one_stays_one():
    def convolution(params, x):
        z = jax.lax.conv_general_dilated(x[:, :, None], params["W"], (1,), "SAME",
                                         dimension_numbers=("NWC", "WIO", "NWC"))  # fmt: skip
        return jnp.sum(z, axis=1)

    params = {"W": RNG.standard_normal((3, 1, 6))}
    assert weights_of(convolution, params) == {"rank_weights/W": 3}

    def both(params, x):
        return scanned(params, x) + jnp.sum(params["W"] ** 2)

    assert set(weights_of(both, {"W": kernels([2, 2])})) == {"rank_weights/W"}
    # What a `while` closes over is not seen to be taken apart.
    assert set(weights_of(counted, {"W": kernels([2, 2, 2])})) == {"rank_weights/W"}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(6, name="dense")(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return layers(name="layers")(x, None)[0]


def test_linens_scanned_layers_and_not_their_biases():
    module = Scanned()
    params = gaussian_variables(module, X)["params"]
    params["layers"]["dense"]["kernel"] = kernels([5, 3, 2]).astype(np.float32)
    problem = Problem.from_linen(module, loss="mse", inputs=X, targets=np.zeros((7, 6)))
    flat = problem.flat(params)
    axes = {flat.specs[index].name: axes for index, axes in kernel_axes(flat).items()}
    assert axes == {"layers/dense/kernel": MatrixAxes((1,), (2,), "product")}
    with RankMonitor(problem, every=1, probes=["weights"]) as monitor:
        scalars = monitor(0, params).scalars
    found = {tag: value for tag, value in scalars.items() if tag.startswith("rank_weights/")}
    assert found == {f"rank_weights/layers/dense/kernel/{i}": r for i, r in enumerate((5, 3, 2))}


def test_attention_head_by_head():
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, out_features=3)
    x = RNG.standard_normal((5, 4, 6)).astype(np.float32)
    params = gaussian_variables(module, x)["params"]
    query = np.zeros((6, 2, 4), np.float32)
    query[:, 0] = kernels([1], (6, 4))[0]
    query[:, 1] = kernels([3], (6, 4))[0]
    params["query"]["kernel"] = query
    problem = Problem.from_linen(module, loss="mse", inputs=x, targets=np.zeros((5, 4, 3)))

    def ranks(**options):
        with RankMonitor(problem, every=1, probes=[WeightsProbe(**options)]) as monitor:
            scalars = monitor(0, params).scalars
        prefix = "rank_weights/"
        return {t.removeprefix(prefix): v for t, v in scalars.items() if t.startswith(prefix)}

    whole = ranks()
    assert set(whole) == {f"{part}/kernel" for part in ("query", "key", "value", "out")}
    assert whole["query/kernel"] == np.linalg.matrix_rank(query.reshape(6, 8), tol=1e-4) == 4
    heads = ranks(by_head=True)
    assert {name: heads[name] for name in whole} == whole
    assert (heads["query/kernel/head_0"], heads["query/kernel/head_1"]) == (1, 3)
    out = np.asarray(params["out"]["kernel"])
    for h in range(2):
        assert heads[f"out/kernel/head_{h}"] == np.linalg.matrix_rank(out[h])
    assert len(heads) == 4 + 8


@pytest.mark.parametrize(
    ("name", "shape", "matrix"),
    [
        ("kernel", (3, 4), (3, 4)),
        ("Conv_0/kernel", (2, 3, 4, 5), (24, 5)),
        ("Conv_0/kernel", (3, 4, 5), (12, 5)),
        ("attn/query/kernel", (6, 2, 3), (6, 6)),
        ("key/kernel", (6, 2, 3), (6, 6)),
        ("a/value/kernel", (6, 2, 3), (6, 6)),
        ("attn/out/kernel", (2, 3, 6), (6, 6)),
        ("query/kernel", (6, 4), (6, 4)),
        ("w", (1, 1), (1, 1)),
        ("b", (4,), None),
        ("b", (), None),
        ("empty", (0, 4), None),
        ("query/bias", (2, 3), None),
        ("bias", (2, 3), None),
    ],
)
def test_matrix_views(name, shape, matrix):
    params = np.ones(shape)
    for part in reversed(name.split("/")):
        params = {part: params}
    (spec,) = leaf_specs(params)
    assert spec.name == name
    assert (matrix_shape(spec) if is_matrix(spec) else None) == matrix


def test_the_view_of_attentions_query_is_the_map_it_applies():
    module = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
    x = np.random.default_rng(0).standard_normal((1, 3, 6)).astype(np.float32)
    variables = gaussian_variables(module, x)
    kernel = variables["params"]["query"]["kernel"]
    (spec,) = (s for s in leaf_specs(variables) if s.name == "query/kernel")
    apply = partial(module.apply, capture_intermediates=lambda m, _: m.name == "query")
    _, state = jax.jit(apply)(variables, x)
    (heads,) = state["intermediates"]["query"]["__call__"]
    got = x[0] @ kernel.reshape(matrix_shape(spec))
    got = got + variables["params"]["query"]["bias"].reshape(-1)
    np.testing.assert_allclose(got, np.reshape(heads, (3, 4)), rtol=1e-5, atol=1e-6)
