"""Test `Problem`: refusals, the parameter order, weights, positions, the user's JAX settings."""

import threading
from contextlib import ExitStack
from functools import cache, partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import oracles
from rankmon import (
    MemoryWriter,
    RankMonitor,
    RankmonWarning,
    hessian_ranks,
    hessian_spectra,
    weight_ranks,
)
from rankmon.hessian.jacobian import transposed_product
from rankmon.problem.problem import Problem
from rankmon.weights.traced import weight_scalars
from refusals import refused, unwarned, warned

RNG = np.random.default_rng(0)
N, D, K, T = 6, 4, 3, 2
X = RNG.standard_normal((N, D))
Y = RNG.standard_normal((N, K))
LABELS = np.arange(N) % K
W = RNG.standard_normal((D, K))
PARAMS = {"w": W}
SEQUENCES = RNG.standard_normal((N, T, D))


def apply(params, x):
    return x @ params["w"]


def problem(network=apply, *, loss="mse", inputs=X, targets=Y, **options):
    return Problem(network, loss=loss, inputs=inputs, targets=targets, **options)


def measured(stated, params=PARAMS):
    """Loss and residuals as the monitor gets them."""
    flat = stated.flat(params)
    loss, delta = flat.loss_and_residuals(*flat.split(flat.leaves(params)))
    assert isinstance(loss, float)
    assert delta.dtype == np.float64
    return loss, delta


@cache
def of_one_example(textbook):
    return jax.jit(jax.value_and_grad(textbook))


def naive(textbook, z, targets, weights=None):
    """Mean loss and residuals, example by example, in a Python loop."""
    w = np.ones(len(z)) if weights is None else np.ravel(np.asarray(weights, float))
    with jax.enable_x64(True):
        pairs = [of_one_example(textbook)(a, b) for a, b in zip(z, targets, strict=True)]
    values, delta = zip(*pairs, strict=True)
    return np.sum(w * np.array(values)) / np.sum(w), np.array(delta)


def assert_same(got, want, live=slice(None)):
    assert got[0] == pytest.approx(want[0], rel=1e-13)
    np.testing.assert_allclose(got[1][live], want[1][live], rtol=1e-12, atol=1e-14)


# Losses and residuals


@pytest.mark.parametrize(
    ("loss", "textbook", "targets"),
    [
        ("mse", oracles.mse, Y),
        ("mse", oracles.mse, Y.astype(np.int32)),
        ("cosh", oracles.cosh, Y),
        ("cross_entropy", oracles.cross_entropy, LABELS),
        ("cross_entropy", oracles.cross_entropy, LABELS.astype(np.uint8)),
        (oracles.mse, oracles.mse, Y),
    ],
    ids=["mse", "mse-integers", "cosh", "labels", "labels-uint8", "callable"],
)
def test_loss_and_residuals_equal_a_plain_loop(loss, textbook, targets):
    got = measured(problem(loss=loss, targets=targets))
    assert_same(got, naive(textbook, X @ W, targets))


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, bool], ids=str
)
def test_one_hot_targets_of_any_dtype_equal_labels(dtype):
    got = measured(problem(loss="cross_entropy", targets=np.eye(K)[LABELS].astype(dtype)))
    assert_same(got, naive(oracles.cross_entropy, X @ W, LABELS))


def test_a_callable_takes_targets_of_any_structure():
    targets = {"at": Y, "width": np.abs(Y) + 0.5}
    rows = [{"at": a, "width": b} for a, b in zip(Y, np.abs(Y) + 0.5, strict=True)]
    got = measured(problem(loss=oracles.student_t, targets=targets))
    assert_same(got, naive(oracles.student_t, X @ W, rows))


def test_inputs_of_any_structure():
    def network(params, inputs):
        return inputs["a"] @ params["w"] + inputs["b"][0]

    got = measured(problem(network, inputs={"a": X, "b": (Y,)}))
    assert_same(got, naive(oracles.mse, X @ W + Y, Y))


