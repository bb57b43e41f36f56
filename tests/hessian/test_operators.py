"""Blocks of products with the Hessian against dense autodiff of the whole batch."""

from functools import cache

import jax
import numpy as np
import pytest

from oracles import CASES, dense_parts
from rankmon.hessian.operators import BlockProducts, SingleProducts
from refusals import refused
from shared_problems import flat_of

NAMES = ["relu_bias-mse", "tokens-cross_entropy", "batch_statistics-mse"]
ROOM = 2**28


@cache
def stated(name):
    flat = flat_of(name)
    theta, fixed = flat.split(flat.leaves(CASES[name].params))
    return flat, theta, fixed


@cache
def blocks(name, *, room=ROOM):
    return BlockProducts(stated(name)[0], cotangents=2, batch=64, room=room)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_the_matrices_times_vectors(name):
    case = CASES[name]
    flat, theta, fixed = stated(name)
    rng = np.random.default_rng(1)
    deltas = [rng.standard_normal((flat.positions, flat.k)) for _ in range(2)]
    products = blocks(name)
    vectors = rng.standard_normal((min(products.vectors, 7), flat.p))
    got = products.at(theta, fixed, deltas)(vectors)
    assert got.outer.shape == vectors.shape
    for delta, functional in zip(deltas, got.functional, strict=True):
        parts = dense_parts(case, delta)
        H_o, H_f = parts["H_o"], parts["H_f_fixed"]
        np.testing.assert_allclose(got.outer, vectors @ H_o, atol=1e-12 * np.abs(H_o).sum(0).max())
        np.testing.assert_allclose(functional, vectors @ H_f, atol=1e-12 * np.abs(H_f).sum(0).max())


@pytest.mark.parametrize("name", NAMES)
def test_single_vectors(name):
    case = CASES[name]
    flat, theta, fixed = stated(name)
    rng = np.random.default_rng(3)
    delta, v = rng.standard_normal((flat.positions, flat.k)), rng.standard_normal(flat.p)
    parts, single = dense_parts(case, delta), SingleProducts(flat)
    scale = 1e-12 * np.abs(parts["H_o"]).sum(0).max()
    np.testing.assert_allclose(single.outer(theta, fixed)(v), parts["H_o"] @ v, atol=scale)
    found, H_f = single.functional(theta, fixed, delta)(v), parts["H_f_fixed"]
    np.testing.assert_allclose(found, H_f @ v, atol=1e-12 * np.abs(H_f).sum(0).max())


def test_fewer_vectors_at_once_where_room_is_small():
    name = "linear-weights"
    flat, theta, fixed = stated(name)
    delta = np.ones((flat.positions, flat.k))
    wide, narrow = (blocks(name, room=room) for room in (ROOM, 10_000))
    assert narrow.vectors < wide.vectors
    v = np.random.default_rng(2).standard_normal((1, flat.p))
    one, other = (b.at(theta, fixed, [delta, -delta])(v) for b in (wide, narrow))
    np.testing.assert_allclose(one.outer, other.outer, rtol=1e-10)
    with refused(MemoryError, "a product with the Hessian", "memory_limit"):
        blocks(name, room=10)


def test_blocks_are_float64_where_the_user_has_x64_off():
    flat, theta, fixed = stated("relu_bias-mse")
    deltas = [np.ones((flat.positions, flat.k))] * 2
    got = blocks("relu_bias-mse").at(theta, fixed, deltas)(np.eye(flat.p)[:3])
    assert got.outer.dtype == got.functional.dtype == np.float64
    assert not jax.config.jax_enable_x64
