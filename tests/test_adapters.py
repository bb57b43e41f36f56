"""Linen and NNX modules: the ranks of their plain functions, and training that is not touched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

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

X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(4)(x)))


class Regularized(nn.Module):
    """Dropout and batch statistics, switched by `train`."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.tanh(x))
        return nn.Dense(3)(x)


class StatisticsState(TrainState):
    batch_stats: object = None


class NnxRegularized(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))


STATED = {"loss": "mse", "inputs": X, "targets": Y}


def counts(ranks):
    return {part: (rank.low, rank.rank, rank.high) for part, rank in ranks.items()}


def assert_same_spectra(got, want):
    for part, values in want.items():
        atol = 1e-12 * np.abs(values).max()
        np.testing.assert_allclose(np.sort(got[part]), np.sort(values), rtol=0, atol=atol)


# Linen


def test_linen_parameters_variables_and_states_are_all_taken():
    module = Mlp()
    variables = module.init(jax.random.key(0), X)
    params = variables["params"]
    plain = Problem(lambda p, x: module.apply({"params": p}, x), **STATED)
    problem = Problem.from_linen(module, **STATED)
    state = TrainState.create(apply_fn=module.apply, params=params, tx=optax.sgd(0.1))
    want = counts(hessian_ranks(plain, params))
    for given in (params, variables, state, state.replace(params=variables)):
        assert counts(hessian_ranks(problem, given)) == want
    assert counts(hessian_ranks(plain, state)) == want
    assert predicted_ranks(problem, state).dims == (5, 4, 3)


def regularized():
    variables = Regularized().init(jax.random.key(0), X, train=False)
    statistics = jax.tree.map(lambda a: a + 0.3, variables["batch_stats"])
    return variables["params"], {"batch_stats": statistics}


def test_linen_is_evaluated_in_inference_with_the_collections_given():
    params, extra = regularized()
    problem = Problem.from_linen(Regularized(), **STATED)

    double = jax.tree.map(lambda a: np.asarray(a, np.float64), extra)

    def inference(params, x):
        return Regularized().apply({"params": params, **double}, x, train=False)

    want = hessian_spectra(Problem(inference, **STATED), params)
    assert_same_spectra(hessian_spectra(problem, {"params": params, **extra}), want)
    state = StatisticsState.create(
        apply_fn=None, params=params, tx=optax.sgd(0.1), batch_stats=extra["batch_stats"]
    )
    assert_same_spectra(hessian_spectra(problem, state), want)
    with RankMonitor(problem, every=1, probes=["hessian"]) as monitor:
        record = monitor(0, params, extra=extra)
        moved = jax.tree.map(lambda a: 2 * a, extra)
        after = monitor(1, params, extra=moved)
    for part, values in want.items():
        logged = record.arrays[f"spectrum/{part}"]
        top = np.log10(np.abs(values[:10]))
        np.testing.assert_allclose(logged[:10], top, rtol=0, atol=1e-9)
    assert after.scalars["loss"] != record.scalars["loss"]


def test_extra_collections_are_held_fixed_and_are_no_weights():
    params, extra = regularized()
    problem = Problem.from_linen(Regularized(), **STATED)
    flat = problem.flat({"params": params, **extra})
    assert flat.p == sum(leaf.size for leaf in jax.tree.leaves(params))
    held = [spec.name for spec in flat.specs if not spec.differentiated]
    assert held == ["extra/batch_stats/BatchNorm_0/mean", "extra/batch_stats/BatchNorm_0/var"]
    with RankMonitor(problem, every=1) as monitor:
        record = monitor(0, params, extra=extra)
    weights = {tag for tag in record.scalars if tag.startswith("rank_weights/")}
    assert weights == {"rank_weights/Dense_0/kernel", "rank_weights/Dense_1/kernel"}
    with pytest.raises(ValueError, match="'extra/.' to match a parameter, got none among"):
        Problem.from_linen(Regularized(), include=["extra/*"], **STATED).flat(
            {"params": params, **extra}
        )