@pytest.mark.parametrize(
    "weights",
    [
        np.array([1, 0, 2, 1, 0.5, 3]),
        np.array([1, 0, 0, 1, 1, 0]),
        np.array([True, False, True, True, False, True]),
        np.full(N, 1e-3, np.float16),
        [1, 1, 1, 0, 0, 0],
    ],
    ids=["real", "integer", "bool", "float16", "list"],
)
def test_weights_make_a_weighted_mean(weights):
    live = np.asarray(weights) > 0
    assert_same(measured(problem(weights=weights)), naive(oracles.mse, X @ W, Y, weights), live)
    np.testing.assert_allclose(np.sum(problem(weights=weights).flat(PARAMS).weights), 1, rtol=1e-15)


def test_masked_examples_are_as_if_they_were_not_there():
    mask = np.array([1, 0, 1, 1, 0, 1])
    loss, delta = measured(problem(weights=mask))
    few = measured(problem(inputs=X[mask > 0], targets=Y[mask > 0]))
    assert_same((loss, delta[mask > 0]), few)
    np.testing.assert_array_equal(delta[mask == 0], 0)


def test_a_masked_position_may_overflow_and_is_kept_out():
    def network(params, x):
        return x @ params["w"] / (jnp.arange(N) > 0)[:, None]

    loss, delta = measured(problem(network, weights=np.array([0, 1, 1, 1, 1, 1])))
    assert_same((loss, delta[1:]), naive(oracles.mse, X[1:] @ W, Y[1:]))


@pytest.mark.parametrize(
    "weights",
    [None, np.array([1, 0, 2, 1, 1, 3]), RNG.uniform(0, 1, (N, T))],
    ids=["none", "per-example", "per-position"],
)
def test_every_position_is_an_example(weights):
    targets = np.arange(N * T).reshape(N, T) % K
    stated = problem(loss="cross_entropy", inputs=SEQUENCES, targets=targets, weights=weights)
    flat = stated.flat(PARAMS)
    assert (flat.positions, flat.k, flat.position_axes) == (N * T, K, (N, T))
    per_position = None
    if weights is not None:
        per_position = weights if weights.ndim == 2 else np.repeat(weights, T)
    z = (SEQUENCES @ W).reshape(-1, K)
    want = naive(oracles.cross_entropy, z, targets.ravel(), per_position)
    live = slice(None) if per_position is None else np.ravel(per_position) > 0
    assert_same(measured(stated), want, live)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_weights_over_the_leading_axes_of_many_positions(axes):
    """Outputs [n, t, s, k] with weights [n], [n, t] or [n, t, s]."""
    inputs = RNG.standard_normal((N, T, 2, D))
    weights = RNG.uniform(0.1, 1, (N, T, 2)[:axes])
    full = np.empty((N, T, 2))
    for index in np.ndindex(full.shape):
        full[index] = weights[index[:axes]]
    flat = problem(inputs=inputs, targets=inputs @ W, weights=weights).flat(PARAMS)
    np.testing.assert_allclose(flat.weights, full.ravel() / full.sum(), rtol=1e-14)


# Parameters


NESTED = {
    "b": {"kernel": RNG.standard_normal((D, K)), "count": np.arange(2)},
    "a": [RNG.standard_normal(K).astype(np.float32), np.float32(0.5)],
}


def nested(params, x):
    scale = params["a"][1] * params["b"]["count"][1]
    return (x @ params["b"]["kernel"] + params["a"][0]) * scale


def test_theta_follows_ravel_pytree():
    floats = {"b": {"kernel": NESTED["b"]["kernel"]}, "a": NESTED["a"]}
    with jax.enable_x64(True):
        want, _ = ravel_pytree(floats)
    flat = problem(nested).flat(NESTED)
    theta, fixed = flat.split(flat.leaves(NESTED))
    assert theta.dtype == np.float64
    np.testing.assert_array_equal(theta, want)
    assert len(theta) == flat.p == D * K + K + 1
    np.testing.assert_array_equal(fixed, [NESTED["b"]["count"]])


