"""Models as their frameworks hold them: NNX with random streams, Equinox, Haiku, Keras."""

import sys
from functools import cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from oracles import Case, dense_parts, gaussian_variables, mse
from rankmon import (
    MemoryWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    SeedsMonitor,
    hessian_ranks,
    hessian_spectra,
    weight_ranks,
)
from refusals import refused

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 5)).astype(np.float32)
Y = RNG.standard_normal((12, 3)).astype(np.float32)
STATED = {"loss": "mse", "inputs": X, "targets": Y}
PLAIN = {
    "W": RNG.standard_normal((5, 4)).astype(np.float32),
    "V": RNG.standard_normal((4, 3)).astype(np.float32),
}


def tanh_network(params, x):
    return jnp.tanh(x @ params["W"]) @ params["V"]


@cache
def plain_counts():
    return counts(hessian_ranks(Problem(tanh_network, **STATED), PLAIN))


def counts(ranks):
    return {part: rank.rank for part, rank in ranks.items()}


def assert_dense_spectra(problem, params, apply, plain):
    """The spectra are those of the plain function by dense autodiff."""
    want = dense_parts(Case("", apply, plain, X, Y, "mse", mse))
    for part, values in hessian_spectra(problem, params, engine="dense").items():
        eigenvalues = np.linalg.eigvalsh(want[part])
        atol = 1e-12 * np.abs(eigenvalues).max()
        np.testing.assert_allclose(np.sort(values), eigenvalues, rtol=0, atol=atol)


# NNX models that touch their random streams


def normal(_, shape, dtype, *__):
    return jnp.asarray(np.random.default_rng(4).standard_normal(shape).astype(dtype))


linear = partial(nnx.Linear, kernel_init=normal)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = linear(2, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.dropout(self.linear(x)))


class Rematerialized(nnx.Module):
    def __init__(self, rngs):
        self.block, self.last = Block(rngs), linear(2, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.remat(lambda block, x: block(x))(self.block, x[:, :2]))


class Scanned(nnx.Module):
    def __init__(self, rngs):
        make = nnx.split_rngs(splits=2)(nnx.vmap(Block, in_axes=(0,), out_axes=0))
        self.block, self.last = make(rngs), linear(2, 3, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.last(scan(lambda x, block: block(x))(x[:, :2], self.block))


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.last, self.rngs = linear(5, 3, rngs=rngs), rngs

    def __call__(self, x):
        return self.last(x + jax.random.normal(self.rngs.noise(), x.shape, jnp.float32))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn, self.last = nnx.RNN(nnx.SimpleCell(1, 2, rngs=rngs)), linear(2, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.rnn(x[..., None])[:, -1])


def plain_blocks(params, x):
    x = x[:, :2]
    for i in range(len(params["kernel"])):
        x = jnp.tanh(x @ params["kernel"][i] + params["bias"][i])
    return x @ params["last"] + params["last_bias"]


def plain_of(model):
    at = [layer[...] for layer in (model.block.linear.kernel, model.block.linear.bias)]
    kernel, bias = (np.asarray(a) for a in at)
    if kernel.ndim == 2:
        kernel, bias = kernel[None], bias[None]
    last, last_bias = np.asarray(model.last.kernel[...]), np.asarray(model.last.bias[...])
    return {"kernel": kernel, "bias": bias, "last": last, "last_bias": last_bias}


@pytest.mark.parametrize("kind", [pytest.param(Rematerialized, marks=pytest.mark.slow), Scanned])
def test_nnx_transforms_over_blocks_with_dropout(kind):
    model = kind(nnx.Rngs(0))
    problem = Problem.from_nnx(model, **STATED)
    assert_dense_spectra(problem, model, plain_blocks, plain_of(model))


@pytest.mark.filterwarnings("ignore:rankmon.*float32:UserWarning")
@pytest.mark.parametrize("kind", [Noisy, Recurrent])
def test_nnx_streams_are_drawn_from_and_stay_as_they_are(kind):
    model = kind(nnx.Rngs(0, noise=1))
    problem = Problem.from_nnx(model, **STATED)
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.RngCount))
    with RankMonitor(problem, every=1, probes=["weights", "features"], on_error="raise") as monitor:
        monitor(0, model)
    flat = problem.flat(model)
    value, _ = flat.loss_and_residuals(*flat.split(flat.leaves(model)))
    after = jax.tree.map(np.asarray, nnx.state(model, nnx.RngCount))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    want = np.mean(np.sum((np.asarray(model(X)) - Y) ** 2, axis=1)) / 2
    assert value == pytest.approx(want, rel=1e-5)


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.last, self.norm = linear(5, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.last(x)))


