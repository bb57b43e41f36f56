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
||H||_F^2 = ||T||_F^2 + 2 ||Z||_F^2 + ||N||_F^2. Vectors that do not depend on Q show tr N and
||N||_F^2 (Hutchinson): those of the second space, and some more.

Without the second space (`certified=False`) the values are as good if the first one resolves the
cuts; the intervals are wide, since nothing bounds what it has missed but its own vectors' measures.

Source: Meyer, Musco, Musco and Woodruff, Hutch++, arXiv 2010.09649, for the moments; the intervals
of counts are rankmon's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from numpy.typing import DTypeLike

from rankmon.linalg.block_lanczos import BlockLanczos, Product, RitzPairs
from rankmon.linalg.krylov_spectrum import KrylovSpectrum, Rest
from rankmon.linalg.random_measures import Measures
from rankmon.linalg.rows import HostRows, Rows, RowSpace
from rankmon.linalg.signed_spectrum import SHARES

# A Ritz vector is taken as an eigenvector if its residual is below this share of the goal.
_CONVERGED = 0.02

# The residuals of extreme Ritz pairs shall be below this share of the norm.
_EXTREMES = 1e-4

# Ritz values down to this share of the goal shall converge.
_BEYOND = 0.8

# Vectors at once, and the most rows of each basis.
WIDTH, _MOST_ROWS = 16, 384

# Steps, or this share of those taken, after which it is asked again if a space is large enough.
_PATIENCE, _SHARE = 2, 0.2

# Blocks of vectors for the moments: the first one are those of the second space.
_MOMENTS = 4

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
    accuracy: float = _EXTREMES,
    limits: Limits | None = None,
    certified: bool = True,
    width: int | None = None,
    moments: int = _MOMENTS,
    dtype: DTypeLike = np.float64,
    noise: float = 1e-13,
    seed: int = 0,
    space: RowSpace | None = None,
) -> KrylovSpectrum | None:
    """Return the estimates for a symmetric H [p, p]; None if a product is not finite.

    Args:
      product: rows v [m, p] -> rows H v, for up to as many rows as the space's width.
      p: the number of rows of H.
      norm: the norm that counts are asked at shares of; by default that of H.
      goal: the share of this norm down to which eigenvalues are counted exactly if possible.
      accuracy: the residual of extreme Ritz pairs, as a share of this norm, that is small enough.
      limits: time and memory.
      certified: whether spaces after the first one look for the eigenvalues that it has missed.
      width: the vectors that each space starts from: few find extremes soonest, many count; by
        default the width of the space of rows.
      moments: blocks of vectors for trace and Frobenius norm, NaN if there are none.
      dtype: the type of vectors.
      noise: the error of products in this type, relative to ||H||_2.
      seed: the seed of the vectors.
      space: the form of rows, with its own dtype and seed; by default NumPy arrays.
    """
    limits = limits or Limits()
    space = space or HostRows(p, dtype, width=WIDTH, seed=seed)
    width = space.width if width is None else width
    job = _Job(product, space, norm, goal, accuracy, limits, width, moments, noise)
    try:
        if p <= limits.rows:
            return _complete(product, space, noise)
        return job.certified() if certified else job.plain()
    except FloatingPointError:
        return None


def _complete(product: Product, space: RowSpace, noise: float) -> KrylovSpectrum:
    p, width = space.p, space.width
    starts = range(0, p, width)
    blocks = [space.on_host(product(space.units(i, min(i + width, p)))) for i in starts]
    H = np.concatenate(blocks)
    if not np.all(np.isfinite(H)):
        raise FloatingPointError("expected finite products with the matrix")
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    pairs = RitzPairs(values, vectors, np.zeros((0, p)))
    error = noise * float(np.max(np.abs(values), initial=0.0))
    return KrylovSpectrum(p, pairs, values, np.zeros(0), (), None, 0.0, error)


