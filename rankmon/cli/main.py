"""Command-line entry point: parse arguments, call the reporting code, print or write the result.

Exit codes: 0 for success; 1 if `doctor` finds something broken; 2 for invalid input, with one line
on stderr. A pipe that the reader closes early is not an error.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from rankmon._util.files import replace_file
from rankmon._util.warnings import RankmonWarning
from rankmon.cli.completions import NEEDS_SHTAB, completions
from rankmon.cli.networks import family_of
from rankmon.cli.parser import arguments, parser
from rankmon.cli.tags import check_patterns
from rankmon.report import export, terminal
from rankmon.report.compare import comparison_of, only_ranks
from rankmon.report.medians import as_single_run
from rankmon.report.summary import only_tags, summary_of
from rankmon.runs.series import RunSeries
from rankmon.theory.tables import closed_forms, family_forms


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the command line after the program's name; by default that of the process.

    Returns:
      The exit code.

    Raises:
      SystemExit: for --help, --version and invalid arguments.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have unencodable characters
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # TensorBoard warns of every restart
    try:
        try:
            return _run(arguments(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes the remaining buffer when it exits, which would raise the same error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    if args.command is None:
        parser().print_help()
        return 0
    try:
        with _warnings_as_lines(args.command):
            return COMMANDS[args.command](args)
    except BrokenPipeError:  # an OSError, but `main` handles it
        raise
    except KeyboardInterrupt:
        return 130  # the shell's code for a process that Ctrl-C has ended
    except (OSError, ValueError, ImportError, MemoryError) as error:
        print(f"rankmon {args.command}: {_message(error)}", file=sys.stderr)
        return 2


@contextmanager
def _warnings_as_lines(command: str) -> Iterator[None]:
    """Print rankmon's warnings in this block as single lines on stderr."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, RankmonWarning):
                text = terminal.printable(str(message).removeprefix("rankmon: "))
                print(f"rankmon {command}: {text}", file=sys.stderr)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.simplefilter("always", RankmonWarning)
        warnings.showwarning = show
        yield


def _report(args: argparse.Namespace) -> int:
    if args.interval is not None and not args.watch:
        raise ValueError("expected --watch with --interval, got --interval alone; add --watch")
    if args.watch and "-" in (args.html, args.png, args.csv, args.json):
        raise ValueError("expected file names with --watch, got '-'; name files, or omit --watch")
    if args.png is not None:
        _expect("matplotlib", extra="plots")
    if args.tables and args.watch:
        raise ValueError("expected --tables or --watch, got both; --watch shows the tables anyway")
    if not args.watch:
        tables, outputs = _reported(args)
        is_asked = args.tables or not any(path for path, _ in outputs)
        _hand_out(tables if is_asked else (), outputs)
        return 0
    from rankmon.cli.watch import watch

    def written() -> Sequence[RenderableType]:
        tables, outputs = _reported(args)
        _write(outputs)
        return tables

    watch(args.logdir, written, interval=args.interval or 5)
    return 0


def _reported(args: argparse.Namespace) -> tuple[list[RenderableType], "_Outputs"]:
    """Read the runs; return their tables, and functions that build the outputs."""
    # Imported here, as are others: the reader takes long to import, and `predict` does not need it.
    from rankmon.runs.read import read_runs

    patterns = args.tags or ["*"]
    runs = [_named(run, args.logdir) for run in read_runs(args.logdir)]
    summaries = [summary_of(run) for run in runs]
    if args.tags:
        tags = {tag for run in runs for tag in (*run.scalars, *run.arrays)}
        tags |= {tag for run in runs for tag in as_single_run(run).scalars}
        check_patterns("report", patterns, tags)

    def html() -> bytes:
        from rankmon.report.html import standalone_page

        return standalone_page(runs).encode(errors="replace")

    def png() -> bytes:
        from rankmon.report.plot import FORMATS, picture_of

        suffix = Path(args.png).suffix.lower()
        return picture_of(runs, suffix=suffix if suffix in FORMATS else ".png")

    def as_csv() -> bytes:
        return export.csv_of(runs, patterns).encode(errors="surrogateescape")

    def as_json() -> bytes:
        return export.report_json(runs, summaries, patterns).encode()

    shown = [only_tags(one, patterns) for one in summaries]
    outputs = [(args.html, html), (args.png, png), (args.csv, as_csv), (args.json, as_json)]
    tables: list[RenderableType] = [terminal.report(one) for one in shown]
    if args.tags and not any(one.has_curves for one in shown):
        tables.append(Text("No table shows these tags; --csv - prints their numbers."))
    return tables, outputs