def test_the_whole_state_of_an_nnx_model_is_taken_with_its_statistics():
    model = Normalized(nnx.Rngs(0))
    problem = Problem.from_nnx(model, **STATED)
    model.norm.mean[...] = jnp.array([1.0, 2.0, 3.0])
    losses = []
    optimizer = nnx.ModelAndOptimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    for given in (model, nnx.state(model), optimizer, nnx.state(model, nnx.Param)):
        flat = problem.flat(given)
        losses.append(flat.loss_and_residuals(*flat.split(flat.leaves(given)))[0])
    assert losses[0] == losses[1] == losses[2] != losses[3]  # the last has the first statistics
    with refused(TypeError, "Optimizer", "nnx.state(model, nnx.Param)"):
        problem.flat(nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))


class Switched(nnx.Module):
    def __init__(self, rngs):
        self.last = linear(5, 3, rngs=rngs)

    def __call__(self, x, is_train, rngs):
        return self.last(x) + is_train * jax.random.normal(rngs.noise(), (len(x), 3))


def test_nnx_takes_switches_and_streams_as_arguments():
    model = Switched(nnx.Rngs(0))
    with refused(TypeError, "rngs", "arguments="):
        Problem.from_nnx(model, **STATED)
    problem = Problem.from_nnx(model, arguments={"rngs": nnx.Rngs(noise=1)}, **STATED)
    flat = problem.flat(model)
    loss, _ = flat.loss_and_residuals(*flat.split(flat.leaves(model)))
    want = np.mean(np.sum((np.asarray(model.last(X)) - Y) ** 2, axis=1)) / 2
    assert loss == pytest.approx(want, rel=1e-5)


# Flax's errors end in ours


def linen(call):
    """A module class with this method, compact."""
    return type("Net", (nn.Module,), {"__call__": nn.compact(call)})()


KEYWORD = linen(lambda self, *, x: nn.Dense(3)(x))
TWO = linen(lambda self, x, y: nn.Dense(3)(x) + y)
IS_TRAIN = linen(lambda self, x, is_train: nn.Dropout(0.5, deterministic=not is_train)(x[:, :3]))
UNKNOWN = linen(lambda self, x, mode: nn.Dense(3)(x))
RANDOM = linen(lambda self, x: nn.Dense(3)(x + jax.random.normal(self.make_rng("noise"), x.shape)))
NORM = linen(
    lambda self, x, train=True: nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
)


class TwoNnx(nnx.Module):
    def __call__(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        (lambda: Problem.from_linen(KEYWORD, **STATED), ["(*, x)", "Problem(lambda p, x:"]),
        (lambda: Problem.from_linen(TWO, **STATED), ["'y'", "Problem(lambda p, x:", "arguments="]),
        (lambda: Problem.from_linen(UNKNOWN, **STATED), ["'mode'", "arguments="]),
        (lambda: Problem.from_linen(RANDOM, method="encode", **STATED), ["method", "'encode'"]),
        (
            lambda: Problem.from_linen(RANDOM, arguments={"foo": 1}, **STATED),
            ["'foo'", "arguments="],
        ),
        (lambda: Problem.from_nnx(TwoNnx(), **STATED), ["'y'", "Problem(lambda p, x:"]),
    ],
    ids=["keyword", "two", "switch", "method", "unknown", "nnx"],
)
def test_a_module_that_is_not_called_with_the_inputs_alone(state, keys):
    with refused(TypeError, *keys):
        state()


def variables_of(module, *inputs, **keywords):
    shapes = jax.eval_shape(
        lambda: module.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, *inputs)
    )
    return jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)


def replicated(tree, copies=2):
    return jax.tree.map(lambda a: np.stack([a] * copies), tree)


@pytest.mark.parametrize(
    ("module", "given", "change", "keys"),
    [
        (RANDOM, {}, lambda v: v, ["noise", "arguments={'rngs'"]),
        (NORM, {"train": True}, lambda v: v, ["batch_stats", "mutable", "Problem(lambda p, x:"]),
        (NORM, {}, lambda v: v["params"], ["batch_stats", "extra="]),
        (NORM, {}, replicated, ["2", "unreplicate", "SeedsMonitor"]),
        (NORM, {}, lambda v: {"Dense_7": v["params"]["Dense_0"]}, ["Dense_0", "init"]),
    ],
    ids=["rngs", "train", "no-statistics", "replicated", "other-parameters"],
)
def test_flax_errors_end_in_what_to_write(module, given, change, keys):
    problem = Problem.from_linen(module, arguments=given, **STATED)
    with refused(TypeError, *keys):
        problem.flat(change(variables_of(module, X)))


