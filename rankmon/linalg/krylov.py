"""Grow the Krylov spaces from which `krylov_spectrum` estimates a symmetric matrix's spectrum.

Two Krylov spaces of H [p, p], each from s Gaussian vectors, with T, Z and Ritz pairs as in
`block_lanczos`:

  the first    finds eigenvalues: Ritz vectors y_i with residuals far below the cuts are taken as
               eigenvectors
  the second   is one of M = P H P, P = I - sum_i y_i y_i^T, from new vectors: it shows the
               eigenvalues that the first one has missed

Counts from below: no more Ritz values exceed c than eigenvalues (Cauchy). From above: by the
vectors' measures (`random_measures`), the first space for H, the second for M, of which nothing
exceeds c if nothing was missed. Residuals R move eigenvalues by at most ||R||_2 (Weyl).

Moments: with Q the first basis and N the part of H outside it, tr H = tr T + tr N and
||H||_F^2 = ||T||_F^2 + 2 ||Z||_F^2 + ||N||_F^2. The vectors of the second space, which do not
depend on Q, show tr N and ||N||_F^2 (Hutchinson).

Source: Meyer, Musco, Musco and Woodruff, Hutch++, arXiv 2010.09649, for the moments; the intervals
of counts are rankmon's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import DTypeLike

from rankmon.linalg.block_lanczos import BlockLanczos, Product, RitzPairs
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.krylov_spectrum import KrylovSpectrum, Rest
from rankmon.linalg.random_measures import Measures
from rankmon.linalg.signed_spectrum import SHARES

# A Ritz vector is taken as an eigenvector if its residual is below this share of the goal.
_CONVERGED = 0.02

# The residuals of extreme Ritz values shall be below this share of the norm.
_EXTREMES = 1e-4

# Ritz values down to this share of the goal shall converge.
_BEYOND = 0.8

# Vectors at once, and the most rows of each basis.
WIDTH, _MOST_ROWS = 16, 384

# Steps after which it is asked again whether a space is large enough.
_PATIENCE = 2

# Blocks of vectors for the moments, besides those of the second space.
_MORE_BLOCKS = 3

# Spaces after the first one, at most.
_ROUNDS = 4

# A count is settled if its interval is at most 1 wide, or this share of the count.
_SETTLED = 0.05

# Of the time for the first space; the others have the rest.
_FIRST_PART = 0.6


@dataclass(frozen=True)
class Limits:
    """Limits of time and memory.

    Attributes:
      deadline: the time, by `clock`, at which they should be ready.
      rows: the most rows of each basis.
      clock: a monotonic clock in seconds.
    """

    deadline: float = math.inf
    rows: int = _MOST_ROWS
    clock: Callable[[], float] = time.monotonic


def krylov_spectrum(
    product: Product,
    p: int,
    *,
    norm: float | None = None,
    goal: float = 0.01,
    limits: Limits | None = None,
    dtype: DTypeLike = np.float64,
    noise: float = 1e-13,
    seed: int = 0,
) -> KrylovSpectrum | None:
    """Return the estimates for a symmetric H [p, p]; None if a product is not finite.

    Args:
      product: rows v [m, p] -> rows H v, for up to `WIDTH` rows.
      p: the number of rows of H.
      norm: the norm that counts are asked at shares of; by default that of H.
      goal: the share of this norm down to which eigenvalues are counted exactly if possible.
      limits: time and memory.
      dtype: the type of vectors.
      noise: the error of products in this type, relative to ||H||_2.
      seed: the seed of the vectors.
    """
    limits = limits or Limits()
    rng = np.random.default_rng([seed, 3])
    try:
        if p <= limits.rows:
            return _complete(product, p, dtype, noise)
        return _estimated(product, p, norm, goal, limits, np.dtype(dtype), noise, rng)
    except FloatingPointError:
        return None


def _complete(product: Product, p: int, dtype: DTypeLike, noise: float) -> KrylovSpectrum:
    basis = np.eye(p, dtype=dtype)
    blocks = [product(basis[i : i + WIDTH]) for i in range(0, p, WIDTH)]
    H = np.concatenate(blocks).astype(np.float64)
    if not np.all(np.isfinite(H)):
        raise FloatingPointError("expected finite products with the matrix")
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    pairs = RitzPairs(values, vectors, np.zeros((0, p)))
    error = noise * float(np.max(np.abs(values), initial=0.0))
    return KrylovSpectrum(p, pairs, values, np.zeros(0), None, None, 0.0, error)


def _estimated(
    product: Product,
    p: int,
    norm: float | None,
    goal: float,
    limits: Limits,
    dtype: np.dtype,
    noise: float,
    rng: np.random.Generator,
) -> KrylovSpectrum:
    begun = limits.clock()
    until = begun + _FIRST_PART * (limits.deadline - begun)

    def drawn() -> Float[np.ndarray, "s p"]:
        return rng.standard_normal((WIDTH, p)).astype(dtype)

    first = BlockLanczos(product, drawn(), most=limits.rows, noise=noise)
    while _grown(first, until, limits.clock):
        pairs = first.ritz()
        sizes = np.abs(pairs.values)
        cut = goal * (float(np.max(sizes)) if norm is None else norm)
        extremes = pairs.residuals[[0, -1]] <= _EXTREMES * cut / goal
        if np.all(pairs.residuals[sizes > _BEYOND * cut] <= _CONVERGED * cut) and all(extremes):
            break
    error = noise * float(np.max(sizes))
    tolerance = max(_CONVERGED * cut, error)
    eigen = _Eigenpairs(pairs.residuals <= tolerance, first, pairs)
    total = Measures.of(first, pairs, eigen.chosen)
    values, vectors, shift = eigen.values, eigen.rows, eigen.shift
    rest: Rest | None = None
    cuts = [share * cut / goal for share in SHARES[::-1] if share >= goal]
    asked = [(-c, high) for c in cuts for high in (c, math.inf)]
    for _ in range(_ROUNDS):
        space = BlockLanczos(product, drawn(), deflated=vectors, most=limits.rows, noise=noise)
        space.grow()
        if rest is None:
            rest = Rest.of(first, space)
            for _ in range(_MORE_BLOCKS):
                if limits.clock() + 2 * first.seconds > limits.deadline:
                    break
                rest = rest.with_more(product, drawn(), first.rows)
            del first, eigen
        while True:
            others = space.ritz()
            converged = others.residuals <= tolerance
            missed = Measures.of(space, others, converged)
            found = KrylovSpectrum(
                p, pairs, values, others.values, (total, missed), rest, shift, error
            )
            settled = all(_is_settled(found.count(*ends)) for ends in asked) and all(
                end.high - end.low <= 10 * _EXTREMES * cut / goal
                for end in (found.largest(), found.smallest())
            )
            if settled or not _grown(space, limits.deadline, limits.clock):
                break
        # Of an eigenvalue a space shows as many copies as it has vectors: go on with new ones.
        news = converged & (np.abs(others.values) > cut)
        late = limits.clock() + (space.steps + 1) * space.seconds > limits.deadline
        if settled or late or not np.any(news) or len(vectors) + np.sum(news) > limits.rows:
            break
        eigen = _Eigenpairs(news, space, others)
        values, vectors = np.append(values, eigen.values), np.append(vectors, eigen.rows, axis=0)
        shift = math.hypot(shift, eigen.shift)
    return found


class _Eigenpairs:
    """Ritz pairs that are taken as eigenpairs: which ones, values, vectors, residuals' norm."""

    def __init__(self, chosen: Bool[np.ndarray, " n"], space: BlockLanczos, pairs: RitzPairs):
        self.chosen = chosen
        self.values = pairs.values[chosen]
        self.rows = pairs.vectors[:, chosen].T.astype(space.rows.dtype) @ space.rows
        coupling = pairs.coupling[:, chosen]
        self.shift = float(np.linalg.norm(coupling, 2)) if coupling.size else 0.0


def _is_settled(count: Estimate) -> bool:
    return count.high - count.low <= max(1.0, _SETTLED * count.value)


def _grown(space: BlockLanczos, deadline: float, clock: Callable[[], float]) -> bool:
    """Grow a space by a few steps, but for the first one only until the deadline."""
    taken = 0
    while taken < _PATIENCE and space.can_grow:
        begun = clock()
        if space.steps and begun + space.seconds > deadline:
            break
        space.grow()
        space.seconds = clock() - begun
        taken += 1
    return taken > 0
