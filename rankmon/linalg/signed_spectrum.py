"""Numbers that summarize the signed eigenvalues of one part of a Hessian."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from rankmon.linalg.estimate import Estimate
from rankmon.linalg.numerical_rank import soft_ranks

# The epsilon-ranks count eigenvalues of larger magnitude than these shares of ||H_L||_2.
SHARES = (0.1, 0.01, 0.001)

# Eigenvalues below minus this share of ||H_L||_2 count as clearly negative.
NEGATIVE_SHARE = 0.01

# The values of extremes are left out if their intervals are wider than these shares of ||X||_2 and
# of themselves, and those of positive numbers if theirs begin below a quarter of its end; counts
# may be off by a few.
_WIDEST_OF_NORM, _WIDEST, _WIDEST_RATIO, _FEW = 0.02, 0.5, 0.75, 3.0


@dataclass(frozen=True)
class SignedSpectrum:
    """The extremes, moments and counts of the eigenvalues lambda_i of one part X, [p, p].

    An exact engine gives intervals without width, an estimating one 95 % intervals.

    Attributes:
      largest: the largest eigenvalue, with its sign.
      smallest: the smallest eigenvalue, with its sign.
      trace: sum_i lambda_i.
      frobenius: ||X||_F = sqrt(sum_i lambda_i^2).
      stable_rank: ||X||_F^2 / ||X||_2^2.
      effective_rank: exp of the entropy of |lambda_i| / sum_j |lambda_j|; unknown (NaN) from an
        estimating engine.
      above: for each of `SHARES` the number of |lambda_i| > share ||H_L||_2, the epsilon-rank.
      clearly_negative: the number of lambda_i < -NEGATIVE_SHARE ||H_L||_2.
      negative: the number of lambda_i < -cut, at the cut of the rank; unknown (NaN) from an
        estimating engine.
    """

    largest: Estimate
    smallest: Estimate
    trace: Estimate
    frobenius: Estimate
    stable_rank: Estimate
    effective_rank: Estimate
    above: Mapping[float, Estimate]
    clearly_negative: Estimate
    negative: Estimate

    @classmethod
    def of_eigenvalues(
        cls,
        values: Float[np.ndarray, " m"],
        *,
        norm: float,
        cut: float,
        size: int | None = None,
    ) -> "SignedSpectrum":
        """Return the summary of a part whose eigenvalues are known, with intervals of no width.

        The stable and the effective rank of a zero matrix are NaN.

        Args:
          values: the eigenvalues, finite, in any order; exact zeros may be left out.
          norm: ||H_L||_2, whose shares are the cuts of `above` and `clearly_negative`.
          cut: the absolute cut of `negative`.
          size: the number of eigenvalues, zeros included; by default that of `values`.
        """
        has_zero = size is not None and size > len(values)
        values = np.sort(np.append(values, 0.0) if has_zero else values)
        magnitudes = np.sort(np.abs(values))[::-1]
        soft = soft_ranks(magnitudes)
        largest = float(magnitudes[0])
        # Scaled, for the squares of tiny or huge values would leave the range of floats.
        root = float(np.linalg.norm(magnitudes / largest)) if largest > 0 else 0.0

        def above(level: float) -> Estimate:
            return Estimate.exact(int(np.count_nonzero(magnitudes > level)))

        def below(level: float) -> Estimate:
            return Estimate.exact(int(np.count_nonzero(values < level)))

        with np.errstate(over="ignore"):
            trace = float(np.sum(values))
        return cls(
            largest=Estimate.exact(values[-1]),
            smallest=Estimate.exact(values[0]),
            trace=Estimate.exact(trace),
            frobenius=Estimate.exact(largest * root),
            stable_rank=Estimate.exact(soft.stable_rank),
            effective_rank=Estimate.exact(soft.effective_rank),
            above={share: above(share * norm) for share in SHARES},
            clearly_negative=below(-NEGATIVE_SHARE * norm),
            negative=below(-cut),
        )

    def with_zeros(self) -> "SignedSpectrum":
        """Return the summary of a larger matrix whose other eigenvalues are zero."""

        def clipped(estimate: Estimate, low: float, high: float) -> Estimate:
            value, *ends = (
                float(np.clip(x, low, high)) for x in (estimate.value, estimate.low, estimate.high)
            )
            return Estimate(value, ends[0], ends[1], estimate.confidence)

        return replace(
            self,
            largest=clipped(self.largest, 0.0, np.inf),
            smallest=clipped(self.smallest, -np.inf, 0.0),
        )

    def spanning_counts(self, other: "SignedSpectrum") -> "SignedSpectrum":
        """Return the summary with intervals of counts that contain those of another one as well."""
        return replace(
            self,
            above={share: n.spanning(other.above[share]) for share, n in self.above.items()},
            clearly_negative=self.clearly_negative.spanning(other.clearly_negative),
        )

    def with_rank_at_most(self, most: int) -> "SignedSpectrum":
        """Return the summary of a matrix with at most so many eigenvalues above rounding."""

        def capped(count: Estimate) -> Estimate:
            value, low, high = (min(x, most) for x in (count.value, count.low, count.high))
            return Estimate(value, low, high, count.confidence)

        return replace(
            self,
            stable_rank=capped(self.stable_rank),
            above={share: capped(count) for share, count in self.above.items()},
            clearly_negative=capped(self.clearly_negative),
        )

    def without_negative(self) -> "SignedSpectrum":
        """Return the summary of a matrix that is positive semidefinite."""
        largest, smallest = (
            replace(e, value=max(e.value, 0.0), low=max(e.low, 0.0), high=max(e.high, 0.0))
            for e in (self.largest, self.smallest)
        )
        trace = replace(self.trace, low=max(self.trace.low, largest.low))
        none = replace(self.clearly_negative, value=0.0, low=0.0, high=0.0)
        return replace(self, largest=largest, smallest=smallest, trace=trace, clearly_negative=none)

    def without_vague_values(self) -> "SignedSpectrum":
        """Return the summary with NaN for the values whose intervals say too little.

        Their intervals stay: an extreme that is the end of a wide interval, as after a few steps of
        an estimating engine, would be read as a measurement.
        """
        norm = max(self.largest.high, -self.smallest.low)

        def extreme(estimate: Estimate) -> Estimate:
            widest = max(_WIDEST_OF_NORM * norm, _WIDEST * abs(estimate.value))
            return estimate.unless_wider(widest)

        def positive(estimate: Estimate, least: float = 0.0) -> Estimate:
            return estimate.unless_wider(max(least, _WIDEST_RATIO * estimate.high))

        return replace(
            self,
            largest=extreme(self.largest),
            smallest=extreme(self.smallest),
            frobenius=positive(self.frobenius),
            stable_rank=positive(self.stable_rank),
            above={share: positive(count, _FEW) for share, count in self.above.items()},
            clearly_negative=positive(self.clearly_negative, _FEW),
        )
