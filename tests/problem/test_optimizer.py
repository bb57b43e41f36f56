"""Test the update that an optimizer would make against Optax, for each kind of training loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from rankmon import Problem
from rankmon.problem.device_copy import copied_optimizer
from rankmon.problem.optimizer import Optimizer, optimizer_update

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 2))


def _shaken(updates, key, params=None):
    """An optimizer whose state is a random key."""
    shaken = jax.tree.map(lambda g: g * jax.random.normal(key, g.shape, g.dtype), updates)
    return shaken, jax.random.fold_in(key, 1)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(optax.exponential_decay(0.1, 3, 0.5), momentum=0.9),
    "adamw": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "random": optax.GradientTransformation(lambda params: jax.random.key(3), _shaken),
    "masked": optax.masked(optax.adam(1e-2), {"V": True, "W": False}),
    "every-second": optax.MultiSteps(optax.adam(1e-2), every_k_schedule=2),
    "muon": optax.contrib.muon(1e-2),
}


def network(params, x):
    return jnp.tanh(x @ params["W"]) @ params["V"]


def parameters(dtype=jnp.float32):
    return {
        "W": jnp.asarray(RNG.standard_normal((4, 5)), dtype),
        "V": jnp.asarray(RNG.standard_normal((5, 2)), dtype),
    }


PROBLEM = Problem(network, loss="mse", inputs=X, targets=Y)
PARAMS = parameters()


def gradient_like(params, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), params)


def advanced(tx, params, steps=3):
    """The optimizer's state and the parameters after some steps."""
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(gradient_like(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def made(problem, tx, params, state, gradient):
    """The update that `optimizer_update` gives for this call, by leaf."""
    flat = problem.flat(params)
    optimizer = Optimizer.of_call(params, state)
    theta = np.concatenate([np.ravel(np.asarray(g, np.float64)) for g in jax.tree.leaves(gradient)])
    leaves = flat.leaves(params)
    tx = tx or optimizer.transformation
    return optimizer_update(flat, tx, copied_optimizer(optimizer), leaves, theta)


def assert_same(got, want):
    want = jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            a.astype(np.float64), np.asarray(b, np.float64), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_that_of_optax(name):
    tx = OPTIMIZERS[name]
    params, state = advanced(tx, PARAMS)
    before = [str(a) for a in jax.tree.leaves((params, state))]
    gradient = gradient_like(params, 9)
    got = made(PROBLEM, tx, params, state, gradient)
    assert_same(got, jax.jit(tx.update)(gradient, state, params)[0])
    assert [str(a) for a in jax.tree.leaves((params, state))] == before


def test_it_is_computed_in_the_dtypes_of_training():
    params = parameters(jnp.bfloat16)
    tx = optax.adam(1e-2)
    params, state = advanced(tx, params)
    gradient = gradient_like(params, 9)
    got = made(Problem(network, loss="mse", inputs=X, targets=Y), tx, params, state, gradient)
    assert {a.dtype for a in got} == {np.dtype(jnp.bfloat16)}
    assert_same(got, jax.jit(tx.update)(gradient, state, params)[0])


def test_gradients_may_overflow_as_in_training():
    params = parameters(jnp.float16)
    tx = optax.sgd(1.0)
    gradient = jax.tree.map(lambda a: np.full(a.shape, 1e9), params)
    got = made(
        Problem(network, loss="mse", inputs=X, targets=Y), tx, params, tx.init(params), gradient
    )
    assert all(np.all(a == -np.inf) for a in got)


def test_leaves_held_fixed_have_gradient_zero():
    problem = Problem(network, loss="mse", inputs=X, targets=Y, exclude=["W"])
    tx = optax.sgd(0.5)
    gradient = gradient_like(PARAMS, 9)
    flat = problem.flat(PARAMS)
    optimizer = Optimizer.of_call(PARAMS, tx.init(PARAMS))
    theta = np.ravel(np.asarray(gradient["V"], np.float64))
    got = optimizer_update(flat, tx, optimizer, flat.leaves(PARAMS), theta)
    assert_same(got, {"V": -0.5 * gradient["V"], "W": jnp.zeros((4, 5))})


class Module(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)))


class State(TrainState):
    batch_stats: object