def test_outputs_put_theta_back_where_it_came_from():
    flat = problem(nested).flat(NESTED)
    theta, fixed = flat.split(flat.leaves(NESTED))
    want = (X @ NESTED["b"]["kernel"] + NESTED["a"][0]) * 0.5
    with flat.precision.scope():
        np.testing.assert_allclose(flat.outputs(theta, fixed, flat.inputs), want, rtol=1e-12)
        leaves = flat.leaves(NESTED)
        np.testing.assert_allclose(flat.apply_leaves(leaves, flat.inputs), want, rtol=1e-12)


@pytest.mark.parametrize(
    "filters",
    [{"exclude": ["a/*"]}, {"exclude": "a/*"}, {"include": ("b/*",)}, {"include": "*/kernel"}],
    ids=str,
)
def test_filters_hold_the_other_leaves_fixed(filters):
    flat = problem(nested, **filters).flat(NESTED)
    theta, fixed = flat.split(flat.leaves(NESTED))
    np.testing.assert_array_equal(theta, NESTED["b"]["kernel"].ravel())
    assert len(fixed) == 3
    assert_same(measured(problem(nested, **filters), NESTED), measured(problem(nested), NESTED))


def test_complex_leaves_may_be_held_fixed():
    def network(params, x):
        return x @ params["w"] + params["c"].real

    stated = problem(network, exclude=["c"])
    params = {"w": W, "c": np.full(K, 2 + 1j, np.complex64)}
    assert_same(measured(stated, params), naive(oracles.mse, X @ W + 2, Y))


def test_one_flat_problem_for_one_structure():
    stated = problem()
    other = {"w": W.astype(np.float32)}
    assert stated.flat(PARAMS) is stated.flat({"w": 2 * W})
    assert stated.flat(PARAMS) is not stated.flat(other)


@pytest.mark.parametrize(
    ("params", "came"),
    [
        ({"w": W.astype(np.float32)}, "w float32[4, 3]"),
        ({"w": W.T}, "w float64[3, 4]"),
        ({"v": W}, "v float64[4, 3]"),
        ({"w": W, "more": Y}, "more float64[6, 3]"),
        ([W], "0 float64[4, 3]"),
    ],
    ids=["dtype", "shape", "name", "more", "list"],
)
def test_parameters_that_change_their_structure_later(params, came):
    flat = problem().flat(PARAMS)
    with refused(ValueError, "parameters", came, "one monitor"):
        flat.leaves(params)


def test_a_change_is_named_however_many_leaves_there_are():
    params = {f"layer_{i}": np.ones((2, 2)) for i in range(9)}

    def network(params, x):
        return x[:, :2] @ sum(params.values())

    flat = problem(network, targets=X[:, :2]).flat(params)
    with refused(ValueError, "layer_8 float64[2, 2]", "layer_8 float64[3, 2]") as caught:
        flat.leaves(params | {"layer_8": np.ones((3, 2))})
    assert "layer_0" not in str(caught.value)


def test_buffers_that_are_used_again_change_nothing():
    x, y, w, counts = X.copy(), Y.copy(), np.ones(N), np.array([1, 2])
    stated = problem(
        lambda p, x: x @ p["w"] * p["n"][0], inputs=x, targets=y, weights=w, exclude=["n"]
    )
    flat = stated.flat({"w": W, "n": counts})
    leaves = flat.leaves({"w": W, "n": counts})
    for buffer in (x, y, w, counts):
        buffer[:] = 9
    assert_same(flat.loss_and_residuals(*flat.split(leaves)), naive(oracles.mse, X @ W, Y))


# Arrays as they come


def swapped(tree):
    """The arrays with their bytes the other way round."""
    return jax.tree.map(lambda a: a.astype(a.dtype.newbyteorder()), tree)


