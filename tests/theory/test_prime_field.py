"""The tests' arithmetic over a prime field, against automatic differentiation on integers."""

import jax
import jax.numpy as jnp
import numpy as np

from prime_field import PRIME, exact_hessians, exact_rank, of_rank

SHAPES = [(3, 2), (2, 3), (2, 2)]
X = np.array([[1, -2, 0, 3], [2, 1, -1, 1]])


def network(weights, x=X):
    """A network with a tied weight, a skip connection, a slice and a bias."""
    A, B, C = weights
    hidden = A @ (B @ (A @ x)) + A @ x
    return (C @ hidden[:2] + C @ x).reshape(8)


def test_the_hessians_of_a_network_equal_those_of_automatic_differentiation() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-3, 4, shape) for shape in SHAPES]
    residuals = rng.integers(-3, 4, 8)
    exact = exact_hessians(network, arrays, residuals)

    sizes = np.cumsum([array.size for array in arrays])[:-1]

    def flat(theta):
        pieces = jnp.split(theta, sizes)
        return network([w.reshape(s) for w, s in zip(pieces, SHAPES, strict=True)], jnp.asarray(X))

    with jax.enable_x64(True):
        theta = jnp.concatenate([jnp.asarray(a, float).ravel() for a in arrays])
        J = np.asarray(jax.jacobian(flat)(theta))
        H = np.asarray(jax.hessian(lambda t: flat(t) @ residuals)(theta))
    assert np.array_equal(exact.outer, np.rint(J.T @ J).astype(int) % PRIME)
    assert np.array_equal(exact.functional, np.rint(H).astype(int) % PRIME)
    assert [block.shape for block in exact.columns] == [(16, 6), (16, 6), (16, 4)]


def test_ranks_are_those_of_the_field() -> None:
    rng = np.random.default_rng(1)
    assert [exact_rank(of_rank(rng, 7, 5, rank)) for rank in range(6)] == list(range(6))
    assert exact_rank(np.zeros((0, 4), int)) == 0
    assert exact_rank(np.array([[1, 2], [PRIME + 3, 6]])) == 1
