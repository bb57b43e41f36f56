"""Ranks of weight matrices, on the host or traced in a compiled train step."""

from rankmon.weights.ranks import WeightRank, weight_counts, weight_ranks

__all__ = ["WeightRank", "weight_counts", "weight_ranks"]
