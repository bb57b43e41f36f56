"""The life of a run: when to measure, on which thread, and where the records go."""

from rankmon.monitor.monitor import RankMonitor, RankmonWarning
from rankmon.monitor.seeds import SeedsMonitor

__all__ = ["RankMonitor", "RankmonWarning", "SeedsMonitor"]
