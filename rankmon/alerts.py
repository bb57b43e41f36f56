"""`rankmon.monitor.alerts` under its public name."""

from rankmon.monitor.alerts import (
    Action,
    Alarm,
    Alert,
    DeadUnits,
    EdgeOfStability,
    EffectiveRankDrop,
    NonFinite,
    RankBelow,
    StopTraining,
)

__all__ = [
    "Action",
    "Alarm",
    "Alert",
    "DeadUnits",
    "EdgeOfStability",
    "EffectiveRankDrop",
    "NonFinite",
    "RankBelow",
    "StopTraining",
]