def _open(args: argparse.Namespace) -> int:
    from rankmon.cli.open_tab import open_tab

    return open_tab(args.logdir, port=args.port, browser=not args.no_browser)


def _compare(args: argparse.Namespace) -> int:
    from rankmon.runs.read import read_several

    compared = comparison_of(read_several(args.runs))
    if args.tags:
        check_patterns("compare", args.tags, {rank.tag for rank in compared.ranks})
        compared = only_ranks(compared, args.tags)
    _hand_out(
        [terminal.comparison(compared)],
        [(args.json, lambda: export.comparison_json(compared).encode())],
    )
    return 0


def _predict(args: argparse.Namespace) -> int:
    if (family := family_of(args)) is not None:
        found = family_forms(family, r=args.rank_input, s=args.rank_residual, loss=args.loss)
        _hand_out(
            [terminal.family_prediction(found)],
            [(args.json, lambda: export.prediction_json(found).encode())],
        )
        return 0
    forms = closed_forms(
        args.widths,
        r=args.rank_input,
        s=args.rank_residual,
        bias=args.bias,
        loss=args.loss,
        n=args.examples,
        rank_true=args.rank_true,
    )
    _hand_out(
        [terminal.prediction(forms)], [(args.json, lambda: export.prediction_json(forms).encode())]
    )
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from rankmon.cli.doctor import findings  # imports JAX, which no other command needs

    console, broken = _console(), False
    for found in findings(args.logdir):
        console.print(terminal.finding(found), soft_wrap=True)
        broken |= found.status == "broken"
    return int(broken)


def _completions(args: argparse.Namespace) -> int:
    if args.shell in NEEDS_SHTAB:
        _expect("shtab", extra="completions")
    print(completions(parser(), args.shell), end="")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "report": _report,
    "open": _open,
    "compare": _compare,
    "predict": _predict,
    "doctor": _doctor,
    "completions": _completions,
}


# File names, and the functions that build the files.
_Outputs = Sequence[tuple[str | None, Callable[[], bytes]]]


def _hand_out(shown: Sequence[RenderableType], outputs: _Outputs) -> None:
    """Write the requested outputs, and print the tables unless an output goes to stdout."""
    files = _write(outputs)
    if "-" not in (path for path, _ in outputs):
        _show(shown)
        for path in files:
            print(f"wrote {terminal.printable(path)}")


def _write(outputs: _Outputs) -> list[str]:
    """Write the requested outputs; return the names of the files.

    All outputs are built before the first is written: if building one fails, no file changes.
    """
    asked = [(path, make()) for path, make in outputs if path is not None]
    to_stdout = [data for path, data in asked if path == "-"]
    if len(to_stdout) > 1:
        raise ValueError("expected '-' for one output at most, got more; name files for the others")
    files = [(path, data) for path, data in asked if path != "-"]
    for path, data in files:
        replace_file(path, data)
    for data in to_stdout:
        sys.stdout.buffer.write(data)
    return [path for path, _ in files]


def _show(shown: Sequence[RenderableType]) -> None:
    """Print the tables, separated by empty lines and without trailing blanks."""
    console = _console()
    for i, table in enumerate(shown):
        with console.capture() as captured:
            console.print(table)
        lines = (line.rstrip() for line in captured.get().splitlines())
        print(*([""] if i else []), *lines, sep="\n")


def _named(run: RunSeries, logdir: str) -> RunSeries:
    """Return the run, named after its folder if the log folder itself is the run."""
    return replace(run, name=Path(logdir).resolve().name) if run.name == "." else run


def _console() -> Console:
    """Return a console with the terminal's width and colors; a pipe gets 80 columns, no colors."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    console.width = max(console.width, 80)
    return console


def _expect(module: str, *, extra: str) -> None:
    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f'expected {module}, got an installation without it; pip install "rankmon[{extra}]"'
        )


def _message(error: BaseException) -> str:
    """Return the error on one line; for an OSError, with the file and without the number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return terminal.printable(" ".join(text.split())) or type(error).__name__
