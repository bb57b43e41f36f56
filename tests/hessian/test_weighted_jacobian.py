"""Blocks of the weighted Jacobian against plain autodiff of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from oracles import CASES, Case, data
from rankmon import Problem
from rankmon.hessian.weighted_jacobian import WeightedJacobian
from rankmon.linalg.gram import Gram, KhatriRao
from rankmon.problem.output_hessians import DenseRoots

ROOM = 2**28


def scanned():
    rng = np.random.default_rng(5)
    params = {"s": 0.5 * rng.standard_normal((3, 4, 4)), "o": rng.standard_normal((4, 2))}

    def apply(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["s"])[0] @ p["o"]

    return Case("scanned", apply, params, *data(6, 4, 2), "mse", None)


def bundled():
    """A kernel that meets each position, two that meet all of an example, and biases."""
    rng = np.random.default_rng(6)
    shapes = {"each": (4, 6), "all": (24, 5), "b": (5,), "last": (5, 3)}
    params = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}

    def apply(p, x):
        h = jnp.tanh(x @ p["each"]).reshape(len(x), -1)
        return jnp.tanh(h @ p["all"] + p["b"]) @ p["last"]

    x = rng.standard_normal((5, 4, 4))
    return Case("bundled", apply, params, x, np.ones((5, 3)), "mse", None)


OWN = {case.name: case for case in (scanned(), bundled())}


@functools.cache
def expected(name):
    """J, and what `WeightedJacobian` is asked with: the problem, roots of its own, and C^T J."""
    case = OWN.get(name) or CASES[name]
    problem = Problem(case.apply, **case.statement)
    flat = problem.flat(case.params)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
        theta, unravel = ravel_pytree(params)
        inputs = jax.tree.map(jnp.asarray, case.inputs)
        jacobian = jax.jit(jax.jacfwd(lambda t: case.apply(unravel(t), inputs)))
        J = np.asarray(jacobian(theta)).reshape(flat.positions, flat.k, -1)
    roots = np.random.default_rng(7).standard_normal((flat.positions, flat.k, flat.k))
    A = np.einsum("nrk,nkp->nrp", roots, J).reshape(-1, flat.p)
    return flat, jax.tree.leaves(case.params), DenseRoots(roots), A


def assert_gives(jacobian, name):
    """Columns and rows, and how many blocks each of them came in."""
    _, leaves, roots, A = expected(name)
    columns, rows = (list(way(leaves, roots)) for way in (jacobian.columns, jacobian.rows))
    got = Gram.of(columns, len(A)).matrix
    np.testing.assert_allclose(got, A @ A.T, rtol=0, atol=1e-12 * np.max(A @ A.T))
    got = np.concatenate(rows, axis=1).T
    np.testing.assert_allclose(got, A, rtol=0, atol=1e-12 * np.max(np.abs(A)))
    products = sum(isinstance(block, KhatriRao) for block in columns)
    return products, len(columns) - products, len(rows)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("relu_bias-mse", (3, 1, 1)),
        ("tokens-cross_entropy", (0, 1, 1)),
        ("batch_statistics-mse", (0, 1, 1)),
        ("scanned", (1, 1, 1)),
        ("bundled", (2, 1, 1)),
    ],
)
def test_blocks_are_those_of_the_whole(name, blocks):
    assert assert_gives(WeightedJacobian(expected(name)[0], room=ROOM), name) == blocks


@pytest.mark.parametrize(
    ("name", "room", "products"), [("bundled", 4000, 2), ("tokens-cross_entropy", 8000, 0)]
)
def test_little_room_changes_their_number_alone(name, room, products):
    found = assert_gives(WeightedJacobian(expected(name)[0], room=room), name)
    assert found[0] == products
    assert found[1] > 1  # large leaves in parts, the last of which starts early
    assert found[2] > 2
