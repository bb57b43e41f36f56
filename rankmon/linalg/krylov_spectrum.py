"""Extremes, moments and counts of a symmetric H [p, p], with intervals, from Krylov spaces.

`krylov` grows the spaces and says why the intervals hold. Symbols as there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial, reduce

import numpy as np
import scipy.special
from jaxtyping import Float

from rankmon.linalg.block_lanczos import BlockLanczos, Product, RitzPairs
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.random_measures import Measures
from rankmon.linalg.rows import Rows
from rankmon.linalg.signed_spectrum import NEGATIVE_SHARE, SHARES, SignedSpectrum

CONFIDENCE = 0.95

# The chances that one space's bound fails: together less than 5 %.
_LOW_CHANCE, _HIGH_CHANCE = 0.0075, 0.0075

# Ritz values down to this share of a cut shall have converged for a count of them.
_NEAR = 0.8

# Distances from an extreme Ritz value, relative to the norm, at which a bound is tried.
_DISTANCES = 10.0 ** np.arange(-6.0, 0.6, 0.5)

# A norm that is known this well gives cuts at shares of it.
_SAME_NORM = 1.01

# Moments have wider intervals than those of 95 % of a normal distribution: theirs is skew.
_LEVEL = 0.99
_QUANTILE = float(scipy.special.ndtri(_LEVEL))


@dataclass(frozen=True)
class Rest:
    """Moments of N, the part of H outside the first basis, in the second space's vectors x_j.

    Attributes:
      traces: <x_j, N x_j>.
      squares: |N x_j|^2.
    """

    traces: Float[np.ndarray, " s"]
    squares: Float[np.ndarray, " s"]

    @classmethod
    def of(cls, first: BlockLanczos, second: BlockLanczos) -> "Rest":
        """Return these numbers after the second space's first step, whose products they use."""
        assert second.first_images is not None
        space, start = first.space, second.start
        x = space.combined(start, second.first_rows)
        images = space.combined(start, second.first_images)
        along = space.gram(x, first.rows)
        coupling = first.coupling.astype(along.dtype)
        images = space.less(images, along @ coupling, first.next_rows)
        return cls._beside(first, space.less(x, along, first.rows), images)

    @classmethod
    def outside(cls, first: BlockLanczos, product: Product, x: Rows) -> "Rest":
        """Return these numbers for Gaussian rows x, outside the first basis."""
        space = first.space
        x = space.less(x, space.gram(x, first.rows), first.rows)
        return cls._beside(first, x, space.copied(product(x)))

    @classmethod
    def _beside(cls, first: BlockLanczos, x: Rows, images: Rows) -> "Rest":
        space = first.space
        images = space.less(images, space.gram(images, first.rows), first.rows)
        return cls(space.inner(x, images), space.inner(images, images))

    def __add__(self, other: "Rest") -> "Rest":
        return Rest(np.append(self.traces, other.traces), np.append(self.squares, other.squares))