def test_what_is_said_about_linen_works():
    key = jax.random.key(3)
    variables = variables_of(RANDOM, X)
    fixed = Problem.from_linen(RANDOM, arguments={"rngs": {"noise": key}}, **STATED)
    by_hand = Problem(lambda p, x: RANDOM.apply({"params": p}, x, rngs={"noise": key}), **STATED)
    np.testing.assert_array_equal(
        fixed.residuals(variables), by_hand.residuals(variables["params"])
    )
    training = Problem(
        lambda p, x, extra: NORM.apply({"params": p, **extra}, x, mutable=["batch_stats"])[0],
        **STATED,
    )
    variables = gaussian_variables(NORM, X)
    statistics = {"batch_stats": variables["batch_stats"]}
    with RankMonitor(training, every=1) as monitor:
        record = monitor(0, variables["params"], extra=statistics)
    assert record.scalars["rank/H_o"] > 0


# Equinox


def eqx_model():
    model = eqx.nn.MLP(5, 3, 4, 1, activation=jnp.tanh, use_bias=False, use_final_bias=False,
                       key=jax.random.key(0))  # fmt: skip
    layers = [jnp.asarray(PLAIN[name].T) for name in ("W", "V")]
    return eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, layers)


EQUINOX = Problem(lambda model, x: jax.vmap(model)(x), **STATED)


def test_a_bare_equinox_model_is_taken_as_parameters():
    model = eqx_model()
    assert counts(hessian_ranks(EQUINOX, model)) == plain_counts()
    flat = EQUINOX.flat(model)
    assert [spec.name for spec in flat.specs] == ["layers/0/weight", "layers/1/weight"]
    memory = MemoryWriter()
    with RankMonitor(
        EQUINOX, every=1, probes=["weights"], background=True, writers=[memory]
    ) as monitor:
        for step in range(2):
            monitor(step, model)
            model = eqx.tree_at(lambda m: m.layers[0].weight, model, jnp.zeros((4, 5)))
    ranks = [record.scalars["rank_weights/layers/0/weight"] for record in memory.records]
    assert ranks == [4, 0]
    assert set(weight_ranks(model)) == {"layers/0/weight", "layers/1/weight"}


class Scaled(eqx.Module):
    """Python numbers, functions and strings beside arrays, in a pair with another model."""

    weight: Any
    scale: float
    steps: int
    name: str
    activation: Any

    def __call__(self, x):
        return self.activation(self.scale * (x @ self.weight))


def test_what_is_no_array_in_equinox_models_is_held():
    pair = (
        Scaled(PLAIN["W"], 1.0, 3, "in", jnp.tanh),
        Scaled(PLAIN["V"], 1.0, 3, "out", lambda z: z),
    )
    problem = Problem(lambda pair, x: pair[1](pair[0](x)), **STATED)
    plain = Problem(tanh_network, **STATED)
    assert problem.flat(pair).p == 32
    np.testing.assert_allclose(problem.residuals(pair), plain.residuals(PLAIN), rtol=1e-12)


def test_seeds_of_an_equinox_model():
    make = eqx.filter_vmap(lambda key: eqx.nn.MLP(5, 3, 4, 1, key=key))
    stacked = make(jax.random.split(jax.random.key(0), 2))
    with SeedsMonitor(EQUINOX, seeds=2, every=1, probes=["weights"]) as monitor:
        records = monitor(0, stacked)
    assert [record.scalars["rank_weights/layers/0/weight"] for record in records] == [4, 4]


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        (lambda: Problem(eqx_model(), **STATED), ["MLP", "jax.vmap(model)"]),
        (
            lambda: Problem(lambda model, x: model(x), **STATED).flat(eqx_model()),
            ["one example", "jax.vmap"],
        ),
        (lambda: EQUINOX.flat((eqx_model(), {"count": jnp.zeros(())})), ["tuple", "its entry 0"]),
        (lambda: EQUINOX.flat({"model": eqx_model(), "step": 3}), ["params['model']"]),
        (
            lambda: EQUINOX.flat(eqx.nn.Sequential([eqx_model(), eqx.nn.Dropout(0.5)])),
            ["inference_mode(model)"],
        ),
    ],
    ids=["as-function", "no-vmap", "with-state", "in-a-dict", "dropout"],
)
def test_equinox_models_that_are_stated_in_another_way(state, keys):
    with refused(TypeError, *keys):
        state()


# Haiku: functions and states of its shape, since it need not be installed


class Transformed(NamedTuple):
    init: Any
    apply: Any


def transformed(params, rng, x):
    assert rng is None
    return tanh_network(params, x)


