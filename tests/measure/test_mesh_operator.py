"""Products at sharded parameters on eight host devices, against the operator of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from rankmon import Problem, hessian_curvature, hessian_operator, hessian_ranks
from refusals import refused

CHILD = Path(__file__).with_name("mesh_child.py")


def result(*arguments):
    # With the optimizations of a user's programs, whose collectives and memory are read.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command = [sys.executable, str(CHILD), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_products_are_those_of_one_device_and_stay_sharded():
    found = result()
    assert len(found) == 12
    for case, seen in found.items():
        assert seen["kept"], case
        assert max(seen["errors"].values()) < 1e-10, (case, seen)


@pytest.mark.slow
def test_no_device_holds_all_parameters():
    found = result("memory")
    for vectors in ("one", "block"):
        one, eight = found["1"][vectors], found["8"][vectors]
        assert not one["largest"]
        assert 0 < max(eight["largest"].values()) <= found["layer"] / 8  # activations alone
        assert one["bytes"] > 5 * eight["bytes"]


@pytest.mark.slow
def test_estimates_are_those_of_one_device():
    found = result("estimates")
    assert len(found) == 12
    for case, seen in found.items():
        assert seen["same"], case
        assert seen["off"] < 1e-10, (case, seen)
        if "relu" not in case:
            continue
        assert seen["kept"], case
        assert seen["count"] > 1, (case, seen)
        assert max(seen["error"], abs(seen["top"])) < 1e-10, (case, seen)
        alike = found["relu-replicated"]
        np.testing.assert_allclose(seen["drawn"], alike["drawn"], atol=1e-10)


def small():
    x, y = np.eye(6, 4), np.ones((6, 2))
    problem = Problem(lambda w, x: x @ w["W"], loss="mse", inputs=x, targets=y)
    return problem, {"W": np.ones((4, 2))}


def test_a_mesh_of_one_device_gives_the_same_products():
    problem, params = small()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    operator = hessian_operator(problem, params, mesh=mesh)
    assert operator.shape == (8, 8)
    vector = np.arange(8.0)
    alone = hessian_operator(problem, params) @ vector
    product = operator @ {"W": vector.reshape(4, 2)}
    np.testing.assert_allclose(np.ravel(product["W"]), alone, rtol=1e-14)
    assert jax.tree.structure(operator.sharding) == jax.tree.structure(params)


@pytest.mark.parametrize("engine", ["lanczos", "auto"])
def test_a_mesh_of_one_device_gives_the_same_ranks_and_curvature(engine):
    problem, params = small()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    reference = np.ones((6, 2))
    alone = hessian_ranks(problem, params, reference=reference, engine=engine)
    found = hessian_ranks(problem, params, reference=reference, engine=engine, mesh=mesh)
    assert found.keys() == alone.keys()
    for part, rank in alone.items():
        assert (found[part].rank, found[part].low, found[part].high) == (
            (rank.rank, rank.low, rank.high)
        )
    options = {"reference": reference, "engine": engine}
    curvature = hessian_curvature(problem, params, **options)
    for part, one in hessian_curvature(problem, params, mesh=mesh, **options).items():
        np.testing.assert_allclose(one.largest.value, curvature[part].largest.value, atol=1e-14)
        np.testing.assert_allclose(one.trace.value, curvature[part].trace.value, atol=1e-14)


def test_curvature_of_weights_that_are_not_finite_is_empty():
    problem, params = small()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    bad = {"W": np.full((4, 2), np.nan)}
    assert hessian_curvature(problem, bad, engine="lanczos", mesh=mesh) == {}
    ranks = hessian_ranks(problem, bad, engine="lanczos", mesh=mesh)
    assert all(rank.rank is None for rank in ranks.values())


def test_input_that_does_not_fit_a_mesh_is_refused():
    problem, params = small()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with refused(ValueError, "mesh="):
        hessian_operator(problem, params, batch_spec=PartitionSpec("data"))
    with refused(ValueError, "mesh="):
        hessian_ranks(problem, params, batch_spec=PartitionSpec("data"))
    with refused(ValueError, "leave out mesh="):
        hessian_ranks(problem, params, engine="dense", mesh=mesh)
    with refused(MemoryError, "memory_limit"):
        hessian_ranks(problem, params, engine="lanczos", mesh=mesh, memory_limit=1)
    with refused(TypeError, "NamedSharding"):
        hessian_operator(problem, params, mesh="data")
    with refused(ValueError, "other axes"):
        hessian_operator(problem, params, mesh=mesh, batch_spec=PartitionSpec("model"))
    with refused(MemoryError, "memory_limit"):
        hessian_operator(problem, params, mesh=mesh, memory_limit=1)
    operator = hessian_operator(problem, params, mesh=mesh)
    with refused(ValueError, "jax.tree.map"):
        operator.matvec([np.ones((4, 2))])
    with refused(ValueError, "jax.tree.map"):
        operator.matvec({"W": np.ones((2, 4))})
