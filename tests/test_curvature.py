"""Every part of the Hessian against plain autodiff, on the cases that all tests share."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from oracles import CASES, Case, dense_parts, mlp, mse
from rankmon import HessianProbe, hessian_ranks
from rankmon.curvature import Curvature
from rankmon.parts import dense_bytes
from rankmon.problem import Problem


def bind(case: Case, **options):
    problem = Problem(case.apply, **case.statement)
    flat = problem.flat(case.params)
    theta, fixed = flat.split(flat.leaves(case.params))
    return Curvature(flat, **options), theta, fixed


def outer_of(curvature, theta, fixed):
    return curvature.outer(theta, fixed, curvature.flat.output_hessians(theta, fixed))[0]


def functional_of(curvature, theta, fixed, delta):
    return curvature.functional(theta, fixed, [delta])[0]


def assert_close(got, want, scale=None):
    scale = np.max(np.abs(want)) if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(scale, 1e-300))


@pytest.mark.parametrize("name", CASES)
def test_parts_equal_autodiff(name):
    case = CASES[name]
    curvature, theta, fixed = bind(case)
    want = dense_parts(case)
    loss, delta = curvature.flat.loss_and_residuals(theta, fixed)
    assert loss == pytest.approx(float(want["loss"]), rel=1e-12)
    live = curvature.flat.weights > 0
    assert_close(delta[live], want["delta"][live])
    outer = outer_of(curvature, theta, fixed)
    functional = functional_of(curvature, theta, fixed, delta)
    scale = np.max(np.abs(want["H_L"]))
    assert_close(outer, want["H_o"], scale)
    assert_close(functional, want["H_f"], scale)
    assert_close(outer + functional, want["H_L"], scale)
    assert_close(functional, functional.T, scale)


@pytest.mark.parametrize("name", CASES)
def test_residuals_held_fixed(name):
    case = CASES[name]
    curvature, theta, fixed = bind(case)
    flat = curvature.flat
    reference = np.random.default_rng(7).standard_normal((flat.positions, flat.k))
    want = dense_parts(case, reference)["H_f_fixed"]
    assert_close(functional_of(curvature, theta, fixed, reference), want)


@pytest.mark.parametrize("name", CASES)
def test_products_equal_matrices(name):
    case = CASES[name]
    curvature, theta, fixed = bind(case)
    _, delta = curvature.flat.loss_and_residuals(theta, fixed)
    want = dense_parts(case)
    v = np.random.default_rng(8).standard_normal(len(theta))
    scale = np.max(np.abs(want["H_L"])) * np.sqrt(len(theta))
    assert_close(curvature.outer_product(theta, fixed, v), want["H_o"] @ v, scale)
    assert_close(curvature.functional_product(theta, fixed, delta, v), want["H_f"] @ v, scale)


@pytest.mark.parametrize("name", ["relu-mse", "tokens-cross_entropy", "batch_statistics-mse"])
def test_chunks_change_nothing_and_keep_within_the_bound(name):
    case = CASES[name]
    free, theta, fixed = bind(case)
    _, delta = free.flat.loss_and_residuals(theta, fixed)
    whole = outer_of(free, theta, fixed), functional_of(free, theta, fixed, delta)
    room = max(free.workspace_used.values()) // 3
    tight, *_ = bind(case, memory_limit=dense_bytes(free.flat.p) + room)
    assert_close(outer_of(tight, theta, fixed), whole[0])
    assert_close(functional_of(tight, theta, fixed, delta), whole[1])
    assert max(tight.workspace_used.values()) <= room
    assert tight.workspace_used["H_f"] < free.workspace_used["H_f"]


def test_outer_is_positive_semidefinite_for_convex_losses():
    for case in CASES.values():
        if case.loss in ("mse", "cross_entropy", "cosh"):
            curvature, theta, fixed = bind(case)
            eigenvalues = np.linalg.eigvalsh(outer_of(curvature, theta, fixed))
            assert eigenvalues[0] > -1e-13 * eigenvalues[-1], case.name


def test_functional_vanishes_at_zero_residual():
    case = CASES["linear-mse"]
    targets = case.apply(case.params, case.inputs)
    exact = Case("exact", case.apply, case.params, case.inputs, targets, "mse", case.textbook)
    curvature, theta, fixed = bind(exact)
    loss, delta = curvature.flat.loss_and_residuals(theta, fixed)
    assert loss < 1e-28
    assert np.max(np.abs(functional_of(curvature, theta, fixed, delta))) < 1e-14


def test_too_large_is_refused_with_the_size_and_the_memory():
    case = CASES["linear-mse"]
    with pytest.raises(MemoryError, match=r"p = 48 parameters.*90 KiB.*raise memory_limit"):
        bind(case, memory_limit=1000)


def test_nothing_of_the_user_changes():
    before = jax.config.jax_enable_x64
    curvature, theta, fixed = bind(CASES["linear-mse"])
    outer_of(curvature, theta, fixed)
    assert jax.config.jax_enable_x64 is before is False


class _FrozenNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.tanh(x))


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_interacting_examples_are_noticed_whatever_is_held_fixed(scale):
    """With the normalization held fixed, only the kernels' derivatives show it."""
    module = _FrozenNorm()
    x = np.random.default_rng(0).standard_normal((8, 3))
    variables = jax.tree.map(np.asarray, module.init(jax.random.key(0), x))

    def apply(params, x):
        collections = {"params": params, "batch_stats": variables["batch_stats"]}
        return scale * module.apply(collections, x, mutable=["batch_stats"])[0]

    params = variables["params"]
    held = {name: layer for name, layer in params.items() if name != "Dense_0"}
    targets = np.random.default_rng(1).standard_normal((8, 2))
    problem = Problem(apply, loss="mse", inputs=x, targets=targets, include=["Dense_0/*"])
    flat = problem.flat(params)
    alone = Case("alone", lambda layer, x: apply({"Dense_0": layer, **held}, x),
                 params["Dense_0"], x, targets, "mse", mse)  # fmt: skip
    want = dense_parts(alone)["H_o"]
    assert np.max(np.abs(want)) > 0
    assert_close(outer_of(Curvature(flat), *flat.split(flat.leaves(params))), want)


