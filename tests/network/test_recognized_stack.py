"""The recognition of dense stacks, on networks whose structure is known by construction."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from oracles import gaussian_variables
from rankmon.network.dataflow import DenseLayer
from rankmon.network.recognized_stack import dense_stack

N = 7


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def gaussian(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def from_linen(module, *input_shape):
    """(apply on a flat list, float64 leaves, inputs) of a Linen module."""
    x = gaussian(N, *input_shape)
    params = jax.tree.map(np.float64, gaussian_variables(module, x))
    leaves, tree = jax.tree.flatten(params)
    return lambda flat, x: module.apply(jax.tree.unflatten(tree, flat), x), leaves, x


class LinenMLP(nn.Module):
    widths: tuple[int, ...]
    use_bias: bool = False
    activation: object = staticmethod(lambda z: z)

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = self.activation(nn.Dense(width, use_bias=self.use_bias)(x))
        return nn.Dense(self.widths[-1], use_bias=self.use_bias)(x)


def reference(stack, leaves, x, activation):
    """The textbook network with the recovered parameters, in NumPy."""
    h = np.reshape(x, (len(x), -1))
    parameters = zip(stack.layers, stack.weights(leaves), stack.biases(leaves), strict=True)
    for layer, W, b in parameters:
        h = np.stack([np.asarray(W) @ example for example in h]) + (0 if b is None else b)
        h = activation(h) if layer.activated else h
    return h


def assert_recovered(stack, apply, leaves, x, activation=None, name=""):
    """The textbook network with the recovered parameters is apply."""
    assert_network(stack, jax.jit(apply)(leaves, x), leaves, x, activation, name)


def assert_network(stack, outputs, leaves, x, activation=None, name=""):
    """The textbook network with the recovered parameters has these outputs."""
    assert [W.shape for W in stack.weights(leaves)] == list(
        zip(stack.dims[1:], stack.dims[:-1], strict=True)
    ), name
    got, atol = reference(stack, leaves, x, activation), 1e-12 * np.max(np.abs(outputs))
    np.testing.assert_allclose(got, outputs, rtol=0, atol=atol, err_msg=str(name))


def relu(z):
    return np.where(z > 0, z, 0)


# Hidden activations in JAX, and the same written down anew in NumPy.
ACTIVATIONS = {
    "relu": (jax.nn.relu, relu),
    "max": (lambda z: jnp.maximum(z, 0), relu),
    "where": (lambda z: jnp.where(z > 0, z, jnp.zeros_like(z)), relu),
    "mask": (lambda z: z * (z > 0).astype(z.dtype), relu),
    "tanh": (jnp.tanh, np.tanh),
    "leaky_relu": (jax.nn.leaky_relu, lambda z: np.where(z > 0, z, 0.01 * z)),
    "elu": (jax.nn.elu, lambda z: np.where(z > 0, z, np.exp(-relu(-z)) - 1)),
    "selu": (jax.nn.selu, lambda z: 1.0507009873554805 * np.where(z > 0, z, selu_tail(z))),
    "softplus": (jax.nn.softplus, lambda z: np.log(1 + np.exp(z))),
    "silu": (jax.nn.silu, lambda z: z / (1 + np.exp(-z))),
    "gelu": (jax.nn.gelu, lambda z: z / (1 + np.exp(-np.sqrt(8 / np.pi) * (z + 0.044715 * z**3)))),
    "relu6": (jax.nn.relu6, lambda z: 6 - relu(6 - relu(z))),
    "clip": (lambda z: jnp.clip(z, -1, 1), lambda z: relu(z + 1) - relu(z - 1) - 1),
    "square": (jnp.square, lambda z: z * z),
    "double": (lambda z: z + z, lambda z: 2 * z),
}


def selu_tail(z):
    return 1.6732632423543772 * (np.exp(-relu(-z)) - 1)


@pytest.mark.parametrize(
    ("widths", "use_bias"),
    [((4,), True), ((4, 3), False), ((4, 3), True), ((5, 5, 5), False), ((3,) * 11, True)],
    ids=str,
)
def test_linear_linen_networks_are_recognized(widths, use_bias):
    apply, leaves, x = from_linen(LinenMLP(widths, use_bias), 5)
    stack = dense_stack(apply, leaves, x)
    assert stack.linear
    assert stack.bias is use_bias
    assert stack.dims == (5, *widths)
    assert all(layer.transposed for layer in stack.layers)
    assert_recovered(stack, apply, leaves, x)


def test_order_comes_from_the_data_flow_where_names_sort_otherwise():
    # Leaves in tree order: Dense_0, Dense_1, Dense_10, Dense_2, ...
    apply, leaves, x = from_linen(LinenMLP((3,) * 11, activation=jnp.tanh), 3)
    stack = dense_stack(apply, leaves, x)
    assert [layer.kernel for layer in stack.layers] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2]


@pytest.mark.parametrize("use_bias", [False, True], ids=["without-bias", "with-bias"])
def test_activated_networks_are_stacks_and_not_linear(use_bias):
    stacks, networks = {}, {}
    for name, (activation, _) in ACTIVATIONS.items():
        networks[name], leaves, x = from_linen(LinenMLP((6, 4, 3), use_bias, activation), 5)
        stacks[name] = stack = dense_stack(networks[name], leaves, x)
        assert stack is not None, name
        assert not stack.linear, name
        assert [layer.activated for layer in stack.layers] == [True, True, False], name
        assert stack.dims == (5, 6, 4, 3), name
    if not use_bias:  # what is recovered is evaluated with biases for the rest
        networks = {name: networks[name] for name in ("relu", "silu")}
    outputs = jax.jit(lambda leaves, x: {name: f(leaves, x) for name, f in networks.items()})
    for name, found in outputs(leaves, x).items():
        assert_network(stacks[name], found, leaves, x, ACTIVATIONS[name][1], name)


def nnx_network(use_bias, activation):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 4, use_bias=use_bias, rngs=rngs)
            self.a_last = nnx.Linear(4, 3, use_bias=use_bias, rngs=rngs)

        def __call__(self, x):
            return self.a_last(activation(self.first(x)))

    graph, state = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda a: gaussian(*a.shape, seed=3), state))
    return lambda flat, x: nnx.merge(graph, jax.tree.unflatten(tree, flat))(x), leaves


@pytest.mark.parametrize(
    ("linear", "use_bias"), [(True, True), (False, False)], ids=["linear-bias", "tanh"]
)
def test_nnx_networks_are_recognized(use_bias, linear):
    apply, leaves = nnx_network(use_bias, (lambda z: z) if linear else jnp.tanh)
    x = gaussian(N, 5)
    stack = dense_stack(apply, leaves, x)
    assert (stack.linear, stack.bias, stack.dims) == (linear, use_bias, (5, 4, 3))
    assert_recovered(stack, apply, leaves, x, np.tanh)


def with_tanh(apply):
    """With a tanh at the end, where structure alone decides and nothing is evaluated."""
    return lambda leaves, x: jnp.tanh(apply(leaves, x))


def chain(weights, x):
    for W in weights:
        x = x @ W.T
    return x


def column_major(weights, x):
    W1, W2 = weights
    return (W2 @ (W1 @ x.T)).T


@jax.jit
def nested(weights, x):
    first = jax.jit(lambda W, x: jax.jit(jnp.dot)(x, jnp.transpose(W)))
    return jax.checkpoint(lambda W, h: h @ W.T)(weights[1], first(weights[0], x))


def converted_and_padded(weights, x):
    W1, W2 = weights
    h = jnp.array(x[:, None, :]) @ W1.T.astype(jnp.float64)
    return jnp.squeeze(h @ W2.T, 1)


def there_and_back(weights, x):
    W1, W2 = weights
    return (x.T.T @ W1.T.T.T).reshape(N, 1, 4)[:, 0] @ W2.T


# Two layers, W1 of 4 x 5 and W2 of 3 x 4, both leaves stored (out, in).
OUT_BY_IN = {
    "x @ W.T": chain,
    "dot_general": lambda w, x: jax.lax.dot_general(
        jax.lax.dot_general(x, w[0], (((1,), (1,)), ((), ()))), w[1], (((1,), (1,)), ((), ()))
    ),
    "vmap": lambda w, x: jax.vmap(lambda v: w[1] @ (w[0] @ v))(x),
    "column-major": column_major,
    "einsum": lambda w, x: jnp.einsum("km,nm->nk", w[1], jnp.einsum("md,nd->nm", w[0], x)),
    "nested": nested,
    "padded": converted_and_padded,
    "there-and-back": there_and_back,
    "vmapped-jit": lambda w, x: jax.vmap(jax.jit(lambda v: jnp.dot(w[1], jnp.dot(w[0], v))))(x),
}


@pytest.mark.parametrize("stored_in_out", [False, True], ids=["out-in", "in-out"])
@pytest.mark.parametrize("d", [5, 4], ids=["rectangular", "square"])
def test_every_way_to_write_a_product_in_both_orientations(d, stored_in_out):
    weights, x = [gaussian(4, d, seed=1), gaussian(3, 4, seed=2)], gaussian(N, d)
    for name, product in OUT_BY_IN.items():
        apply, leaves = product, weights
        if stored_in_out:
            leaves = [W.T for W in weights]
            apply = lambda w, x, product=product: product([W.T for W in w], x)  # noqa: E731
        stack = dense_stack(with_tanh(apply), leaves, x)
        layers = DenseLayer(0, stored_in_out), DenseLayer(1, stored_in_out, activated=True)
        assert stack.layers == layers, name
        assert (stack.bias, stack.dims) == (False, (d, 4, 3)), name
        for W, recovered in zip(weights, stack.weights(leaves), strict=True):
            np.testing.assert_array_equal(recovered, W, err_msg=name)


@pytest.mark.parametrize("name", OUT_BY_IN)
def test_every_way_to_write_a_product_is_linear(name):
    weights, x = [gaussian(4, 5, seed=1), gaussian(3, 4, seed=2)], gaussian(N, 5)
    stack = dense_stack(OUT_BY_IN[name], weights, x)
    assert stack.linear
    assert_recovered(stack, OUT_BY_IN[name], weights, x)


def test_orientation_of_square_layers_and_square_batches_comes_from_the_graph():
    leaves = [gaussian(4, 4, seed=1), gaussian(4, 4, seed=2), gaussian(4, 4, seed=3)]
    apply = lambda w, x: ((x @ w[2]) @ w[0].T) @ w[1]  # noqa: E731
    x = gaussian(4, 4)
    stack = dense_stack(apply, leaves, x)
    assert stack.layers == (DenseLayer(2, True), DenseLayer(0, False), DenseLayer(1, True))
    assert_recovered(stack, apply, leaves, x)


# Leaves (W1, b1, W2, b2), W stored (out, in); the biases in the shapes people give them.
BIASED = {
    "rows": (lambda p, x: (x @ p[0].T + p[1]) @ p[2].T + p[3], (4,), (3,)),
    "row-matrix": (lambda p, x: p[3] + (p[1] + x @ p[0].T) @ p[2].T, (1, 4), (1, 3)),
    "columns": (
        lambda p, x: (p[2] @ (p[0] @ x.T + p[1][:, None]) + p[3][:, None]).T,
        (4,),
        (3,),
    ),
    "column-matrix": (lambda p, x: (p[2] @ (p[0] @ x.T + p[1]) + p[3]).T, (4, 1), (3, 1)),
    "vmap": (
        lambda p, x: jax.vmap(lambda v: p[2] @ (p[0] @ v + p[1]) + p[3])(x),
        (4,),
        (3,),
    ),
    "tiled": (
        lambda p, x: (x @ p[0].T + jnp.broadcast_to(p[1], (len(x), 4))) @ p[2].T + p[3][None],
        (4,),
        (3,),
    ),
}


@pytest.mark.parametrize("name", BIASED)
def test_biases_in_every_shape(name):
    apply, *bias_shapes = BIASED[name]
    leaves = [gaussian(4, 5), gaussian(*bias_shapes[0]), gaussian(3, 4), gaussian(*bias_shapes[1])]
    layers = DenseLayer(0, False, bias=1), DenseLayer(2, False, bias=3, activated=True)
    for n in (N, 4, 3, 1):
        stack = dense_stack(with_tanh(apply), leaves, gaussian(n, 5))
        assert stack is not None, n
        assert stack.layers == layers, n
        assert stack.bias is True
        assert [b.shape for b in stack.biases(leaves)] == [(4,), (3,)], n
    x = gaussian(N, 5)
    linear = dense_stack(apply, leaves, x)
    assert (linear.linear, linear.bias) == (True, True)
    assert_recovered(linear, apply, leaves, x)


def test_a_bias_on_some_layers_only():
    leaves = [gaussian(5, 4), gaussian(4), gaussian(4, 3)]
    apply = lambda p, x: (x @ p[0] + p[1]) @ p[2]  # noqa: E731
    stack = dense_stack(apply, leaves, gaussian(N, 5))
    assert stack.bias is None
    assert stack.biases(leaves)[1] is None
    assert_recovered(stack, apply, leaves, gaussian(N, 5))


def rows(p, x):
    for W, b in zip(p[::2], p[1::2], strict=True):
        x = x @ W.T + b
    return x


def columns(p, x):
    h = x.T
    for W, b in zip(p[::2], p[1::2], strict=True):
        h = W @ h + b[:, None]
    return h.T


BIASED_CHAINS = {
    "rows": rows,
    "columns": columns,
    "vmap": lambda p, x: jax.vmap(lambda v: columns(p, v[None])[0])(x),
}


def biased_chain(widths):
    """The leaves W1, b1, W2, b2, ... of a network of these widths."""
    leaves = []
    for out, into in zip(widths[1:], widths[:-1], strict=True):
        leaves += [gaussian(out, into, seed=len(leaves)), gaussian(out, seed=len(leaves))]
    return leaves


@pytest.mark.parametrize("n", [N, 1], ids=["batch", "one-example"])
@pytest.mark.parametrize("name", BIASED_CHAINS)
def test_widths_of_one(name, n):
    """Axes of size one cannot be told apart by their size, nor orientation by shape."""
    apply = BIASED_CHAINS[name]
    for widths in [(1, 1), (1, 3), (4, 1, 3), (1, 1, 1, 4, 1), (2, 2, 1)]:
        leaves, x = biased_chain(widths), gaussian(n, widths[0])
        stack = dense_stack(with_tanh(apply), leaves, x)
        assert stack is not None, widths
        activated = [layer.activated for layer in stack.layers]
        assert activated == [False] * (len(widths) - 2) + [True], widths
        assert stack.dims == widths
        assert_network(stack, np.tanh(rows(leaves, x)), leaves, x, np.tanh, widths)
    leaves, x = biased_chain((4, 1, 3)), gaussian(n, 4)
    linear = dense_stack(apply, leaves, x)
    assert linear.linear
    assert_recovered(linear, apply, leaves, x)


FLATTENED = {"reshape": lambda x: x.reshape(len(x), -1), "vmap": jax.vmap(jnp.ravel)}


@pytest.mark.parametrize("name", FLATTENED)
def test_flattened_inputs(name):
    def apply(w, x):
        return FLATTENED[name](x) @ w[0] @ w[1].T

    for shape in [(5, 5), (2, 3, 4), (4, 4, 1), (1, 6), (1, 1), ()]:
        d = int(np.prod(shape))
        leaves = [gaussian(d, 4), gaussian(3, 4)]
        for n in (N, 4, 1):
            x = gaussian(n, *shape)
            stack = dense_stack(with_tanh(apply), leaves, x)
            assert stack is not None, (shape, n)
            layers = DenseLayer(0, True), DenseLayer(1, False, activated=True)
            assert stack.layers == layers, (shape, n)
            assert stack.dims == (d, 4, 3), (shape, n)
            outputs = np.tanh(x.reshape(n, -1) @ leaves[0] @ leaves[1].T)
            assert_network(stack, outputs, leaves, x, np.tanh, (shape, n))
    leaves, x = [gaussian(24, 4), gaussian(3, 4)], gaussian(N, 2, 3, 4)
    linear = dense_stack(apply, leaves, x)
    assert linear.linear
    assert_recovered(linear, apply, leaves, x)


def test_a_function_after_the_last_layer_is_marked():
    leaves, x = [gaussian(5, 4), gaussian(4, 3)], gaussian(N, 5)
    apply = lambda w, x: jnp.tanh(x @ w[0] @ w[1])  # noqa: E731
    stack = dense_stack(apply, leaves, x)
    assert [layer.activated for layer in stack.layers] == [False, True]
    assert_recovered(stack, apply, leaves, x, np.tanh)


def test_integer_leaves_and_dead_code_change_nothing():
    leaves = [np.arange(3), gaussian(5, 4), jax.random.key(0), gaussian(4, 3)]

    def apply(leaves, x):
        jnp.sort(x @ leaves[1]).sum()
        return x @ leaves[1] @ leaves[3]

    stack = dense_stack(apply, leaves, gaussian(N, 5))
    assert stack.linear
    assert [layer.kernel for layer in stack.layers] == [1, 3]


def test_inputs_of_a_one_leaf_pytree():
    leaves, x = [gaussian(5, 4), gaussian(4, 3)], {"x": gaussian(N, 5)}
    stack = dense_stack(lambda w, x: x["x"] @ w[0] @ w[1], leaves, x)
    assert stack.linear


@jax.custom_vjp
def reversed_gradient(z):
    return z


reversed_gradient.defvjp(lambda z: (z, None), lambda _, g: (-g,))


@jax.custom_jvp
def frozen(z):
    return z


frozen.defjvp(lambda primals, tangents: (primals[0], 0 * tangents[0]))


@jax.custom_jvp
def frozen_layer(W, x):
    return x @ W


frozen_layer.defjvp(lambda primals, tangents: (primals[1] @ primals[0], tangents[1] @ primals[0]))

# All but the first three equal x @ W1 @ W2 on Gaussian data, to the last digits or to all of them.
IMPOSTORS = {
    "scaled": lambda z: z * 0.5,
    "negated": lambda z: -z,
    "shifted": lambda z: z + 1e-9,
    "relu-above-a-large-shift": lambda z: jax.nn.relu(z + 100) - 100,
    "clip": lambda z: jnp.clip(z, -100, 100),
    "softshrink": lambda z: jnp.where(z > 1e-300, z, jnp.where(z < -1e-300, z, 0)),
    "tanh": lambda z: jnp.tanh(1e-9 * z) * 1e9,
    "unit-multiple": lambda z: z * 1.0,
    "maximum": lambda z: jnp.maximum(z, -1e3),
    "gradient-reversal": reversed_gradient,
    "frozen": frozen,
    "there-and-back": lambda z: (z * 2) / 2,
    "never-taken": lambda z: jnp.where(z < 1e6, z, z**2),
}


def test_impostors_are_stacks_but_never_linear():
    leaves, x = [gaussian(5, 4), gaussian(4, 3)], gaussian(N, 5)
    for name, between in IMPOSTORS.items():
        stack = dense_stack(lambda w, x, f=between: f(x @ w[0]) @ w[1], leaves, x)
        assert stack is not None, name
        assert [layer.activated for layer in stack.layers] == [True, False], name
        assert not stack.linear, name


def test_relu_lifted_by_a_large_bias_is_not_linear():
    leaves, x = [gaussian(5, 4), 100 + gaussian(4), gaussian(4, 3)], gaussian(N, 5)
    apply = lambda p, x: jax.nn.relu(x @ p[0] + p[1]) @ p[2]  # noqa: E731
    z = x @ leaves[0] + leaves[1]
    assert np.all(z > 0)  # so that the outputs are those without the ReLU
    assert not dense_stack(apply, leaves, x).linear


def test_softshrink_is_not_linear():
    leaves, x = [gaussian(5, 4), gaussian(4, 3)], gaussian(N, 5)
    shrink = lambda z: jnp.sign(z) * jnp.maximum(jnp.abs(z) - 1e-6, 0)  # noqa: E731
    assert not dense_stack(lambda w, x: shrink(x @ w[0]) @ w[1], leaves, x).linear


def test_a_linear_network_that_computes_in_float32_is_refused():
    apply, leaves, x = from_linen(nn.Dense(3, dtype=jnp.float32), 5)
    assert dense_stack(apply, leaves, x) is None
    apply, leaves, x = from_linen(nn.Dense(3, dtype=jnp.float64), 5)
    assert dense_stack(apply, leaves, x).linear


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Conv(2, (3, 3))(x).reshape(len(x), -1))


class BatchNorm(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(4)(x))
        return nn.Dense(3)(x)


def batch_norm(train):
    """The parameters are the leaves; the running averages are held fixed."""
    module, x = BatchNorm(train), gaussian(N, 5)
    variables = jax.tree.map(np.float64, gaussian_variables(module, x))
    leaves, tree = jax.tree.flatten(variables["params"])

    def apply(flat, x):
        variables_at = variables | {"params": jax.tree.unflatten(tree, flat)}
        return module.apply(variables_at, x, mutable=["batch_stats"])[0]

    return apply, leaves, x


def scanned(leaves, x):
    return jax.lax.scan(lambda h, W: (h @ W, None), x, leaves[0])[0]


def two_heads(w, x):
    h = x @ w[0]
    return jax.nn.relu(h @ w[1]) + jnp.tanh(h @ w[2])


def same_kernel_after_two_functions(w, x):
    h = x @ w[0]
    return jnp.maximum(jax.nn.relu(h) @ w[1], jnp.tanh(h) @ w[1])


def gated(w, x):
    gate, value = jnp.split(x @ w[0], 2, axis=1)
    return jnp.tanh(gate) * value @ w[1]


def learned_slope(w, x):
    h = x @ w[0]
    return jnp.where(h > 0, h, w[1] * h)


def plus_its_transpose(w, x):
    h = x @ w[0]
    return h + h.T


def outer_product(w, x):
    h = jnp.einsum("n,ab->nab", (x @ w[0])[:, 0], w[1])
    return jnp.einsum("nab,kb->nak", h, w[2])[:, :, 0]


def sum_with_ones(w, x):
    return jnp.concatenate([x, jnp.ones((5, 1))], axis=1) @ w[0]


FIVES = gaussian(5, 5, seed=9)
SQUARE = ((5, 5), (5, 5))
TWO = ((5, 4), (4, 3))
BIASED_ONE = ((5, 4), (4,))
# What apply is, and the shapes of its leaves; the inputs are 5 x 5.
REFUSED = {
    "tied": (lambda w, x: x @ w[0] @ w[0], SQUARE[:1]),
    "tied-transpose": (lambda w, x: jnp.tanh(x @ w[0]) @ w[0].T, TWO[:1]),
    "tied-bias": (lambda w, x: (x @ w[0] + w[2]) @ w[1] + w[2], (*SQUARE, (5,))),
    "skip": (lambda w, x: (x + x @ w[0]) @ w[1], SQUARE),
    "skip-within": (lambda w, x: x @ w[0] + jax.nn.relu(x @ w[0]) @ w[1], SQUARE),
    "skip-to-the-end": (lambda w, x: x @ w[0] @ w[1] + x, SQUARE),
    "two-heads": (two_heads, (*SQUARE, (5, 5))),
    "parallel": (lambda w, x: x @ w[0] + x @ w[1], SQUARE),
    "same-kernel-after-two-functions": (same_kernel_after_two_functions, SQUARE),
    "plus-its-transpose": (plus_its_transpose, SQUARE[:1]),
    "outer-product": (outer_product, [(5, 1), (4, 3), (1, 3)]),
    "examples-summed": (lambda w, x: (w[1] @ (x @ w[0])).T, [(5, 1), (3, 5)]),
    "examples-mixed": (lambda w, x: w[1] @ (x @ w[0]), SQUARE),
    "examples-mixed-at-first": (lambda w, x: w[0] @ x @ w[1], SQUARE),
    "transposed-output": (lambda w, x: (x @ w[0] @ w[1]).T, SQUARE),
    "product-of-weights": (lambda w, x: x @ (w[0] @ w[1]), TWO),
    "sum-of-weights": (lambda w, x: x @ (w[0] + w[1]), SQUARE),
    "scaled-weight": (lambda w, x: x @ (w[0] / 2) @ w[1], TWO),
    "masked-weight": (lambda w, x: x @ (w[0] * np.tri(5)) @ w[1], SQUARE),
    "slices-of-one-leaf": (lambda w, x: x @ w[0][:5] @ w[0][5:], [(10, 5)]),
    "slices-of-a-batch": (lambda w, x: x @ w[0][0] @ w[0][1], [(2, 5, 5)]),
    "reshaped-weight": (lambda w, x: x @ w[0].reshape(5, 4), [(4, 5)]),
    "reshaped-twice": (lambda w, x: x @ w[0].T.reshape(20).reshape(5, 4), [(4, 5)]),
    "flattened-kernel": (lambda w, x: x @ w[0] @ w[1].reshape(6, 1), [(5, 6), (2, 3)]),
    "kernel-from-a-vector": (lambda w, x: x @ w[0].reshape(5, 4), [(20,)]),
    "reversed-weight": (lambda w, x: x @ w[0][::-1] @ w[1], TWO),
    "rounded-weight": (lambda w, x: x @ w[0].astype(int).astype(float) @ w[1], TWO),
    "vector-kernel": (lambda w, x: (x @ w[0])[:, None], [(5,)]),
    "scan": (scanned, [(3, 5, 5)]),
    "cond": (lambda w, x: jax.lax.cond(True, lambda: x @ w[0], lambda: x @ w[0]) @ w[1], TWO),
    "loop": (lambda w, x: jax.lax.fori_loop(0, 2, lambda i, h: h @ w[0], x), SQUARE[:1]),
    "stop-gradient-on-a-weight": (lambda w, x: x @ jax.lax.stop_gradient(w[0]) @ w[1], TWO),
    "stop-gradient-on-a-layer": (lambda w, x: jax.lax.stop_gradient(x @ w[0]) @ w[1], TWO),
    "stop-gradient-on-a-bias": (lambda w, x: x @ w[0] + jax.lax.stop_gradient(w[1]), BIASED_ONE),
    "gradient-reversal-on-a-weight": (lambda w, x: x @ reversed_gradient(w[0]) @ w[1], TWO),
    "frozen-product": (lambda w, x: frozen(x @ w[0]) @ frozen(w[1]), TWO),
    "unused-leaf": (lambda w, x: x @ w[0] @ w[1], (*TWO, (3,))),
    "used-in-dead-code": (lambda w, x: (x @ w[0], x @ w[1])[0], SQUARE),
    "no-layer": (lambda w, x: x, ()),
    "frozen-layer": (lambda w, x: x @ w[0] @ FIVES, SQUARE[:1]),
    "frozen-bias": (lambda w, x: x @ w[0] + np.arange(4.0), TWO[:1]),
    "constant-mask": (lambda w, x: (x @ w[0]) * np.arange(4.0) @ w[1], TWO),
    "noise": (lambda w, x: x @ w[0] + jax.random.normal(jax.random.key(0), (1, 4)), TWO[:1]),
    "function-of-the-inputs": (lambda w, x: jnp.tanh(x) @ w[0] @ w[1], TWO),
    "scaled-inputs": (lambda w, x: (x / 255) @ w[0] @ w[1], TWO),
    "reversed-gradient-of-inputs": (lambda w, x: reversed_gradient(x) @ w[0] @ w[1], TWO),
    "bias-on-the-inputs": (lambda w, x: (x + w[1]) @ w[0], [(5, 4), (5,)]),
    "bias-after-a-function": (lambda w, x: jnp.tanh(x @ w[0]) + w[1], BIASED_ONE),
    "two-biases": (lambda w, x: x @ w[0] + w[1] + w[2], (*BIASED_ONE, (4,))),
    "bias-twice": (lambda w, x: x @ w[0] + w[1] + w[1], BIASED_ONE),
    "subtracted-bias": (lambda w, x: x @ w[0] - w[1], BIASED_ONE),
    "scalar-bias": (lambda w, x: x @ w[0] + w[1], [(5, 4), ()]),
    "bias-per-example": (lambda w, x: x @ w[0] + w[1], [(5, 4), (5, 4)]),
    "bias-along-the-examples": (lambda w, x: x @ w[0] + w[1][:, None], [(5, 5), (5,)]),
    "bias-that-widens": (lambda w, x: x @ w[0] + w[1], [(5, 1), (4,)]),
    "widened-by-a-constant": (lambda w, x: x @ w[0] + jnp.zeros((5, 4)), [(5, 1)]),
    "bias-that-repeats": (lambda w, x: x @ w[0] + jnp.broadcast_to(w[1], (5, 4)), [(5, 1), (1,)]),
    "kernel-that-repeats": (lambda w, x: x @ jnp.broadcast_to(w[0], (5, 4)), [(1, 4)]),
    "kernel-per-example": (lambda w, x: jnp.einsum("nd,nd->n", x, w[0])[:, None], [(5, 5)]),
    "kernels-per-example": (lambda w, x: jnp.einsum("nd,ndk->nk", x, w[0]), [(5, 5, 4)]),
    "layer-with-own-derivative": (lambda w, x: frozen_layer(w[0], x) @ w[1], TWO),
    "widened": (lambda w, x: jnp.broadcast_to(x @ w[0], (5, 5)) @ w[1], [(5, 1), (5, 3)]),
    "widened-at-the-end": (lambda w, x: jnp.broadcast_to(x @ w[0], (5, 5)), [(5, 1)]),
    "column-broadcast": (lambda w, x: x @ w[0] - x @ w[1], [(5, 4), (5, 1)]),
    "learned-slope": (learned_slope, [(5, 4), (1,)]),
    "z-times-z-plus-b": (lambda w, x: (x @ w[0]) * (x @ w[0] + w[1]), BIASED_ONE),
    "gated": (gated, [(5, 8), (4, 3)]),
    "softmax": (lambda w, x: jax.nn.softmax(x @ w[0]) @ w[1], TWO),
    "log-softmax-at-the-end": (lambda w, x: jax.nn.log_softmax(x @ w[0] @ w[1]), TWO),
    "normalized": (lambda w, x: x @ w[0] / jnp.linalg.norm(x @ w[0]), TWO[:1]),
    "centered": (lambda w, x: x @ w[0] - jnp.mean(x @ w[0], axis=0), TWO[:1]),
    "concatenated-inputs": (lambda w, x: jnp.concatenate([x, x], 1) @ w[0], [(10, 3)]),
    "concatenated-ones": (sum_with_ones, [(6, 3)]),
    "sliced-inputs": (lambda w, x: x[:, :4] @ w[0], [(4, 3)]),
    "permuted-features": (lambda w, x: (x @ w[0])[:, ::-1] @ w[1], TWO),
    "features-reshaped": (lambda w, x: (x @ w[0]).reshape(4, 5).T @ w[1], TWO),
    "positions": (lambda w, x: x[:, None] @ w[0] @ w[1], TWO),
    "scalar-outputs": (lambda w, x: (x @ w[0])[:, 0], [(5, 1)]),
    "tuple-of-outputs": (lambda w, x: (x @ w[0] @ w[1],), TWO),
}


@pytest.mark.parametrize("finish", [lambda y: y, jnp.tanh], ids=["plain", "tanh"])
def test_other_networks_are_refused(finish):
    """With a tanh at the end too, where structure alone decides."""
    x = gaussian(5, 5)
    for name, (network, shapes) in REFUSED.items():
        apply = lambda w, x, f=network: jax.tree.map(finish, f(w, x))  # noqa: E731
        leaves = [gaussian(*shape, seed=i) for i, shape in enumerate(shapes)]
        assert dense_stack(apply, leaves, x) is None, name


@pytest.mark.parametrize(
    "network",
    [lambda h: h.T, lambda h: jnp.broadcast_to(h, (3, 4)), lambda h: h.reshape(4, 1)],
    ids=["transposed", "repeated", "reshaped"],
)
def test_a_batch_of_one_must_give_one_row(network):
    x = gaussian(1, 5)
    assert dense_stack(lambda w, x: jnp.tanh(network(x @ w[0])), [gaussian(5, 4)], x) is None
    assert dense_stack(lambda w, x: jnp.tanh(x @ w[0]), [gaussian(5, 4)], x).dims == (5, 4)


@pytest.mark.parametrize("dtype", [int, bool])
def test_kernels_that_are_not_floating_are_refused(dtype):
    leaves = [np.ones((5, 4), dtype), gaussian(4, 3)]
    assert dense_stack(lambda w, x: x @ w[0] @ w[1], leaves, gaussian(N, 5)) is None


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(), nn.RMSNorm(), nn.GroupNorm(2)], ids=["layer", "rms", "group"]
)
def test_normalized_networks_are_refused(norm):
    network = from_linen(nn.Sequential([nn.Dense(4), norm, nn.Dense(3)]), 5)
    assert dense_stack(*network) is None


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_batch_normalization_is_refused(train):
    assert dense_stack(*batch_norm(train)) is None


def test_convolutions_are_refused():
    assert dense_stack(*from_linen(Convolution(), 4, 4, 1)) is None


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.transpose(0, 2, 1).reshape(N, -1),
        lambda x: x.transpose(1, 0, 2).reshape(N, -1),
        lambda x: x[:, :, 0],
        lambda x: x.mean(1),
        lambda x: jax.lax.reshape(x, (N, N * N), dimensions=(0, 2, 1)),
    ],
    ids=["transposed", "examples-mixed", "first-row", "mean", "permuting-reshape"],
)
def test_inputs_flattened_in_another_way_are_refused(flatten):
    x = gaussian(N, N, N)
    leaves = [gaussian(flatten(x).shape[1], 3)]
    assert dense_stack(lambda w, x: jnp.tanh(flatten(x) @ w[0]), leaves, x) is None


@pytest.mark.parametrize(
    "x",
    [
        (gaussian(N, 5), gaussian(N, 5, seed=1)),
        {},
        np.ones((N, 5), np.int32),
        np.float64(1.0),
    ],
    ids=["two-leaves", "none", "integers", "scalar"],
)
def test_inputs_that_are_not_one_floating_array_are_refused(x):
    apply = lambda w, x: sum(jax.tree.leaves(x)) * jnp.ones((N, 5)) @ w[0]  # noqa: E731
    assert dense_stack(apply, [gaussian(5, 3)], x) is None


def test_a_positionwise_network_is_refused():
    x = gaussian(N, 4, 5)
    assert dense_stack(lambda w, x: x @ w[0], [gaussian(5, 4)], x) is None
    flat = lambda w, x: jnp.tanh(x @ w[0]).reshape(N, -1)  # noqa: E731
    assert dense_stack(flat, [gaussian(5, 4)], x) is None


def test_an_error_of_the_network_is_not_hidden():
    def apply(leaves, x):
        raise KeyError("Dense_7")

    with pytest.raises(KeyError, match="Dense_7"):
        dense_stack(apply, [gaussian(5, 3)], gaussian(N, 5))


def test_weights_of_jax_arrays_stay_jax_arrays():
    leaves = [jnp.ones((5, 4)), jnp.ones((4, 3))]
    stack = dense_stack(lambda w, x: x @ w[0] @ w[1], leaves, jnp.ones((N, 5)))
    assert all(isinstance(W, jax.Array) for W in stack.weights(leaves))
