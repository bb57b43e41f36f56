"""Counts of eigenvalues from the spectral measures of Gaussian vectors.

For a Gaussian x and the projection E on N eigenvectors |E x|^2 has the distribution chi^2 of N
degrees of freedom, so that S = sum_j |E x_j|^2 of s vectors has s N, and

  N <= max {N: P(chi^2_{s N} <= S) >= a},      N >= min {N: P(chi^2_{s N} >= S) >= a}

except with probability a each. Gauss rules with a node at the cut bound |E x_j|^2 (`lanczos` says
how), beside eigenvectors that are known, which count with their exact weight.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import scipy.special
from jaxtyping import Bool, Float

from rankmon.linalg.block_lanczos import BlockLanczos, RitzPairs

# A weight below this is rounding.
_ROUNDING = 1e-3

# The recurrence of a vector ends at an off-diagonal entry below this times the largest entry.
_BREAKDOWN = 1e-12

# A vector leaves the space by more than the pairs that are taken for eigenpairs explain if its part
# outside exceeds their residuals by this factor, and rounding, relative to the largest eigenvalue.
_FACTOR, _LEFT = 8.0, 1e-5

# A node as close to the cut, relative to the largest one, is the one that is prescribed there.
_SAME = 1e-10


@dataclass(frozen=True)
class Measures:
    """The measures of random vectors x_j: mu_j = sum_i <x_j, q_i>^2 at lambda_i.

    Attributes:
      values: the eigenvalues that are known.
      weights: their weights in each vector.
      masses: the rest of |x_j|^2.
      rests: returns the rests' Lanczos matrices: diagonals, and entries beside them; the last of
        these belongs to a step that was not taken.
      rule: the Gauss rule of the vectors' block: its nodes, and their weights in all vectors.
    """

    values: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "s d"]
    masses: Float[np.ndarray, " s"]
    rests: Callable[[], tuple[Float[np.ndarray, "s m"], Float[np.ndarray, "s m"]]]
    rule: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    _found: dict[float, Float[np.ndarray, "s 2"]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, space: BlockLanczos, pairs: RitzPairs, known: Bool[np.ndarray, " n"]) -> "Measures":
        """Return the measures of a space's start; these pairs are known to be eigenpairs."""
        inside = space.start @ pairs.vectors[: space.start.shape[1]]
        weights = inside**2
        left = (pairs.values[~known], pairs.coupling[:, ~known], inside[:, ~known])
        # What the pairs that are known leave in the next block.
        taken = pairs.coupling[:, known]
        error = _FACTOR * float(np.linalg.norm(taken, 2)) if taken.size else 0.0
        rests = partial(_scalar_steps, *left, space.steps, error)
        rule = pairs.values, weights.sum(0)
        return cls(pairs.values[known], weights[:, known], weights[:, ~known].sum(1), rests, rule)

    def beyond(self, low: float, high: float) -> tuple[float, float]:
        """Return bounds on the weight of all vectors below `low` and above `high` together."""
        known = float(self.weights[:, (self.values < low) | (self.values > high)].sum())
        left, upto = self._before(low), self._before(high)
        least = np.maximum(left[:, 0] + 1 - upto[:, 1], 0.0)
        most = np.minimum(left[:, 1] + 1 - upto[:, 0], 1.0)
        return known + float(self.masses @ least), known + float(self.masses @ most)

    def _before(self, x: float) -> Float[np.ndarray, "s 2"]:
        """Return bounds on the share of each vector's rest up to x."""
        if math.isinf(x):
            return np.full((self.vectors, 2), float(x > 0))
        if x not in self._found:  # a stopping rule asks for the same ones again
            self._found[x] = _shares_before(*self._matrices, x)
        return self._found[x]

    @cached_property
    def _matrices(self) -> tuple[Float[np.ndarray, "s m"], Float[np.ndarray, "s m"]]:
        return self.rests()  # who reads only values needs none

    def by_quadrature(self, low: float, high: float) -> float:
        """Return the weight of all vectors below `low` and above `high`, by the Gauss rule.

        It is far closer to the true weight than the middle of its bounds if there are few steps.
        """
        nodes, weights = self.rule
        return float(weights[(nodes < low) | (nodes > high)].sum())

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
    error: float,
) -> tuple[Float[np.ndarray, "s m"], Float[np.ndarray, "s m"]]:
    """Return the Lanczos matrix of each vector of a Krylov space, from the space's Ritz pairs.

    Only the last of a vector's steps leaves the space, if the pairs that were taken out are exact.
    They are not: of a narrow space they may be most of the pairs, and the rest seems to end. The
    steps end at the first one that leaves the space by more than this error, or than rounding.
    """
    s, n = starts.shape
    steps = max(min(steps, n), 1)
    basis = np.zeros((s, steps, n))
    diagonal, beside = np.zeros((s, steps)), np.zeros((s, steps))
    following = _scaled(starts, np.linalg.norm(starts, axis=1))
    left = max(error, _LEFT * float(np.max(np.abs(values), initial=0.0)))
    for i in range(steps):
        basis[:, i] = following
        image = values * following
        diagonal[:, i] = np.einsum("sn,sn->s", following, image)
        for _ in range(2):
            along = np.einsum("sin,sn->si", basis[:, : i + 1], image)
            image = image - np.einsum("si,sin->sn", along, basis[:, : i + 1])
        beside[:, i] = np.linalg.norm(image, axis=1)
        following = _scaled(image, beside[:, i])
        outside = np.linalg.norm(basis[:, i] @ coupling.T, axis=1)
        if i == steps - 1 or np.any(outside > left):
            break
    beside[:, i] = np.hypot(beside[:, i], outside)  # a part of these vectors is in the next block
    return diagonal[:, : i + 1], beside[:, : i + 1]


