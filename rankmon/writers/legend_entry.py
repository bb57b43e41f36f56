"""One row of the legend: a family of tags, their unit and meaning."""

import re
from dataclasses import dataclass
from functools import cached_property

from rankmon._util.tags import HESSIAN_PARTS

HEADER = ("tag", "unit", "meaning")
_PART = f"(?:{'|'.join(HESSIAN_PARTS)})"
_PATTERNS = {"…": ".+", "<part>": _PART, "<layer>": rf"(?!{_PART}$).+"}
_VARIABLE = re.compile("|".join(_PATTERNS))


@dataclass(frozen=True)
class Entry:
    r"""One family of tags and their meaning.

    Attributes:
      tags: the tags as they are shown; "…" matches any text, "<part>" a part of the Hessian, and
        "<layer>" any other text.
      unit: the unit of the numbers.
      meaning: their meaning in Markdown, with "|" written as "\|".
    """

    tags: tuple[str, ...]
    unit: str
    meaning: str

    def explains(self, tag: str) -> bool:
        """Return whether the tag belongs to the family."""
        return self._pattern.fullmatch(tag) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(self.patterns), re.DOTALL)

    @cached_property
    def patterns(self) -> tuple[str, ...]:
        """A regular expression for each of the tags, for Python and JavaScript."""
        return tuple(
            _VARIABLE.sub(lambda one: _PATTERNS[one[0]], re.escape(tag)) for tag in self.tags
        )

    @property
    def row(self) -> tuple[str, str, str]:
        """The cells of a Markdown table, under `HEADER`."""
        return ", ".join(f"`{tag}`" for tag in self.tags), self.unit, self.meaning
