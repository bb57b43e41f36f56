"""Block Lanczos: the relation that defines it, in both precisions, deflated, and its end."""

import numpy as np
import pytest

from prescribed import orthogonal
from rankmon.linalg.block_lanczos import BlockLanczos, orthonormal_rows
from rankmon.linalg.rows import HostRows

P = 60
VALUES = np.random.default_rng(0).standard_normal(P)
H = (orthogonal(P) * VALUES) @ orthogonal(P).T


def grown(matrix, start, steps, *, noise=1e-13, **options):
    matrix = matrix.astype(start.dtype)
    space = BlockLanczos(lambda v: v @ matrix, start, most=P, noise=noise, **options)
    for _ in range(steps):
        assert space.can_grow
        space.grow()
    return space


@pytest.mark.parametrize(("dtype", "error"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("deflated", [0, 5])
def test_the_relation(dtype, error, deflated):
    rng = np.random.default_rng(1)
    start = rng.standard_normal((4, P)).astype(dtype)
    Y = orthogonal(P, 2)[:deflated].astype(dtype)
    space = grown(H, start, 6, noise=error / 10, deflated=Y)
    Q, outside, off = space.rows, space.next_rows, np.eye(P) - Y.T @ Y
    assert space.size == 24
    np.testing.assert_allclose(Q @ Q.T, np.eye(24), atol=error)
    np.testing.assert_allclose(np.r_[Q, outside] @ Y.T, 0, atol=error)
    np.testing.assert_allclose(space.start @ Q[:4], start @ off, atol=10 * error)
    want = Q.T @ space.projection + outside.T @ space.coupling.T
    np.testing.assert_allclose(off @ H @ Q.T, want, atol=10 * error)
    np.testing.assert_allclose(space.first_images, Q[:4] @ H, atol=10 * error)
    pairs = space.ritz()
    y = Q.T @ pairs.vectors
    residuals = np.linalg.norm(off @ H @ y - y * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=10 * error)


def test_an_invariant_space_ends_it():
    """Two eigenvalues: each row reaches two dimensions."""
    matrix = np.diag(np.repeat([1.0, 3.0], P // 2))
    space = grown(matrix, np.random.default_rng(3).standard_normal((4, P)), 2)
    assert not space.can_grow
    assert space.size == 8
    np.testing.assert_allclose(space.ritz().values, np.repeat([1, 3], 4))
    np.testing.assert_allclose(space.ritz().residuals, 0, atol=1e-10)


def test_no_more_rows_than_there_is_place_for():
    start = np.random.default_rng(4).standard_normal((4, P))
    space = BlockLanczos(lambda v: v @ H, start, most=10, noise=1e-13)
    space.grow()
    assert space.can_grow
    space.grow()
    assert not space.can_grow


def test_dependent_rows_count_once():
    rows = np.random.default_rng(5).standard_normal((3, P))
    Q, C = orthonormal_rows(HostRows(P), np.r_[rows, rows[:1] + rows[1:2]], 1e-12)
    assert len(Q) == 3
    np.testing.assert_allclose(Q @ Q.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(C @ Q, np.r_[rows, rows[:1] + rows[1:2]], atol=1e-12)


def test_what_is_not_finite_is_refused():
    start = np.ones((1, P))
    space = BlockLanczos(lambda v: v * np.nan, start, most=10, noise=1e-13)
    with pytest.raises(FloatingPointError, match="finite"):
        space.grow()
