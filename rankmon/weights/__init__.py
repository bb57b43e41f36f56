"""Ranks of weight matrices."""

from rankmon.weights.counts import weight_counts
from rankmon.weights.ranks import WeightRank, weight_ranks

__all__ = ["WeightRank", "weight_counts", "weight_ranks"]
