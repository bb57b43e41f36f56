"""Matrix views from the operations that use a kernel, against matrices built by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from oracles import gaussian_variables
from rankmon import Problem, RankMonitor, WeightsProbe, weight_ranks
from rankmon.network.kernel_axes import kernel_axes
from rankmon.weights.traced import weight_scalars
from refusals import refused, warned

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 5, 6, 4))


def product(m, n, rank):
    """An m x n matrix of this rank."""
    return RNG.standard_normal((m, rank)) @ RNG.standard_normal((rank, n))


def monitored(problem, params, **options):
    """The ranks that the weights probe reports, by name."""
    with RankMonitor(problem, every=1, probes=[WeightsProbe(**options)]) as monitor:
        scalars = monitor(0, params).scalars
    prefix = "rank_weights/"
    return {t.removeprefix(prefix): v for t, v in scalars.items() if t.startswith(prefix)}


def convolved(x, kernel, layout, **options):
    spatial = layout.replace("O", "").replace("I", "")
    lhs = f"N{spatial}C"
    return jax.lax.conv_general_dilated(
        x, kernel, options.pop("strides", (1,) * len(spatial)), "SAME",
        dimension_numbers=(lhs, layout, lhs), **options
    )  # fmt: skip


def flat(x):
    return x.reshape(len(x), -1)


# Each network uses one kernel "k"; what is written down beside it is built as a matrix by hand.
PATCHES = product(3 * 2 * 4, 8, 3).reshape(3, 2, 4, 8)  # h, w, in, out
GROUPED = product(3 * 2 * 2, 8, 5).reshape(3, 2, 2, 8)
DEPTHWISE = product(3 * 2, 4, 2).reshape(3, 2, 1, 4)
MANY_OUT = product(4, 24, 3)  # in x out

NETWORKS = {
    "HWIO": (PATCHES, 3, lambda k, x: convolved(x, k, "HWIO")),
    "OIHW": (PATCHES.transpose(3, 2, 0, 1), 3, lambda k, x: convolved(x, k, "OIHW")),
    "IOHW": (PATCHES.transpose(2, 3, 0, 1), 3, lambda k, x: convolved(x, k, "IOHW")),
    "1d, named query": (
        product(6, 8, 6).reshape(1, 6, 8), 6,
        lambda k, x: convolved(jnp.concatenate([x[:, 0], x[:, 0, :, :2]], -1), k, "WIO"),
    ),
    "transposed": (
        PATCHES, 3,
        lambda k, x: jax.lax.conv_transpose(
            x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
    ),
    "transposed, kernel of the forward": (
        PATCHES.transpose(0, 1, 3, 2), 3,
        lambda k, x: jax.lax.conv_transpose(
            x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True
        ),
    ),
    "grouped": (GROUPED, 5, lambda k, x: convolved(x, k, "HWIO", feature_group_count=2)),
    "grouped, OIHW": (
        GROUPED.transpose(3, 2, 0, 1), 5,
        lambda k, x: convolved(x, k, "OIHW", feature_group_count=2),
    ),
    "depthwise": (DEPTHWISE, 2, lambda k, x: convolved(x, k, "HWIO", feature_group_count=4)),
    "depthwise, OIHW": (
        DEPTHWISE.transpose(3, 2, 0, 1), 2,
        lambda k, x: convolved(x, k, "OIHW", feature_group_count=4),
    ),
    "depthwise, in and multiplier": (
        product(3 * 2, 8, 2).reshape(3, 2, 4, 2), 2,
        lambda k, x: convolved(x, k.reshape(3, 2, 1, 8), "HWIO", feature_group_count=4),
    ),
    "as a matrix": (
        MANY_OUT.reshape(4, 2, 3, 4), 3,
        lambda k, x: jnp.einsum("nhwi,iabc->nhwabc", x, k),
    ),
    "outputs first": (
        MANY_OUT.T.reshape(6, 4, 4), 3,
        lambda k, x: jnp.einsum("nhwi,abi->nhwab", x, k),
    ),
    "reshaped": (
        MANY_OUT.T.reshape(3, 8, 4), 3, lambda k, x: x @ k.reshape(24, 4).T
    ),
    "normalized": (
        PATCHES.transpose(3, 2, 0, 1), 3,
        lambda k, x: convolved(
            x, k / jnp.sqrt(jnp.sum(k**2, axis=(1, 2, 3), keepdims=True)), "OIHW"
        ),
    ),
    "masked and turned": (
        PATCHES.transpose(3, 2, 0, 1), 3,
        lambda k, x: convolved(
            x, jnp.where(k > -9, 2 * k, 0)[:, :, ::-1].transpose(2, 3, 1, 0), "HWIO"
        ),
    ),
    "cut into three": (
        product(4, 24, 4).T.reshape(24, 1, 4), 4,
        lambda k, x: sum(x @ part[:, 0].T for part in jnp.split(k, 3)),
    ),
    "in a branch": (
        PATCHES.transpose(3, 2, 0, 1), 3,
        lambda k, x: jax.lax.cond(
            jnp.sum(x) > 0, lambda: convolved(x, k, "OIHW"), lambda: convolved(-x, k, "OIHW")
        ),
    ),
    "rematerialized": (
        PATCHES.transpose(3, 2, 0, 1), 3,
        lambda k, x: jax.checkpoint(lambda k: convolved(x, k, "OIHW"))(k),
    ),
}  # fmt: skip


def statement(name):
    kernel, rank, network = NETWORKS[name]
    key = "query" if "query" in name else "layer"
    params = {key: {"kernel": kernel}}
    apply = lambda p, x: flat(network(p[key]["kernel"], x))  # noqa: E731
    outputs = jax.eval_shape(apply, params, IMAGES)
    problem = Problem(apply, loss="mse", inputs=IMAGES, targets=np.zeros(outputs.shape))
    return problem, params, f"{key}/kernel", rank


@pytest.mark.parametrize("name", NETWORKS)
def test_the_operation_tells_rows_and_columns(name):
    problem, params, path, rank = statement(name)
    assert monitored(problem, params) == {path: rank}
    found = weight_ranks(params, views=problem)
    assert {path: rank} == {name: one.rank for name, one in found.items()}
    assert found[path].view.source in ("product", "convolution")


LAYERS = np.stack([product(4, 4, rank) for rank in (4, 2, 1)])  # in x out, a layer each


@pytest.mark.parametrize(
    ("kernel", "network"),
    [
        (LAYERS.transpose(1, 0, 2), lambda k, x: jnp.einsum("nhli,ilo->nhlo", x[:, :, :3], k)),
        (LAYERS.transpose(1, 2, 0), lambda k, x: (x @ k[..., 0]) @ k[..., 1] @ k[:, :, 2]),
        (LAYERS.transpose(0, 2, 1), lambda k, x: jax.lax.scan(lambda x, w: (x @ w.T, 0), x, k)[0]),
        (
            LAYERS.transpose(0, 2, 1)[:, :, None],
            lambda k, x: jax.lax.scan(lambda x, w: (convolved(x, w, "OWI"), 0), x[:, 0], k)[0],
        ),
        (2 * LAYERS, lambda k, x: jax.lax.scan(lambda x, w: (x @ w, 0), x, k / 2)[0]),
    ],
    ids=["batch axis", "last axis", "scanned, out first", "scanned convolutions", "scaled"],
)  # fmt: skip
def test_layers_along_any_axis_have_matrices_of_their_own(kernel, network):
    apply = lambda p, x: flat(network(p["k"], x))  # noqa: E731
    targets = np.zeros(jax.eval_shape(apply, {"k": kernel}, IMAGES).shape)
    problem = Problem(apply, loss="mse", inputs=IMAGES, targets=targets)
    want = {"k/0": 4, "k/1": 2, "k/2": 1}
    assert monitored(problem, {"k": kernel}) == want
    counts = weight_ranks({"k": kernel}, views=problem, largest=0)
    assert {name: count.rank for name, count in counts.items()} == want


def test_uses_that_disagree_leave_it_to_the_shape():
    kernel = RNG.standard_normal((2, 4, 3))

    def apply(p, x):
        one = jnp.einsum("nhwi,aib->nab", x, p["k"])
        return flat(one) + jnp.sum(jnp.einsum("nhwa,aib->nib", x[..., :2], p["k"]))

    problem = Problem(apply, loss="mse", inputs=IMAGES, targets=np.zeros((2, 6)))
    view = weight_ranks({"k": kernel}, views=problem)["k"].view
    assert (view.rows, view.columns, view.source) == ((0, 1), (2,), "shape")


def test_equinox_keeps_outputs_first():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 4)
    layers = {
        "query": eqx.nn.Conv1d(4, 8, 1, key=keys[0]),
        "conv": eqx.nn.Conv2d(4, 8, 3, key=keys[1]),
        "grouped": eqx.nn.Conv2d(8, 6, 2, groups=2, key=keys[2]),
        "up": eqx.nn.ConvTranspose2d(6, 5, 2, stride=2, key=keys[3]),
    }
    params, static = eqx.partition(layers, eqx.is_inexact_array)

    def network(layers, x):
        x = layers["query"](x.reshape(4, -1)).reshape(8, *x.shape[1:])[:4]
        return jnp.ravel(layers["up"](layers["grouped"](jnp.tanh(layers["conv"](x)))))

    apply = lambda p, x: jax.vmap(partial(network, eqx.combine(p, static)))(x)  # noqa: E731
    x = np.asarray(IMAGES.transpose(0, 3, 1, 2), np.float32)
    problem = Problem(apply, loss="mse", inputs=x, targets=np.zeros((2, 5 * 4 * 6), np.float32))
    found = monitored(problem, params)
    # Random draws have the full rank of out x (in / groups ...).
    assert {n: r for n, r in found.items() if n.endswith("weight")} == {
        "query/weight": 4, "conv/weight": 8, "grouped/weight": 6, "up/weight": 5,
    }  # fmt: skip
    alone = weight_ranks(params)
    assert alone["conv/weight"].rank == 3
    assert alone["conv/weight"].view.source == "shape"
    assert alone["query/weight"].view.source == "name"


class Named(nn.Module):
    """Convolutions in layers that are called like attention's projections."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (1,), name="query")(x)
        return nn.Conv(4, (2,), name="out")(x).reshape(len(x), -1)


