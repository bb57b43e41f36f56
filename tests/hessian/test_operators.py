"""Blocks of products with the Hessian against dense autodiff of the whole batch."""

from functools import cache

import jax
import numpy as np
import pytest

from oracles import CASES, dense_parts
from rankmon.hessian.operators import HessianPrograms
from refusals import refused
from shared_problems import flat_of

NAMES = ["relu_bias-mse", "conv-mse", "tokens-cross_entropy", "batch_statistics-mse"]
ROOM = 2**28


@cache
def stated(name):
    flat = flat_of(name)
    theta, fixed = flat.split(flat.leaves(CASES[name].params))
    return flat, theta, fixed


@cache
def blocks(name, *, room=ROOM):
    return HessianPrograms(stated(name)[0], outer=True, residuals=2, batch=64, room=room)


def width(programs):
    """Return the number of vectors at once."""
    return programs.block[1]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_the_matrices_times_vectors(name):
    case = CASES[name]
    flat, theta, fixed = stated(name)
    rng = np.random.default_rng(1)
    deltas = [rng.standard_normal((flat.positions, flat.k)) for _ in range(2)]
    operator = blocks(name).at(theta, fixed, deltas)
    assert operator.size == flat.p
    vectors = rng.standard_normal((min(width(blocks(name)), 7), flat.p))
    outer, *held = operator.matmat(vectors)
    assert outer.shape == vectors.shape
    for delta, functional in zip(deltas, held, strict=True):
        parts = dense_parts(case, delta)
        H_o, H_f = parts["H_o"], parts["H_f_fixed"]
        np.testing.assert_allclose(outer, vectors @ H_o, atol=1e-12 * np.abs(H_o).sum(0).max())
        np.testing.assert_allclose(functional, vectors @ H_f, atol=1e-12 * np.abs(H_f).sum(0).max())


@pytest.mark.parametrize("name", NAMES)
def test_single_parts(name):
    case = CASES[name]
    flat, theta, fixed = stated(name)
    rng = np.random.default_rng(3)
    delta, v = rng.standard_normal((flat.positions, flat.k)), rng.standard_normal(flat.p)
    parts = dense_parts(case, delta)
    outer = HessianPrograms(flat, outer=True).at(theta, fixed)
    functional = HessianPrograms(flat, residuals=1).at(theta, fixed, [delta])
    for operator, H in ((outer, parts["H_o"]), (functional, parts["H_f_fixed"])):
        scale = 1e-12 * np.abs(H).sum(0).max()
        np.testing.assert_allclose(operator.mv(v), H @ v, atol=scale)
        np.testing.assert_allclose(operator.as_matrix()[0], H, atol=scale)


def test_fewer_vectors_at_once_where_room_is_small():
    name = "linear-weights"
    flat, theta, fixed = stated(name)
    delta = np.ones((flat.positions, flat.k))
    wide, narrow = (blocks(name, room=room) for room in (ROOM, 10_000))
    assert width(narrow) < width(wide)
    v = np.random.default_rng(2).standard_normal((1, flat.p))
    one, other = (b.at(theta, fixed, [delta, -delta]).matmat(v)[0] for b in (wide, narrow))
    np.testing.assert_allclose(one, other, rtol=1e-10)
    with refused(MemoryError, "a product with the Hessian", "memory_limit"):
        width(blocks(name, room=10))


def test_blocks_are_float64_where_the_user_has_x64_off():
    flat, theta, fixed = stated("relu_bias-mse")
    deltas = [np.ones((flat.positions, flat.k))] * 2
    got = blocks("relu_bias-mse").at(theta, fixed, deltas).matmat(np.eye(flat.p)[:3])
    assert {product.dtype for product in got} == {np.dtype(np.float64)}
    assert not jax.config.jax_enable_x64
