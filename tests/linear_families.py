"""Residual and tied networks, and their Hessians' ranks: exact, and in float64 with softmax."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prime_field import Jet, exact_hessians, exact_rank, field, of_rank
from rankmon.theory import (
    MatrixPower,
    NetworkFamily,
    ResidualBlocks,
    ResidualChain,
    TiedAutoencoder,
    TiedChain,
)

PARTS = ("H_o", "H_f", "H_L")


@dataclass(frozen=True)
class LinearNetwork:
    """A member of a family, F(x) = A x.

    Attributes:
      family: its closed forms.
      shapes: the shapes of the parameters.
      matrix: A, as a function of the parameters; of jets or of arrays.
    """

    family: NetworkFamily
    shapes: Sequence[tuple[int, ...]]
    matrix: Callable[[Sequence[Any]], Any]

    @property
    def p(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def draw_ranks(self, rng: np.random.Generator) -> tuple[int, int, str]:
        """Draw r, s and a loss; often the largest ranks, in a third of the cases cross entropy."""
        d, K = self.family.inputs, self.family.outputs
        loss = "cross_entropy" if K > 1 and rng.random() < 1 / 3 else "mse"
        r = d if rng.random() < 0.4 else int(rng.integers(0, d + 1))
        most = min(r, K - (loss == "cross_entropy"))
        s = most if rng.random() < 0.3 else int(rng.integers(0, most + 1))
        return r, s, loss

    def exact_ranks(
        self, rng: np.random.Generator, r: int, s: int, loss: str = "mse"
    ) -> tuple[dict[str, int], list[int]]:
        """Return the ranks of the parts, and of the columns of H_f for each parameter.

        The kernel of softmax's output Hessians is the vector of ones, and residuals are orthogonal
        to it. So cross entropy has the ranks of mse after a map of the outputs with this kernel.
        """
        d, K = self.family.inputs, self.family.outputs
        seen = np.eye(K, dtype=np.int64)
        if loss == "cross_entropy":
            differences = np.eye(K - 1, K, dtype=np.int64) - np.eye(K, dtype=np.int64)[-1]
            seen = field(rng, K - 1, K - 1) @ differences
        x = np.eye(d, dtype=np.int64) if r == d else of_rank(rng, d, r, r)
        residuals = of_rank(rng, len(seen), r, s)

        def outputs(weights: list[Jet]) -> Jet:
            return seen @ (self.matrix(weights) @ x)

        arrays = [field(rng, *shape) for shape in self.shapes]
        found = exact_hessians(outputs, arrays, residuals)
        ranks = [exact_rank(H) for H in (found.outer, found.functional, found.loss)]
        return dict(zip(PARTS, ranks, strict=True)), [exact_rank(block) for block in found.columns]

    def softmax_ranks(self, rng: np.random.Generator, r: int, s: int) -> dict[str, int]:
        """Return the ranks of the parts under cross entropy, by automatic differentiation."""
        d, K, n = self.family.inputs, self.family.outputs, 30
        x = rng.standard_normal((d, r)) @ rng.standard_normal((r, n))
        residuals = rng.standard_normal((K, s)) @ rng.standard_normal((s, n))
        residuals -= residuals.mean(axis=0)
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])

        def outputs(theta: jax.Array) -> jax.Array:
            pieces = jnp.split(theta, ends[:-1])
            weights = [one.reshape(shape) for one, shape in zip(pieces, self.shapes, strict=True)]
            return self.matrix(weights) @ x

        @jax.jit
        def derivatives(theta: jax.Array) -> tuple[jax.Array, ...]:
            H_f = jax.hessian(lambda t: jnp.sum(residuals * outputs(t)))(theta)
            return jax.jacfwd(outputs)(theta), H_f, jax.nn.softmax(outputs(theta), axis=0)

        with jax.enable_x64(True):
            found = derivatives(jnp.asarray(0.7 * rng.standard_normal(self.p)))
        J, H_f, probabilities = (np.asarray(array) for array in found)
        means = np.einsum("kn,knp->np", probabilities, J)
        H_o = np.einsum("kn,knp,knq->pq", probabilities, J - means, J - means)
        Hessians = (H_o, H_f, H_o + H_f)
        return {part: certain_rank(H) for part, H in zip(PARTS, Hessians, strict=True)}

    def jacobian(self, weights: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
        """Return the Jacobian [n K p] of the outputs by complex steps, to the last digits.

        The outputs are polynomials of the weights: a step of 1e-30 i has an error near 1e-60.
        """
        columns = []
        for at, shape in enumerate(self.shapes):
            for entry in np.ndindex(*shape):
                moved = [np.asarray(W, complex) for W in weights]
                moved[at][entry] += 1e-30j
                columns.append((self.matrix(moved) @ x.T).imag.T / 1e-30)
        return np.stack(columns, axis=-1)

    def mismatches(self, measured: dict[str, int], r: int, s: int, loss: str) -> list[str]:
        """Return a line for each formula that differs from the measured rank."""
        return [
            f"{self.family.name}, r = {r}, s = {s}, {loss}: {part} is {measured[part]}, not {one}"
            for part, one in self.family.ranks(r=r, s=s, loss=loss).items()
            if one.value != measured[part]
        ]


def chain(dims: tuple[int, ...]) -> LinearNetwork:
    """(W^L + I) ... (W^1 + I), with identities cut to the weights' shapes."""
    shapes = [(m, before) for before, m in itertools.pairwise(dims)]

    def matrix(weights):
        product = np.eye(dims[0], dtype=np.int64)
        for W, shape in zip(weights, shapes, strict=True):
            product = (W + np.eye(*shape, dtype=np.int64)) @ product
        return product

    return LinearNetwork(ResidualChain(dims), shapes, matrix)


