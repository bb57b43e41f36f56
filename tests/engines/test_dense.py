"""Every part of the Hessian against plain autodiff, on the cases that all tests share."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, Case, dense_parts, mlp, mse
from rankmon import HessianProbe, Problem, hessian_ranks
from rankmon.engines.dense import Curvature
from rankmon.hessian.memory import dense_bytes
from rankmon.hessian.operators import HessianPrograms
from refusals import refused
from shared_problems import flat_of

# Every network, and losses of each kind. A bias is one more leaf of theta; the other losses and
# networks of dense layers are in `test_exact`, which compares these products with contractions.
NAMES = [
    "linear-mse",
    "relu_bias-mse",
    "tanh-mse",
    "tanh-cross_entropy",
    "tanh-custom",
    "linear-weights",
    "conv-mse",
    "tokens-cross_entropy",
    "batch_statistics-mse",
]


def point_of(flat, params):
    return flat.split(flat.leaves(params))


def bind(case: Case, **options):
    flat = Problem(case.apply, **case.statement).flat(case.params)
    return Curvature(flat, **options), *point_of(flat, case.params)


def outer_of(curvature, theta, fixed):
    return curvature.outer(theta, fixed, curvature.flat.output_hessians(theta, fixed))[0]


def functional_of(curvature, theta, fixed, delta):
    return curvature.functional(theta, fixed, [delta])[0]


@dataclass
class Measured:
    """A case's curvature, and what it gives at the case's parameters."""

    curvature: Curvature
    theta: np.ndarray
    fixed: tuple[np.ndarray, ...]
    loss: float
    delta: np.ndarray
    reference: np.ndarray
    outer: np.ndarray
    functional: np.ndarray
    functional_held: np.ndarray


@cache
def measured(name):
    flat = flat_of(name)
    curvature, (theta, fixed) = Curvature(flat), point_of(flat, CASES[name].params)
    loss, delta = flat.loss_and_residuals(theta, fixed)
    reference = np.random.default_rng(7).standard_normal((flat.positions, flat.k))
    outer = outer_of(curvature, theta, fixed)
    parts = curvature.functional(theta, fixed, [delta, reference])
    return Measured(curvature, theta, fixed, loss, delta, reference, outer, *parts)


def assert_close(got, want, scale=None):
    scale = np.max(np.abs(want)) if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(scale, 1e-300))


@pytest.mark.parametrize("name", NAMES)
def test_parts_equal_autodiff(name):
    got = measured(name)
    want = dense_parts(CASES[name], got.reference)
    assert got.loss == pytest.approx(float(want["loss"]), rel=1e-12)
    live = got.curvature.flat.weights > 0
    assert_close(got.delta[live], want["delta"][live])
    scale = np.max(np.abs(want["H_L"]))
    assert_close(got.outer, want["H_o"], scale)
    assert_close(got.functional, want["H_f"], scale)
    assert_close(got.outer + got.functional, want["H_L"], scale)
    assert_close(got.functional, got.functional.T, scale)
    assert_close(got.functional_held, want["H_f_fixed"])


@pytest.mark.parametrize("name", NAMES)
def test_products_equal_matrices(name):
    at = measured(name)
    want = dense_parts(CASES[name])
    v = np.random.default_rng(8).standard_normal(len(at.theta))
    scale = np.max(np.abs(want["H_L"])) * np.sqrt(len(at.theta))
    flat, point = at.curvature.flat, (at.theta, at.fixed)
    outer = HessianPrograms(flat, outer=True).at(*point).mv(v)
    functional = HessianPrograms(flat, residuals=1).at(*point, [at.delta]).mv(v)
    assert_close(outer, want["H_o"] @ v, scale)
    assert_close(functional, want["H_f"] @ v, scale)


@pytest.mark.parametrize("name", ["relu_bias-mse", "tokens-cross_entropy", "batch_statistics-mse"])
def test_chunks_change_nothing_and_keep_within_the_bound(name):
    """Of examples one at a time, of several positions each, and of the batch kept together."""
    whole = measured(name)
    flat, used = whole.curvature.flat, whole.curvature.workspace_used
    room = max(used.values()) // 3
    tight = Curvature(flat, memory_limit=dense_bytes(flat.p) + room)
    at = whole.theta, whole.fixed
    assert_close(outer_of(tight, *at), whole.outer)
    functional, held = tight.functional(*at, [whole.delta, whole.reference])
    assert_close(functional, whole.functional)
    assert_close(held, whole.functional_held)
    assert max(tight.workspace_used.values()) <= room
    assert tight.workspace_used["H_f"] < used["H_f"]


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(CASES[name].loss, str)])
def test_outer_is_positive_semidefinite_for_convex_losses(name):
    eigenvalues = np.linalg.eigvalsh(measured(name).outer)
    assert eigenvalues[0] > -1e-13 * eigenvalues[-1]


def test_functional_vanishes_at_zero_residual():
    case, at = CASES["linear-mse"], measured("linear-mse")
    exact = replace(case, targets=case.apply(case.params, case.inputs))
    flat = Problem(exact.apply, **exact.statement).flat(exact.params)
    loss, delta = flat.loss_and_residuals(at.theta, at.fixed)
    assert loss < 1e-28
    assert np.max(np.abs(at.curvature.functional(at.theta, at.fixed, [delta, delta])[0])) < 1e-14


def test_too_large_is_refused_with_the_size_and_the_memory():
    with refused(MemoryError, "p = 48", "90 KiB", "memory_limit"):
        Curvature(flat_of("linear-mse"), memory_limit=1000)


def test_nothing_of_the_user_changes():
    before = jax.config.jax_enable_x64
    at = measured("linear-mse")
    outer_of(at.curvature, at.theta, at.fixed)
    assert jax.config.jax_enable_x64 is before is False


def normalized(params, x):
    """Batch statistics between two layers: the examples interact."""
    h = x @ params["first"]
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) * params["scale"]
    return jnp.tanh(h) @ params["last"]


def test_interacting_examples_are_noticed_whatever_is_held_fixed():
    """With the normalization held fixed, only the kernels' derivatives show it, and faintly."""
    scale = 1e-9
    rng = np.random.default_rng(0)
    params = {"first": rng.standard_normal((3, 4)), "last": rng.standard_normal((4, 2))}
    params["scale"] = rng.standard_normal(4)
    x, targets = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))

    def first_alone(first, x):
        return normalized({**params, "first": first}, x)

    flat = Problem(
        lambda params, x: scale * normalized(params, x),
        loss="mse",
        inputs=x,
        targets=targets,
        include=["first"],
    ).flat(params)
    alone = Case("alone", first_alone, params["first"], x, targets, "mse", mse)
    want = scale**2 * dense_parts(alone)["H_o"]
    assert np.max(np.abs(want)) > 0
    assert_close(outer_of(Curvature(flat), *point_of(flat, params)), want)


def test_what_does_not_fit_is_known_before_anything_is_measured():
    flat = flat_of("linear-mse")
    with refused(MemoryError, "single row or example", "memory_limit"):
        Curvature(flat, memory_limit=dense_bytes(flat.p) + 100).compile(cotangents=1)


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
    with refused(ValueError, "differentiate twice", "probes=", "weights"):
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