def transformed_with_state(params, state, rng, x):
    return tanh_network(params, x) + state["shift"], state


class TrainingState(NamedTuple):
    params: Any
    avg_params: Any
    opt_state: Any


class Carry(NamedTuple):
    params: Any
    count: Any


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        (lambda: Problem(Transformed(None, transformed), **STATED), ["net.apply(p, None, x)"]),
        (lambda: Problem(transformed, **STATED).flat(PLAIN), ["rng", "without_apply_rng"]),
        (
            lambda: Problem(transformed_with_state, **STATED).flat(PLAIN),
            ["(params, state, rng, inputs)", "extra=state"],
        ),
        (
            lambda: Problem(tanh_network, **STATED).flat(Carry(PLAIN, np.ones(2))),
            ["Carry", "state.params"],
        ),
        (
            lambda: Problem(tanh_network, **STATED).flat((PLAIN, np.ones(2))),
            ["tuple", "entry 0"],
        ),
    ],
    ids=["transform", "apply", "with-state", "state", "pair"],
)
def test_haiku_functions_and_states(state, keys):
    with refused(TypeError, *keys):
        state()


def test_the_parameters_of_a_training_state_are_taken():
    state = TrainingState(PLAIN, PLAIN, optax.adam(0.1).init(PLAIN))
    assert counts(hessian_ranks(Problem(tanh_network, **STATED), state)) == plain_counts()


# Keras: what its variables and models look like, since it need not be installed


class Variable:
    def __init__(self, path, value):
        self.path, self.value, self.dtype = path, jnp.asarray(value), "float32"
        self.shape = self.value.shape

    def __array__(self, *_):
        raise DeprecationWarning("an array of a variable was asked for")


class Layer:
    def __call__(self, x):
        return x


@pytest.fixture
def keras(monkeypatch):
    module: Any = ModuleType("keras")
    module.Variable, module.Layer = Variable, Layer
    monkeypatch.setitem(sys.modules, "keras", module)
    model: Any = Layer()
    model.trainable_variables = [
        Variable("sequential_3/dense/kernel", PLAIN["W"]),
        Variable("sequential_3/dense_1/kernel", PLAIN["V"]),
    ]
    return model


def stateless_call(variables, x):
    assert type(variables) is list
    return jnp.tanh(x @ variables[0]) @ variables[1]


def test_keras_variables_are_arrays_with_the_layers_names(keras):
    problem = Problem(stateless_call, **STATED)
    variables = keras.trainable_variables
    assert counts(hessian_ranks(problem, variables)) == plain_counts()
    monitor = RankMonitor(problem, every=10, probes=["weights"])
    record = monitor(0, variables)
    monitor(1, variables)
    with pytest.warns(RankmonWarning, match="Keras"):
        monitor.close()
    tags = {tag for tag in record.scalars if tag.startswith("rank_weights/")}
    assert tags == {"rank_weights/dense/kernel", "rank_weights/dense_1/kernel"}
    assert set(weight_ranks(variables)) == {"dense/kernel", "dense_1/kernel"}


@pytest.mark.parametrize(
    ("state", "kind", "keys"),
    [
        (lambda m: Problem(m, **STATED), TypeError, ["stateless_call", "trainable_variables"]),
        (
            lambda m: Problem(lambda p, x: p(x), **STATED).flat(m),
            TypeError,
            ["Layer", "trainable_variables"],
        ),
        (
            lambda m: hessian_ranks(
                Problem(
                    lambda p, x: jax.jit(stateless_call)(
                        [variable.value for variable in m.trainable_variables], x
                    ),
                    **STATED,
                ),
                m.trainable_variables,
            ),
            ValueError,
            ["do not depend", "stateless_call(params"],
        ),
    ],
    ids=["as-function", "as-parameters", "global"],
)
def test_keras_models_that_are_stated_in_another_way(keras, state, kind, keys):
    with refused(kind, *keys):
        state(keras)


@pytest.mark.parametrize("library", ["keras", "equinox"])
def test_another_module_of_that_name_changes_nothing(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, ModuleType(library))
    with RankMonitor(Problem(tanh_network, **STATED), every=1, probes=["weights"]) as monitor:
        record = monitor(0, PLAIN)
    assert record.scalars["rank_weights/W"] == 4


def test_a_function_of_other_parameters_is_refused_by_the_monitor():
    outside = SimpleNamespace(**PLAIN)
    problem = Problem(lambda p, x: jnp.tanh(x @ outside.W) @ outside.V, **STATED)
    with refused(ValueError, "do not depend"), RankMonitor(problem, every=1) as monitor:
        monitor(0, PLAIN)
