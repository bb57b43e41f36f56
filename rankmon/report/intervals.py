"""Texts of counts and numbers that are known as intervals."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from math import isfinite, isnan


def count_text(value: float) -> str:
    """Return a count as text; a median of counts may be fractional."""
    return "NaN" if isnan(value) else f"{value:.10g}"


def interval_text(low: float, high: float) -> str:
    """Return an interval of counts as text, for example 1,024–19,968."""
    return f"{low:,.10g}–{high:,.10g}" if low < high else f"{low:,.10g}"


def estimate_text(value: float, low: float, high: float) -> str:
    """Return a number with its interval, if it has one; the interval alone if it is NaN.

    The interval is the larger distance to its ends if they are about equally far away, or if both
    are within 1 % of the number, and both ends otherwise.
    """
    if isnan(low) or isnan(high):
        return f"{value:.4g}"
    near, far = sorted((value - low, high - value))
    if far <= 0.01 * abs(value) or (near >= 0 and far - near <= 0.1 * far):  # not for NaN
        return f"{value:.4g} ± {_plain(far, 1)}"
    return ends_text(low, high)


def range_text(value: float, low: float, high: float) -> str:
    """Return a median with its range, for example 4.3 (4.1 … 4.9)."""
    if isnan(low) or isnan(high) or low == value == high:
        return _plain(value, 3)
    shown = ends_text(low, high)
    return shown if isnan(value) else f"{_plain(value, 3)} ({shown})"


def ends_text(low: float, high: float) -> str:
    """Return both ends of an interval, rounded outward by at most a tenth of its length."""
    for digits in range(2, 7):
        ends = (_rounded(low, digits, ROUND_FLOOR), _rounded(high, digits, ROUND_CEILING))
        if (low - ends[0]) + (ends[1] - high) <= 0.2 * (high - low):
            break
    texts = [_plain(end, digits) for end in ends]
    return texts[0] if texts[0] == texts[1] else " … ".join(texts)


def _plain(number: float, digits: int) -> str:
    """Return a number with this many digits, without an exponent if it is not large."""
    shown = f"{number:.{digits}g}"
    return f"{float(shown):.0f}" if "e+" in shown and abs(number) < 1e5 else shown


def _rounded(number: float, digits: int, rounding: str) -> float:
    """Return a number rounded to this many significant digits in one direction."""
    number = float(number)
    if number == 0 or not isfinite(number):
        return number
    exact = Decimal(repr(number))  # 4.1 as it is written, not the float next to it
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() + 1 - digits), rounding))
