"""Test Linen and NNX modules: the ranks of their plain functions, and unchanged training."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.flatten_util import ravel_pytree

from rankmon import (
    Problem,
    RankMonitor,
    RankmonWarning,
    hessian_ranks,
    hessian_spectra,
    predicted_ranks,
    read_jsonl,
    weight_ranks,
)
from refusals import refused

X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dense(4)(x))


class Regularized(nn.Module):
    """Dropout and batch statistics, switched by `train`."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


class StatisticsState(TrainState):
    batch_stats: object = None


def normal(key, shape, dtype, *_):
    """An initializer that nothing has to be compiled for."""
    return jnp.asarray(np.random.default_rng(4).standard_normal(shape).astype(dtype))


class NnxRegularized(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 4, rngs=rngs, kernel_init=normal)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 3, rngs=rngs, kernel_init=normal)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


STATED = {"loss": "mse", "inputs": X, "targets": Y}
# One problem for all tests that do not care which: its programs are compiled once.
REGULARIZED = Problem.from_linen(Regularized(), **STATED)


def gaussian(shapes):
    """A tree of arrays of these shapes, which nobody has to initialize a module for."""
    rng = np.random.default_rng(3)

    def array(shape):
        return rng.standard_normal(shape).astype(np.float32)

    return jax.tree.map(array, shapes, is_leaf=lambda node: isinstance(node, tuple))


def dense(fan_in, fan_out):
    return {"kernel": (fan_in, fan_out), "bias": (fan_out,)}


def textbook(layers, statistics, x):
    """Dense, normalization by given statistics, relu, dense; without flax."""
    first, norm, last = layers
    mean, var = statistics
    x = x @ first["kernel"] + first["bias"]
    x = norm["scale"] * (x - mean) / jnp.sqrt(var + 1e-5) + norm["bias"]
    return jnp.maximum(x, 0) @ last["kernel"] + last["bias"]


@jax.jit
def textbook_parts(layers, statistics, x, y):
    theta, unravel = ravel_pytree(layers)

    def outputs(theta):
        return textbook(unravel(theta), statistics, x)

    residuals = outputs(theta) - y
    jacobian = jax.jacfwd(outputs)
    H_o = jnp.einsum("nkp,nkq->pq", jacobian(theta), jacobian(theta)) / len(x)
    H_f = jnp.einsum("nk,nkpq->pq", residuals, jax.jacfwd(jacobian)(theta)) / len(x)
    return {"H_L": H_o + H_f, "H_o": H_o, "H_f": H_f}


def textbook_spectra(layers, mean, var):
    """By dense autodiff, in float64."""
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (layers, (mean, var), X, Y))
        parts = textbook_parts(*double)
    return {part: np.linalg.eigvalsh(H) for part, H in parts.items()}


def spectra(problem, params):
    """With residuals to hold, as a monitor does: the same programs."""
    found = hessian_spectra(problem, params, reference=problem.residuals(params))
    np.testing.assert_array_equal(found.pop("H_f_fixed"), found["H_f"])
    return found


def counts(ranks):
    return {part: (rank.low, rank.rank, rank.high) for part, rank in ranks.items()}


def assert_same_spectra(got, want):
    for part, values in want.items():
        atol = 1e-12 * np.abs(values).max()
        np.testing.assert_allclose(np.sort(got[part]), np.sort(values), rtol=0, atol=atol)


# Linen


def test_linen_parameters_variables_and_states_are_all_taken():
    module = Mlp()
    # The outer call is written first.
    params = gaussian({"Dense_0": dense(4, 3), "Dense_1": dense(5, 4)})
    variables = {"params": params}
    plain = Problem(lambda p, x: module.apply({"params": p}, x), **STATED)
    problem = Problem.from_linen(module, **STATED)
    state = TrainState.create(apply_fn=module.apply, params=params, tx=optax.sgd(0.1))
    want = counts(hessian_ranks(plain, params))
    for given in (params, variables, state, state.replace(params=variables)):
        assert counts(hessian_ranks(problem, given)) == want
    assert counts(hessian_ranks(plain, state)) == want
    assert predicted_ranks(problem, state).dims == (5, 4, 3)


def regularized():
    params = gaussian(
        {
            "Dense_0": dense(5, 4),
            "BatchNorm_0": {"scale": (4,), "bias": (4,)},
            "Dense_1": dense(4, 3),
        }
    )
    statistics = {"mean": np.full(4, 0.3, np.float32), "var": np.full(4, 1.3, np.float32)}
    return params, {"batch_stats": {"BatchNorm_0": statistics}}