def test_a_train_state_passes_its_optimizer():
    module, tx = Module(), optax.adam(1e-2)
    variables = module.init(jax.random.key(0), X)
    problem = Problem.from_linen(module, loss="mse", inputs=X, targets=Y)
    state = State.create(apply_fn=module.apply, tx=tx, **variables)
    gradient = gradient_like(state.params, 9)
    state = state.apply_gradients(grads=gradient)
    got = made(problem, None, state, None, gradient)
    assert_same(got, tx.update(gradient, state.opt_state, state.params)[0])


def test_variables_of_linen_may_be_what_the_optimizer_updates():
    module, tx = nn.Dense(2), optax.adam(1e-2)
    variables = module.init(jax.random.key(0), X)
    problem = Problem.from_linen(module, loss="mse", inputs=X, targets=Y)
    gradient = gradient_like(variables, 9)
    for tree in (variables, variables["params"]):
        slope = gradient if tree is variables else gradient["params"]
        params, state = advanced(tx, tree)
        got = made(problem, tx, params, state, slope)
        assert_same(got, tx.update(slope, state, params)[0])


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


def test_nnx_optimizers_and_states():
    model, tx = Model(), optax.adam(1e-2)
    problem = Problem.from_nnx(model, loss="mse", inputs=X, targets=Y)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradient = gradient_like(nnx.state(model, nnx.Param), 8)
    optimizer.update(model, gradient)
    params = nnx.state(model, nnx.Param)
    pure = jax.tree.leaves
    first = tx.update(
        dict(enumerate(pure(gradient))),
        jax.tree.unflatten(
            jax.tree.structure(tx.init(dict(enumerate(pure(params))))), pure(optimizer.opt_state)
        ),
        dict(enumerate(pure(params))),
    )[0]
    for given in (optimizer, optimizer.opt_state):
        assert_same(made(problem, tx, model, given, gradient), first)
    assert_same(made(problem, None, model, optimizer, gradient), first)
    raw = tx.init(params)  # the user's own loop, with states of NNX in Optax
    assert_same(made(problem, tx, params, raw, gradient), tx.update(gradient, raw, params)[0])


def test_equinox_models():
    model, tx = eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0)), optax.adam(1e-2)
    problem = Problem(lambda m, x: jax.vmap(m)(x), loss="mse", inputs=X, targets=Y)
    weights = eqx.filter(model, eqx.is_inexact_array)
    gradient = gradient_like(weights, 9)
    state = tx.init(weights)
    got = made(problem, tx, model, state, gradient)
    assert_same(got, tx.update(gradient, state, weights)[0])


@pytest.mark.parametrize(
    ("tx", "state"),
    [
        (optax.adam(1e-2), optax.sgd(0.1).init(PARAMS)),
        (optax.adam(1e-2), optax.adam(1e-2).init({"W": PARAMS["W"]})),
        (optax.adam(1e-2), optax.adam(1e-2).init(jax.tree.map(lambda a: a[None], PARAMS))),
        (optax.adam(1e-2), "a state"),
        (optax.scale_by_backtracking_linesearch(10), None),
    ],
    ids=["other-optimizer", "other-tree", "other-shapes", "text", "needs-more"],
)
def test_what_does_not_fit_raises(tx, state):
    state = tx.init(PARAMS) if state is None else state
    with pytest.raises(Exception, match=r"."):
        made(PROBLEM, tx, PARAMS, state, gradient_like(PARAMS))


def test_an_optimizer_that_calls_python_is_not_run():
    called = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: called.append(1))
        return updates, state

    tx = optax.GradientTransformation(lambda params: (), update)
    with pytest.raises(ValueError, match="Python"):
        made(PROBLEM, tx, PARAMS, (), gradient_like(PARAMS))
    assert not called


def test_a_copy_outlives_the_donated_state_and_a_late_one_says_so():
    tx = optax.adam(1e-2)
    state = tx.init(PARAMS)
    copy = copied_optimizer(Optimizer.of_call(PARAMS, state))
    jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)(state)
    assert state[0].mu["W"].is_deleted()
    assert not np.asarray(copy.state[0].mu["W"]).any()
    late = copied_optimizer(Optimizer.of_call(PARAMS, state))
    assert late.state is None
    assert "deleted" in late.unreadable


def test_calls_without_an_optimizer():
    assert Optimizer.of_call(PARAMS) is None
    assert Optimizer.of_call(Model()) is None
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.sgd(0.1))
    found = Optimizer.of_call(state)
    assert found.state is state.opt_state
    assert found.transformation is state.tx
    assert Optimizer.of_call(state, "mine").state == "mine"
