"""`rankmon.monitor.hooks` under its public name."""

from rankmon.monitor.hooks import Reporter, WatchState, report_weights, watch_weights

__all__ = ["Reporter", "WatchState", "report_weights", "watch_weights"]
