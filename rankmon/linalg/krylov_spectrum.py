"""Extremes, moments and counts of a symmetric H [p, p], with intervals, from Krylov spaces.

`krylov` grows the spaces and says why the intervals hold. Symbols as there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.special
from jaxtyping import Float

from rankmon.linalg.block_lanczos import BlockLanczos, Product, RitzPairs
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.random_measures import Measures
from rankmon.linalg.signed_spectrum import NEGATIVE_SHARE, SHARES, SignedSpectrum

CONFIDENCE = 0.95

# The chances that one space's bound fails: together less than 5 %.
_LOW_CHANCE, _HIGH_CHANCE = 0.0075, 0.0075

# Distances from an extreme Ritz value, relative to the norm, at which a bound is tried.
_DISTANCES = 10.0 ** np.arange(-6.0, 0.6, 0.5)

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
        """Return these numbers after the second space's first step."""
        assert second.first_images is not None
        start = second.start.astype(second.rows.dtype)
        x, images = start @ second.rows[: start.shape[1]], start @ second.first_images
        Q, outside = first.rows, first.next_rows
        along = x @ Q.T
        x = x - along @ Q
        images -= (along @ first.coupling.astype(x.dtype)) @ outside
        images -= (images @ Q.T) @ Q
        return cls(_inner(x, images), _inner(images, images))

    def with_more(
        self, product: Product, x: Float[np.ndarray, "s p"], Q: Float[np.ndarray, "n p"]
    ) -> "Rest":
        """Return the moments with more Gaussian vectors x."""
        x = x - (x @ Q.T) @ Q
        images = np.array(product(x), x.dtype)
        images -= (images @ Q.T) @ Q
        traces, squares = _inner(x, images), _inner(images, images)
        return Rest(np.append(self.traces, traces), np.append(self.squares, squares))


def _inner(a: Float[np.ndarray, "s p"], b: Float[np.ndarray, "s p"]) -> Float[np.ndarray, " s"]:
    return np.einsum("ij,ij->i", a, b, dtype=np.float64)


