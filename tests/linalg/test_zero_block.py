"""Eigenvalues through a zero block, beside those of the whole matrix by LAPACK."""

import numpy as np
import pytest

from rankmon.linalg.zero_block import low_rank_block_spectrum, zero_block_spectrum


def symmetric(rng, q):
    matrix = rng.standard_normal((q, q))
    return matrix + matrix.T


def assert_the_same(got, H):
    want = np.linalg.eigvalsh(H)
    assert got.shape == want.shape
    assert np.all(np.diff(np.abs(got)) <= 0)
    np.testing.assert_allclose(np.sort(got), want, rtol=0, atol=1e-13 * np.abs(want).max())


@pytest.mark.parametrize(
    ("q", "block"),
    [(12, slice(0, 9)), (12, slice(3, 11)), (12, slice(2, 12)), (5, slice(0, 5)), (6, slice(0, 2))],
    ids=["first", "middle", "last", "all", "small"],
)
def test_a_zero_block(q, block):
    H = symmetric(np.random.default_rng(0), q)
    H[block, block] = 0
    assert_the_same(zero_block_spectrum(H, block), H)


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("block", [slice(0, 14), slice(2, 13)], ids=["first", "middle"])
def test_a_block_of_low_rank(m, block):
    rng, q = np.random.default_rng(m), 16
    A, H = rng.standard_normal((m, q)), symmetric(rng, q)
    H[block, block] = 0
    others = np.delete(np.arange(q), block)
    C = (H + A.T @ A)[np.ix_(others, others)]
    got = low_rank_block_spectrum(A, H[block][:, others], C, block)
    assert_the_same(got, H + A.T @ A)


def test_a_block_whose_columns_depend_on_each_other():
    rng, q, block = np.random.default_rng(0), 20, slice(0, 16)
    H = symmetric(rng, q)
    H[block, block] = 0
    H[3:16, 16:] = H[16:, 3:16] = 0
    got = zero_block_spectrum(H, block)
    assert_the_same(got, H)
    assert np.sum(got == 0) >= 12
