r"""Markdown that stays what it is meant to be, whatever text goes into it; says nothing of its own.

TensorBoard's text page and GitHub render it alike: "|" and a line break would end a table's cell,
"<" begin a tag.
"""

import re
from collections.abc import Sequence

# Of an underscore only one at the edge of a word means anything.
_SPECIAL = re.compile(r"[\\`*\[|]|(?<![^\W_])_|_(?![^\W_])")


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


_NOT_IN_CODE = re.compile(r"[`|\\]")


def escaped(text: str) -> str:
    """The text as it is, on one line: in a cell, or after other text."""
    line = _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", line)


def code(text: str) -> str:
    """The text as code, where a cell may hold it as such; else `escaped`."""
    line = _one_line(text)
    return escaped(text) if not line or _NOT_IN_CODE.search(line) else f"`{line}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split())
