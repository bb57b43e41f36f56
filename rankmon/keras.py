"""A callback for Keras; importing this module imports Keras."""

from rankmon.monitor.keras import RankCallback

__all__ = ["RankCallback"]
