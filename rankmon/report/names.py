"""Names in tables: a common beginning written once, and long names without their middle."""

from collections.abc import Sequence
from functools import lru_cache
from os.path import commonprefix

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rankmon._util.text import printable

_SEPARATORS = "/,"
_WORTH_A_ROW = 4  # shorter beginnings are repeated in each row


def common_beginning(names: Sequence[str]) -> str:
    """Return the beginning of two or more names up to a separator; "" if it is short."""
    shared = commonprefix([*names]) if len(names) > 1 else ""
    end = max(shared.rfind(separator) for separator in _SEPARATORS) + 1
    return shared[:end] if end >= _WORTH_A_ROW else ""


def shortened(name: str, longest: int, *, start: int | None = None) -> str:
    """Return a name of at most this many columns of a terminal: a long one without its middle.

    Args:
      name: the name.
      longest: the number of columns.
      start: the number of columns before the gap; by default half of them.
    """
    if cell_len(name) <= longest:
        return name
    first, last = name, name
    while cell_len(first) > (longest // 2 if start is None else start):
        first = first[:-1]
    while cell_len(last) > longest - 1 - cell_len(first):
        last = last[1:]
    return f"{first}…{last}"


@lru_cache(maxsize=64)  # each name of a column asks
def distinct_start(names: frozenset[str], longest: int) -> int | None:
    """Return the `start` nearest to the middle for which shortened names differ, if any."""
    middle = longest // 2
    for start in sorted(range(longest), key=lambda start: abs(start - middle)):
        if len({shortened(name, longest, start=start) for name in names}) == len(names):
            return start
    return None


class Name:
    """A name in a table, which rich draws in the width that the other columns leave.

    It loses a part if the names that it stands among still differ then; otherwise, it continues in
    the next line.

    Attributes:
      text: the name, with unprintable characters escaped.
      among: all names of the column, escaped likewise.
      indent: the number of blanks before the name.
    """

    def __init__(self, name: str, *, among: Sequence[str] = (), indent: int = 0) -> None:
        self.text = printable(name)
        self.among = frozenset(map(printable, among))
        self.indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the name in the width that the column has."""
        room = max(options.max_width - self.indent, 1)
        start = distinct_start(self.among, room)
        shown = self.text if start is None else shortened(self.text, room, start=start)
        lines = Text(shown, overflow="fold").wrap(console, room)
        yield Text("\n").join(Text(" " * self.indent) + line for line in lines)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the narrowest and the widest column that the name can use."""
        full = cell_len(self.text) + self.indent
        return Measurement(min(full, self.indent + 8), full).with_maximum(options.max_width)


def add_rows(
    table: Table,
    names: Sequence[str],
    rows: Sequence[Sequence[Text]],
    *,
    below: str = "",
    longer_than: str = "",
) -> None:
    """Add a row for each name, below a row with their common beginning.

    Args:
      table: the table.
      names: the names in the first column.
      rows: the other cells of each row.
      below: the group of the names, which has a row of its own.
      longer_than: a beginning that is written in each row if the names have no more in common.
    """
    beginning = common_beginning(names)
    beginning = "" if beginning == longer_than else beginning
    short = [name.removeprefix(beginning) for name in names]
    for heading, indent in ((below, 0), (beginning, 1 if below else 0)):
        if heading:
            table.add_row(Name(heading, indent=indent), style="dim")
    indent = 2 if below or beginning else 0
    for name, cells in zip(short, rows, strict=True):
        table.add_row(Name(name, among=short, indent=indent), *cells)