def test_heads_are_attentions_alone():
    x = IMAGES[:, 0].astype(np.float32)
    params = gaussian_variables(Named(), x)["params"]
    problem = Problem.from_linen(Named(), loss="mse", inputs=x, targets=np.zeros((2, 24)))
    assert monitored(problem, params, by_head=True) == {"query/kernel": 4, "out/kernel": 4}


# Views that the user gives


OIHW = {"conv": {"weight": PATCHES.transpose(3, 2, 0, 1)}, "W": product(4, 6, 2)}


def test_without_a_program_the_result_says_which_view_was_taken():
    found = weight_ranks(OIHW)
    assert found["conv/weight"].rank == np.linalg.matrix_rank(OIHW["conv"]["weight"].reshape(-1, 2))
    view = found["conv/weight"].view
    assert (view.rows, view.columns, view.source) == ((0, 1, 2), (3,), "shape")
    assert found["W"].view.rows == (0,)
    query = weight_ranks({"query": {"kernel": RNG.standard_normal((1, 6, 8))}})["query/kernel"]
    assert (query.view.rows, query.view.columns, query.view.source) == ((0,), (1, 2), "name")


@pytest.mark.parametrize("axes", [((1, 2, 3), (0,)), ([-1, 1, 2], [0]), ((0,), (1, 2, 3))], ids=str)
def test_a_view_of_the_users(axes):
    views = {"conv/*": axes}
    found = weight_ranks(OIHW, views=views)
    assert {name: one.rank for name, one in found.items()} == {"conv/weight": 3, "W": 2}
    assert found["conv/weight"].view.source == "views"
    counted = weight_ranks(OIHW, views=views, largest=0)["conv/weight"]
    assert (counted.rank, counted.view) == (3, found["conv/weight"].view)
    scalars = weight_scalars(jax.tree.map(jnp.float32, OIHW), views=views)
    assert scalars["rank_weights/conv/weight"] == 3
    problem = Problem(
        lambda p, x: flat(convolved(x, p["conv"]["weight"], "HWIO")) + jnp.sum(p["W"]),
        loss="mse", inputs=np.ones((2, 3, 3, 3)), targets=np.zeros((2, 18)),
    )  # fmt: skip
    assert monitored(problem, OIHW, views=views)["conv/weight"] == 3


