"""Networks and losses with derivative rules of their own, of every kind that JAX takes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, Case, data, dense_parts, mlp, mse
from rankmon import (
    HessianProbe,
    Problem,
    RankMonitor,
    hessian_ranks,
    hessian_spectra,
    ntk_rank,
    outer_rank,
)
from rankmon.engines.dense import Curvature
from rankmon.engines.select import ENGINES
from rankmon.hessian.operators import HessianPrograms
from rankmon.writers.memory import MemoryWriter
from refusals import refused


@jax.custom_vjp
def calls_itself(x):
    """As JAX's documentation writes it: its forward rule calls the function itself."""
    return jnp.tanh(x)


calls_itself.defvjp(lambda x: (calls_itself(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


@jax.custom_vjp
def calls_itself_in_both_rules(x):
    return jnp.tanh(x)


calls_itself_in_both_rules.defvjp(
    lambda x: (calls_itself_in_both_rules(x),) * 2, lambda y, g: (g * (1 - y**2),)
)


@jax.custom_vjp
def loss_that_calls_itself(z, y):
    return 0.5 * jnp.sum((z - y) ** 2)


loss_that_calls_itself.defvjp(
    lambda z, y: (loss_that_calls_itself(z, y), z - y), lambda r, g: (g * r, -g * r)
)


def in_a_scan(x):
    return jax.lax.scan(lambda c, _: (calls_itself(c), None), x, None, length=1)[0]


KINDS = [calls_itself, calls_itself_in_both_rules, in_a_scan]


def stated(activation, loss="mse", **options):
    """The shared case with tanh, by this activation and loss, and its oracle."""
    case = CASES["tanh-mse"]
    apply, params = mlp((5, 4, 4, 3), activation)
    problem = Problem(apply, loss=loss, inputs=case.inputs, targets=case.targets, **options)
    return problem, params, dense_parts(case)


@cache
def shared():
    return stated(calls_itself)


@pytest.mark.parametrize("activation", KINDS, ids=lambda f: f.__name__)
def test_spectra_are_those_without_the_rule(activation):
    problem, params, want = shared() if activation is calls_itself else stated(activation)
    for part, values in hessian_spectra(problem, params).items():
        exact = np.linalg.eigvalsh(want[part])
        np.testing.assert_allclose(np.sort(values), exact, atol=1e-13 * abs(exact).max())


@pytest.mark.parametrize("engine", sorted({*ENGINES} - {"deep_linear", "stack"}))
def test_every_engine_takes_it(engine):
    if engine == "slq":
        pytest.importorskip("matfree")
    problem, params, want = shared()
    found = hessian_ranks(problem, params, engine=engine, reference=problem.residuals(params))
    for part, rank in found.items():
        values = np.abs(np.linalg.eigvalsh(want[part.removesuffix("_fixed")]))
        truth = int(np.sum(values > rank.tolerance))
        assert rank.low <= truth <= rank.high
        assert rank.rank == truth or engine == "slq"


def test_a_loss_whose_forward_rule_calls_itself():
    problem, params, want = stated(jnp.tanh, loss_that_calls_itself)
    for part, rank in hessian_ranks(problem, params).items():
        assert rank.rank == np.linalg.matrix_rank(want[part], hermitian=True), part


def test_other_measurements_and_the_monitor_take_it():
    problem, params, want = shared()
    outer = np.linalg.matrix_rank(want["H_o"], hermitian=True)
    assert outer_rank(problem, params).rank == ntk_rank(problem, params).rank == outer
    writer = MemoryWriter()
    with RankMonitor(problem, every=1, probes=["hessian"], writers=[writer]) as monitor:
        monitor(0, params)
    assert writer.records[0].scalars["rank/H_f"] == np.linalg.matrix_rank(
        want["H_f"], hermitian=True
    )


def test_single_products():
    problem, params, want = shared()
    flat = problem.flat(params)
    theta, fixed = flat.split(flat.leaves(params))
    _, delta = flat.loss_and_residuals(theta, fixed)
    v = np.random.default_rng(0).standard_normal(flat.p)
    got = HessianPrograms(flat, residuals=1).at(theta, fixed, [delta]).mv(v)
    np.testing.assert_allclose(got, want["H_f"] @ v, atol=1e-13)


def test_fewer_parameters_than_outputs():
    """Then the Jacobian is taken by columns, if there is a forward mode."""
    x, y = data(6, 5, 3)
    mix = np.random.default_rng(3).standard_normal((5, 3))

    def network(activation):
        return lambda w, x: activation(x * w[0] + w[1]) @ mix

    w = np.array([0.7, -0.2])
    case = Case("few", network(jnp.tanh), w, x, y, "mse", mse)
    problem = Problem(network(calls_itself), loss="mse", inputs=x, targets=y)
    flat = problem.flat(w)
    curvature = Curvature(flat)
    outer, _ = curvature.outer(w, (), flat.output_hessians(w, ()))
    np.testing.assert_allclose(outer, dense_parts(case)["H_o"], rtol=1e-13)


def _no_second_derivative():
    @jax.custom_vjp
    def activation(x):
        return jnp.tanh(x)

    def backward(x, g):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (g * jax.pure_callback(lambda x: 1 - np.tanh(x) ** 2, shape, x),)

    activation.defvjp(lambda x: (activation(x), x), backward)
    return activation


@pytest.mark.parametrize("engine", ["auto", "sketch", "slq"])
def test_where_no_way_works_all_say_how_to_write_the_rule(engine):
    if engine == "slq":
        pytest.importorskip("matfree")
    problem, params, _ = stated(_no_second_derivative())
    keys = "differentiate twice", "custom_vjp", "pure_callback", "probes=", "weights"
    with refused(ValueError, *keys) as caught:
        hessian_ranks(problem, params, engine=engine)
    with refused(ValueError, *keys) as prepared:
        HessianProbe(engine=engine).prepare(problem.flat(params))
    assert str(caught.value) == str(prepared.value)
    if engine == "auto":
        with refused(ValueError, *keys):
            hessian_spectra(problem, params)
