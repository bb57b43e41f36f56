"""Problems from Equinox, Haiku and Keras, and modules with several inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from rankmon import Problem, RankMonitor, hessian_ranks
from refusals import refused

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 5)).astype(np.float32)
Y = RNG.standard_normal((12, 3)).astype(np.float32)
W = RNG.standard_normal((5, 4)).astype(np.float32)
V = RNG.standard_normal((4, 3)).astype(np.float32)
SCALE = RNG.standard_normal((12, 4)).astype(np.float32)
STATED = {"loss": "mse", "inputs": X, "targets": Y}


def plain(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


PLAIN = Problem(plain, **STATED)


def ranks(problem, params):
    return {part: rank.rank for part, rank in hessian_ranks(problem, params).items()}


def assert_as_plain(problem, params):
    np.testing.assert_allclose(
        problem.residuals(params), PLAIN.residuals((W, V)), rtol=1e-12, atol=1e-12
    )
    assert ranks(problem, params) == ranks(PLAIN, (W, V))


# Equinox


@pytest.fixture(scope="module")
def eqx():
    return pytest.importorskip("equinox")


def mlp(eqx):
    model = eqx.nn.MLP(5, 3, 4, 1, activation=jnp.tanh, use_bias=False, use_final_bias=False,
                       key=jax.random.key(0))  # fmt: skip
    weights = [jnp.asarray(W.T), jnp.asarray(V.T)]
    return eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, weights)


def test_equinox_models_and_their_arrays(eqx):
    model = mlp(eqx)
    problem = Problem.from_equinox(model, **STATED)
    assert_as_plain(problem, model)
    assert_as_plain(problem, eqx.filter(model, eqx.is_array))
    dropped = eqx.nn.Sequential([model, eqx.nn.Dropout(0.5)])
    assert_as_plain(Problem.from_equinox(dropped, **STATED), dropped)  # in inference mode


def test_equinox_models_with_state(eqx):
    class Normed(eqx.Module):
        first: object
        norm: object

        def __init__(self, key):
            self.first = eqx.nn.Linear(5, 3, key=key)
            self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")

        def __call__(self, x, state, key):
            return self.norm(self.first(x), state)

    model, state = eqx.nn.make_with_state(Normed)(jax.random.key(0))
    train = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    _, state = train(jnp.asarray(X), state, None)
    problem = Problem.from_equinox(model, arguments={"key": None}, **STATED)
    want = jax.vmap(
        lambda x: eqx.nn.inference_mode(model)(x, state, None)[0], axis_name="batch"
    )(jnp.asarray(X)) - Y  # fmt: skip
    np.testing.assert_allclose(problem.residuals((model, state)), want, atol=1e-5)
    with RankMonitor(problem, every=1, probes=["hessian"]) as monitor:
        record = monitor(0, model, extra=state)
    assert record.scalars["rank/H_o"] > 0
    with refused(TypeError, "extra=state"):
        problem.flat(model)


def test_equinox_models_that_cannot_be_called(eqx):
    with refused(TypeError, "equinox.Module", "Problem"):
        Problem.from_equinox(plain, **STATED)
    two = eqx.nn.Lambda(lambda x: x)
    with refused(TypeError, "another structure", "equinox.filter"):
        Problem.from_equinox(two, **STATED).flat(mlp(eqx))


def test_equinox_models_with_a_scalar_output(eqx):
    model = eqx.nn.Linear(5, "scalar", key=jax.random.key(0))
    want = jax.vmap(model)(jnp.asarray(X))[:, None] - Y[:, :1]
    for targets in (Y[:, 0], Y[:, :1]):
        problem = Problem.from_equinox(model, loss="mse", inputs=X, targets=targets)
        np.testing.assert_allclose(problem.residuals(model), want, atol=1e-5)


def test_mistakes_with_the_state_of_equinox_models(eqx):
    model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(5, "batch", mode="batch")
    problem = Problem.from_equinox(model, include="no*", **STATED)
    for pair in ((state, model), (model, {"mu": 0})):
        with refused(TypeError, "(model, state)", "first"):
            problem.flat(pair)
    plain_model = mlp(eqx)
    with refused(TypeError, "without state", "alone"):
        Problem.from_equinox(plain_model, **STATED).flat((plain_model, state))


def test_mistakes_with_equinox_models(eqx):
    class Net(eqx.Module):
        first: eqx.nn.Linear
        name: str = eqx.field(static=True)

        def __call__(self, x):
            return self.first(x)

    class Batched(Net):
        def __call__(self, x):
            return jax.vmap(self.first)(x)

    class Keyed(Net):
        def __call__(self, x, key):
            return self.first(x)

    linear = eqx.nn.Linear(5, 3, key=jax.random.key(0))
    with refused(TypeError, "model.name", "'b'", "'a'"):
        Problem.from_equinox(Net(linear, "a"), **STATED).flat(Net(linear, "b"))
    with refused(TypeError, "one example", "Problem(lambda model, x: model(x)"):
        Problem.from_equinox(Batched(linear, ""), **STATED).flat(Batched(linear, ""))
    with refused(TypeError, "arguments={'key': None}"):
        Problem.from_equinox(Keyed(linear, ""), **STATED)
    problem = Problem.from_equinox(Keyed(linear, ""), arguments={"key": None}, **STATED)
    assert problem.flat(Keyed(linear, "")).p == 18
    conv = eqx.nn.Sequential(
        [eqx.nn.Conv2d(1, 3, 5, key=jax.random.key(0)), eqx.nn.Lambda(jnp.ravel)]
    )
    images = {**STATED, "inputs": np.ones((12, 5, 5), np.float32)}
    with refused(TypeError, "channels", "inputs[:, None]"):
        Problem.from_equinox(conv, **images).flat(conv)


# Haiku


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_haiku_functions_of_each_kind():
    hk = pytest.importorskip("haiku")

    def network(x, is_training):
        x = jnp.tanh(hk.Linear(4, with_bias=False)(x))
        if is_training:
            x = x + jax.random.normal(hk.next_rng_key(), (4,), jnp.float32)
        return hk.Linear(3, with_bias=False)(x)

    def with_state(x, is_training):
        hk.get_state("count", (), init=jnp.zeros)
        return network(x, is_training)

    params = {"linear": {"w": W}, "linear_1": {"w": V}}
    state = {"~": {"count": np.zeros(())}}
    for bare in (False, True):
        wrap = hk.without_apply_rng if bare else lambda transformed: transformed
        assert_as_plain(Problem.from_haiku(wrap(hk.transform(network)), **STATED), params)
        stateful = Problem.from_haiku(wrap(hk.transform_with_state(with_state)), **STATED)
        np.testing.assert_allclose(stateful.residuals((params, state)), PLAIN.residuals((W, V)))
    with refused(TypeError, "extra=state"):
        stateful.flat(params)
    with refused(TypeError, "haiku.transform"):
        Problem.from_haiku(network, **STATED)
    drawn = hk.transform(lambda x: network(x, True))
    key = jax.random.key(1)
    fixed = Problem.from_haiku(drawn, rng=key, **STATED)
    want = drawn.apply(params, key, X) - Y
    np.testing.assert_allclose(fixed.residuals(params), want, atol=1e-5)


# Keras


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def keras_model(keras, *more):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, activation="tanh", use_bias=False),
            keras.layers.Dense(3, use_bias=False),
            *more,
        ]
    )
    kernels = [variable for variable in model.trainable_variables if "kernel" in variable.path]
    for variable, value in zip(kernels, (W, V), strict=True):
        variable.assign(value)
    return model


def test_keras_models(keras):
    model = keras_model(keras)
    assert_as_plain(Problem.from_keras(model, **STATED), model)
    dropped = keras_model(keras, keras.layers.Dropout(0.5))
    assert_as_plain(Problem.from_keras(dropped, **STATED), dropped)
    normed = keras_model(keras, keras.layers.BatchNormalization())
    problem = Problem.from_keras(normed, **STATED)
    names = [spec.name for spec in problem.flat(normed).specs if spec.differentiated]
    assert len(names) == 4
    np.testing.assert_allclose(problem.residuals(normed), normed(X) - Y, atol=1e-5)


def test_keras_models_that_cannot_be_measured(keras):
    with refused(TypeError, "Keras"):
        Problem.from_keras(plain, **STATED)
    with refused(ValueError, "not built", "keras.Input"):
        Problem.from_keras(keras.Sequential([keras.layers.Dense(3)]), **STATED)


# A model, or a part of one, in a place of another


class Switched(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(x)


def test_mistakes_with_linen_modules():
    module = Switched()
    variables = module.init(jax.random.key(0), X, False)
    with refused(TypeError, "'train'", "arguments={'train': value}"):
        Problem.from_linen(module, train=False, **STATED)
    with refused(TypeError, "the module itself"):
        Problem.from_linen(module.apply, **STATED)
    with refused(TypeError, "targets", "probe batch"):
        Problem.from_linen(module, loss="mse", inputs=X)
    with refused(TypeError, "Switched.apply", "Problem.from_linen(module, ...)"):
        Problem(module.apply, **STATED).flat(variables)
    with refused(TypeError, "module.init", "float32[12, 4]"):
        Problem.from_linen(module, **STATED | {"inputs": X[:, :4]}).flat(variables)


def test_models_in_place_of_a_problem(eqx, keras):
    for model, name in (
        (Switched(), "from_linen"),
        (nnx.Linear(5, 3, rngs=nnx.Rngs(0)), "from_nnx"),
        (mlp(eqx), "from_equinox"),
        (keras_model(keras), "from_keras"),
    ):
        with refused(TypeError, f"Problem.{name}(mod"):
            RankMonitor(model, every=1)
        with refused(TypeError, f"Problem.{name}(mod"):
            Problem(model, **STATED)


# Several inputs


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x, scale, train):
        x = nn.Dense(4, use_bias=False)(x) * scale
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, use_bias=False)(
            x + jax.random.normal(self.make_rng("noise"), (4,), jnp.float32)
        )


class NnxTwoInputs(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 4, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(4, 3, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, scale, rngs):
        x = self.first(x) * scale + rngs.noise.normal((4,), jnp.float32)
        return self.last(self.dropout(x, rngs=rngs))


SEVERAL = [(X, SCALE), {"x": X, "scale": SCALE}]


@pytest.mark.parametrize("inputs", SEVERAL, ids=["tuple", "dict"])
def test_linen_modules_with_several_inputs_and_rngs(inputs):
    module, rngs = TwoInputs(), {"noise": jax.random.key(1)}
    params = {"Dense_0": {"kernel": W}, "Dense_1": {"kernel": V}}
    problem = Problem.from_linen(
        module, arguments={"rngs": rngs}, loss="mse", inputs=inputs, targets=Y
    )
    want = module.apply({"params": params}, X, SCALE, train=False, rngs=rngs) - Y
    np.testing.assert_allclose(problem.residuals(params), want, atol=1e-5)


@pytest.mark.parametrize("inputs", SEVERAL, ids=["tuple", "dict"])
def test_nnx_models_with_several_inputs_and_rngs(inputs):
    model = NnxTwoInputs(nnx.Rngs(0))
    problem = Problem.from_nnx(
        model, arguments={"rngs": nnx.Rngs(3)}, loss="mse", inputs=inputs, targets=Y
    )
    inference = nnx.clone(model)
    inference.eval()
    want = inference(X, SCALE, nnx.Rngs(3)) - Y
    np.testing.assert_allclose(problem.residuals(model), want, atol=1e-5)


@pytest.mark.parametrize(
    "inputs", [X, (X, SCALE, X), {"x": X, "mask": SCALE}], ids=["one", "three", "other-names"]
)
def test_inputs_that_do_not_fit_the_module(inputs):
    with refused(TypeError, "scale", "tuple or a dict"):
        Problem.from_linen(TwoInputs(), loss="mse", inputs=inputs, targets=Y)