def test_either_byte_order_gives_the_same_numbers():
    def network(params, x, extra):
        return jnp.tanh(x["x"] + extra["table"][x["i"]]) @ params["w"] + params["n"][0]

    inputs = {"x": X, "i": np.arange(N) % 2}
    given = (inputs, Y, np.arange(1.0, N + 1), {"w": W, "n": np.array([1, 2])})
    extra = {"table": RNG.standard_normal((2, D)), "steps": np.array([3, 4])}
    spectra = []
    for x, y, weights, params in (given, swapped(given)):
        stated = problem(network, inputs=x, targets=y, weights=weights)
        own = extra if params is given[3] else swapped(extra)
        spectra.append(hessian_spectra(stated, stated.unpack(params, own)))
        assert weight_scalars(jax.tree.map(np.float32, params))["rank_weights/w"] == 3
        assert weight_ranks(params)["w"].rank == 3
        with RankMonitor(stated, every=1) as monitor:
            assert monitor(0, params, extra=own).scalars["rank/H_o"] == 12
    for part, values in spectra[0].items():
        np.testing.assert_array_equal(values, spectra[1][part])


NARROW = [
    (jnp.float16, jnp.bfloat16),
    (jnp.float8_e4m3fn, jnp.float16),
    (jnp.float8_e5m2, jnp.float8_e4m3fn),
]


@pytest.mark.parametrize("dtypes", NARROW, ids=lambda pair: "-".join(d.__name__ for d in pair))
def test_narrow_floats_beside_one_another(dtypes):
    params = {"a": W.astype(dtypes[0]), "b": np.eye(K).astype(dtypes[1])}
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)

    def network(params, x):
        return jnp.tanh(x @ params["a"].astype(x.dtype)) @ params["b"].astype(x.dtype)

    want = hessian_spectra(problem(network), wide)
    for part, values in hessian_spectra(problem(network), params).items():
        np.testing.assert_array_equal(values, want[part])

    def only_float32(params, x):
        assert x.dtype == np.float32
        z = network(params, x)
        return z + 0 * jax.lax.bitcast_convert_type(z, jnp.int32)  # no float64 has such bits

    stated = problem(only_float32, inputs=X.astype(np.float32), targets=Y.astype(np.float32))
    with pytest.warns(RankmonWarning, match="float64"):
        assert hessian_ranks(stated, params)["H_o"].size == 21
    np.testing.assert_allclose(
        stated.residuals(params), problem(network).residuals(wide), atol=1e-5
    )


@pytest.mark.parametrize(
    "weights",
    [
        np.array([1, 2, 3, 0, 1, 2]) * 4e307,
        np.array([1, 2, 3, 0, 1, 2], np.float32) * np.float32(2.0**126),
        np.array([1, 2, 3, 0, 1, 2], np.float16) * np.float16(2e4),
        np.array([1, 2, 3, 0, 1, 2]) * 2**61,
        np.array([1, 2, 3, 0, 1, 2]) * 5e-324,
    ],
    ids=["float64", "float32", "float16", "int64", "tiny"],
)
def test_weights_whose_sum_overflows(weights):
    want = measured(problem(weights=np.array([1, 2, 3, 0, 1, 2])))
    assert_same(measured(problem(weights=weights)), want)


