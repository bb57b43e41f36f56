"""Test the NTK probe against Gram matrices by plain autodiff, its reference, and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from oracles import CASES
from rankmon import HessianProbe, MemoryWriter, Problem, RankMonitor, RankmonWarning, Tolerance
from rankmon.probes import NtkProbe
from rankmon.probes.base import NotApplicableError
from rankmon.probes.registry import OptionalProbe
from refusals import refused
from shared_problems import problem_of
from small_probes import measured_by

NETWORKS = ["tanh_bias-mse", "relu-mse", "linear-weights", "conv-mse", "tokens-cross_entropy"]
TAGS = {
    f"ntk/{name}"
    for name in (
        "rank",
        "rank_low",
        "rank_high",
        "tolerance",
        "gap",
        "effective_rank",
        "eigenvalue_max",
        "alignment",
    )
}


@functools.cache
def jacobian_function(name):
    case = CASES[name]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
        _, unravel = ravel_pytree(params)
        inputs = jax.tree.map(jnp.asarray, case.inputs)
        return jax.jit(jax.jacfwd(lambda t: case.apply(unravel(t), inputs).ravel()))


def kernel_of(name, params):
    with jax.enable_x64(True):
        theta = jnp.asarray(ravel_pytree(jax.tree.map(np.asarray, params))[0], jnp.float64)
        J = np.asarray(jacobian_function(name)(theta))
    return J, J @ J.T


def moved(params, scale, seed=5):
    """The parameters after a random change, in their own dtypes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: np.asarray(a + scale * rng.standard_normal(a.shape), a.dtype), params
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_of_the_gram_matrix_by_plain_autodiff(name):
    problem, start = problem_of(name), CASES[name].params
    probe = NtkProbe().prepare(problem.flat(start))
    J0, K0 = kernel_of(name, start)
    first, state = measured_by(probe, problem, start)
    assert first.scalars.keys() == TAGS
    assert first.scalars["ntk/alignment"] == pytest.approx(1, abs=1e-14)
    assert first.scalars["ntk/rank"] == np.linalg.matrix_rank(J0)
    later = moved(start, 0.5)
    J, K = kernel_of(name, later)
    found, after = measured_by(probe, problem, later, state, step=7)
    assert after is state
    scalars = found.scalars
    eigenvalues = np.linalg.eigvalsh(K)
    assert scalars["ntk/eigenvalue_max"] == pytest.approx(eigenvalues[-1], rel=1e-12)
    alignment = np.trace(K @ K0) / (np.linalg.norm(K, "fro") * np.linalg.norm(K0, "fro"))
    assert scalars["ntk/alignment"] == pytest.approx(alignment, abs=1e-12)
    assert alignment < 0.999
    share = np.clip(eigenvalues, 1e-300, None) / np.trace(K)
    entropy = -np.sum(share * np.log(share))
    assert scalars["ntk/effective_rank"] == pytest.approx(np.exp(entropy), rel=1e-9)
    values = np.linalg.svd(J, compute_uv=False)
    cut = max(J.shape) * 2.0**-52 * values[0]
    assert scalars["ntk/tolerance"] == pytest.approx(cut, rel=1e-9)
    assert scalars["ntk/rank"] == (rank := np.sum(values > cut))
    below = values[rank] if rank < len(values) else 0.0
    assert scalars["ntk/gap"] == np.inf if below == 0 else scalars["ntk/gap"] > 1
    assert scalars["ntk/rank_low"] <= scalars["ntk/rank"] <= scalars["ntk/rank_high"]


def linear(x):
    """A linear model: its kernel is constant."""
    return Problem(lambda w, x: x @ w, loss="mse", inputs=x, targets=np.zeros((len(x), 2)))


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e170], ids=["one", "tiny", "huge"])
def test_the_kernel_of_a_linear_model_stays(scale):
    x = np.random.default_rng(1).standard_normal((5, 3))
    problem, params = linear(scale * x), np.zeros((3, 2))
    probe = NtkProbe().prepare(problem.flat(params))
    _, state = measured_by(probe, problem, params)
    found, _ = measured_by(probe, problem, params + 2, state, step=1)
    assert found.scalars["ntk/alignment"] == pytest.approx(1, abs=1e-14)
    assert found.scalars["ntk/rank"] == 6
    share = np.repeat(np.linalg.svd(x, compute_uv=False) ** 2, 2)
    share /= share.sum()
    expected = np.exp(-np.sum(share * np.log(share)))
    assert found.scalars["ntk/effective_rank"] == pytest.approx(expected, rel=1e-12)


