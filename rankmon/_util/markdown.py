r"""Markdown tables, code and text, escaped so that any text is displayed unchanged.

TensorBoard's text page and GitHub render the result the same way. Without escapes, "|" or a line
break would end a table's cell, and "<" would begin a tag.
"""

import re
from collections.abc import Sequence

# An underscore has a meaning only at the edge of a word.
_SPECIAL = re.compile(r"[\\`*\[|]|(?<![^\W_])_|_(?![^\W_])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ESCAPE = re.compile(r"\\([\\`*\[|_])")
_NOT_IN_CODE = re.compile(r"[`|\\]")


def escaped(text: str) -> str:
    """Return the text on one line with special characters escaped, for cells and running text."""
    line = _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", line)


def code(text: str) -> str:
    """Return the text as code, or `escaped` if a table cell cannot contain it as code."""
    line = _one_line(text)
    return escaped(text) if not line or _NOT_IN_CODE.search(line) else f"`{line}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that contain Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str) -> str:
    """Return Markdown of running text without its marks: code in backticks, and escapes."""
    return _ESCAPE.sub(r"\1", text.replace("`", ""))


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split())
