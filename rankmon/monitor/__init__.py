"""Monitors: schedule measurements during training, run them, and pass the records to writers."""

from rankmon.monitor.monitor import RankMonitor, RankmonWarning
from rankmon.monitor.seeds import SeedsMonitor

__all__ = ["RankMonitor", "RankmonWarning", "SeedsMonitor"]
