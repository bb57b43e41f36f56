"""Products with the Jacobian at sharded parameters, and both kinds over two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from rankmon import Problem, jacobian_operator
from refusals import assert_explains, refused

CHILD = Path(__file__).with_name("mesh_jacobian_child.py")


def started(*arguments):
    # With the optimizations of a user's programs, whose collectives and memory are read.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command = [sys.executable, str(CHILD), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def result(process):
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, out + errors
    return json.loads(out.splitlines()[-1])


def assert_agrees(found, count):
    assert len(found) == count
    for case, seen in found.items():
        assert seen["kept"], case
        assert max(seen["errors"].values()) < 1e-12, (case, seen)


@pytest.mark.slow
def test_products_are_those_of_one_device_and_stay_sharded():
    found = result(started("products"))
    assert_agrees(found, 9)
    assert [found[f"cnn-{way}"]["examples"] for way in ("replicated", "tensor")] == [8, 2]


@pytest.mark.slow
def test_two_processes_multiply_together():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    first, second = map(result, [started("products", process, port) for process in range(2)])
    assert first == second
    for seen in first.values():
        assert_explains(seen["refused"], "several processes", "mesh=")
    assert_agrees(first, 6)


@pytest.mark.slow
def test_no_device_holds_all_parameters():
    found = result(started("memory"))
    for product, one in found["1"].items():
        eight = found["8"][product]
        assert not one["largest"]
        assert 0 < max(eight["largest"].values()) <= found["layer"] / 8  # activations alone
        assert one["bytes"] > 5 * eight["bytes"]


def small():
    x, y = np.eye(6, 4), np.ones((6, 2))
    problem = Problem(lambda w, x: x @ w["W"], loss="mse", inputs=x, targets=y)
    return problem, {"W": np.ones((4, 2))}


def test_the_jacobian_on_a_mesh_of_one_device_is_that_of_the_network():
    problem, params = small()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    J = jacobian_operator(problem, params, mesh=mesh)
    assert J.shape == (12, 8)
    v = np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(J @ {"W": v}, problem.inputs @ v)
    u = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(J.rmatvec(u)["W"], problem.inputs.T @ u)
    assert jax.tree.structure(J.sharding) == jax.tree.structure(params)
    assert J.output_sharding.mesh.shape == {"data": 1}


def test_leaves_held_fixed_are_in_no_product_with_the_jacobian():
    x = np.eye(6, 4)
    problem = Problem(
        lambda w, x: x @ w["W"] + w["b"], loss="mse", inputs=x, targets=x[:, :2], exclude=["b"]
    )
    params = {"W": np.ones((4, 2), np.float32), "b": np.ones(2, np.float32)}
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    J = jacobian_operator(problem, params, mesh=mesh)
    assert J.shape == (12, 8)
    v = np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(J @ {"W": v, "b": None}, x @ v)
    assert J.rmatvec(np.ones((6, 2)))["b"] is None


def test_input_that_does_not_fit_the_jacobian_is_refused():
    problem, params = small()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with refused(TypeError, "NamedSharding"):
        jacobian_operator(problem, params, mesh=None)
    deep = Problem(
        lambda w, x: jnp.tanh(x @ w["W"]) @ w["W"].T,
        loss="mse",
        inputs=np.eye(6, 4),
        targets=np.ones((6, 4)),
    )
    with refused(MemoryError, "memory_limit"):
        jacobian_operator(deep, params, mesh=mesh, memory_limit=0)
    J = jacobian_operator(problem, params, mesh=mesh)
    with refused(ValueError, "jax.tree.map"):
        J.matvec({"W": np.ones((2, 4))})
    with refused(ValueError, "one row for each position"):
        J.rmatvec(np.ones((2, 6)))
