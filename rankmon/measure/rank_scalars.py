"""Scalars of one rank: its count, cut, margin and gap under their tags."""

from rankmon.linalg.numerical_rank import NumericalRank


def count_scalar(count: int | None) -> float:
    """A count as a scalar; NaN where there is none."""
    return float("nan") if count is None else count


def rank_scalars(prefix: str, name: str, rank: NumericalRank) -> dict[str, float]:
    """The scalars of one rank: the count under prefix/name, and its cut, low, high and gap."""
    return {
        f"{prefix}/{name}": count_scalar(rank.rank),
        f"tolerance/{name}": rank.tolerance,
        f"rank_low/{name}": count_scalar(rank.low),
        f"rank_high/{name}": count_scalar(rank.high),
        f"gap/{name}": rank.gap,
    }