@cache
def regularized_spectra():
    params, extra = regularized()
    layers = [params[name] for name in ("Dense_0", "BatchNorm_0", "Dense_1")]
    return textbook_spectra(layers, *extra["batch_stats"]["BatchNorm_0"].values())


def test_linen_is_evaluated_in_inference_with_the_collections_given():
    params, extra = regularized()
    problem, want = REGULARIZED, regularized_spectra()
    assert_same_spectra(spectra(problem, {"params": params, **extra}), want)
    state = StatisticsState.create(
        apply_fn=None, params=params, tx=optax.sgd(0.1), batch_stats=extra["batch_stats"]
    )
    assert_same_spectra(spectra(problem, state), want)
    with RankMonitor(problem, every=1, probes=["hessian"]) as monitor:
        record = monitor(0, params, extra=extra)
        moved = jax.tree.map(lambda a: 2 * a, extra)
        after = monitor(1, params, extra=moved)
    for part, values in want.items():
        logged = record.arrays[f"spectrum/{part}"]
        top = np.log10(np.sort(np.abs(values))[:-11:-1])
        np.testing.assert_allclose(logged[:10], top, rtol=0, atol=1e-9)
    assert after.scalars["loss"] != record.scalars["loss"]


def test_extra_collections_are_held_fixed_and_are_no_weights():
    params, extra = regularized()
    problem = REGULARIZED
    flat = problem.flat({"params": params, **extra})
    assert flat.p == sum(leaf.size for leaf in jax.tree.leaves(params))
    held = [spec.name for spec in flat.specs if not spec.differentiated]
    assert held == ["extra/batch_stats/BatchNorm_0/mean", "extra/batch_stats/BatchNorm_0/var"]
    with RankMonitor(problem, every=1) as monitor:
        record = monitor(0, params, extra=extra)
    weights = {tag for tag in record.scalars if tag.startswith("rank_weights/")}
    assert weights == {"rank_weights/Dense_0/kernel", "rank_weights/Dense_1/kernel"}
    with refused(ValueError, "'extra/*'"):
        Problem.from_linen(Regularized(), include=["extra/*"], **STATED).flat(
            {"params": params, **extra}
        )


@jax.jit
def train_step(state, key):
    def loss(params):
        z, updated = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            X,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.mean((z - Y) ** 2), updated["batch_stats"]

    grads, statistics = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=statistics)


SGD = optax.sgd(1e-2)
MODULE = Regularized()


def trained_linen(monitor=None):
    params, extra = jax.tree.map(jnp.asarray, regularized())
    state = StatisticsState.create(
        apply_fn=MODULE.apply, params=params, tx=SGD, batch_stats=extra["batch_stats"]
    )
    for seed in range(5):
        if monitor is not None:
            monitor(state)
        state = train_step(state, jax.random.key(seed))
    if monitor is not None:
        monitor.close(state)
    return state


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_train_state_is_monitored_and_trained_alike(tmp_path, background):
    monitor = RankMonitor(REGULARIZED, logdir=tmp_path, every=2, background=background)
    bare = trained_linen()
    compiled = train_step._cache_size()
    watched = trained_linen(monitor)
    assert train_step._cache_size() == compiled
    pairs = zip(jax.tree.leaves(watched), jax.tree.leaves(bare), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 2, 4, 5]
    want = hessian_ranks(REGULARIZED, bare)
    assert records[-1].scalars["rank/H_L"] == want["H_L"].rank


def test_a_state_alone_has_to_be_one():
    monitor = RankMonitor(Problem.from_linen(Mlp(), **STATED), every=1)
    with refused(TypeError, "monitor(step, params)", "monitor(state)", "int"):
        monitor(3)


def test_extra_collections_must_not_hold_the_parameters():
    params, extra = regularized()
    with refused(ValueError, "extra", "'params'"), RankMonitor(REGULARIZED, every=1) as monitor:
        monitor(0, params, extra={"params": params, **extra})


def test_a_state_whose_parameters_are_variables_keeps_its_statistics():
    params, extra = regularized()
    state = StatisticsState.create(
        apply_fn=None,
        params={"params": params},
        tx=optax.sgd(0.1),
        batch_stats=extra["batch_stats"],
    )
    assert_same_spectra(spectra(REGULARIZED, state), regularized_spectra())