def test_pythons_numbers_are_settings():
    params = {"w": W, "dropout": {"p": 0.5, "n": 3}, "scale": np.float64(2.0)}

    def network(params, x):
        return x @ params["w"] * (1 - params["dropout"]["p"]) * params["scale"]

    with warned("dropout/p", "held fixed", "jnp.asarray"):
        spectra = hessian_spectra(problem(network), params)
    whole = hessian_spectra(problem(network), params | {"dropout": {"p": np.float64(0.5)}})
    assert [len(spectra["H_L"]), len(whole["H_L"])] == [13, 14]
    fixed = hessian_spectra(
        problem(network, exclude="dropout/*"), params | {"dropout": {"p": np.float64(0.5)}}
    )
    np.testing.assert_allclose(spectra["H_L"], fixed["H_L"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_a_python_number_that_an_optimizer_makes_an_array(background):
    """optax.apply_updates gives arrays for numbers: it stays what it was at first, held fixed."""
    memory = MemoryWriter()
    stated = problem(lambda params, x: x @ params["w"] * params["scale"])
    monitor = RankMonitor(stated, every=1, background=background, writers=[memory])
    with warned("scale", "held fixed"), monitor:
        for step, scale in enumerate([0.5, jnp.float32(0.5), 0.5, np.float32(0.0)]):
            monitor(step, {"w": W, "scale": scale})
    assert [record.scalars["rank/H_o"] for record in memory.records] == [12, 12, 12, 0]


def test_python_numbers_alone_are_told_to_become_arrays():
    with refused(ValueError, "scale", "jnp.asarray"):
        problem(lambda params, x: x[:, :K] * params["scale"]).flat({"scale": 0.5})


def test_python_numbers_beside_the_parameters_are_no_mistake():
    stated = problem(lambda params, x, extra: x @ params["w"] * extra["scale"])
    with unwarned(), RankMonitor(stated, every=1) as monitor:
        record = monitor(0, {"w": W}, extra={"scale": 0.5})
    assert record.scalars["rank/H_o"] == 12


def test_a_key_comes_along_as_its_data():
    def network(params, x, extra):
        noise = jax.random.normal(jax.random.wrap_key_data(extra["key"]), (K,))
        return x @ params["w"] + 0 * noise.astype(x.dtype)

    key = jax.random.key(3)
    stated = problem(network)
    flat = stated.flat(stated.unpack(PARAMS, {"key": jax.random.key_data(key)}))
    assert flat.p == W.size
    with refused(TypeError, "random key", "'extra/key'", "key_data"):
        stated.flat(stated.unpack(PARAMS, {"key": key}))


# What is refused


FLOAT_LABELS = LABELS.astype(float)

# What is stated, the error, and the keys that its text must hold.
REFUSED_AT_ONCE = {
    "apply": (partial(problem, "net"), TypeError, "apply", "str", "lambda"),
    "loss-name": (partial(problem, loss="l2"), ValueError, "loss", "'l2'"),
    "loss-type": (partial(problem, loss=2), TypeError, "loss", "int", "callable"),
    "n": (partial(problem, targets=Y[:4]), ValueError, "inputs", "targets", "6", "4"),
    "scalar": (partial(problem, inputs=1.0), ValueError, "inputs", "()", "stack"),
    "lists": (partial(problem, inputs=[[1.0, 2.0]] * N), ValueError, "inputs", "12", "np.asarray"),
    "ragged": (partial(problem, inputs=(X, X[:3])), ValueError, "inputs", "0 (6, 4), 1 (3, 4)"),
    "graph": (
        partial(problem, inputs={"nodes": X, "senders": np.arange(9), "n_edge": np.array([9])}),
        ValueError,
        "{n_edge (1,), nodes (6, 4), senders (9,)}",
        "keep the others",
        "inputs=nodes",
    ),
    "key": (
        partial(problem, inputs={"x": X, "key": jax.random.split(jax.random.key(0), N)}),
        TypeError,
        "inputs",
        "random key",
        "key_data",
    ),
    "key-targets": (
        partial(problem, targets=jax.random.split(jax.random.key(0), N)),
        TypeError,
        "targets",
        "random key",
        "key_data",
    ),
    "no-features": (partial(problem, inputs=X[:, :0]), ValueError, "(6, 0)", "np.zeros((n, 1))"),
    "no-features-twice": (
        partial(problem, inputs={"x": X[:, :0], "y": np.ones((N, 2, 0))}),
        ValueError,
        "x (6, 0), y (6, 2, 0)",
    ),
    "empty": (partial(problem, inputs=X[:0], targets=Y[:0]), ValueError, "inputs", "(0, 4)"),
    "no-inputs": (partial(problem, inputs={}), ValueError, "inputs", "[]", "stack"),
    "no-targets": (partial(problem, targets=None), ValueError, "targets", "[]", "stack"),
    "nan": (
        partial(problem, inputs=np.where(X == X[1, 1], np.nan, X)),
        ValueError,
        "finite inputs",
        "1 ",
        "1 NaN or infinite value",
    ),
    "inf": (
        partial(problem, targets=np.where(Y == Y[2, 1], np.inf, Y).astype(ml_dtypes.bfloat16)),
        ValueError,
        "finite targets",
        "1 ",
        "1 NaN or infinite value",
    ),
    "object": (
        partial(problem, inputs=np.array([None] * N)),
        TypeError,
        "inputs",
        "object",
        "np.stack",
    ),
    "text": (partial(problem, targets=np.array(["cat"] * N)), TypeError, "targets", "<U3"),
    "weights-n": (partial(problem, weights=np.ones(4)), ValueError, "weights", "6", "(4,)"),
    "weights-0d": (partial(problem, weights=1.0), ValueError, "weights", "6", "()"),
    "weights-sign": (
        partial(problem, weights=np.array([1, 1, 1, 1, 1, -0.5])),
        ValueError,
        "weights",
        "non-negative",
        "-0.5",
    ),
    "weights-zero": (partial(problem, weights=np.zeros(N)), ValueError, "weights", "sum", "0.0"),
    "weights-nan": (partial(problem, weights=np.full(N, np.nan)), ValueError, "weights", "6"),
}


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [(state, kind, words) for state, kind, *words in REFUSED_AT_ONCE.values()],
    ids=REFUSED_AT_ONCE,
)
def test_refused_when_it_is_stated(state, kind, words):
    with refused(kind, *words):
        state()


def outputs(change):
    return lambda params, x: change(x @ params["w"])


REFUSED_AT_PARAMS = {
    "tuple": (partial(problem, outputs(lambda z: (z, {}))), TypeError, "apply", "tuple", "[0]"),
    "dict": (
        partial(problem, outputs(lambda z: {"logits": z})),
        TypeError,
        "apply",
        "dict",
        "['logits']",
    ),
    "labels": (partial(problem, outputs(lambda z: z.argmax(1))), TypeError, "int32", "logits"),
    "[n]": (partial(problem, outputs(lambda z: z[:, 0])), ValueError, "[n, k]", "(6,)", "[n, 1]"),
    "[k,n]": (partial(problem, outputs(lambda z: z.T)), ValueError, "n = 6", "(3, 6)"),
    "[n,0]": (partial(problem, outputs(lambda z: z[:, :0])), ValueError, "[n, k]", "(6, 0)"),
    "mse-labels": (
        partial(problem, targets=LABELS),
        ValueError,
        "(6, 3)",
        "int64",
        "(6,)",
        "one_hot(labels, 3)",
    ),
    "mse-[n]": (
        partial(problem, outputs(lambda z: z[:, :1]), targets=Y[:, 0]),
        ValueError,
        "(6, 1)",
        "(6,)",
        "targets[..., None]",
    ),
    "cosh-shape": (
        partial(problem, loss="cosh", targets=Y[:, :2]),
        ValueError,
        "targets",
        "(6, 3)",
        "(6, 2)",
    ),
    "mse-dict": (partial(problem, targets={"y": Y}), TypeError, "targets", "dict", "callable"),
    "labels-high": (
        partial(problem, loss="cross_entropy", targets=LABELS + 1),
        ValueError,
        "0..2",
        "1..3",
        "weights=",
    ),
    "labels-negative": (
        partial(problem, loss="cross_entropy", targets=LABELS - 1),
        ValueError,
        "0..2",
        "-1..1",
        "weights=",
    ),
    "labels-float": (
        partial(problem, loss="cross_entropy", targets=FLOAT_LABELS),
        ValueError,
        "integer labels",
        "one-hot",
        "float64",
        "(6,)",
    ),
    "labels-column": (
        partial(problem, loss="cross_entropy", targets=LABELS[:, None]),
        ValueError,
        "(6,)",
        "int64",
        "(6, 1)",
    ),
    "not-a-distribution": (
        partial(problem, loss="cross_entropy", targets=np.abs(Y)),
        ValueError,
        "distribution",
        "normalize",
    ),
    "negative-targets": (
        partial(problem, loss="cross_entropy", targets=np.array([[2.0, -1.0, 0.0]] * N)),
        ValueError,
        "non-negative",
        "-1.0",
    ),
    "one-logit": (
        partial(problem, outputs(lambda z: z[:, :1]), loss="cross_entropy", targets=0 * LABELS),
        ValueError,
        "cross_entropy",
        "2 outputs",
        "callable",
    ),
    "callable-positions": (
        partial(problem, loss=oracles.mse, inputs=SEQUENCES, targets=Y),
        ValueError,
        "targets",
        "(6, 2)",
        "(6, 3)",
    ),
    "callable-vector": (
        partial(problem, loss=lambda z, y: (z - y) ** 2),
        ValueError,
        "scalar",
        "[3]",
    ),
    "callable-tuple": (
        partial(problem, loss=lambda z, y: (z.sum(), y)),
        ValueError,
        "scalar",
        "[], ",
    ),
    "callable-integer": (
        partial(problem, loss=lambda z, y: z.argmax()),
        ValueError,
        "floating",
        "int32[]",
    ),
    "weights-[n,k]": (
        partial(problem, weights=np.ones((N, K))),
        ValueError,
        "weights",
        "(6,)",
        "(6, 3)",
    ),
    "weights-[n,s]": (
        partial(problem, inputs=SEQUENCES, targets=SEQUENCES @ W, weights=np.ones((N, 5))),
        ValueError,
        "weights",
        "(6, 2)",
        "(6, 5)",
    ),
    "all-excluded": (
        partial(problem, exclude=["w"]),
        ValueError,
        "floating leaf",
        "w float64[4, 3]",
        "include=",
    ),
    "filter": (partial(problem, include=["W*"]), ValueError, "'W*'", "['w']"),
}


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [(state, kind, words) for state, kind, *words in REFUSED_AT_PARAMS.values()],
    ids=REFUSED_AT_PARAMS,
)
def test_refused_when_parameters_come(state, kind, words):
    with refused(kind, *words):
        state().flat(PARAMS)


