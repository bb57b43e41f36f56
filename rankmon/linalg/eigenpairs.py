"""Some eigenpairs of a symmetric matrix from its products with vectors, by SciPy's ARPACK.

ARPACK's stopping rule is relative to each eigenvalue. For the ends of the spectrum the matrix is
shifted by its norm, so that eigenvalues near zero count as converged relative to that norm. The
Krylov space of one vector may show a multiple eigenvalue fewer times than it occurs: a second run,
orthogonal to the vectors found, looks for missing ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Float

from rankmon.linalg.sketch import spectral_norm

Product = Callable[[Float[np.ndarray, " p"]], Float[np.ndarray, " p"]]

# Ends of the spectrum as SciPy names them, and the sign of the shift that makes them the largest.
_SHIFTS = {"LM": 0.0, "LA": 1.0, "SA": -1.0}
ENDS = tuple(_SHIFTS)

# Restarts after which eigenvalues of the largest magnitude are taken from both ends instead.
_RESTARTS = 300

# Accuracy with which missed eigenvalues are looked for, and that counts as the same eigenvalue.
_LOOK, _SAME = 1e-4, 1e-10


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenpairs of a symmetric matrix A.

    Attributes:
      values: eigenvalues with their signs: the largest in magnitude first for "LM", the largest
        first for "LA", the smallest first for "SA".
      vectors: orthonormal eigenvectors, one in each column.
      residuals: ||A v - lambda v||_2 of each pair: A has an eigenvalue within that of lambda.
    """

    values: Float[np.ndarray, " k"]
    vectors: Float[np.ndarray, "p k"]
    residuals: Float[np.ndarray, " k"]


def krylov_size(p: int, k: int) -> int:
    """Return the number of vectors that ARPACK keeps for k eigenpairs."""
    return min(p, max(2 * k + 1, 20))


def dense_eigenpairs(matrix: Float[np.ndarray, "p p"], k: int, which: str) -> Eigenpairs:
    """Return eigenpairs at one end of a symmetric matrix's spectrum; NaN if it is not finite."""
    if not np.all(np.isfinite(matrix)):
        return undefined_eigenpairs(len(matrix), k)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return _checked(lambda V: matrix @ V, *_first(values, vectors, k, which))


def extreme_eigenpairs(
    product: Product, p: int, k: int, which: str, *, accuracy: float, seed: int
) -> Eigenpairs:
    """Return eigenpairs at one end of a symmetric matrix's spectrum; NaN if it is not finite.

    Args:
      product: the product of the matrix with a vector.
      p: the order of the matrix.
      k: the number of eigenpairs, far fewer than p.
      which: "LM", "LA" or "SA".
      accuracy: the residual at which ARPACK stops, relative to each eigenvalue, shifted.
      seed: the seed of the start vectors.
    """
    norm = spectral_norm(product, p, seed=seed)
    if not math.isfinite(norm):
        return undefined_eigenpairs(p, k)
    if norm == 0:
        return Eigenpairs(np.zeros(k), np.eye(p, k), np.zeros(k))
    run = _Run(product, p, accuracy, norm, np.random.default_rng(seed))
    if which != "LM":
        found = run.pairs(k, _SHIFTS[which])
    else:
        try:
            found = run.pairs(k, 0.0)
        except (
            scipy.sparse.linalg.ArpackNoConvergence
        ):  # eigenvalues that are zero but for rounding
            (high, above), (low, below) = run.pairs(k, 1.0), run.pairs(k, -1.0)
            found = np.concatenate([high, low]), np.concatenate([above, below], axis=1)

    def image(V: np.ndarray) -> np.ndarray:
        return np.stack([product(v) for v in V.T], axis=1)

    return _checked(image, *_first(*found, k, which))


def undefined_eigenpairs(p: int, k: int) -> Eigenpairs:
    """Return the result for a matrix with NaN or infinite entries."""
    return Eigenpairs(np.full(k, np.nan), np.full((p, k), np.nan), np.full(k, np.nan))


@dataclass(frozen=True)
class _Run:
    """ARPACK's runs with one matrix, of a known norm."""

    product: Product
    p: int
    accuracy: float
    norm: float
    rng: np.random.Generator

    def pairs(self, k: int, sign: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the k eigenpairs of the largest |lambda + sign norm|, and none of them twice."""
        shift = sign * 1.1 * self.norm
        values, vectors = self._largest(k, shift, np.empty((self.p, 0)), self.accuracy)
        for _ in range(k):
            if not self._missed(values, vectors, shift):
                break
            # The missed eigenpair takes the place of the last one.
            value, vector = self._largest(1, shift, vectors, self.accuracy)
            order = np.argsort(-np.abs(np.append(values, value)))[:k]
            values = np.append(values, value)[order]
            vectors = np.concatenate([vectors, vector], axis=1)[:, order]
        return values - shift, vectors

    def _missed(self, values: np.ndarray, vectors: np.ndarray, shift: float) -> bool:
        """Return whether an eigenvalue beside these vectors exceeds the least of these."""
        (value,), _ = self._largest(1, shift, vectors, max(_LOOK, self.accuracy))
        return abs(value) > np.min(np.abs(values)) + max(_SAME, self.accuracy) * self.norm

    def _largest(
        self, k: int, shift: float, known: np.ndarray, accuracy: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k eigenpairs of largest magnitude of A + shift beside the known vectors."""

        def beside(v: np.ndarray) -> np.ndarray:
            return v - known @ (known.T @ v)

        def product(v: np.ndarray) -> np.ndarray:
            v = beside(np.ravel(v))
            return beside(self.product(v) + shift * v)

        values, vectors = scipy.sparse.linalg.eigsh(
            scipy.sparse.linalg.LinearOperator((self.p, self.p), matvec=product, dtype=np.float64),
            k=k,
            which="LM",
            v0=beside(self.rng.standard_normal(self.p)),
            ncv=krylov_size(self.p, k),
            tol=accuracy,
            maxiter=_RESTARTS if shift == 0 else None,
        )
        return values, vectors


def _first(
    values: np.ndarray, vectors: np.ndarray, k: int, which: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k pairs in the order of this end."""
    key = {"LM": -np.abs(values), "LA": -values, "SA": values}[which]
    order = np.argsort(key, kind="stable")[:k]
    return values[order], vectors[:, order]


def _checked(
    image: Callable[[np.ndarray], np.ndarray], values: np.ndarray, vectors: np.ndarray
) -> Eigenpairs:
    residuals = np.linalg.norm(image(vectors) - vectors * values, axis=0)
    return Eigenpairs(values, vectors, residuals)
