"""Monitors: schedule measurements during training, run them, and pass the records to writers."""

from rankmon._util.warnings import RankmonWarning
from rankmon.monitor.monitor import RankMonitor
from rankmon.monitor.seeds import SeedsMonitor

__all__ = ["RankMonitor", "RankmonWarning", "SeedsMonitor"]