@dataclass(frozen=True)
class KrylovSpectrum:
    """The spectrum of H [p, p] as far as Krylov spaces show it.

    Attributes:
      p: the number of rows.
      first: the Ritz pairs of the first space; all eigenpairs if its basis is complete.
      known: the values of the pairs that are taken as eigenpairs.
      last: the Ritz values of the last space.
      measures: of the first space's vectors for H and, if there is one, of the last's for M; none
        if the basis is complete.
      rest: the moments outside the first basis; None if they are zero, or were not asked for.
      shift: a bound on the change of eigenvalues by the residuals.
      noise: the error of eigenvalues by that of products.
    """

    p: int
    first: RitzPairs
    known: Float[np.ndarray, " n"]
    last: Float[np.ndarray, " m"]
    measures: tuple[Measures, ...]
    rest: Rest | None
    shift: float
    noise: float

    @cached_property
    def norm(self) -> float:
        """The largest |Ritz value|: ||H||_2 from below."""
        return float(np.max(np.abs(self.first.values), initial=0.0))

    @cached_property
    def most_norm(self) -> float:
        """The upper end of the interval of ||H||_2."""
        return max(self.largest().high, -self.smallest().low)

    def count(self, low: float, high: float) -> Estimate:
        """Estimate the number of eigenvalues below `low` or above `high`, with a 95 % interval."""
        values, noise = self.first.values, self.noise
        shown = _beyond(low - noise, high + noise, values)
        if not self.measures:
            most = _beyond(low + noise, high - noise, values)
            return Estimate(_beyond(low, high, values), shown, most, CONFIDENCE)
        e = self.shift + noise
        shown = max(shown, self._known(low - e, high + e) + _beyond(low - e, high + e, self.last))
        most = max(self._most(len(self.measures) - 1, low, high), shown)
        if most == shown:
            return Estimate(float(shown), float(shown), float(most), CONFIDENCE)
        ends = [self._ends(i, low, high) for i in range(len(self.measures))]
        # Both can fail: the last space's bounds are sharper if nothing is missed.
        least = max(min(ends[0][0], most), ends[-1][0], shown)
        most = max(min(most, ends[0][1]), least)
        # A space of few steps hardly resolves the cut: the one of the narrower interval does.
        i = min(range(len(ends)), key=lambda i: ends[i][1] - ends[i][0])
        value = shown if self._shows_all(low, high) else round(self._likely(i, low, high))
        value = min(max(least, value), most)
        return Estimate(float(value), float(least), float(most), CONFIDENCE)

    def _ends(self, i: int, low: float, high: float) -> tuple[int, int]:
        """Return the bounds that the i-th space's vectors give for a count."""
        e, measures = self.shift + self.noise, self.measures[i]
        known = self._known(low - e, high + e) if i else 0
        weight = measures.beyond(low - e, high + e)[0]
        least = known + measures.least(weight, _LOW_CHANCE, self.p)
        return least, self._most(i, low, high)

    def _most(self, i: int, low: float, high: float) -> int:
        """Return the upper bound that the i-th space's vectors give for a count."""
        e, measures = self.shift + self.noise, self.measures[i]
        known = self._known(low + e, high - e) if i else 0
        others = measures.most(measures.beyond(low + e, high - e)[1], _HIGH_CHANCE, self.p)
        return min(known + others, self.p)

    def _likely(self, i: int, low: float, high: float) -> float:
        """Return what the i-th space's Gauss rule gives for a count."""
        known = self._known(low, high) if i else 0
        return known + self.measures[i].by_quadrature(low, high) / self.measures[i].vectors

    def _known(self, low: float, high: float) -> int:
        """Return the count of the pairs that the last space is deflated by."""
        return _beyond(low, high, self.known)

    def _shows_all(self, low: float, high: float) -> bool:
        """Return whether the first space's Ritz values near these ends, and beyond, converged."""
        values = self.first.values
        asked = (values < _NEAR * low) | (values > _NEAR * high)
        gap = (1 - _NEAR) * min(abs(low), abs(high))
        return bool(np.all(self.first.residuals[asked] <= gap / 10))

    def shown(self, cut: float) -> int:
        """Return a bound from below on the number of |eigenvalues| above a cut, by Ritz values."""
        cut = max(cut, self.noise)
        both = (_beyond(-cut - self.shift, cut + self.shift, v) for v in (self.known, self.last))
        return max(_beyond(-cut, cut, self.first.values), sum(both))

    def largest(self) -> Estimate:
        """Estimate the largest eigenvalue, with a 95 % interval."""
        return self._extremes[0]

    def smallest(self) -> Estimate:
        """Estimate the smallest eigenvalue, with a 95 % interval."""
        return self._extremes[1]

    @cached_property
    def _extremes(self) -> tuple[Estimate, Estimate]:
        most = float(max(self.first.values[-1], np.max(self.last, initial=-math.inf)))
        least = float(min(self.first.values[0], np.min(self.last, initial=math.inf)))
        above = self._overshoot(most, lambda c: (-math.inf, c))
        below = self._overshoot(-least, lambda c: (-c, math.inf))
        return (
            Estimate(most, most - self.noise, most + above, CONFIDENCE),
            Estimate(least, least - below, least + self.noise, CONFIDENCE),
        )

    def _overshoot(self, value: float, ends: Callable[[float], tuple[float, float]]) -> float:
        """Return by how much the outermost eigenvalue may exceed its Ritz value."""
        if not self.measures or not self.norm:
            return self.noise
        e, last = self.shift + self.noise, len(self.measures) - 1
        tried = self.norm * _DISTANCES

        def is_empty(gap: float) -> bool:
            beyond = self.measures[last].beyond(*ends(value - gap))[1]
            return self.measures[last].most(beyond, _HIGH_CHANCE, self.p) == 0

        def holds(off: float) -> bool:
            beyond = ends(value + off)
            return min(self._most(i, *beyond) for i in range(len(self.measures))) == 0

        # [[Theta, R], [R^T, M]] with M <= c < theta: lambda <= theta + ||R||^2 / (theta - c).
        if last and (gap := _first(is_empty, tried[::-1])) is not None:
            return self.noise + self.shift**2 / gap
        off = _first(holds, tried + e)
        if off is None:
            off = math.inf if self.rest is None else max(self.frobenius().high - value, 0.0)
        return off

    def trace(self) -> Estimate:
        """Estimate the sum of the eigenvalues, with a 95 % interval."""
        if self.measures and self.rest is None:
            return Estimate.unknown()
        value = float(self.first.values.sum())
        off = 0.0
        if self.rest is not None:
            value += float(np.mean(self.rest.traces))
            # A Gaussian form has the variance 2 ||N||_F^2, which is better known than the sample's.
            variance = 2 * _mean_square(self.rest.squares)[1] / len(self.rest.traces)
            off = max(_QUANTILE * math.sqrt(variance), _student(self.rest.traces))
        off += self._moment_noise
        return Estimate(value, value - off, value + off, CONFIDENCE)

    def frobenius(self) -> Estimate:
        """Estimate the root of the sum of the squared eigenvalues, with a 95 % interval."""
        if self.measures and self.rest is None:
            return Estimate.unknown()
        squares = np.full(3, np.sum(self.first.values**2))
        if self.rest is not None:
            mean = float(np.mean(self.rest.squares))
            low, high = _mean_square(self.rest.squares)
            squares += 2 * np.sum(self.first.coupling**2) + np.array([mean, low, high])
        value, low, high = np.sqrt(squares)
        low = max(low - self._moment_noise, self.norm - self.noise)
        return Estimate(value, min(low, value), high + self._moment_noise, CONFIDENCE)

    @property
    def _moment_noise(self) -> float:
        return self.noise * math.sqrt(max(len(self.first.values), 1))

    def signed(
        self,
        norms: tuple[float, float] | None = None,
        *,
        trace: Estimate | None = None,
    ) -> SignedSpectrum:
        """Return the summary of the spectrum.

        Args:
          norms: the ends of the interval of the norm that `SHARES` are shares of; by default of
            that of H.
          trace: the trace if it is known.
        """
        norms = (self.norm, self.most_norm) if norms is None else norms
        largest, smallest, frobenius = self.largest(), self.smallest(), self.frobenius()
        return SignedSpectrum(
            largest=largest,
            smallest=smallest,
            trace=trace or self.trace(),
            frobenius=frobenius,
            stable_rank=self._stable_rank(frobenius, largest, smallest),
            effective_rank=Estimate.unknown(),
            above={share: self._counted(norms, partial(_both_ends, share)) for share in SHARES},
            clearly_negative=self._counted(norms, lambda c: (-NEGATIVE_SHARE * c, math.inf)),
            negative=Estimate.unknown(),
        )

    def _counted(
        self, norms: tuple[float, float], ends: Callable[[float], tuple[float, float]]
    ) -> Estimate:
        """Estimate a count at a share of a norm in this interval."""
        return reduce(Estimate.spanning, (self.count(*ends(norm)) for norm in ends_of_norm(*norms)))

    def _stable_rank(self, frobenius: Estimate, largest: Estimate, smallest: Estimate) -> Estimate:
        least = max(largest.low, -smallest.high, 0.0)
        if not least > 0 or math.isnan(frobenius.value):
            return Estimate.unknown()
        value = max(largest.value, -smallest.value)
        ratios = (
            frobenius.value / value,
            frobenius.low / self.most_norm,
            frobenius.high / least,
        )
        middle, low, high = (float(np.clip(ratio**2, 1.0, self.p)) for ratio in ratios)
        return Estimate(middle, low, high, CONFIDENCE)


