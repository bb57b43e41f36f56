"""`rankmon report --watch`: draw the report again whenever the logs have grown, until Ctrl-C."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from rankmon._util.text import printable

_Files = tuple[tuple[str, int, int], ...]  # path, time of the last change in ns, size


def watch(logdir: str, draw: Callable[[], Sequence[RenderableType]], *, interval: float) -> None:
    """Show a report on the whole terminal until Ctrl-C, and print it once more at the end.

    A report that fails, as for a folder without runs, leaves the last one on the screen, below the
    reason; it is tried again once a file has changed.

    Args:
      logdir: the log folder.
      draw: a function that reads the runs and returns the tables.
      interval: the number of seconds between two looks at the files.

    Raises:
      ValueError: if stdout is not a terminal.
      ImportError: if a package for one of the outputs is missing.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:
        raise ValueError(
            "expected a terminal for --watch, got a pipe, a file or TERM=dumb; leave out --watch"
        )
    page = _Page(every=interval)
    try:
        with Live(page, console=console, screen=True, auto_refresh=False) as live:
            while True:
                started = time.monotonic()
                page.update(_files(logdir), draw)
                live.update(page, refresh=True)
                # At most half of the time is spent on reading.
                time.sleep(max(interval, time.monotonic() - started))
    except KeyboardInterrupt:
        console.print(*page.tables, sep="\n\n")


class _Page:
    """The newest report, cut to the height of the terminal."""

    def __init__(self, *, every: float) -> None:
        self.tables: Sequence[RenderableType] = ()
        self._every = every
        self._note = ""
        self._seen: _Files | None = None

    def update(self, files: _Files, draw: Callable[[], Sequence[RenderableType]]) -> None:
        """Draw the report again if the files have changed."""
        if files == self._seen:
            return
        self._seen = files
        try:
            with warnings.catch_warnings(record=True) as caught:  # they would break the screen
                warnings.simplefilter("always")
                self.tables = draw()
            self._note = "; ".join(str(warning.message) for warning in caught)
        except ImportError:
            raise
        except Exception as error:  # a file may be in any state while a run writes it
            self._note = f"waiting: {error or type(error).__name__}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield as many lines as the terminal has, with the time in the first."""
        heading = f"{time.strftime('%H:%M:%S')}, every {self._every:g} s; Ctrl-C ends"
        parts: list[RenderableType] = [Text(heading, style="dim")]
        if self._note:
            parts.append(Text(printable(self._note), style="yellow"))
        parts += [part for table in self.tables for part in (Text(), table)]
        height = options.height or console.height
        lines = console.render_lines(Group(*parts), options.update(height=None), pad=False)
        if len(lines) > height:
            rest = len(lines) - height + 1
            lines = [*lines[: height - 1], [Segment(f"{rest} more lines in rankmon report")]]
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            yield from line


def _files(logdir: str) -> _Files:
    """Return the state of all files in the log folder; files that have just gone are left out."""
    return tuple(sorted(_states(Path(logdir).expanduser())))


def _states(top: Path) -> Iterator[tuple[str, int, int]]:
    for folder, _, names in os.walk(top, followlinks=False):
        for name in names:
            path = os.path.join(folder, name)
            try:
                state = os.stat(path)
            except OSError:
                continue
            yield path, state.st_mtime_ns, state.st_size
