"""Human-readable text for byte counts, lists of names, and the user's strings."""

import math
from collections.abc import Sequence

MOST_LISTED = 20


def bytes_text(size: int) -> str:
    """Return the number of bytes with a unit."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(size, 1))) // 10, len(units) - 1)
    return f"{size / 1024**power:.3g} {units[power]}"


def counted(number: float, noun: str) -> str:
    """Return a count with its noun, such as "1 alert" and "2,000 alerts"."""
    return f"{number:,.10g} {noun}" if number == 1 else f"{number:,.10g} {noun}s"


def listed(names: Sequence[str]) -> str:
    """Return the first `MOST_LISTED` names on one line, and the number of the remaining ones."""
    more = len(names) - MOST_LISTED
    shown = ", ".join(names[:MOST_LISTED]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown


def printable(text: str) -> str:
    """Return the text on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