def test_what_does_not_fit_is_known_before_anything_is_measured():
    case = CASES["linear-mse"]
    p = 48
    with pytest.raises(MemoryError, match="for a single row or example; raise memory_limit"):
        bind(case, memory_limit=dense_bytes(p) + 100)[0].compile(cotangents=1)


def test_nothing_is_traced_twice():
    case, calls = CASES["linear-mse"], []

    def apply(params, x):
        calls.append(1)
        return case.apply(params, x)

    problem = Problem(apply, loss="mse", inputs=case.inputs, targets=case.targets)
    hessian_ranks(problem, case.params)
    traced = len(calls)
    hessian_ranks(problem, jax.tree.map(lambda a: 2 * a, case.params))
    assert len(calls) == traced


@jax.custom_vjp
def _tanh_with_a_backward_rule_alone(x):
    return jnp.tanh(x)


_tanh_with_a_backward_rule_alone.defvjp(
    lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, cotangent: ((1 - y**2) * cotangent,)
)


def test_a_backward_rule_is_enough():
    case = CASES["tanh-mse"]
    apply, params = mlp((5, 4, 4, 3), _tanh_with_a_backward_rule_alone)
    curvature, theta, fixed = bind(replace(case, apply=apply, params=params))
    _, delta = curvature.flat.loss_and_residuals(theta, fixed)
    want = dense_parts(case)
    assert_close(outer_of(curvature, theta, fixed), want["H_o"])
    assert_close(functional_of(curvature, theta, fixed, delta), want["H_f"])


def test_a_network_that_cannot_be_differentiated_is_explained():
    problem = Problem(
        lambda w, x: jax.pure_callback(np.tanh, jax.ShapeDtypeStruct((4, 2), x.dtype), x @ w),
        loss="mse",
        inputs=np.eye(4),
        targets=np.ones((4, 2)),
    )
    with pytest.raises(ValueError, match="differentiate twice.*probes=.'weights'."):
        HessianProbe().prepare(problem.flat(np.ones((4, 2))))


def test_a_network_that_needs_the_whole_batch_is_traced_once():
    calls = []

    def apply(w, x):
        calls.append(1)
        return (x.reshape(4, 2, 3) @ w).reshape(8, 2)  # no batch of one can be reshaped so

    rng = np.random.default_rng(0)
    x, y, w = (rng.standard_normal(shape) for shape in ((8, 3), (8, 2), (3, 2)))
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    hessian_ranks(problem, w)
    traced = len(calls)
    assert hessian_ranks(problem, 2 * w)["H_o"].rank == 6
    assert len(calls) == traced