def test_axes_left_out_count_layers_and_the_first_pattern_counts():
    params = {"layers": LAYERS.transpose(1, 2, 0), "other": LAYERS}
    views = {"layers": ((0,), (1,)), "*": ((1,), (2,))}
    found = weight_ranks(params, views=views)
    assert {name: one.rank for name, one in found.items()} == {
        f"{leaf}/{i}": rank for leaf in params for i, rank in enumerate((4, 2, 1))
    }
    scalars = weight_scalars(jax.tree.map(jnp.float32, params), views=views)
    assert scalars["rank_weights/layers/1"] == 2


@pytest.mark.parametrize(
    ("views", "kind", "keys"),
    [
        ("OIHW", TypeError, ("views", "str", "Problem")),
        ({"conv/weight": "OIHW"}, TypeError, ("views['conv/weight']", "'OIHW'")),
        ({"conv/weight": (1, 2)}, TypeError, ("rows and of columns", "(1, 2)")),
        ({"conv/weight": ((1,), (2,), (3,))}, TypeError, ("rows and of columns",)),
        ({"conv/weight": ((1, 2, 4), (0,))}, ValueError, ("4 axes", "(1, 2, 4)")),
        ({"conv/weight": ((1, 2), (2, 0))}, ValueError, ("each axis once",)),
        ({"conv/weight": ((0, 1, 2, 3), ())}, ValueError, ("each axis once",)),
        ({"Conv": ((0,), (1,))}, ValueError, ("'Conv'", "'conv/weight'")),
    ],
    ids=str,
)
def test_views_that_fit_nothing_are_refused(views, kind, keys):
    with refused(kind, *keys):
        weight_ranks(OIHW, views=views)


