"""Counts of eigenvalues from the spectral measures of Gaussian vectors.

For a Gaussian x and the projection E on N eigenvectors |E x|^2 has the distribution chi^2 of N
degrees of freedom, so that S = sum_j |E x_j|^2 of s vectors has s N, and

  N <= max {N: P(chi^2_{s N} <= S) >= a},      N >= min {N: P(chi^2_{s N} >= S) >= a}

except with probability a each. Quadrature bounds |E x_j|^2 (`lanczos.Tridiagonal`), where vectors
that are known to be eigenvectors count with their exact weight.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.special
from jaxtyping import Bool, Float

from rankmon.linalg.block_lanczos import BlockLanczos, RitzPairs
from rankmon.linalg.lanczos import Tridiagonal

# A weight below this is rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Measures:
    """The measures of random vectors x_j: mu_j = sum_i <x_j, q_i>^2 at lambda_i.

    Attributes:
      values: the eigenvalues that are known.
      weights: their weights in each vector.
      masses: the rest of |x_j|^2.
      rests: the Lanczos matrices of the rest.
    """

    values: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "s d"]
    masses: Float[np.ndarray, " s"]
    rests: tuple[Tridiagonal, ...]

    @classmethod
    def of(cls, space: BlockLanczos, pairs: RitzPairs, known: Bool[np.ndarray, " n"]) -> "Measures":
        """Return the measures of a space's start; these pairs are known to be eigenpairs."""
        inside = space.start @ pairs.vectors[: space.start.shape[1]]
        weights = inside**2
        left = (pairs.values[~known], pairs.coupling[:, ~known], inside[:, ~known])
        rests = _scalar_steps(*left, space.steps)
        return cls(pairs.values[known], weights[:, known], weights[:, ~known].sum(1), rests)

    def beyond(self, low: float, high: float) -> tuple[float, float]:
        """Return bounds on the weight of all vectors below `low` and above `high` together."""
        known = self.weights[:, (self.values < low) | (self.values > high)].sum()
        least = most = float(known)
        for mass, rest in zip(self.masses, self.rests, strict=True):
            if mass > 0:
                left = rest.before(low) if math.isfinite(low) else (0.0, 0.0)
                upto = rest.before(high) if math.isfinite(high) else (1.0, 1.0)
                least += mass * max(left[0] + 1 - upto[1], 0.0)
                most += mass * min(left[1] + 1 - upto[0], 1.0)
        return least, most

    def by_quadrature(self, low: float, high: float) -> float:
        """Return the weight of all vectors below `low` and above `high`, by the Gauss rule.

        It is far closer to the true weight than the middle of its bounds if there are few steps.
        """
        weight = float(self.weights[:, (self.values < low) | (self.values > high)].sum())
        for mass, rest in zip(self.masses, self.rests, strict=True):
            if mass > 0:
                nodes, weights = rest.rule()
                weight += mass * float(weights[(nodes < low) | (nodes > high)].sum())
        return weight

    @property
    def vectors(self) -> int:
        """The number s of vectors."""
        return len(self.masses)

    def most(self, weight: float, chance: float, limit: int) -> int:
        """Return the largest N with P(chi^2 of s N degrees <= weight) >= chance."""

        def possible(count: int) -> bool:
            return count == 0 or scipy.special.chdtr(self.vectors * count, weight) >= chance

        return _last(possible, limit)

    def least(self, weight: float, chance: float, limit: int) -> int:
        """Return the smallest N with P(chi^2 of s N degrees >= weight) >= chance."""
        if weight <= _ROUNDING:
            return 0

        def too_few(count: int) -> bool:
            return count == 0 or scipy.special.chdtrc(self.vectors * count, weight) < chance

        return min(_last(too_few, limit) + 1, limit)


def _scalar_steps(
    values: Float[np.ndarray, " n"],
    coupling: Float[np.ndarray, "b n"],
    starts: Float[np.ndarray, "s n"],
    steps: int,
) -> tuple[Tridiagonal, ...]:
    """Return the Lanczos matrix of each vector of a Krylov space, from the space's Ritz pairs."""
    s, n = starts.shape
    basis = np.zeros((s, steps, n))
    diagonal, beside = np.zeros((s, steps)), np.zeros((s, steps))
    following = _scaled(starts, np.linalg.norm(starts, axis=1))
    for i in range(steps):
        basis[:, i] = following
        image = values * following
        diagonal[:, i] = np.einsum("sn,sn->s", following, image)
        for _ in range(2):
            along = np.einsum("sin,sn->si", basis[:, : i + 1], image)
            image = image - np.einsum("si,sin->sn", along, basis[:, : i + 1])
        beside[:, i] = np.linalg.norm(image, axis=1)
        following = _scaled(image, beside[:, i])
    # The last step leaves the space: its vectors have a part in the next block.
    outside = np.linalg.norm(basis[:, -1] @ coupling.T, axis=1)
    beside[:, -1] = np.hypot(beside[:, -1], outside)
    return tuple(Tridiagonal.of(a, b) for a, b in zip(diagonal, beside, strict=True))


def _scaled(rows: Float[np.ndarray, "s n"], sizes: Float[np.ndarray, " s"]) -> np.ndarray:
    return rows / np.where(sizes > 0, sizes, 1.0)[:, None]


def _last(holds: Callable[[int], bool], limit: int) -> int:
    """Return the last of the numbers from 0 to the limit for which this holds; it holds for 0."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