@dataclass(frozen=True)
class _Job:
    """The arguments of `krylov_spectrum`."""

    product: Product
    space: RowSpace
    given_norm: float | None
    goal: float
    accuracy: float
    limits: Limits
    width: int
    moments: int
    noise: float

    @property
    def p(self) -> int:
        """The number of rows of H."""
        return self.space.p

    def plain(self) -> KrylovSpectrum:
        """Return the measures of the first space alone."""
        first, found = self._first_space(self.limits.deadline)
        eigen = _Eigenpairs(found.pairs.residuals <= found.tolerance, first, found.pairs)
        total = Measures.of(first, found.pairs, eigen.chosen)
        rest = self._with_more(None, first, self.moments)
        none = np.zeros(0)
        return KrylovSpectrum(
            self.p, found.pairs, none, none, (total,), rest, eigen.shift, found.error
        )

    def certified(self) -> KrylovSpectrum:
        """Return the measures of the first space, and of others that search for the rest."""
        begun = self.limits.clock()
        first, found = self._first_space(begun + _FIRST_PART * (self.limits.deadline - begun))
        pairs, tolerance = found.pairs, found.tolerance
        eigen = _Eigenpairs(pairs.residuals <= tolerance, first, pairs)
        total = Measures.of(first, pairs, eigen.chosen)
        values, vectors, shift = eigen.values, eigen.rows, eigen.shift
        rest: Rest | None = None
        for _ in range(_ROUNDS):
            space = self._new_space(deflated=vectors)
            space.grow()
            if rest is None:
                rest = self._with_more(Rest.of(first, space), first, self.moments - 1)
                del first, eigen
            while True:
                others = space.ritz()
                converged = others.residuals <= tolerance
                measures = total, Measures.of(space, others, converged)
                spectrum = KrylovSpectrum(
                    self.p, pairs, values, others.values, measures, rest, shift, found.error
                )
                settled = self._is_settled(spectrum, found.norm)
                if settled or not _grown(space, self.limits.deadline, self.limits.clock):
                    break
            # Of an eigenvalue a space shows as many copies as it has vectors: go on with new ones.
            news = converged & (np.abs(others.values) > self.goal * found.norm)
            end = self.limits.clock() + (space.steps + 1) * space.seconds
            full = len(vectors) + np.sum(news) > self.limits.rows
            if settled or end > self.limits.deadline or not np.any(news) or full:
                break
            eigen = _Eigenpairs(news, space, others)
            values = np.append(values, eigen.values)
            vectors = self.space.joined(vectors, eigen.rows)
            shift = math.hypot(shift, eigen.shift)
        return spectrum

    def _first_space(self, until: float) -> tuple[BlockLanczos, "_First"]:
        """Return a space that shows the eigenvalues down to the goal, if there is time."""
        space = self._new_space()
        while _grown(space, until, self.limits.clock):
            pairs = space.ritz()
            sizes = np.abs(pairs.values)
            most = float(np.max(sizes))
            norm = most if self.given_norm is None else self.given_norm
            cut = self.goal * norm
            asked = pairs.residuals[sizes > _BEYOND * cut]
            extremes = pairs.residuals[[0, -1]] <= self.accuracy * norm
            if np.all(asked <= _CONVERGED * cut) and all(extremes):
                break
        error = self.noise * most
        return space, _First(pairs, norm, max(_CONVERGED * cut, error), error)

    def _new_space(self, deflated: Rows | None = None) -> BlockLanczos:
        return BlockLanczos(
            self.product,
            self.space.drawn(self.width),
            space=self.space,
            deflated=deflated,
            most=self.limits.rows,
            noise=self.noise,
        )

    def _with_more(self, rest: Rest | None, first: BlockLanczos, blocks: int) -> Rest | None:
        """Return the moments with those of more vectors, as far as there is time."""
        for _ in range(blocks):
            seconds = first.seconds * max(1, self.space.width // self.width)
            if self.limits.clock() + 2 * seconds > self.limits.deadline:
                break
            more = Rest.outside(first, self.product, self.space.drawn(self.space.width))
            rest = more if rest is None else rest + more
        return rest

    def _is_settled(self, spectrum: KrylovSpectrum, norm: float) -> bool:
        """Return whether the counts down to the goal, and the extremes, are known well enough."""
        cuts = [share * norm for share in SHARES[::-1] if share >= self.goal]
        counts = (spectrum.count(-c, high) for c in cuts for high in (c, math.inf))
        return all(
            count.high - count.low <= max(1.0, _SETTLED * count.value) for count in counts
        ) and all(
            end.high - end.low <= 10 * self.accuracy * norm
            for end in (spectrum.largest(), spectrum.smallest())
        )


@dataclass(frozen=True)
class _First:
    """The measures of the first space.

    Attributes:
      pairs: its Ritz pairs.
      norm: the norm that cuts are shares of.
      tolerance: residuals up to this one are those of eigenvectors.
      error: the error of eigenvalues by that of products.
    """

    pairs: RitzPairs
    norm: float
    tolerance: float
    error: float


class _Eigenpairs:
    """Ritz pairs that are taken as eigenpairs: which ones, values, vectors, residuals' norm."""

    def __init__(self, chosen: Bool[np.ndarray, " n"], space: BlockLanczos, pairs: RitzPairs):
        self.chosen, self._space = chosen, space
        self.values, self._inside = pairs.values[chosen], pairs.vectors[:, chosen].T
        coupling = pairs.coupling[:, chosen]
        self.shift = float(np.linalg.norm(coupling, 2)) if coupling.size else 0.0

    @property
    def rows(self) -> Rows:
        """The vectors, computed anew each time."""
        return self._space.space.combined(self._inside, self._space.rows)


def _grown(space: BlockLanczos, deadline: float, clock: Callable[[], float]) -> bool:
    """Grow a space by a few steps, but for the first one only until the deadline."""
    taken, steps = 0, max(_PATIENCE, round(_SHARE * space.steps))
    while taken < steps and space.can_grow:
        begun = clock()
        if space.steps and begun + space.seconds > deadline:
            break
        space.grow()
        space.seconds = clock() - begun
        taken += 1
    return taken > 0
