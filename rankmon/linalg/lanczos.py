"""What the Lanczos tridiagonal matrices of random vectors tell of a spectrum; multiplies nothing.

Of a symmetric A [p, p] and a start v with |v|^2 = p, m Lanczos steps know the measure

  mu_v = sum_i <v, q_i>^2 / p at lambda_i,    whose mean over v is (1/p) sum_i at lambda_i,

by its moments up to 2 m. Multiplicities are in the weights: one vector sees each eigenvalue once,
with a weight that only the mean over many vectors makes its multiplicity.

With those moments, mu_v((-inf, x)) is no less than the sum of the weights before x, and
mu_v((-inf, x]) no more than that of those up to x, of the rule of m + 1 nodes one of which is x
(Chebyshev, Markov, Stieltjes). In a gap of the spectrum the weight at x, all that is open, falls
exponentially with m.

Source: Golub and Meurant, Matrices, Moments and Quadrature with Applications, 2010, chapters 3, 6.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float

# Off-diagonal entries below this, over the norm, end the recurrence: the rest is rounding.
_BREAKDOWN = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
      value: the estimate.
      low: the interval's lower end.
      high: its upper end.
      confidence: how often such intervals hold the truth.
    """

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Tridiagonal:
    """Lanczos' matrix of one start vector, up to where it breaks down.

    Attributes:
      diagonal: alpha_1, ..., alpha_m.
      beside: beta_1, ..., beta_m; the last one belongs to the step that was not taken.
    """

    diagonal: Float[np.ndarray, " m"]
    beside: Float[np.ndarray, " m"]

    @classmethod
    def of(cls, diagonal: np.ndarray, beside: np.ndarray) -> "Tridiagonal":
        """Ends where an invariant subspace has been found; what follows would be rounding."""
        scale = float(np.nanmax(np.abs(np.concatenate([diagonal, beside])), initial=0.0))
        ends = ~(beside > _BREAKDOWN * scale)
        m = int(np.argmax(ends)) + 1 if np.any(ends) else len(diagonal)
        beside = np.where(ends[:m], 0.0, beside[:m])
        return cls(diagonal[:m], beside)

    def rule(self) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Gauss nodes and weights, which sum to 1."""
        return _rule(self.diagonal, self.beside[:-1])

    def before(self, x: float) -> tuple[float, float]:
        """What mu((-inf, x)) is at least, and mu((-inf, x]) at most."""
        nodes, weights = self._rule_with(x)
        near = np.abs(nodes - x) <= 1e-10 * max(abs(x), float(np.max(np.abs(nodes))))
        return float(weights[(nodes < x) & ~near].sum()), float(weights[(nodes < x) | near].sum())

    def _rule_with(self, x: float) -> tuple[np.ndarray, np.ndarray]:
        """The rule of one node more, at x: the last diagonal entry makes it an eigenvalue."""
        last = x
        if self.beside[-1] > 0:
            m = len(self.diagonal)
            band = np.zeros((3, m))
            band[0, 1:] = band[2, :-1] = self.beside[:-1]
            band[1] = self.diagonal - x
            right = np.zeros(m)
            right[-1] = self.beside[-1] ** 2
            last += _solved(band, right)[-1]
        return _rule(np.append(self.diagonal, last), self.beside)


def _solved(band: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution; x on a node makes the matrix singular, and then beside it will do."""
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
    """The spectrum of a symmetric matrix as some random vectors see it.

    Attributes:
      p: rows of the matrix.
      tridiagonals: one for each vector; none where the matrix is not finite.
    """

    p: int
    tridiagonals: tuple[Tridiagonal, ...]

    @classmethod
    def of(
        cls, p: int, found: Sequence[tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]]
    ) -> "StochasticSpectrum":
        """From Lanczos' diagonal and off-diagonal entries, one pair for each vector."""
        finite = all(np.isfinite(diagonal[0]) for diagonal, _ in found)
        return cls(p, tuple(Tridiagonal.of(a, b) for a, b in found) if finite else ())

    @property
    def norm(self) -> float:
        """The largest |node|, a lower bound of ||A||_2, to many digits where that is isolated."""
        rules = [t.rule()[0] for t in self.tridiagonals]
        return max((float(np.max(np.abs(nodes))) for nodes in rules), default=math.nan)

    def count(self, above: float, *, confidence: float = 0.95) -> Estimate:
        """The number of eigenvalues with |lambda| > above, the epsilon-rank at an absolute cut.

        The value is in the middle of what the moments of each vector allow; the interval has both
        what they leave open, and Student's interval for so few vectors. Of a handful of eigenvalues
        the vectors' counts are skewed, and the interval holds less often than it says.

        Args:
          above: the cut, non-negative.
          confidence: of the interval.
        """
        if not above >= 0:
            raise ValueError(f"expected above to be a cut >= 0, got {above}; give an |eigenvalue|")
        ends = np.array([self._share_beyond(t, above) for t in self.tridiagonals])
        return self._estimate(ends, confidence, least=0.0, most=float(self.p))

    @staticmethod
    def _share_beyond(tridiagonal: Tridiagonal, cut: float) -> tuple[float, float]:
        """The least and the most that mu(|lambda| > cut) can be."""
        below_least, below_most = tridiagonal.before(-cut)
        upto_least, upto_most = tridiagonal.before(cut)
        least = max(below_least + 1.0 - upto_most, 0.0)
        most = min(below_most + 1.0 - upto_least, 1.0)
        return min(least, most), most  # but for rounding, least is the less

    def trace(self, *, confidence: float = 0.95) -> Estimate:
        """The sum of the eigenvalues; exact for each vector, which leaves the sampling."""
        values = np.array([t.diagonal[0] for t in self.tridiagonals])
        return self._estimate(np.stack([values, values], axis=1), confidence)

    def _estimate(
        self,
        ends: Float[np.ndarray, "v 2"],
        confidence: float,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> Estimate:
        if not 0 < confidence < 1:
            raise ValueError(f"expected 0 < confidence < 1, got {confidence}; 0.95 is usual")
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
        """The density of the eigenvalues, smoothed by Gaussians of this standard deviation.

        Integrates to 1; times p it is the number of eigenvalues a unit.
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
    """Start vectors with entries of +-1.

    They have the least variance of all with independent entries: the diagonal of A, which others
    sample, is exact (Hutchinson).
    """
    rng = np.random.default_rng(seed)
    for _ in range(probes):
        yield rng.choice([-1.0, 1.0], p)
