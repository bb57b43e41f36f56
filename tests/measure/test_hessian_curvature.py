"""`hessian_curvature` beside dense autodiff, with each kind of engine."""

import jax
import numpy as np
import pytest

import rankmon
from oracles import CASES, Case, cross_entropy, dense_parts, mlp
from refusals import refused
from shared_problems import problem_of


@pytest.mark.parametrize("name", ["relu-mse", "conv-mse"])
def test_exact_engines_give_exact_numbers(name):
    found = rankmon.hessian_curvature(problem_of(name), CASES[name].params)
    matrices = dense_parts(CASES[name], None)
    assert found.keys() == {"H_L", "H_o", "H_f"}
    for part, curvature in found.items():
        values = np.linalg.eigvalsh(matrices[part])
        scale = np.max(np.abs(values)) or 1.0
        assert curvature.largest.value == pytest.approx(values[-1], abs=1e-12 * scale)
        assert curvature.smallest.value == pytest.approx(values[0], abs=1e-12 * scale)
        assert curvature.trace.value == pytest.approx(values.sum(), abs=1e-10 * scale)


@pytest.mark.filterwarnings("ignore:.*the ranks of the Hessian")
def test_auto_takes_no_sketch_past_dense_matrices():
    """A sketch would show all ranks of this network, but no signed eigenvalues."""
    apply, params = mlp((20, 40, 3), jax.nn.relu)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 20)), rng.integers(0, 3, 30)
    case = Case("wide", apply, params, x, y, "cross_entropy", cross_entropy)
    problem = rankmon.Problem(apply, **case.statement)
    limits = {"memory_limit": 2**25}
    ranks = rankmon.hessian_ranks(problem, params, **limits)
    assert isinstance(ranks["H_L"], rankmon.SketchedRank)
    found = rankmon.hessian_curvature(problem, params, parts=("H_L",), **limits)
    values = np.linalg.eigvalsh(dense_parts(case, None)["H_L"])
    assert found.keys() == {"H_L"}
    assert found["H_L"].largest.value == pytest.approx(values[-1], rel=1e-4)


@pytest.mark.parametrize("engine", ["sketch", "slq"])
def test_engines_without_signed_eigenvalues_are_refused(engine):
    with refused(ValueError, "expected engine", "lanczos", repr(engine)):
        rankmon.hessian_curvature(problem_of("relu-mse"), CASES["relu-mse"].params, engine=engine)


def test_parameters_that_are_not_finite_have_no_curvature():
    params = jax.tree.map(lambda leaf: leaf * np.nan, CASES["relu-mse"].params)
    assert rankmon.hessian_curvature(problem_of("relu-mse"), params) == {}