# NNX


@cache
def untouched():
    """The model that the shared problem is of; tests work on clones."""
    return NnxRegularized(nnx.Rngs(0))


@cache
def nnx_problem():
    return Problem.from_nnx(untouched(), **STATED)


@nnx.jit
def nnx_train_step(model, optimizer):
    def loss(model):
        return jnp.mean((model(X) - Y) ** 2)

    optimizer.update(model, nnx.grad(loss)(model))


def trained_nnx(monitor=None):
    model = nnx.clone(untouched())
    optimizer = nnx.Optimizer(model, SGD, wrt=nnx.Param)
    for step in range(5):
        if monitor is not None:
            monitor(step, model)
        nnx_train_step(model, optimizer)
    if monitor is not None:
        monitor.close(5, model)
    return model


def test_nnx_models_are_evaluated_in_inference_at_their_own_statistics():
    model = trained_nnx()  # which moves the statistics
    layers = [
        {"kernel": np.asarray(layer.kernel[...]), "bias": np.asarray(layer.bias[...])}
        for layer in (model.first, model.last)
    ]
    norm = {"scale": np.asarray(model.norm.scale[...]), "bias": np.asarray(model.norm.bias[...])}
    statistics = np.asarray(model.norm.mean[...]), np.asarray(model.norm.var[...])
    want = textbook_spectra([layers[0], norm, layers[1]], *statistics)
    assert np.abs(statistics[0]).max() > 0.1
    assert_same_spectra(spectra(nnx_problem(), model), want)
    assert not model.dropout.deterministic  # left in training mode
    assert not model.norm.use_running_average


def test_only_parameters_are_measured_under_stable_names():
    model = nnx.clone(untouched())
    with RankMonitor(nnx_problem(), every=10) as monitor:
        record = monitor(0, model)
        with pytest.warns(RankmonWarning, match="NNX"):
            monitor(5, model)
            monitor.close()
    weights = {tag for tag in record.scalars if tag.startswith("rank_weights/")}
    assert weights == {"rank_weights/first/kernel", "rank_weights/last/kernel"}
    ranks = weight_ranks(nnx.state(model, nnx.Param))
    assert record.scalars["rank_weights/first/kernel"] == ranks["first/kernel"].rank


def test_a_state_alone_is_measured_and_known_to_change_in_place():
    problem, model = nnx_problem(), untouched()
    state = nnx.state(nnx.clone(model), nnx.Param)
    assert_same_spectra(spectra(problem, state), spectra(problem, model))
    monitor = RankMonitor(problem, every=10, probes=["weights"])
    monitor(0, state)
    monitor(1, state)
    with pytest.warns(RankmonWarning, match="NNX"):
        monitor.close()


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_what_a_model_sows_is_left_out():
    class Sows(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 3, rngs=rngs, kernel_init=normal)

        def __call__(self, x):
            x = self.first(x)
            self.sow(nnx.Intermediate, "hidden", x)
            return x

    model = Sows(nnx.Rngs(0))
    problem = Problem.from_nnx(model, **STATED)
    with RankMonitor(problem, every=1) as monitor:
        ranks = []
        for step in range(3):
            ranks.append(monitor(step, model).scalars["rank/H_L"])
            model(X)
        monitor.close(3, model)
    assert ranks == [18, 18, 18]


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_an_nnx_model_is_monitored_and_trained_alike(background):
    monitor = RankMonitor(nnx_problem(), every=2, background=background)
    watched, bare = (nnx.state(trained_nnx(m)) for m in (monitor, None))

    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return np.array_equal(a, b)

    assert all(jax.tree.leaves(jax.tree.map(same, watched, bare)))


@pytest.mark.parametrize(
    ("build", "keys"),
    [
        (lambda: Problem.from_linen(lambda p, x: x, **STATED), ["flax.linen.Module", "from_nnx"]),
        (lambda: Problem.from_nnx(Mlp(), **STATED), ["flax.nnx.Module", "Mlp"]),
        (lambda: Problem(Mlp(), **STATED), ["Mlp", "Problem.from_linen"]),
        (lambda: Problem(untouched(), **STATED), ["NnxRegularized", "Problem.from_nnx"]),
    ],
    ids=["function", "linen_as_nnx", "linen_as_function", "nnx_as_function"],
)
def test_what_is_no_such_module_is_refused(build, keys):
    with refused(TypeError, *keys):
        build()
