"""Ranks of a feature matrix X: n rows (examples) and d columns (features), from one SVD.

Symbols: sigma_1 >= sigma_2 >= ... are the min(n, d) singular values of X.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon.linalg.numerical_rank import soft_ranks
from rankmon.linalg.spectrum import singular_values

SRANK_DELTA = 0.01
VARIANCE = 0.99
FEATURE_RANK_EPSILON = 0.01


@dataclass(frozen=True)
class FeatureRanks:
    """Ranks of features X that need no cut; a zero matrix has counts 0 and soft ranks NaN.

    Attributes:
      effective_rank: exp(-sum_i p_i log p_i) with p_i = sigma_i / sum_j sigma_j, 0 log 0 = 0 (Roy
        and Vetterli 2007, "The effective rank"). RankMe (Garrido et al. 2023, arXiv 2210.02885) is
        the same with 1e-7 added to each p_i.
      stable_rank: ||X||_F^2 / ||X||_2^2 (Rudelson and Vershynin 2007).
      srank: the smallest k with sum_{i <= k} sigma_i >= (1 - delta) sum_i sigma_i, for delta = 0.01
        (Kumar et al. 2021, arXiv 2010.14498, section 3).
      components: the smallest k with sum_{i <= k} sigma_i^2 >= 0.99 sum_i sigma_i^2. For centered
        X, this is the number of principal components with 99 % of the variance (Jolliffe 2002,
        section 6.1.1); otherwise the squares are those of the features themselves.
      feature_rank: the number of sigma_i / sqrt(n) above epsilon = 0.01; it depends on the scale of
        X (Lyle et al. 2022, arXiv 2204.09560, "feature rank").
    """

    effective_rank: float
    stable_rank: float
    srank: int
    components: int
    feature_rank: int


def feature_ranks(values: Float[np.ndarray, " m"], *, rows: int) -> FeatureRanks:
    """Return the ranks of features with these singular values, finite and descending.

    Args:
      values: all min(n, d) singular values of X.
      rows: the number n of rows of X.
    """
    soft = soft_ranks(values)
    largest = values[0] if values.size else 0.0
    scaled = values / largest if largest > 0 else values  # squares of huge values overflow
    return FeatureRanks(
        effective_rank=soft.effective_rank,
        stable_rank=soft.stable_rank,
        srank=_components(scaled, 1 - SRANK_DELTA),
        components=_components(scaled**2, VARIANCE),
        feature_rank=int(np.sum(values / np.sqrt(max(rows, 1)) > FEATURE_RANK_EPSILON)),
    )


def _components(terms: Float[np.ndarray, " m"], share: float) -> int:
    """Return the smallest k for which the first k terms reach a share of the sum."""
    sums = np.cumsum(terms)
    if sums.size == 0 or sums[-1] == 0:
        return 0
    # Ties count as reached, up to the rounding of the sums: 99 of 100 equal terms are 99 %.
    rounding = 2 * terms.size * np.finfo(np.float64).eps
    return int(np.argmax(sums >= share * (1 - rounding) * sums[-1])) + 1


def feature_singular_values(X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " min(n,d)"]:
    """Return the singular values of a finite matrix, descending, by way of a QR factorization.

    A tall matrix has the singular values of its much smaller QR factor R, and a wide one those of
    the R of its transpose.

    Raises:
      ValueError: if an entry is NaN or infinite.
    """
    n, d = X.shape
    if n == d or not np.all(np.isfinite(X)):
        return singular_values(X)
    return singular_values(np.asarray(np.linalg.qr(X if n > d else X.T, "r")))


def mean_norm(X: Float[np.ndarray, "n d"]) -> float:
    """Return the mean Euclidean norm of the rows."""
    largest = float(np.max(np.abs(X), initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return largest if len(X) else float("nan")
    return float(np.mean(np.linalg.norm(X / largest, axis=1)) * largest)


@dataclass(frozen=True)
class Centered:
    """Features minus their mean over the rows.

    Attributes:
      X: the centered features. Their rank is that of the features or one less, and at most n - 1.
      norm_of_mean: sqrt(n) ||mean||_2, the norm of the matrix that was subtracted. The rounding
        errors of X are relative to the larger of this norm and that of X.
    """

    X: Float[np.ndarray, "n d"]
    norm_of_mean: float


def centered(X: Float[np.ndarray, "n d"]) -> Centered:
    """Subtract the mean over the rows."""
    mean = np.mean(X, axis=0)
    return Centered(X - mean, float(np.sqrt(len(X)) * mean_norm(mean[None])))