@dataclass(frozen=True)
class KrylovSpectrum:
    """The spectrum of H [p, p] as far as Krylov spaces show it.

    Attributes:
      p: the number of rows.
      first: the Ritz pairs of the first space; all eigenpairs if its basis is complete.
      known: the values of the pairs that are taken as eigenpairs.
      last: the Ritz values of the last space.
      measures: of the first space's vectors for H and of the last's for M.
      rest: the moments outside the first basis.
      shift: a bound on the change of eigenvalues by the residuals.
      noise: the error of eigenvalues by that of products.
    """

    p: int
    first: RitzPairs
    known: Float[np.ndarray, " n"]
    last: Float[np.ndarray, " m"]
    measures: tuple[Measures, Measures] | None
    rest: Rest | None
    shift: float
    noise: float

    @cached_property
    def norm(self) -> float:
        """The largest |Ritz value|: ||H||_2 from below."""
        return float(np.max(np.abs(self.first.values), initial=0.0))

    def count(self, low: float, high: float) -> Estimate:
        """Estimate the number of eigenvalues below `low` or above `high`, with a 95 % interval."""
        values, noise = self.first.values, self.noise
        shown = _beyond(low - noise, high + noise, values)
        if self.measures is None:
            most = _beyond(low + noise, high - noise, values)
            return Estimate(_beyond(low, high, values), shown, most, CONFIDENCE)
        total, missed = self.measures
        e = self.shift + noise
        known = _beyond(low - e, high + e, self.known)
        shown = max(shown, known + _beyond(low - e, high + e, self.last))
        most = max(self._most_missed(low, high), shown)
        if most == shown:
            return Estimate(float(shown), float(shown), float(most), CONFIDENCE)
        weights = [measures.beyond(low - e, high + e)[0] for measures in self.measures]
        # Both can fail: the last space's bounds are sharper if nothing is missed.
        least = max(
            min(total.least(weights[0], _LOW_CHANCE, self.p), most),
            known + missed.least(weights[1], _LOW_CHANCE, self.p),
            shown,
        )
        most = max(min(most, self._most_in_all(low, high)), least)
        middle = missed.by_quadrature(low, high) / missed.vectors
        value = min(max(least, round(_beyond(low, high, self.known) + middle)), most)
        return Estimate(float(value), float(least), float(most), CONFIDENCE)

    def shown(self, cut: float) -> int:
        """Return a bound from below on the number of |eigenvalues| above a cut, by Ritz values."""
        cut = max(cut, self.noise)
        both = (_beyond(-cut - self.shift, cut + self.shift, v) for v in (self.known, self.last))
        return max(_beyond(-cut, cut, self.first.values), sum(both))

    def _most_in_all(self, low: float, high: float) -> int:
        """Return the bound of the first space on a count."""
        assert self.measures is not None
        e, total = self.shift + self.noise, self.measures[0]
        return total.most(total.beyond(low + e, high - e)[1], _HIGH_CHANCE, self.p)

    def _most_missed(self, low: float, high: float) -> int:
        """Return the known count plus the last space's bound on those that are not known."""
        assert self.measures is not None
        e, missed = self.shift + self.noise, self.measures[1]
        others = missed.most(missed.beyond(low + e, high - e)[1], _HIGH_CHANCE, self.p)
        return min(_beyond(low + e, high - e, self.known) + others, self.p)

    def largest(self) -> Estimate:
        """Estimate the largest eigenvalue, with a 95 % interval."""
        value = float(max(self.first.values[-1], np.max(self.last, initial=-math.inf)))
        off = self._overshoot(value, lambda c: (-math.inf, c))
        return Estimate(value, value - self.noise, value + off, CONFIDENCE)

    def smallest(self) -> Estimate:
        """Estimate the smallest eigenvalue, with a 95 % interval."""
        value = float(min(self.first.values[0], np.min(self.last, initial=math.inf)))
        off = self._overshoot(-value, lambda c: (-c, math.inf))
        return Estimate(value, value - off, value + self.noise, CONFIDENCE)

    def _overshoot(self, value: float, ends: Callable[[float], tuple[float, float]]) -> float:
        """Return by how much the outermost eigenvalue may exceed its Ritz value."""
        if self.measures is None or not self.norm:
            return self.noise
        e, missed = self.shift + self.noise, self.measures[1]
        tried = self.norm * _DISTANCES
        for gap in tried[::-1]:
            # [[Theta, R], [R^T, M]] with M <= c < theta: lambda <= theta + ||R||^2 / (theta - c).
            if missed.most(missed.beyond(*ends(value - gap))[1], _HIGH_CHANCE, self.p) == 0:
                return self.noise + self.shift**2 / float(gap)
        for off in tried + e:
            beyond = ends(value + float(off))
            if min(self._most_missed(*beyond), self._most_in_all(*beyond)) == 0:
                return float(off)
        return max(self.frobenius().high - value, 0.0)

    def trace(self) -> Estimate:
        """Estimate the sum of the eigenvalues, with a 95 % interval."""
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
        norm: float | None = None,
        *,
        trace: Estimate | None = None,
    ) -> SignedSpectrum:
        """Return the summary of the spectrum.

        Args:
          norm: the norm that `SHARES` are shares of; by default that of H.
          trace: the trace if it is known.
        """
        norm = self.norm if norm is None else norm
        largest, smallest, frobenius = self.largest(), self.smallest(), self.frobenius()
        return SignedSpectrum(
            largest=largest,
            smallest=smallest,
            trace=trace or self.trace(),
            frobenius=frobenius,
            stable_rank=_stable_rank(frobenius, largest, smallest),
            effective_rank=Estimate.unknown(),
            above={share: self.count(-share * norm, share * norm) for share in SHARES},
            clearly_negative=self.count(-NEGATIVE_SHARE * norm, math.inf),
            negative=Estimate.unknown(),
        )


def _stable_rank(frobenius: Estimate, largest: Estimate, smallest: Estimate) -> Estimate:
    least = max(largest.low, -smallest.high, 0.0)
    most = max(largest.high, -smallest.low)
    value = max(largest.value, -smallest.value)
    if not least > 0:
        return Estimate.unknown()
    ratios = (frobenius.value / value, frobenius.low / most, frobenius.high / least)
    middle, low, high = (ratio**2 for ratio in ratios)
    return Estimate(middle, low, high, CONFIDENCE)


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