def trained_linen(monitor=None):
    module = Regularized()
    variables = module.init(jax.random.key(0), X, train=False)
    state = StatisticsState.create(
        apply_fn=module.apply,
        params=variables["params"],
        tx=optax.adam(1e-2),
        batch_stats=variables["batch_stats"],
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

    for key in jax.random.split(jax.random.key(1), 5):
        if monitor is not None:
            monitor(state)
        state = train_step(state, key)
    if monitor is not None:
        monitor.close(state)
    return state, train_step._cache_size()


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_train_state_is_monitored_and_trained_alike(tmp_path, background):
    problem = Problem.from_linen(Regularized(), **STATED)
    monitor = RankMonitor(problem, logdir=tmp_path, every=2, background=background)
    (watched, compiled), (bare, as_often) = trained_linen(monitor), trained_linen()
    assert compiled == as_often
    pairs = zip(jax.tree.leaves(watched), jax.tree.leaves(bare), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 2, 4, 5]
    want = hessian_ranks(problem, bare)
    assert records[-1].scalars["rank/H_L"] == want["H_L"].rank


def test_a_state_alone_has_to_be_one():
    monitor = RankMonitor(Problem.from_linen(Mlp(), **STATED), every=1)
    with pytest.raises(TypeError, match=r"expected monitor\(step, params\) or monitor\(state\)"):
        monitor(3)


def test_extra_collections_must_not_hold_the_parameters():
    params, extra = regularized()
    problem = Problem.from_linen(Regularized(), **STATED)
    with (
        pytest.raises(ValueError, match="leave 'params' out of it"),
        RankMonitor(problem, every=1) as monitor,
    ):
        monitor(0, params, extra={"params": params, **extra})


def test_a_state_whose_parameters_are_variables_keeps_its_statistics():
    params, extra = regularized()
    problem = Problem.from_linen(Regularized(), **STATED)
    state = StatisticsState.create(
        apply_fn=None,
        params={"params": params},
        tx=optax.sgd(0.1),
        batch_stats=extra["batch_stats"],
    )
    want = hessian_spectra(problem, {"params": params, **extra})
    assert_same_spectra(hessian_spectra(problem, state), want)


# NNX


def nnx_twin(model):
    """The model in inference mode as a function of its parameters, by split and merge alone."""
    twin = nnx.clone(model)
    twin.eval()
    graph, params, rest = nnx.split(twin, nnx.Param, ...)

    def double(leaf):  # some releases compute in the statistics' dtype
        return np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    rest = jax.tree.map(double, rest)
    return (lambda p, x: nnx.merge(graph, p, rest)(x)), params


def test_nnx_models_are_evaluated_in_inference_at_their_own_statistics():
    model = NnxRegularized(nnx.Rngs(0))
    problem = Problem.from_nnx(model, **STATED)
    for _ in range(3):
        model(X + 1)  # moves the statistics
    apply, params = nnx_twin(model)
    want = hessian_spectra(Problem(apply, **STATED), params)
    assert_same_spectra(hessian_spectra(problem, model), want)
    assert not model.dropout.deterministic  # left in training mode
    assert not model.norm.use_running_average


def test_only_parameters_are_measured_under_stable_names():
    model = NnxRegularized(nnx.Rngs(0))
    problem = Problem.from_nnx(model, **STATED)
    with RankMonitor(problem, every=10) as monitor:
        record = monitor(0, model)
        with pytest.warns(RankmonWarning, match="an NNX model's, which training changes in place"):
            monitor(5, model)
            monitor.close()
    weights = {tag for tag in record.scalars if tag.startswith("rank_weights/")}
    assert weights == {"rank_weights/first/kernel", "rank_weights/last/kernel"}
    ranks = weight_ranks(nnx.state(model, nnx.Param))
    assert record.scalars["rank_weights/first/kernel"] == ranks["first/kernel"].rank


def test_a_state_alone_is_measured_and_known_to_change_in_place():
    model = NnxRegularized(nnx.Rngs(0))
    problem = Problem.from_nnx(model, **STATED)
    state = nnx.state(model, nnx.Param)
    assert_same_spectra(hessian_spectra(problem, state), hessian_spectra(problem, model))
    monitor = RankMonitor(problem, every=10, probes=["weights"])
    monitor(0, state)
    monitor(1, state)
    with pytest.warns(RankmonWarning, match="an NNX model's, which training changes in place"):
        monitor.close()


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_what_a_model_sows_is_left_out():
    class Sows(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 3, rngs=rngs)

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


def trained_nnx(monitor=None):
    model = NnxRegularized(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        def loss(model):
            return jnp.mean((model(X) - Y) ** 2)

        optimizer.update(model, nnx.grad(loss)(model))

    for step in range(5):
        if monitor is not None:
            monitor(step, model)
        train_step(model, optimizer)
    if monitor is not None:
        monitor.close(5, model)
    return model


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_an_nnx_model_is_monitored_and_trained_alike(background):
    problem = Problem.from_nnx(NnxRegularized(nnx.Rngs(0)), **STATED)
    monitor = RankMonitor(problem, every=2, background=background)
    watched, bare = (nnx.state(trained_nnx(m)) for m in (monitor, None))

    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return np.array_equal(a, b)

    assert all(jax.tree.leaves(jax.tree.map(same, watched, bare)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Problem.from_linen(lambda p, x: x, **STATED), "expected a flax.linen.Module"),
        (lambda: Problem.from_nnx(Mlp(), **STATED), "expected a flax.nnx.Module, got Mlp"),
        (lambda: Problem(Mlp(), **STATED), "got Mlp; for a flax module use Problem.from_linen"),
        (
            lambda: Problem(NnxRegularized(nnx.Rngs(0)), **STATED),
            "got NnxRegularized; for a flax module",
        ),
    ],
    ids=["function", "linen_as_nnx", "linen_as_function", "nnx_as_function"],
)
def test_what_is_no_such_module_is_refused(build, message):
    with pytest.raises(TypeError, match=message):
        build()
