"""Estimate eigenvalue counts, trace and density from Lanczos runs on random vectors.

For a symmetric A [p, p] with eigenpairs (lambda_i, q_i) and a start vector v with |v|^2 = p, m
Lanczos steps determine the moments up to 2 m of the measure

  mu_v = sum_i <v, q_i>^2 / p at lambda_i,    whose mean over v is (1/p) sum_i at lambda_i.

A node of the Gauss rule represents an eigenvalue of any multiplicity once. The multiplicity (over
p) is only the mean of the node's weight over many vectors.

Consider the Gauss rule with m + 1 nodes, one of them prescribed at x. Given the moments,
mu_v((-inf, x)) is at least the sum of the weights of the nodes below x, and mu_v((-inf, x]) is at
most that sum plus the weight at x (Chebyshev, Markov, Stieltjes). If x lies in a gap of the
spectrum, the weight at x, which is the difference of the two bounds, decreases exponentially in m.

The engine that runs the Lanczos steps on a Hessian is `rankmon.engines.quadrature`.

Source: Golub and Meurant, Matrices, Moments and Quadrature with Applications, 2010, chapters 3, 6.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float

from rankmon.linalg.estimate import Estimate

# The recurrence ends at an off-diagonal entry below this times the norm: later ones are rounding.
_BREAKDOWN = 1e-12


@dataclass(frozen=True)
class Tridiagonal:
    """The Lanczos matrix of one start vector, up to its breakdown.

    Attributes:
      diagonal: the entries alpha_1, ..., alpha_m.
      beside: the off-diagonal entries beta_1, ..., beta_m; beta_m belongs to step m + 1, which was
        not taken.
    """

    diagonal: Float[np.ndarray, " m"]
    beside: Float[np.ndarray, " m"]

    @classmethod
    def of(cls, diagonal: np.ndarray, beside: np.ndarray) -> "Tridiagonal":
        """Truncate the entries at an invariant subspace: those after it are rounding errors."""
        scale = float(np.nanmax(np.abs(np.concatenate([diagonal, beside])), initial=0.0))
        ends = ~(beside > _BREAKDOWN * scale)  # true for NaN too
        m = int(np.argmax(ends)) + 1 if np.any(ends) else len(diagonal)
        beside = np.where(ends[:m], 0.0, beside[:m])
        return cls(diagonal[:m], beside)

    def rule(self) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Return the nodes and weights of the Gauss rule; the weights sum to 1."""
        return _rule(self.diagonal, self.beside[:-1])

    def before(self, x: float) -> tuple[float, float]:
        """Return a lower bound on mu((-inf, x)) and an upper bound on mu((-inf, x])."""
        nodes, weights = self._rule_with(x)
        # Rounding can move the node at x to either side of x.
        near = np.abs(nodes - x) <= 1e-10 * max(abs(x), float(np.max(np.abs(nodes))))
        return float(weights[(nodes < x) & ~near].sum()), float(weights[(nodes < x) | near].sum())

    def _rule_with(self, x: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rule with an additional node at x.

        The last diagonal entry is chosen so that x is an eigenvalue of the extended matrix.
        """
        last = x
        if self.beside[-1] > 0:
            # Gauss-Radau: the last entry is x + d_m with (T - x I) d = beta_m^2 e_m.
            m = len(self.diagonal)
            band = np.zeros((3, m))
            band[0, 1:] = band[2, :-1] = self.beside[:-1]
            band[1] = self.diagonal - x
            right = np.zeros(m)
            right[-1] = self.beside[-1] ** 2
            last += _solved(band, right)[-1]
        return _rule(np.append(self.diagonal, last), self.beside)


def _solved(band: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve the tridiagonal system; shift its diagonal slightly if x is a node (singular)."""
    try:
        return scipy.linalg.solve_banded((1, 1), band, right)
    except np.linalg.LinAlgError:
        band[1] += 1e-14 * np.max(np.abs(band))
        return scipy.linalg.solve_banded((1, 1), band, right)


def _rule(diagonal: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nodes, vectors = scipy.linalg.eigh_tridiagonal(diagonal, beside)
    return nodes, vectors[0] ** 2


@dataclass(frozen=True)
class StochasticSpectrum:
    """Estimates of a symmetric matrix's spectrum from Lanczos runs on a few random vectors.

    Attributes:
      p: the number of rows of the matrix.
      tridiagonals: one for each vector; empty if the matrix is not finite.
    """

    p: int
    tridiagonals: tuple[Tridiagonal, ...]

    @classmethod
    def of(
        cls, p: int, found: Sequence[tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]]
    ) -> "StochasticSpectrum":
        """Build the estimate from the diagonal and off-diagonal Lanczos entries of each vector."""
        finite = all(np.isfinite(diagonal[0]) for diagonal, _ in found)
        return cls(p, tuple(Tridiagonal.of(a, b) for a, b in found) if finite else ())

    @property
    def norm(self) -> float:
        """The largest |node|: a lower bound on ||A||_2, accurate for an isolated eigenvalue."""
        rules = [t.rule()[0] for t in self.tridiagonals]
        return max((float(np.max(np.abs(nodes))) for nodes in rules), default=math.nan)

    def count(self, above: float, *, confidence: float = 0.95) -> Estimate:
        """Estimate the number of eigenvalues with |lambda| > above: the epsilon-rank at this cut.

        The moments of each vector bound the count from below and above; the value is the mean of
        the midpoints. The interval combines the width of these bounds with Student's confidence
        interval over the vectors. If only a handful of eigenvalues exceed the cut, the
        distribution of the vectors' counts is skewed, and the interval contains the true value
        less often than its confidence says.

        Args:
          above: the absolute cut, non-negative.
          confidence: the interval's confidence level.
        """
        if not above >= 0:
            raise ValueError(f"expected above to be a cut >= 0, got {above}; give an |eigenvalue|")
        ends = np.array([self._share_beyond(t, above) for t in self.tridiagonals])
        return self._estimate(ends, confidence, least=0.0, most=float(self.p))

    @staticmethod
    def _share_beyond(tridiagonal: Tridiagonal, cut: float) -> tuple[float, float]:
        """Return bounds from below and above on mu(|lambda| > cut)."""
        below_least, below_most = tridiagonal.before(-cut)
        upto_least, upto_most = tridiagonal.before(cut)
        # Either side is bounded by itself: mu(lambda < -cut), and 1 - mu(lambda <= cut).
        least = max(below_least + 1.0 - upto_most, 0.0)
        most = min(below_most + 1.0 - upto_least, 1.0)
        return min(least, most), most  # rounding errors can make least the larger

    def trace(self, *, confidence: float = 0.95) -> Estimate:
        """Estimate the sum of the eigenvalues; the interval covers the sampling error only."""
        # alpha_1 = <v, A v> / p, whose mean over v is tr A / p.
        values = np.array([t.diagonal[0] for t in self.tridiagonals])
        return self._estimate(np.stack([values, values], axis=1), confidence)

    def _estimate(
        self,
        ends: Float[np.ndarray, "v 2"],
        confidence: float,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> Estimate:
        """Return p times the mean over the vectors of bounds from below and above, as one estimate.

        The interval extends from the mean of the lower bounds, less its sampling error, to the mean
        of the upper bounds, plus its sampling error.
        """
        if not 0 < confidence < 1:
            raise ValueError(
                f"expected 0 < confidence < 1, got {confidence}; pass for instance 0.95"
            )
        if not len(self.tridiagonals):
            return Estimate(math.nan, math.nan, math.nan, confidence)
        v = len(ends)
        low, high = self.p * ends.mean(axis=0)
        quantile = scipy.special.stdtrit(v - 1, (1 + confidence) / 2)
        off = self.p * np.std(ends, axis=0, ddof=1) * quantile / math.sqrt(v)
        return Estimate(
            float(low + high) / 2,
            max(float(low - off[0]), least),
            min(float(high + off[1]), most),
            confidence,
        )

    def density(self, points: Float[np.ndarray, " x"], *, width: float) -> Float[np.ndarray, " x"]:
        """Estimate the density of eigenvalues, smoothed by a Gaussian of this standard deviation.

        It integrates to 1; multiplied by p it is the number of eigenvalues per unit.
        """
        if not width > 0:
            raise ValueError(f"expected width to be positive, got {width}; give a deviation")
        points = np.asarray(points, np.float64)
        total = np.zeros_like(points)
        for nodes, weights in (t.rule() for t in self.tridiagonals):
            deviations = (points[:, None] - nodes) / width
            total += np.exp(-(deviations**2) / 2) / (width * math.sqrt(2 * math.pi)) @ weights
        return total / len(self.tridiagonals) if self.tridiagonals else total * math.nan


def starts(p: int, probes: int, *, seed: int) -> Iterator[Float[np.ndarray, " p"]]:
    """Yield start vectors with random entries of +-1.

    Among vectors with independent entries these give the smallest variance of the trace: A's
    diagonal contributes exactly (Hutchinson).
    """
    rng = np.random.default_rng(seed)
    for _ in range(probes):
        yield rng.choice([-1.0, 1.0], p)
