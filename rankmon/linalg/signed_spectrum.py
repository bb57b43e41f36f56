"""Numbers that summarize the signed eigenvalues of one part of a Hessian."""

from collections.abc import Mapping
from dataclasses import dataclass

from rankmon.linalg.estimate import Estimate

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
