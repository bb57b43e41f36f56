"""Test layers' inputs and activations' derivatives against autodiff of one entry at a time."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import gaussian_variables
from rankmon.network.activations import layer_states
from rankmon.network.recognized_stack import recognized_stack
from rankmon.problem.problem import Problem

N = 5


def gaussian(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def layers_of(widths, functions, biases=None):
    """(W [out, in], b or None, f or None) for each layer."""
    biases = [False] * len(functions) if biases is None else biases
    return [
        (gaussian(out, fan_in, seed=i), gaussian(out, seed=i) if bias else None, f)
        for i, (fan_in, out, f, bias) in enumerate(
            zip(widths[:-1], widths[1:], functions, biases, strict=True)
        )
    ]


@functools.cache
def derivatives(functions):
    """Z -> f, f', f'' of 20 numbers, each by itself, for each of these functions; one program."""

    def one(f):
        slope = jax.grad(f)
        return jax.vmap(lambda z: (f(z), slope(z), jax.grad(slope)(z)))

    return jax.jit(lambda z: [one(f)(z) for f in functions])


def entrywise(f, z, functions):
    """f, f', f'' of every entry by itself; padded, so that one compilation serves all shapes."""
    with jax.enable_x64(True):
        found = derivatives(functions)(np.concatenate([z.ravel(), np.zeros(20 - z.size)]))
        found = found[functions.index(f)]
        return [np.asarray(values)[: z.size].reshape(z.shape) for values in found]


def identity(z):
    return z


# What most networks here are made of, compiled together.
COMMON = (identity, jnp.tanh, jax.nn.silu, jax.nn.sigmoid, jax.nn.relu)


def textbook(layers, x):
    """What every layer receives, f' and f'' there: a forward pass in NumPy, `jax.grad` an entry."""
    h, received, slopes, bends = x.reshape(len(x), -1), [], [], []
    functions = [identity if f is None else f for *_, f in layers]
    others = tuple(dict.fromkeys(f for f in functions if f not in COMMON))
    for (W, b, _), f in zip(layers, functions, strict=True):
        received.append(h)
        z = h @ W.T if b is None else h @ W.T + b
        h, slope, bend = entrywise(f, z, COMMON if f in COMMON else others)
        slopes.append(slope)
        bends.append(bend)
    return received, slopes, bends


# Where the features go, and how a kernel is stored: h, w -> the product.
PRODUCTS = {
    "in-out": lambda w, h: h @ w,
    "out-in": lambda w, h: h @ w.T,
    "columns": lambda w, h: w @ h,
    "columns-in-out": lambda w, h: w.T @ h,
}


def written(layers, form="in-out"):
    """(apply, parameters) of the network in one of the `PRODUCTS`, or an example at a time."""
    columns, in_out = form.startswith("columns"), form.endswith("in-out")
    params = [{"w": W.T if in_out else W} | ({} if b is None else {"b": b}) for W, b, _ in layers]

    def apply(params, x):
        h = x.T if columns else x
        for layer, (*_, f) in zip(params, layers, strict=True):
            h = PRODUCTS[form](layer["w"], h)
            if "b" in layer:
                h = h + (layer["b"][:, None] if columns else layer["b"])
            h = h if f is None else f(h)
        return h.T if columns else h

    def one_at_a_time(params, x):
        def of_one(v):
            for layer, (*_, f) in zip(params, layers, strict=True):
                v = layer["w"] @ v + layer.get("b", 0.0)
                v = v if f is None else f(v)
            return v

        return jax.vmap(of_one)(x)

    return (one_at_a_time if form == "vmap" else apply), params


def bound(apply, params, x):
    """(a function from parameters to states, the parameters' leaves)."""
    k = jax.eval_shape(apply, params, x).shape[-1]
    flat = Problem(apply, loss="mse", inputs=x, targets=np.zeros((len(x), k))).flat(params)
    stack = recognized_stack(flat)
    assert stack is not None
    return layer_states(flat, stack), flat.leaves(params)


def states_of(apply, params, x):
    states, leaves = bound(apply, params, x)
    return states(leaves)


def assert_states(got, layers, x, names=None):
    names = range(len(layers)) if names is None else names
    for part, wanted in zip(("received", "slopes", "bends"), textbook(layers, x), strict=True):
        arrays = getattr(got, part)
        assert [array.dtype for array in arrays] == [np.float64] * len(layers)
        for name, array, want in zip(names, arrays, wanted, strict=True):
            atol = 1e-13 * np.max(np.abs(want), initial=1.0)
            said = f"{part} of {name}"
            np.testing.assert_allclose(array, want, atol=atol, rtol=0, strict=True, err_msg=said)


@jax.custom_jvp
def with_own_rule(z):
    return jnp.tanh(z)


@with_own_rule.defjvp
def _own_rule(primals, tangents):
    return jnp.tanh(primals[0]), 2 * jnp.cos(primals[0]) * tangents[0]


