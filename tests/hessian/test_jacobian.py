"""The Jacobian and its weighted blocks against plain autodiff of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from oracles import CASES, Case, data
from rankmon import Problem
from rankmon.hessian.batching import OneByOne
from rankmon.hessian.jacobian import JacobianOperator
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
def differentiated(name):
    """Return the problem, its leaves and J [n, k, p]."""
    case = OWN.get(name) or CASES[name]
    problem = Problem(case.apply, **case.statement)
    flat = problem.flat(case.params)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
        theta, unravel = ravel_pytree(params)
        inputs = jax.tree.map(jnp.asarray, case.inputs)
        jacobian = jax.jit(jax.jacfwd(lambda t: case.apply(unravel(t), inputs)))
        J = np.asarray(jacobian(theta)).reshape(flat.positions, flat.k, -1)
    return flat, jax.tree.leaves(case.params), J


@functools.cache
def expected(name):
    """Return the problem, its leaves, roots C of our own, and C^T J."""
    flat, leaves, J = differentiated(name)
    roots = np.random.default_rng(7).standard_normal((flat.positions, flat.k, flat.k))
    A = np.einsum("nrk,nkp->nrp", roots, J).reshape(-1, flat.p)
    return flat, leaves, DenseRoots(roots), A


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
    assert assert_gives(JacobianOperator(expected(name)[0], room=ROOM), name) == blocks


@pytest.mark.parametrize(
    ("name", "room", "products"), [("bundled", 4000, 2), ("tokens-cross_entropy", 8000, 0)]
)
def test_little_room_changes_their_number_alone(name, room, products):
    found = assert_gives(JacobianOperator(expected(name)[0], room=room), name)
    assert found[0] == products
    assert found[1] > 1  # large leaves in parts, the last of which starts early
    assert found[2] > 2


@pytest.mark.parametrize("room", [ROOM, 8000])
@pytest.mark.parametrize("name", ["tanh_bias-mse", "tokens-cross_entropy", "batch_statistics-mse"])
def test_the_matrix_is_in_the_order_of_theta(name, room):
    flat, leaves, J = differentiated(name)
    want = J.reshape(-1, flat.p)
    got = JacobianOperator(flat, room=room).as_matrix(leaves)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.max(np.abs(want)))


@pytest.mark.parametrize("fails", ["prepare", "result", "check"])
def test_one_by_one_gives_way_to_the_whole_batch_for_good(fails):
    taken, choice = [], OneByOne()

    def one():
        taken.append("one")
        if fails == "prepare":
            raise NotImplementedError
        return 1

    def right(_):
        if fails == "check":
            raise NotImplementedError
        return False

    choice.prepare(one, lambda: taken.append("whole"))
    assert [choice.result(one, lambda: 2, right=right) for _ in range(2)] == [2, 2]
    assert taken == (["one", "whole"] if fails == "prepare" else ["one", "one"])


def test_one_by_one_is_kept_while_it_is_right():
    choice = OneByOne()
    assert [choice.result(lambda: 1, lambda: 2, right=lambda _: True) for _ in range(2)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        choice.result(lambda: 1 // 0, lambda: 2, right=lambda _: True)