def _both_ends(share: float, norm: float) -> tuple[float, float]:
    return -share * norm, share * norm


def ends_of_norm(low: float, high: float) -> tuple[float, ...]:
    """Return the norms at which counts are bounded: one if the interval hardly has a width."""
    return (low, high) if high > _SAME_NORM * low else (low,)


def _first(holds: Callable[[float], bool], tried: Float[np.ndarray, " m"]) -> float | None:
    """Return the first of these for which this holds, if it holds for all that follow."""
    low, high = -1, len(tried)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(float(tried[middle])) else (middle, high)
    return float(tried[high]) if high < len(tried) else None


def _beyond(low: float, high: float, values: Float[np.ndarray, " m"]) -> int:
    return int(np.sum((values < low) | (values > high)))


def _student(values: Float[np.ndarray, " s"]) -> float:
    """Return half the width of Student's interval for the mean."""
    s = len(values)
    return float(scipy.special.stdtrit(s - 1, _LEVEL) * np.std(values, ddof=1) / math.sqrt(s))


def _mean_square(values: Float[np.ndarray, " s"]) -> tuple[float, float]:
    """Return an interval for the mean of |N x|^2, a sum of weighted chi^2_1.

    It is about that of chi^2 with as many degrees of freedom as mean and variance have. The
    variance of a few values may be half of the true one, or twice: half as many are assumed.
    """
    mean, variance = float(np.mean(values)), float(np.var(values, ddof=1))
    if not variance > 0:
        return mean, mean
    degrees = len(values) * max(mean**2 / variance, 1.0)
    ends = [scipy.special.chdtri(degrees, chance) for chance in (1 - _LEVEL, _LEVEL)]
    return mean * degrees / ends[0], mean * degrees / ends[1]