@pytest.mark.parametrize(
    ("params", "kind", "words"),
    [
        ({}, ValueError, ["floating leaf", "{}", "weights"]),
        ({"w": np.ones((D, K), int)}, ValueError, ["floating leaf", "int64[4, 3]"]),
        ({"w": np.ones((0, K))}, ValueError, ["floating leaf", "float64[0, 3]"]),
        ({"w": "kernel"}, TypeError, ["numbers", "str", "'w'"]),
        ({"w": W * 1j}, TypeError, ["real", "complex128", "'w'", "exclude"]),
        ({"w": W, "key": jax.random.key(0)}, TypeError, ["numbers", "'key'"]),
    ],
    ids=["empty", "integers", "no-entries", "text", "complex", "random-key"],
)
def test_refused_parameters(params, kind, words):
    with refused(kind, *words):
        problem().flat(params)


def test_checks_of_parameters_run_nothing():
    """Shapes alone: a network that notices concrete numbers never sees any."""
    seen = []

    def network(params, x):
        seen.append(isinstance(params["w"], jax.core.Tracer))
        return x @ params["w"]

    problem(network).flat(PARAMS)
    assert seen
    assert all(seen)


# The user's settings


SETTINGS = {
    "none": (),
    "x64": (lambda: jax.enable_x64(True),),
    "strict": (lambda: jax.numpy_dtype_promotion("strict"),),
    "debug-nans": (lambda: jax.debug_nans(True), lambda: jax.debug_infs(True)),
    "x64-strict-nans": (
        lambda: jax.enable_x64(True),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.debug_nans(True),
    ),
    "rank-promotion": (lambda: jax.numpy_rank_promotion("raise"),),
    "no-jit": (jax.disable_jit,),
    "transfer-guard": (lambda: jax.transfer_guard("disallow"),),
    "bfloat16-products": (lambda: jax.default_matmul_precision("bfloat16"),),
}


