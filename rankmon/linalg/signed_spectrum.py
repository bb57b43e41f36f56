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