def test_a_problem_tells_views_inside_a_compiled_step_too():
    problem, params, path, rank = statement("OIHW")
    params = jax.tree.map(jnp.float32, params)
    scalars = jax.jit(partial(weight_scalars, views=problem))(params)
    assert scalars[f"rank_weights/{path}"] == rank


# Quantized weights, and tags


def test_quantized_matrices_are_measured_and_index_tables_are_told_of():
    scale = np.ones(5, np.float32)
    quantized = RNG.integers(-3, 4, (6, 2)) @ RNG.integers(-3, 4, (2, 5))
    assert np.abs(quantized).max() < 128
    params = {"q": quantized.astype(np.int8), "s": scale, "W": np.eye(6, dtype=np.float32)}
    assert {name: one.rank for name, one in weight_ranks(params).items()} == {"W": 6, "q": 2}
    assert weight_ranks(params, largest=0)["q"].rank == 2
    assert weight_scalars(params)["rank_weights/q"] == 2
    apply = lambda p, x: x @ p["W"] @ (p["q"] * p["s"])  # noqa: E731
    problem = Problem(apply, loss="mse", inputs=np.ones((3, 6)), targets=np.zeros((3, 5)))
    assert monitored(problem, params) == {"W": 6, "q": 2}
    table = {"W": np.eye(3), "edges": np.ones((2, 7), int)}
    with warned("edges int64[2, 7]", "left out"):
        assert set(weight_ranks(table)) == {"W"}


def test_no_two_matrices_share_a_tag():
    inner = lambda p, x: x @ p["enc"]["W"] @ p["enc/W"]  # noqa: E731

    def apply(p, x):
        x, _ = jax.lax.scan(lambda x, w: (x @ w, 0), inner(p, x), p["L"])
        return x @ p["L/0"] @ p["features"]["L/0"] @ p["H_o"] @ p["params"]["H_o"]

    shapes = {
        "enc": {"W": (4, 4, 1)}, "enc/W": (4, 4, 2), "L/0": (4, 4, 3),
        "features": {"L/0": (4, 4, 2)}, "H_o": (4, 4, 1), "params": {"H_o": (4, 4, 4)},
    }  # fmt: skip
    params = jax.tree.map(lambda s: product(*s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    params["L"] = LAYERS
    problem = Problem(apply, loss="mse", inputs=IMAGES[0, 0], targets=np.zeros((6, 4)))
    ranks = {
        "enc/W": 1, "enc/W (2)": 2, "L/0 (2)": 4, "L/1": 2, "L/2": 1, "L/0": 3,
        "params/features/L/0": 2, "params/H_o (2)": 1, "params/H_o": 4,
    }  # fmt: skip
    with RankMonitor(problem, every=1, probes=["weights", "features", "hessian"]) as monitor:
        s = monitor(0, params).scalars
    found = {t.removeprefix("rank_weights/"): v for t, v in s.items() if t.startswith("rank_weigh")}
    assert found == ranks
    for name, rank in ranks.items():
        assert s[f"rank_low/{name}"] == rank
    for name in ("enc/W", "enc/W (2)", "L/0"):
        assert s[f"rank_low/features/{name}"] == s[f"rank_features/{name}"]
    compiled = weight_scalars(params, views=problem)
    assert {t for t in compiled if t.startswith("rank_weigh")} == {
        f"rank_weights/{name}" for name in ranks
    }
    assert kernel_axes(problem.flat(params)).keys() == {
        i for i, leaf in enumerate(jax.tree.leaves(params)) if leaf.ndim == 3
    }


def test_numbered_uses_of_a_parameter_overwrite_no_other():
    params = {"W": product(4, 4, 4), "W (2)": product(4, 4, 2)}
    apply = lambda p, x: x @ p["W (2)"] @ p["W"] @ p["W"]  # noqa: E731
    problem = Problem(apply, loss="mse", inputs=IMAGES[0, 0], targets=np.zeros((6, 4)))
    with RankMonitor(problem, every=1, probes=["features"]) as monitor:
        s = monitor(0, params).scalars
    found = {t: v for t, v in s.items() if t.startswith("rank_features")}
    assert found == {"rank_features/W (2)": 4, "rank_features/W": 2, "rank_features/W (3)": 2}
