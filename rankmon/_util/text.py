"""Numbers and names as text."""

import math
from collections.abc import Sequence


def bytes_text(size: int) -> str:
    """The number of bytes with a unit."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(size, 1))) // 10, len(units) - 1)
    return f"{size / 1024**power:.3g} {units[power]}"


MOST_LISTED = 20


def listed(names: Sequence[str]) -> str:
    """The names in a line of the card, the first `MOST_LISTED` of them."""
    more = len(names) - MOST_LISTED
    shown = ", ".join(names[:MOST_LISTED]) or "none"
    return f"{shown} and {more} more" if more > 0 else shown


def printable(text: str) -> str:
    """The text on one line, with control characters and the like as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