def settings():
    return {
        name: getattr(jax.config, name) for name in jax.config.values if hasattr(jax.config, name)
    }


@pytest.mark.parametrize("contexts", SETTINGS.values(), ids=SETTINGS)
def test_the_users_settings_change_no_measurement_and_are_not_changed(contexts):
    def network(params, x):
        # Promotes float32 with float64 and (3,) with (6, 3), and passes through an infinity.
        z = x @ params["w"] + params["b"]
        return jnp.where(z > -99, z, jnp.log(jnp.zeros(())))

    params = {"w": W.astype(np.float32), "b": np.zeros(K)}
    want = naive(oracles.mse, X @ W.astype(np.float32), Y)
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        before = settings()
        assert_same(measured(problem(network), params), want)
        assert settings() == before
    assert jax.config.jax_enable_x64 is False


def test_nonfinite_weights_are_data():
    broken = {"w": np.where(W == W[0, 0], np.nan, W)}
    with jax.debug_nans(True):
        loss, delta = measured(problem(), broken)
    assert np.isnan(loss)
    assert np.isnan(delta).any()


def test_float64_host_parameters_of_a_float32_network_warn_of_nothing():
    """A carry of float32's bits forbids float64; with x64 off JAX would warn of truncated casts."""

    def network(params, x):
        total = jax.lax.scan(lambda c, a: (c + a.sum(), None), jnp.float32(0), params["w"])[0]
        return x @ params["w"] * total + 0 * jax.lax.bitcast_convert_type(total, jnp.int32)

    loss, _ = measured(problem(network))
    want, _ = naive(oracles.mse, X @ W * W.sum(), Y)
    assert loss == pytest.approx(want, rel=1e-5)
    assert problem(network).flat(PARAMS).precision.eps == 2.0**-23