@jax.custom_vjp
def with_own_backward_rule(z):
    return jnp.tanh(z)


with_own_backward_rule.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: (2 * jnp.cos(z) * g,))


@jax.jit
def jitted(z):
    return jnp.where(z > 0, z, jax.jit(jnp.expm1)(z))


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "maximum": lambda z: jnp.maximum(z, 0),
    "mask": lambda z: z * (z > 0).astype(z.dtype),
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "silu-by-hand": lambda z: z * jax.nn.sigmoid(z),
    "gelu": jax.nn.gelu,
    "gelu-exact": lambda z: jax.nn.gelu(z, approximate=False),
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "clip": lambda z: jnp.clip(z, -0.5, 0.5),
    "cube": lambda z: z**3,
    "sum-of-three": lambda z: jnp.sin(z) + z + z * z,
    "composed": lambda z: jnp.tanh(jax.nn.softplus(z)),
    "jit": jitted,
    "checkpoint": jax.checkpoint(lambda z: jnp.sin(z) * jax.nn.sigmoid(z)),
    "jit-in-checkpoint": jax.checkpoint(jax.jit(jax.nn.silu)),
    "custom_jvp": with_own_rule,
}


NAMES = list(ACTIVATIONS)


@pytest.mark.parametrize("names", [NAMES[i::4] for i in range(4)], ids=", ".join)
def test_activations(names):
    """Five in one network, in layers with and without biases."""
    functions = [*(ACTIVATIONS[name] for name in names), None]
    layers = layers_of((3, 4, 3, 4, 3, 4, 2), functions, (True, False, True, False, True, True))
    x = gaussian(N, 3)
    got = states_of(*written(layers), x)
    assert_states(got, layers, x, [*names, "the outputs"])
    np.testing.assert_array_equal(got.slopes[-1], np.ones((N, 2)))
    np.testing.assert_array_equal(got.bends[-1], np.zeros((N, 2)))


def test_a_rule_of_its_own_is_used():
    layers, x = layers_of((3, 4, 2), (with_own_rule, None)), gaussian(N, 3)
    got = states_of(*written(layers), x)
    z = x @ layers[0][0].T
    np.testing.assert_allclose(got.slopes[0], 2 * np.cos(z), rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.bends[0], -2 * np.sin(z), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "f", [with_own_backward_rule, jax.jit(with_own_backward_rule)], ids=["plain", "jit"]
)
def test_a_backward_rule_of_its_own_is_refused(f):
    layers = layers_of((3, 4, 2), (f, None))
    with pytest.raises(ValueError, match="backward rule"):
        states_of(*written(layers), gaussian(N, 3))


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("maximum", 0.5)])
def test_the_slope_at_a_kink_is_the_one_that_jax_takes(name, slope):
    layers, x = layers_of((3, 4, 2), (ACTIVATIONS[name], None)), np.zeros((N, 3))
    got = states_of(*written(layers), x)
    assert_states(got, layers, x)
    np.testing.assert_array_equal(got.slopes[0], np.full((N, 4), slope))


