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

from rankmon import Problem, hessian_operator
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
    one, eight = found["1"], found["8"]
    assert not one["largest"]
    assert 0 < max(eight["largest"].values()) <= found["layer"] / 8  # activations alone
    assert one["bytes"] > 5 * eight["bytes"]


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


def test_input_that_does_not_fit_a_mesh_is_refused():
    problem, params = small()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with refused(ValueError, "mesh="):
        hessian_operator(problem, params, batch_spec=PartitionSpec("data"))
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