def blocks(d: int, inner: tuple[int, ...]) -> LinearNetwork:
    """(I + B_L A_L) ... (I + B_1 A_1); the parameters are A_1, B_1, A_2, B_2, ..."""
    shapes = [shape for m in inner for shape in ((m, d), (d, m))]

    def matrix(weights):
        product = np.eye(d, dtype=np.int64)
        for A, B in zip(weights[::2], weights[1::2], strict=True):
            product = (B @ A + np.eye(d, dtype=np.int64)) @ product
        return product

    return LinearNetwork(ResidualBlocks(d, inner=inner), shapes, matrix)


def tied_chain(d: int, hidden: int, outputs: int, repeats: int) -> LinearNetwork:
    """W_out W^m W_in, with the parameters W_in, W, W_out."""

    def matrix(weights):
        first, W, last = weights
        product = first
        for _ in range(repeats):
            product = W @ product
        return last @ product

    shapes = [(hidden, d), (hidden, hidden), (outputs, hidden)]
    return LinearNetwork(TiedChain(d, hidden, outputs, repeats), shapes, matrix)


def matrix_power(d: int, repeats: int) -> LinearNetwork:
    """W^L."""

    def matrix(weights):
        product = weights[0]
        for _ in range(repeats - 1):
            product = weights[0] @ product
        return product

    return LinearNetwork(MatrixPower(d, repeats), [(d, d)], matrix)


def tied_autoencoder(d: int, hidden: int) -> LinearNetwork:
    """W^T W."""
    family = TiedAutoencoder(d, hidden)
    return LinearNetwork(family, [(hidden, d)], lambda weights: weights[0].T @ weights[0])


def check_exactly(
    draw: Callable[[np.random.Generator], LinearNetwork], seed: int, networks: int, basis: str
) -> int:
    """Check all formulas on random networks, until each part was checked on so many.

    A network counts only for the parts whose formulas state this basis: the special cases that are
    proved, plain chains, do not.

    Returns:
      The number of networks on which the part was checked that was checked least.
    """
    rng = np.random.default_rng(seed)
    counts, wrong = dict.fromkeys(PARTS, 0), []
    while min(counts.values()) < networks:
        network = draw(rng)
        r, s, loss = network.draw_ranks(rng)
        measured, _ = network.exact_ranks(rng, r, s, loss)
        wrong += network.mismatches(measured, r, s, loss)
        for part, one in network.family.ranks(r=r, s=s, loss=loss).items():
            counts[part] += one.basis == basis
    assert not wrong, wrong[:10]
    return min(counts.values())


def certain_rank(matrix: np.ndarray) -> int:
    """Return the number of singular values above 1e-9 of the largest; none may be close to it."""
    values = np.linalg.svd(matrix, compute_uv=False)
    cut = 1e-9 * max(float(values[0]), 1e-300)
    assert not np.any((values > cut / 30) & (values < cut * 30)), values
    return int(np.sum(values > cut))