def _shares_before(
    diagonal: Float[np.ndarray, "s m"], beside: Float[np.ndarray, "s m"], x: float
) -> Float[np.ndarray, "s 2"]:
    """Return bounds on mu((-inf, x)) from below and on mu((-inf, x]) from above, of each vector.

    They are those of `lanczos.Tridiagonal.before`, for all vectors at once.
    """
    (s, m), steps = diagonal.shape, np.arange(diagonal.shape[1])
    scale = np.maximum(np.abs(diagonal).max(1), beside.max(1))[:, None]
    going = np.cumprod(beside > _BREAKDOWN * scale, axis=1)
    beside = np.where(going, beside, 0.0)  # what comes later has no part in the vector
    # The last entry is x + beta_m^2 / d_m, with the pivots d_i of T - x I, so that x is a node.
    pivots = diagonal[:, 0] - x
    for i in range(1, m):
        pivots = diagonal[:, i] - x - beside[:, i - 1] ** 2 / _nonzero(pivots, scale[:, 0])
    T = np.zeros((s, m + 1, m + 1))
    T[:, steps, steps] = diagonal
    T[:, steps + 1, steps] = beside  # the upper half is not read
    T[:, m, m] = x + beside[:, -1] ** 2 / _nonzero(pivots, scale[:, 0])
    nodes, vectors = np.linalg.eigh(T)
    weights = vectors[:, 0] ** 2
    near = np.abs(nodes - x) <= _SAME * np.maximum(np.abs(nodes).max(1), abs(x))[:, None]
    below = nodes < x
    return np.stack([(weights * (below & ~near)).sum(1), (weights * (below | near)).sum(1)], 1)


def _nonzero(pivots: Float[np.ndarray, " s"], scale: Float[np.ndarray, " s"]) -> np.ndarray:
    return np.where(np.abs(pivots) > 1e-15 * scale, pivots, np.maximum(1e-15 * scale, 1e-300))


def _scaled(rows: Float[np.ndarray, "s n"], sizes: Float[np.ndarray, " s"]) -> np.ndarray:
    return rows / np.where(sizes > 0, sizes, 1.0)[:, None]


def _last(holds: Callable[[int], bool], limit: int) -> int:
    """Return the last of the numbers from 0 to the limit for which this holds; it holds for 0."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
