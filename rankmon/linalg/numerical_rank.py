"""Numerical ranks: counts of singular values above a cut, with a margin; and soft ranks."""

from dataclasses import asdict, dataclass
from numbers import Real

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Tolerance:
    """The cut below which a singular value counts as zero.

    cut = relative * max(||X||_2, ||reference||_2), or `absolute` if that is given. All parts of
    the Hessian share the reference H_L: with a cut relative to its own norm, the rank of a
    vanishing H_f would never fall. `relative` defaults to p * eps for the Hessian, with the eps of
    the arithmetic, and for weights to the default of `rankmon.weights.ranks.weight_rank`.

    Args:
      relative: the cut as a multiple of the norm; None for the default.
      absolute: the cut itself, in the units of the singular values; None to use `relative`.
    """

    relative: float | None = None
    absolute: float | None = None

    def __post_init__(self) -> None:
        if self.relative is not None and self.absolute is not None:
            raise ValueError(
                f"expected relative or absolute, got both ({self.relative}, {self.absolute}); "
                "give the one that you mean"
            )
        for name, value in asdict(self).items():
            if value is not None and not isinstance(value, Real):
                raise TypeError(
                    f"expected {name} to be a number, got {type(value).__name__}; for the default "
                    "leave it out"
                )
            if value is not None and not 0 <= float(value) < float("inf"):
                raise ValueError(
                    f"expected {name} to be finite and >= 0, got {value}; for the default leave "
                    "it out"
                )

    def cut(self, norm: float, *, default: float, reference_norm: float = 0.0) -> float:
        """Return the cut for a matrix of this norm; `default` replaces a `relative` of None."""
        if self.absolute is not None:
            return self.absolute
        relative = default if self.relative is None else self.relative
        return relative * max(norm, reference_norm)

    def rule(self, default: str) -> str:
        """Return a description of the cut; `default` if neither is set."""
        if self.absolute is not None:
            return f"{self.absolute:g}"
        return default if self.relative is None else f"{self.relative:g} times the norm"


DEFAULT_TOLERANCE = Tolerance()


def as_tolerance(tolerance: Tolerance | None) -> Tolerance:
    """Return the tolerance, or the default `Tolerance()` for None.

    Raises:
      TypeError: for a bare number: NumPy and JAX disagree on whether it is relative or absolute.
    """
    if tolerance is not None and not isinstance(tolerance, Tolerance):
        raise TypeError(
            f"expected tolerance to be a rankmon.Tolerance, got {type(tolerance).__name__}; write "
            "Tolerance(relative=...) or Tolerance(absolute=...)"
        )
    return tolerance or DEFAULT_TOLERANCE


@dataclass(frozen=True)
class NumericalRank:
    """A rank with its margin.

    Attributes:
      rank: the number of singular values above `tolerance`; None if the matrix is not finite, or
        if only low and high are known.
      tolerance: the cut, absolute.
      size: the largest possible rank (p for a Hessian, min(m, n) for a matrix).
      low: the count above 10 x tolerance.
      high: the count above tolerance / 10. If low = rank = high, no singular value is near the cut.
      gap: ratio of the singular values on either side of the cut; infinite if there are only exact
        zeros or no values below it, NaN at rank 0.
    """

    rank: int | None
    tolerance: float
    size: int
    low: int | None
    high: int | None
    gap: float

    @property
    def known(self) -> int | None:
        """The rank, if it is more than a bound: the number to log and to draw."""
        return self.rank

    @property
    def certain(self) -> bool:
        """Whether no singular value lies within a factor 10 of the cut."""
        return self.rank is not None and self.low == self.rank == self.high


def numerical_rank(
    values: Float[np.ndarray, " m"],
    cut: float,
    *,
    size: int | None = None,
    errors: Float[np.ndarray, " m"] | None = None,
    finest: float = 0.0,
) -> NumericalRank:
    """Count the singular values (or absolute eigenvalues) above a cut.

    Args:
      values: non-negative, finite, in any order; exact zeros may be left out.
      cut: the absolute tolerance.
      size: the largest possible rank; by default the number of values.
      errors: a bound on the error of each value. With it `low` counts the values that are certainly
        above 10 x cut, and `high` those that may be above cut / 10.
      finest: the smallest cut above the rounding error of the values. For a cut below it, `rank`
        and `low` are counted at `finest` instead, and `high` counts all values but exact zeros.
    """
    values = np.asarray(values, np.float64)
    off = np.zeros_like(values) if errors is None else errors
    ordered = np.sort(values)[::-1]
    resolved = max(cut, finest)
    rank = int(np.sum(ordered > resolved))
    below = ordered[rank] if rank < ordered.size else 0.0
    if rank == 0:
        gap = float("nan")
    else:
        with np.errstate(over="ignore"):  # a ratio to a subnormal number may be infinite
            gap = float(ordered[rank - 1] / below) if below > 0 else float("inf")
    return NumericalRank(
        rank=rank,
        tolerance=float(cut),
        size=ordered.size if size is None else size,
        low=int(np.sum(values - off > 10 * resolved)),
        high=int(np.sum(values + off > (cut / 10 if cut >= finest else 0.0))),
        gap=gap,
    )


def undefined_rank(size: int) -> NumericalRank:
    """Return the result for a matrix with NaN or infinite entries, with `rank` None."""
    return NumericalRank(None, float("nan"), size, None, None, float("nan"))


@dataclass(frozen=True)
class SoftRanks:
    """Ranks of a matrix W that need no cut; all are NaN for a zero or non-finite matrix.

    Attributes:
      stable_rank: ||W||_F^2 / ||W||_2^2.
      effective_rank: exp of the entropy of the singular values, normalized to sum to 1.
      condition_number: the ratio of the largest to the smallest singular value.
    """

    stable_rank: float = float("nan")
    effective_rank: float = float("nan")
    condition_number: float = float("nan")


def soft_ranks(values: Float[np.ndarray, " m"]) -> SoftRanks:
    """Return the soft ranks of a matrix with these singular values, finite and descending."""
    if values.size == 0 or not values[0] > 0:
        return SoftRanks()
    scaled = values / values[0]  # squares of tiny or huge values would leave the range of floats
    share = scaled / np.sum(scaled)
    share = share[share > 0]
    with np.errstate(over="ignore"):
        condition_number = float(1 / scaled[-1]) if scaled[-1] > 0 else float("inf")
    return SoftRanks(
        stable_rank=float(np.sum(scaled**2)),
        effective_rank=float(np.exp(-np.sum(share * np.log(share)))),
        condition_number=condition_number,
    )
