"""Conditions of the closed forms for residual and tied linear networks, measured at parameters.

The formulas hold at generic parameters and residuals. In each family the products of matrices on
which its ranks depend must have the largest rank that their shapes allow. They do at almost all
parameters, but not at all of them: a block x + B A x may begin with B = 0, a tied weight with W = I
has no Krylov space, and Omega = E[delta x^T] of an autoencoder may be symmetric. Convolutions are
in `filter_genericity`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.spectrum import singular_values
from rankmon.measure.filter_genericity import filters_are_generic, windows_are_generic
from rankmon.network.linear_maps import Skip, matrix_of
from rankmon.network.recognized_family import RecognizedFamily
from rankmon.theory.convolutional import Convolutional
from rankmon.theory.residual import ResidualBlocks
from rankmon.theory.tied import MatrixPower, TiedAutoencoder, TiedChain

Matrix = Float[np.ndarray, "_m _n"]

# A matrix, the rank that it must have, and the norm to which its cut is relative.
Condition = tuple[Matrix, int, float]


@dataclass(frozen=True)
class Genericity:
    """The conditions of one network at its parameters.

    Attributes:
      network: the network.
      leaves: its parameters.
      relative: the cut of ranks relative to norms: p * eps, as for the Hessian.
    """

    network: RecognizedFamily
    leaves: Sequence[np.ndarray]
    relative: float

    def of_weights(self) -> bool:
        """Return whether the weights are generic, as rank H_o needs."""
        if isinstance(self.network.family, Convolutional):
            return filters_are_generic(self.network, self.leaves, self.relative)
        return self._hold(self._weights())

    def of_residuals(self, omega: Float[np.ndarray, "k d"], s: int) -> bool:
        """Return whether Omega of rank s is generic for these weights, as rank H_f needs."""
        if s == 0:
            return True
        if isinstance(self.network.family, Convolutional):
            return windows_are_generic(self.network, omega, self.relative)
        return self._hold(self._residuals(omega, s))

    def _hold(self, conditions: Iterator[Condition]) -> bool:
        return all(_has_rank(*condition, self.relative) for condition in conditions)

    def _weights(self) -> Iterator[Condition]:
        matrices = self.network.matrices(self.leaves)
        yield from _products(matrices)
        family = self.network.family
        if isinstance(family, ResidualBlocks):
            A, B = self._inner()
            for inner in (*A, *B):
                yield _full(inner)
            yield _full(np.concatenate(A))
            yield _full(np.concatenate(B, axis=1))
        if isinstance(family, MatrixPower):
            yield _power_derivative(matrices[0], family.repeats)

    def _residuals(self, omega: Matrix, s: int) -> Iterator[Condition]:
        matrices, family = self.network.matrices(self.leaves), self.network.family
        norm = _norm(omega)
        if isinstance(family, TiedAutoencoder):
            both, d = omega + omega.T, len(omega)
            yield both, min(d, 2 * s), norm
            yield matrices[0] @ both, min(d, 2 * s, len(matrices[0])), _norm(matrices[0]) * norm
            return
        for A, least in _prefixes(matrices):
            yield A @ omega.T, min(s, least), _norm(A) * norm
        for B, least in _prefixes([W.T for W in reversed(matrices)]):
            yield B @ omega, min(s, least), _norm(B) * norm
        if isinstance(family, ResidualBlocks):
            for A, B in zip(*self._transported(), strict=True):
                yield A @ omega.T, min(s, *A.shape), _norm(A) * norm
                yield B.T @ omega, min(s, *B.shape), _norm(B) * norm
        if isinstance(family, (TiedChain, MatrixPower)):
            ends = (omega.T, omega)
            W, terms = matrices[0], len(matrices) - 1
            if isinstance(family, TiedChain):
                ends = (matrices[0] @ omega.T, matrices[-1].T @ omega)
                W, terms = matrices[1], family.repeats
            yield _power_derivative(W, family.repeats)
            for one, end in zip((W, W.T), ends, strict=True):
                basis = _krylov(one, end, min(s, len(W)), terms)
                yield basis, min(len(W), terms * min(s, len(W))), 1.0

    def _inner(self) -> tuple[list[Matrix], list[Matrix]]:
        """Return (A_1, ..., A_L) and (B_1, ..., B_L) of residual blocks."""
        blocks = [f.factors for f in reversed(self.network.map.factors) if isinstance(f, Skip)]
        first = [matrix_of([factors[-1]], self.leaves) for factors in blocks]
        return first, [matrix_of([factors[0]], self.leaves) for factors in blocks]

    def _transported(self) -> tuple[list[Matrix], list[Matrix]]:
        """Return the A_l after all earlier blocks, and all later blocks after the B_l."""
        A, B = self._inner()
        blocks = self.network.matrices(self.leaves)
        before, after = np.eye(len(blocks[0])), np.eye(len(blocks[0]))
        for i, block in enumerate(blocks):
            A[i] = A[i] @ before
            before = block @ before
        for i in reversed(range(len(blocks))):
            B[i] = after @ B[i]
            after = after @ blocks[i]
        return A, B


def _has_rank(matrix: Matrix, rank: int, norm: float, relative: float) -> bool:
    values = singular_values(matrix)
    return int(np.sum(values > relative * norm)) == rank


def _norm(matrix: Matrix) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def _full(matrix: Matrix) -> Condition:
    return matrix, min(matrix.shape), _norm(matrix)


def _prefixes(matrices: Sequence[Matrix]) -> Iterator[tuple[Matrix, int]]:
    """Yield W^1, W^2 W^1 and so on, without the whole product, and the least width of each."""
    product, least = np.eye(matrices[0].shape[1]), matrices[0].shape[1]
    for W in matrices[:-1]:
        product, least = W @ product, min(least, len(W))
        yield product, least


def _products(matrices: Sequence[Matrix]) -> Iterator[Condition]:
    """Yield each matrix, and each product of the first ones and of the last ones."""
    for one in matrices:
        yield _full(one)
    for chain in (matrices, [W.T for W in reversed(matrices)]):
        for product, least in _prefixes(chain):
            yield product, least, _norm(product)


def _power_derivative(W: Matrix, repeats: int) -> Condition:
    """Require that W -> W^m has an invertible derivative, by its eigenvalues.

    They are the sums of u^a v^b over a + b = m - 1 for each pair u, v of eigenvalues of W.
    """
    u = np.linalg.eigvals(W)
    sums = sum(u[:, None] ** a * u[None] ** (repeats - 1 - a) for a in range(repeats))
    values = np.abs(sums).reshape(1, -1)
    # A matrix of rank 1 if the least is above the cut, which is relative to the largest.
    return np.min(values, axis=1, keepdims=True), 1, float(np.max(values))


def _krylov(W: Matrix, start: Matrix, width: int, terms: int) -> Matrix:
    """Return an orthonormal basis of start + W start + ..., with zeros for missing directions."""
    basis = np.linalg.svd(start, full_matrices=False)[0][:, :width]
    for _ in range(terms - 1):
        grown = np.concatenate([basis, W @ basis / _norm(W)], axis=1)
        left, values, _ = np.linalg.svd(grown, full_matrices=False)
        basis = left * (values > 1e-12)
    return basis
