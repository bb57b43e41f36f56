"""The command line's arguments, help texts and shell completions."""

import argparse
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from rankmon._util.text import printable

SHELLS = ("bash", "zsh", "tcsh")


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line by name; `command` is the name of the command.

    Raises:
      SystemExit: with 0 for --help and --version, with 2 and one line for what does not fit.
    """
    return parser().parse_args(argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = _OneLineParser(
        prog="rankmon",
        description="Read, compare and predict the ranks of weights and of the loss Hessian.",
        epilog="""\
examples:
  rankmon report logs                  the runs in a log folder, in the terminal
  rankmon compare logs/adam logs/sgd   where they end, where they first differ
  rankmon predict 30 25 20 15 10       what theory says of these widths
  rankmon doctor                       what this installation can do

Each command has its own --help.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_report(commands)
    _add_compare(commands)
    _add_predict(commands)
    _add_doctor(commands)
    _add_completions(commands)
    return top


def completions(shell: str) -> str:
    """Return the script that completes these commands in a shell of `SHELLS`.

    Raises:
      ModuleNotFoundError: without shtab.
    """
    import shtab

    top = parser()
    for action in _all_actions(top):
        if action.metavar in ("FILE", "LOGDIR", "RUN"):
            kind = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY
            action.complete = kind  # type: ignore[attr-defined]
    return str(shtab.complete(top, shell=shell))


def _all_actions(top: argparse.ArgumentParser) -> list[argparse.Action]:
    actions = list(top._actions)
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [inner for choice in action.choices.values() for inner in choice._actions]
    return actions


def _version() -> str:
    try:
        return f"rankmon {metadata.version('rankmon')}"
    except metadata.PackageNotFoundError:
        return "rankmon, not installed"


_Commands = argparse._SubParsersAction


def _command(commands: _Commands, name: str, says: str, epilog: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=says,
        description=f"{says[0].upper()}{says[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_report(commands: _Commands) -> None:
    command = _command(
        commands,
        "report",
        "what the runs in a log folder come to, live or finished",
        """\
The table has, of each rank, the first and the last value and the lowest one;
the last prediction of theory, and at how many of the predicted steps the rank
was just that; the count at 10 x the cut and at a tenth of it (low..high, equal
where nothing lies near the cut); and the step at which it was first another.

examples:
  rankmon report logs                      every run, in the terminal
  rankmon report logs/mine --tags 'rank/*' the Hessian's parts and Omega only
  rankmon report logs --html report.html   one page with the charts, for a browser
  rankmon report logs --png ranks.png --csv ranks.csv --json ranks.json
  rankmon report logs --csv - | head       every number: run, step, tag, value

JSON: {"schema": 1, "runs": [{"summary": {...}, "scalars": {TAG: {"steps": [...],
"values": [...]}}, "arrays": {...}, "texts": {TAG: {STEP: Markdown}}}]}. Numbers
that are not finite are the strings "NaN", "Infinity" and "-Infinity".""",
    )
    command.add_argument("logdir", metavar="LOGDIR", help="what tensorboard --logdir takes")
    _add_tags(command, "tags to show in the table, and to write as CSV and JSON; can be repeated")
    command.add_argument("--html", metavar="FILE", help="write a page with charts; - for stdout")
    command.add_argument("--png", metavar="FILE", help="draw the ranks (needs matplotlib)")
    command.add_argument("--csv", metavar="FILE", help="write every scalar, a line each")
    command.add_argument("--json", metavar="FILE", help="write the summary and all series")


def _add_compare(commands: _Commands) -> None:
    command = _command(
        commands,
        "compare",
        "where runs end and where they first differ, side by side",
        """\
Each RUN is a run folder, or a folder above several: all of them are compared.
The medians over seeds that rankmon itself wrote are left out.

examples:
  rankmon compare logs/adam logs/sgd       two runs
  rankmon compare logs/seeds               all runs in it: median and range
  rankmon compare logs/seeds --json - | jq .ranks""",
    )
    command.add_argument("runs", metavar="RUN", nargs="+", help="a folder with one run or more")
    _add_tags(command, "ranks to compare; can be repeated")
    command.add_argument("--json", metavar="FILE", help="write the comparison; - for stdout")


def _add_predict(commands: _Commands) -> None:
    command = _command(
        commands,
        "predict",
        "the ranks that theory predicts for a network's widths",
        """\
Closed forms for deep linear networks whose weights have full rank; for other
stacks of dense layers they are a landmark, not a claim. Nothing is measured.

examples:
  rankmon predict 30 25 20 15 10
  rankmon predict 30 25 20 15 10 --rank-residual 7
  rankmon predict 784 100 10 --bias --loss cross_entropy --rank-input 500
  rankmon predict 8 6 3 --json - | jq .ranks.H_L""",
    )
    command.add_argument("widths", metavar="WIDTH", nargs="+", type=_whole, help="d, M_1, ..., K")
    command.add_argument(
        "--rank-input", metavar="R", type=_whole, help="r, the rank of the inputs (default: full)"
    )
    command.add_argument(
        "--rank-residual",
        metavar="S",
        type=_whole,
        help="s, the rank of E[residual x^T] (default: as high as it can be)",
    )
    command.add_argument("--bias", action="store_true", help="every layer has a bias")
    command.add_argument("--loss", default="mse", choices=("mse", "cosh", "cross_entropy"))
    command.add_argument(
        "--examples", metavar="N", type=_whole, help="how many, for the bound that grows with them"
    )
    command.add_argument("--json", metavar="FILE", help="write the prediction; - for stdout")


def _add_doctor(commands: _Commands) -> None:
    command = _command(
        commands,
        "doctor",
        "what this installation can do, and what to do about the rest",
        """\
Exit code 1 if something is broken; what is merely missing is needed by some
commands or by the examples only.

examples:
  rankmon doctor
  rankmon doctor /scratch/logs             can runs be written there?""",
    )
    command.add_argument(
        "logdir",
        metavar="LOGDIR",
        nargs="?",
        default="logs",
        help="where runs will go (%(default)s)",
    )


def _add_completions(commands: _Commands) -> None:
    command = _command(
        commands,
        "completions",
        "a script that completes commands in your shell",
        """\
Needs shtab: pip install "rankmon[completions]".

examples:
  rankmon completions bash > ~/.local/share/bash-completion/completions/rankmon
  rankmon completions zsh > ~/.zfunc/_rankmon   a folder in your fpath""",
    )
    command.add_argument("shell", choices=SHELLS)


def _add_tags(command: argparse.ArgumentParser, says: str) -> None:
    command.add_argument("--tags", metavar="GLOB", action="append", help=says)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
