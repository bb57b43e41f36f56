"""`rankmon.monitor.schedule` under its public name."""

from rankmon.monitor.schedule import (
    AtSteps,
    EveryN,
    LogSpaced,
    Schedule,
    at_steps,
    every,
    log_spaced,
)

__all__ = ["AtSteps", "EveryN", "LogSpaced", "Schedule", "at_steps", "every", "log_spaced"]
