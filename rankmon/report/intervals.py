"""Texts of counts and numbers that are known as intervals."""

from math import isnan


def count_text(value: float) -> str:
    """Return a count as text; a median of counts may be fractional."""
    return "NaN" if isnan(value) else f"{value:.10g}"


def interval_text(low: float, high: float) -> str:
    """Return an interval of counts as text, for example 1,024–19,968."""
    return f"{low:,.10g}–{high:,.10g}" if low < high else f"{low:,.10g}"


def estimate_text(value: float, low: float, high: float) -> str:
    """Return a number with the larger distance to the ends of its interval, if it has one."""
    if isnan(low) or isnan(high):
        return f"{value:.4g}"
    return f"{value:.4g} ± {max(value - low, high - value):.1g}"