FUNCTIONS = {
    "none": (None, None, None),
    "hidden-and-output": (jax.nn.relu, jnp.tanh, jax.nn.sigmoid),
    "one-layer": (jax.nn.softplus,),
    "gaps": (jnp.tanh, None, jax.nn.silu, None, None, jnp.sin),
    "the-same-object": (jitted, jitted, jitted),
    "written-twice": (
        jnp.tanh,
        lambda z: 2 * jax.nn.sigmoid(2 * z) - 1,
        lambda z: (jnp.exp(z) - jnp.exp(-z)) / (jnp.exp(z) + jnp.exp(-z)),
        None,
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_activations_stand(name):
    functions = FUNCTIONS[name]
    widths = (3, 4, 2, 3, 4, 2, 3)[: len(functions) + 1]
    biases = [i % 2 == len(name) % 2 for i in range(len(functions))]
    layers = layers_of(widths, functions, biases)
    x = gaussian(N, 3)
    assert_states(states_of(*written(layers), x), layers, x)


@pytest.mark.parametrize("form", ["out-in", "columns", "columns-in-out", "vmap"])
def test_layouts(form):
    layers = layers_of((3, 3, 4, 2), (jnp.tanh, None, jax.nn.silu), (True, True, False))
    x = gaussian(3, 3)
    assert_states(states_of(*written(layers, form), x), layers, x)


@pytest.mark.parametrize(
    ("widths", "form", "n"),
    [
        ((1, 1, 1), "in-out", N),
        ((1, 1, 1), "columns", 1),
        ((4, 1, 3), "in-out", 1),
        ((4, 1, 3), "columns-in-out", N),
        ((1, 3, 1), "columns", N),
        ((1, 3, 1), "vmap", 1),
        ((3, 4, 2), "out-in", 1),
    ],
    ids=str,
)
def test_axes_of_size_one(widths, form, n):
    layers = layers_of(widths, (jnp.tanh, jax.nn.silu), (True, False))
    x = gaussian(n, widths[0])
    assert_states(states_of(*written(layers, form), x), layers, x)


@jax.jit
def _layer(w, h):
    return jnp.tanh(h @ w)


def test_layers_inside_one_jitted_function():
    """The same jaxpr, its variables included, occurs once a layer."""
    layers = layers_of((3, 3, 3, 3), [jnp.tanh] * 3)
    x = gaussian(N, 3)

    def apply(kernels, x):
        for w in kernels:
            x = jax.checkpoint(_layer)(w, x)
        return x

    assert_states(states_of(apply, [W.T for W, *_ in layers], x), layers, x)


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        x = nn.tanh(nn.Dense(4)(x))
        x = nn.silu(nn.Dense(3, use_bias=False)(x))
        return nn.Dense(2)(x)


@pytest.mark.parametrize("shape", [(2, 1, 2), (1, 1)], ids=str)
def test_linen_modules_with_flattened_inputs(shape):
    module, x = _Network(), gaussian(N, *shape)
    params = jax.tree.map(np.float64, gaussian_variables(module, x)["params"])
    dense = [params[f"Dense_{i}"] for i in range(3)]
    layers = [
        (layer["kernel"].T, layer.get("bias"), f)
        for layer, f in zip(dense, (jnp.tanh, jax.nn.silu, None), strict=True)
    ]
    got = states_of(lambda params, x: module.apply({"params": params}, x), params, x)
    assert_states(got, layers, x)


def _another_product(w, x):
    jnp.sort(x @ w[1], axis=1)


def _another_depth(w, x):
    jnp.sin(jnp.tanh(x @ w[0]) @ w[0]) @ w[1]


def _another_function(w, x):
    jax.nn.sigmoid(x @ w[0]) @ w[1]


def _printed(w, x):
    jax.debug.callback(lambda h: None, x @ w[0])


UNUSED = (_another_product, _another_depth, _another_function, _printed)


def _another_result(w, x):
    """The outputs, from a program that has results which nobody takes."""
    both = jax.jit(lambda h: (jnp.tanh(h) @ w[1], jax.nn.sigmoid(h) @ w[1], jnp.sort(h)))
    return both(x @ w[0])[0]


def test_what_the_outputs_do_not_depend_on_changes_nothing():
    """All of it in one network."""
    layers = layers_of((4, 4, 3), (jnp.tanh, None))
    x = gaussian(N, 4)

    def apply(w, x):
        for unused in UNUSED:
            unused(w, x)
        return _another_result(w, x)

    assert_states(states_of(apply, [W.T for W, *_ in layers], x), layers, x)


def test_inputs_of_a_one_leaf_pytree_and_constants():
    layers, x = layers_of((3, 4, 2), (lambda z: 0.5 * jnp.tanh(z), None)), gaussian(N, 3)
    half = jnp.float32(0.5)

    def apply(params, x):
        return half * jnp.tanh(x["x"] @ params["w"][0]) @ params["w"][1]

    params = {"w": [W.T for W, *_ in layers]}
    problem = Problem(apply, loss="mse", inputs={"x": x}, targets=np.zeros((N, 2)))
    flat = problem.flat(params)
    states = layer_states(flat, recognized_stack(flat))
    assert_states(states(flat.leaves(params)), layers, x)


def test_every_call_takes_its_own_parameters_and_traces_once():
    """Held against tanh's derivatives in closed form."""
    layers, x, calls = layers_of((3, 4, 2), (jnp.tanh, None)), gaussian(N, 3), []
    plain, params = written(layers)

    def apply(params, x):
        calls.append(1)
        return plain(params, x)

    states, leaves = bound(apply, params, x)
    traced = len(calls)
    for factor in (1, 0.5):
        got, h = states([factor * leaf for leaf in leaves]), np.tanh(x @ (factor * layers[0][0].T))
        np.testing.assert_allclose(got.received[1], h, rtol=1e-13)
        np.testing.assert_allclose(got.slopes[0], 1 - h**2, rtol=1e-12)
        np.testing.assert_allclose(got.bends[0], -2 * h * (1 - h**2), rtol=1e-12)
    assert len(calls) == traced


def test_single_precision_parameters_are_taken_in_double():
    layers, x = layers_of((3, 4, 2), (jnp.tanh, None)), gaussian(N, 3).astype(np.float32)
    layers = [(W.astype(np.float32), b, f) for W, b, f in layers]
    got = states_of(*written(layers), x)
    lifted = [(W.astype(np.float64), b, f) for W, b, f in layers]
    assert_states(got, lifted, x.astype(np.float64))
    assert jax.config.jax_enable_x64 is False


def test_overflow_is_left_in_the_states():
    layers = layers_of((3, 4, 3, 2), (jax.nn.relu, jax.nn.silu, None))
    apply, params = written(layers)
    states, leaves = bound(apply, params, gaussian(N, 3))
    got = states([1e200 * leaf for leaf in leaves])
    assert not np.all(np.isfinite(got.received[2]))