def test_a_zero_kernel_has_rank_zero_and_no_alignment():
    problem, params = linear(np.zeros((4, 3))), np.ones((3, 2))
    probe = NtkProbe().prepare(problem.flat(params))
    found, state = measured_by(probe, problem, params)
    assert found.scalars["ntk/rank"] == found.scalars["ntk/eigenvalue_max"] == 0
    assert np.isnan(found.scalars["ntk/alignment"])
    assert np.isnan(found.scalars["ntk/effective_rank"])
    assert state["started"] == 1


def test_parameters_that_are_not_finite_give_nan_and_no_reference():
    problem, params = problem_of("tanh_bias-mse"), CASES["tanh_bias-mse"].params
    broken = jax.tree.map(lambda a: a * np.nan, params)
    probe = NtkProbe().prepare(problem.flat(params))
    found, state = measured_by(probe, problem, broken)
    assert found.scalars.keys() == TAGS
    assert np.isnan(list(found.scalars.values())).all()
    found, state = measured_by(probe, problem, params, state, step=1)
    assert found.scalars["ntk/alignment"] == pytest.approx(1)
    assert state["started"] == 1


def record_of(step, params, **options):
    memory = MemoryWriter()
    problem = problem_of("tanh_bias-mse")
    with RankMonitor(problem, every=1, writers=[memory], **options) as monitor:
        monitor(step, params)
        return memory.records[-1].scalars, monitor.state


def test_a_resumed_run_keeps_the_first_kernel_and_an_older_state_has_none():
    start = CASES["tanh_bias-mse"].params
    later = moved(start, 0.5)
    _, state = record_of(0, start, probes=["ntk"])
    resumed, _ = record_of(5, later, probes=["ntk"], state=state)
    (_, K0), (_, K) = (kernel_of("tanh_bias-mse", params) for params in (start, later))
    expected = np.sum(K * K0) / np.sqrt(np.sum(K**2) * np.sum(K0**2))
    assert resumed["ntk/alignment"] == pytest.approx(expected, abs=1e-12)
    both = {"probes": [HessianProbe(parts=("H_L",)), "ntk"]}
    _, whole = record_of(0, start, **both)
    older = {name: entries for name, entries in whole.items() if name != "ntk"}
    with pytest.warns(RankmonWarning, match="ntk/alignment is NaN") as caught:
        scalars, _ = record_of(5, later, state=older, **both)
    assert len(caught) == 1
    assert np.isnan(scalars["ntk/alignment"])
    assert scalars["ntk/rank"] == resumed["ntk/rank"]


def test_what_does_not_fit_is_refused_and_left_out_of_all():
    problem, params = problem_of("tanh_bias-mse"), CASES["tanh_bias-mse"].params
    flat = problem.flat(params)
    with refused(MemoryError, "memory_limit", "rows"):
        NtkProbe(memory_limit=1000).prepare(flat)
    with refused(ValueError, "time_limit", "singular values"):
        NtkProbe(time_limit=1e-9).prepare(flat)
    with refused(ValueError, "engine", "'magic'"):
        NtkProbe(engine="magic")
    with refused(TypeError, "tolerance", "Tolerance"):
        NtkProbe(tolerance=1e-3)
    for limits in ({"memory_limit": 1000}, {"time_limit": 1e-9}):
        with refused(NotApplicableError, next(iter(limits))):
            OptionalProbe(NtkProbe(**limits)).prepare(flat)
    cut = Tolerance(absolute=1e3)
    found, _ = measured_by(NtkProbe(tolerance=cut).prepare(flat), problem, params)
    assert found.scalars["ntk/rank"] == 0
    assert found.scalars["ntk/tolerance"] == 1e3
