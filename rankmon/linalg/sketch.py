"""Ranks of symmetric matrices from matrix-vector products, by a two-sided random sketch.

With independent Gaussian X and Y, [p, s] each, only the sketch S = Y^T A X, s x s, is stored. Its
singular values sigma_i(S) bound those of A, a_1 >= a_2 >= ..., for all i at once, except with
probability delta. With t = sqrt(2 log(4 s / delta)):

  from above   a_i <= sigma_i(S) / (sqrt(s) - sqrt(i) - t)^2     if sqrt(s) - sqrt(i) - t > 0
  from below   a_i > c  for all i with  sigma_i(S) > c'', where
               c'  = c  (sqrt(s) + t) + sqrt(sum_{j >= i} min(c,  a_j)^2)
               c'' = c' (sqrt(s) + t) + sqrt(sum_{j >= i} min(c', b_j)^2),   b_j = sigma_j(A X)

The unknown a_j and b_j are replaced by their bounds from above. The bound from above holds because
the i leading rows of V^T X, a Gaussian [i, s], have no singular value below sqrt(s) - sqrt(i) - t
(Davidson and Szarek 2001). The bound from below follows from Weyl's inequality and from
E ||D G|| <= ||D|| sqrt(s) + ||D||_F (Chevet).

The engine that sketches a Hessian is `rankmon.engines.sketch`.

Source: Meier and Nakatsukasa, Fast randomized numerical rank estimation, arXiv 2105.07388, for the
sketch; the two-sided bounds are rankmon's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float

from rankmon.linalg.numerical_rank import NumericalRank
from rankmon.linalg.spectrum import symmetric_spectrum

# delta, the probability that a bound from random vectors fails.
CHANCE = 1e-3

# The gain (sqrt(s) - sqrt(i) - t) / sqrt(s) to aim for. At 0.05 the bounds from above are 400 times
# the value, which the gaps of these spectra allow. A larger gain would need a larger sketch.
_USEFUL_GAIN = 0.05
Products = Callable[[Float[np.ndarray, "m p"]], Mapping[str, Float[np.ndarray, "m p"]]]


@dataclass(frozen=True)
class SketchedRank(NumericalRank):
    """A `NumericalRank` from a sketch.

    `low` and `high` bound the numbers of singular values above 10 x tolerance and tolerance / 10;
    both bounds hold with a probability of 99.9 %. `gap` is the ratio of the estimates on either
    side of the cut.

    Attributes:
      side: s, the number of rows and columns of the sketch; p if the matrix itself was cheaper.
      complete: whether the sketch was large enough to show that fewer than s singular values exceed
        tolerance / 10. If not, `rank` is a lower bound, and `high` is the bound of
        `linalg.rank_bound` if that was computed, else p.
    """

    side: int
    complete: bool

    @property
    def known(self) -> int | None:
        """The rank; None if the sketch is not complete, because `rank` is a bound then."""
        return self.rank if self.complete else None

    def at_most(self, count: int) -> "SketchedRank":
        """Return this rank with `high` lowered to a bound on the values above tolerance / 10."""
        assert self.low is not None
        return replace(self, high=min(max(count, self.low), self.size))


@dataclass(frozen=True)
class Sketch:
    """The singular values of S = Y^T A X [s, s], descending, of a symmetric A [p, p]."""

    values: Float[np.ndarray, " s"]
    p: int

    @property
    def side(self) -> int:
        """The number s of rows and columns."""
        return len(self.values)

    @property
    def is_finite(self) -> bool:
        """Whether no product overflowed."""
        return bool(np.all(np.isfinite(self.values)))

    @property
    def _least_gain(self) -> Float[np.ndarray, " s"]:
        """sqrt(s) - sqrt(i) - t: a Gaussian matrix stretches i dimensions at least this much."""
        i = np.arange(1, self.side + 1)
        return np.maximum(math.sqrt(self.side) - np.sqrt(i) - _deviation(self.side), 0.0)

    def at_most(self) -> Float[np.ndarray, " s"]:
        """Return upper bounds on a_1, ..., a_s, descending; infinite if the sketch gives none."""
        return np.minimum.accumulate(_quotient(self.values, self._least_gain**2))

    def estimates(self) -> Float[np.ndarray, " s"]:
        """Return sigma_i(S) / s, which estimates a_i."""
        return self.values / max(self.side, 1)

    def exceeding(self, cut: float) -> int:
        """Return the number of singular values of A that certainly exceed the cut."""
        s, grow = self.side, math.sqrt(self.side) + _deviation(self.side)
        above = self.at_most()
        beyond = max(self.p - s, 0)  # values without a bound of their own: at most the last bound
        images = np.minimum.accumulate(_quotient(self.values, self._least_gain))
        capped = np.minimum(cut, above)
        image_cut = cut * grow + np.sqrt(_tail(capped**2) + beyond * capped[-1] ** 2)
        sketch_cut = image_cut * grow + np.sqrt(_capped_tail(image_cut, images))
        return int(np.sum(self.values > sketch_cut))

    def is_complete(self, cut: float) -> bool:
        """Return whether the upper bounds show that fewer than s singular values exceed the cut."""
        return bool(self.at_most()[-1] <= cut)

    def is_sharp(self, cut: float) -> bool:
        """Return whether upper bounds at the cut count no more than estimates at a tenth of it."""
        most = int(np.sum(self.at_most() > cut))
        return self.is_complete(cut) and most <= int(np.sum(self.estimates() > cut / 10))

    def counted(self, cut: float, *, finest: float = 0.0) -> SketchedRank:
        """Return the rank at this cut with its margin.

        Args:
          cut: the absolute cut.
          finest: the smallest cut above the rounding error of the products. For a cut below it,
            `rank` and `low` are counted at `finest` instead, and `high` is p.
        """
        resolved = max(cut, finest)
        complete = self.is_complete(resolved / 10)
        seen = complete and cut >= finest
        high = min(int(np.sum(self.at_most() > cut / 10)), self.p) if seen else self.p
        low = min(self.exceeding(10 * resolved), high)
        estimates = self.estimates()
        rank = min(max(int(np.sum(estimates > resolved)), low), high) if complete else low
        below = estimates[rank] if rank < self.side else 0.0
        gap = math.nan
        if rank and complete:
            gap = float(estimates[rank - 1] / below) if below > 0 else math.inf
        return SketchedRank(rank, float(cut), self.p, low, high, gap, self.side, complete)

    def next_side(self, cut: float) -> int:
        """Return the side to try next if this sketch is not complete at the cut."""
        seen = int(np.sum(self.estimates() > cut))
        # If nearly all estimates exceed the cut, the rank may be far above the side.
        end_is_in_sight = seen < 0.98 * self.side
        return max(side_for(seen), self.side * 5 // 4) if end_is_in_sight else 2 * self.side


@dataclass(frozen=True)
class WholeMatrix(Sketch):
    """The absolute eigenvalues of A itself, used if the sketch would have p rows or more."""

    def at_most(self) -> Float[np.ndarray, " p"]:
        """Return the eigenvalues."""
        return self.values

    def estimates(self) -> Float[np.ndarray, " p"]:
        """Return the eigenvalues."""
        return self.values

    def exceeding(self, cut: float) -> int:
        """Return the number of eigenvalues that exceed the cut."""
        return int(np.sum(self.values > cut))

    def is_complete(self, cut: float) -> bool:
        """Return True: all eigenvalues are known."""
        return True

    def is_sharp(self, cut: float) -> bool:
        """Return True: bounds and estimates are the same."""
        return True


def side_for(rank: int) -> int:
    """Return the number of rows at which a sketch determines this rank with a useful gain."""
    side = rank + 64
    while math.sqrt(side) * (1 - _USEFUL_GAIN) < math.sqrt(rank + 1) + _deviation(side):
        side += max(16, side // 16)
    return side


def sketched(
    products: Products, p: int, side: int, *, batch: int, rows: int, seed: int
) -> dict[str, Sketch]:
    """Sketch several matrices at once, from products with `side` vectors.

    Memory: s^2 numbers per matrix, and p times the number of vectors, products and rows of Y^T held
    at once. With a side of p or more, assemble the matrices themselves from products with p unit
    vectors.

    Args:
      products: maps at most `batch` rows v to the rows A v for each of the matrices, by name.
      p: the length of a row.
      side: s, the number of rows and columns of the sketch.
      batch: the number of vectors at once; Y is drawn again for each batch.
      rows: the number of rows of Y^T at once.
      seed: the seed of X and Y.
    """
    if side >= p:
        return _whole(products, p, batch)
    sketches: dict[str, np.ndarray] = {}
    left, right = _Gaussian(seed, 1, rows, p), _Gaussian(seed, 0, batch, p)
    for start in range(0, side, batch):
        x = right.rows(start, min(batch, side - start))
        images = products(x)
        for first in range(0, side, rows):
            y = left.rows(first, min(rows, side - first))
            for name, image in images.items():
                S = sketches.setdefault(name, np.empty((side, side)))
                with np.errstate(over="ignore", invalid="ignore"):  # `is_finite` reports it
                    S[first : first + len(y), start : start + len(x)] = y @ image.T
    return {name: Sketch(_singular_values(S), p) for name, S in sketches.items()}


def _whole(products: Products, p: int, batch: int) -> dict[str, Sketch]:
    """Assemble the matrices from products with unit vectors, and return their eigenvalues."""
    matrices: dict[str, np.ndarray] = {}
    for start in range(0, p, batch):
        units = np.eye(min(batch, p - start), p, start)
        for name, image in products(units).items():
            matrices.setdefault(name, np.empty((p, p)))[start : start + len(units)] = image
    return {name: WholeMatrix(_absolute_eigenvalues(A), p) for name, A in matrices.items()}


def _absolute_eigenvalues(A: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(A)):
        return np.full(len(A), np.nan)
    return np.abs(symmetric_spectrum(A))


class _Gaussian:
    """Rows of X^T (which = 0) or Y^T (1), drawn on request and reproducible.

    The numbers are drawn in single precision, which suffices for a random sketch. The memory is
    reused, because allocating it would take longer than the draws.
    """

    def __init__(self, seed: int, which: int, most: int, p: int) -> None:
        self._seed = (seed, which)
        self._row, self._rows = np.empty(p, np.float32), np.empty((most, p))

    def rows(self, first: int, count: int) -> Float[np.ndarray, "m p"]:
        """Return `count` rows, starting at row `first`; the next call overwrites them."""
        # One random stream for each first row, so that the same rows can be drawn again.
        generator = np.random.Generator(np.random.SFC64([*self._seed, first]))
        for i in range(count):
            self._rows[i] = generator.standard_normal(out=self._row, dtype=np.float32)
        return self._rows[:count]


def _singular_values(S: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(S)):
        return np.full(len(S), np.nan)
    return scipy.linalg.svdvals(S, overwrite_a=True, check_finite=False)


def spectral_norm(product: Callable[[np.ndarray], np.ndarray], p: int, *, seed: int) -> float:
    """Return ||A||_2 of a symmetric A to about three digits, by Lanczos; NaN if not finite."""
    start = np.random.default_rng(seed).standard_normal(p)
    image = product(start)
    if not np.all(np.isfinite(image)):
        return math.nan
    if not np.any(image):
        return 0.0
    if p < 3:  # too few rows for ARPACK
        return float(np.linalg.norm(np.stack([product(e) for e in np.eye(p)]), 2))
    operator = scipy.sparse.linalg.LinearOperator((p, p), matvec=product, dtype=np.float64)
    (value,) = scipy.sparse.linalg.eigsh(
        operator, k=1, ncv=min(p, 10), which="LM", v0=start, tol=1e-3, return_eigenvectors=False
    )
    return float(abs(value))


def _deviation(side: int) -> float:
    """Return t, such that all bounds of a sketch hold together with probability 1 - delta."""
    return math.sqrt(2 * math.log(4 * side / CHANCE))


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the quotient of non-negative numbers, infinite if b is zero."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(b > 0, a / b, np.inf)


def _tail(squares: np.ndarray) -> np.ndarray:
    """Return the sums of each entry and all entries after it."""
    return np.cumsum(squares[::-1])[::-1]


def _capped_tail(caps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return sum_{j >= i} min(caps_i, values_j)^2; both arrays descend up to rounding."""
    values = np.minimum.accumulate(values)
    tail = np.append(_tail(np.where(np.isfinite(values), values, 0.0) ** 2), 0.0)
    i = np.arange(len(values))
    # The first j whose value does not exceed the cap: caps are summed before it, values from it on.
    j = np.maximum(len(values) - np.searchsorted(values[::-1], caps, side="right"), i)
    return (j - i) * caps**2 + tail[j]