def test_measuring_in_a_thread_leaves_a_float32_trace_in_the_main_thread_alone():
    """The measurement holds its float64 scope while the main thread traces its own step."""
    inside, traced, found = threading.Event(), threading.Event(), {}

    def network(params, x):
        if threading.current_thread() is worker:
            inside.set()
            traced.wait(30)
        return x @ params["w"]

    def work():
        found["got"] = measured(problem(network))

    worker = threading.Thread(target=work)
    worker.start()
    assert inside.wait(30)
    step = jax.jit(lambda w, x: jnp.tanh(apply({"w": w}, x)) + jnp.ones(K))
    dtype = step(W, X).dtype
    traced.set()
    worker.join()
    assert dtype == jnp.float32
    assert_same(found["got"], naive(oracles.mse, X @ W, Y))


@pytest.mark.parametrize("gradient", [False, True])
def test_one_program_evaluates_everything_at_the_outputs(gradient):
    def network(params, x):
        return jnp.tanh(x @ params["w"]) + 1

    stated, u = problem(network, loss="cross_entropy", targets=LABELS), np.ones((N, K))
    flat = stated.flat(PARAMS)
    split = flat.split(flat.leaves(PARAMS))
    flat.compile(gradient=gradient)
    z, theta = np.tanh(X @ W) + 1, jnp.asarray(W.ravel(), jnp.float32)
    loss, delta = flat.loss_and_residuals(*split)
    q = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log(q[np.arange(N), LABELS]).mean(), rtol=1e-12)
    np.testing.assert_allclose(delta, q - np.eye(K)[LABELS], rtol=1e-12)
    J = jax.jacobian(lambda t: network({"w": t.reshape(D, K)}, X))(theta).reshape(N * K, -1)
    np.testing.assert_allclose(
        transposed_product(flat, *split, u), u.ravel() @ np.asarray(J), rtol=1e-4
    )
    assert flat.loss_and_residuals(*split)[0] == pytest.approx(loss, rel=1e-14)
    v = RNG.standard_normal((N, K, 1))
    B = np.stack([np.diag(p) - np.outer(p, p) for p in q])
    np.testing.assert_allclose(flat.output_hessians(*split).products(v), B @ v, atol=1e-12)
