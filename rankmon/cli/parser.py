"""The command line's arguments and help texts."""

import argparse
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from rankmon._util.text import printable
from rankmon.cli.completions import SHELLS
from rankmon.cli.networks import channels, repeats_or_transpose, seconds, whole, whole_numbers

# argparse's errors, in the words of all other errors.
_REWORDED = (
    (r"the following arguments are required: (.*)", r"expected \1, got none"),
    (r"unrecognized arguments: (.*)", r"expected no further arguments, got \1"),
    (r"argument (\S+): not allowed with argument (\S+)", r"expected \2 or \1, got both"),
    (r"argument (\S+): expected one argument", r"expected a value after \1, got none"),
)


class _OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is none of the choices, in the words of all other errors."""
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"expected one of {choices}, got {value!r}")

    def error(self, message: str) -> NoReturn:
        for pattern, words in _REWORDED:
            message = re.sub(f"^{pattern}$", words, message, flags=re.DOTALL)
        self.exit(2, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `command` in the result is the name of the command, or None.

    Raises:
      SystemExit: with code 0 for --help and --version; with code 2 and one line on stderr for
        invalid arguments.
    """
    return parser().parse_args(argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = _OneLineParser(
        prog="rankmon",
        description="Read, compare and predict the ranks of weights and of the loss Hessian.",
        epilog="""\
examples:
  rankmon report logs                  summarize the runs in a log folder
  rankmon open logs                    show them in TensorBoard's Ranks tab
  rankmon compare logs/adam logs/sgd   show final ranks and the first difference
  rankmon predict 30 25 20 15 10       predict the ranks for these layer widths
  rankmon doctor                       check this installation

Each command has its own --help.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    _add_report(commands)
    _add_open(commands)
    _add_compare(commands)
    _add_predict(commands)
    _add_doctor(commands)
    _add_completions(commands)
    return top


def _version() -> str:
    try:
        return f"rankmon {metadata.version('rankmon')}"
    except metadata.PackageNotFoundError:
        return "rankmon (not installed)"


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
        "summarize the runs in a log folder, live or finished",
        """\
Columns of the table, for each rank:
  first, last, min   the first, the last and the lowest value; last is empty if
                     only bounds of the last rank are known: low..high are these
  theory             the last prediction
  linear             the rank of the same layers without activations, a reference
  agrees             the number of steps at which the rank equals the prediction,
                     out of all steps with a prediction; if it is not all of them,
                     a line below the table counts those of the steps at which
                     low = rank = high: elsewhere, the cut decides about the rank
  low..high          the last ranks at 10 times the cut and at a tenth of the cut;
                     they are equal if no singular value lies near the cut; for
                     medians over seeds or probe batches, the range of the ranks
  changed            the first step at which the rank differs from its first value
Columns that are empty in all rows are left out.

examples:
  rankmon report logs                      all runs, in the terminal
  rankmon report logs/mine --tags 'rank/*' only the Hessian's parts and Omega
  rankmon report logs --watch              again whenever the logs have grown
  rankmon report logs --html report.html   a page with charts, for a browser
  rankmon report logs --png ranks.png --csv ranks.csv --json ranks.json
  rankmon report logs --csv - | head       all numbers: run, step, tag, value

JSON: {"schema": 1, "runs": [{"summary": {...}, "scalars": {TAG: {"steps": [...],
"values": [...]}}, "arrays": {...}, "texts": {TAG: {STEP: Markdown}}}]}. Numbers
that are not finite are the strings "NaN", "Infinity" and "-Infinity".""",
    )
    command.add_argument(
        "logdir", metavar="LOGDIR", help="a log folder, as for tensorboard --logdir"
    )
    _add_tags(command, "tags for the table, the CSV and the JSON; can be repeated")
    command.add_argument("--html", metavar="FILE", help="write a page with charts; - for stdout")
    command.add_argument(
        "--png",
        metavar="FILE",
        help="plot the ranks (needs matplotlib); a name ending in .svg or .pdf gives that format",
    )
    command.add_argument("--csv", metavar="FILE", help="write all scalars, one per line")
    command.add_argument("--json", metavar="FILE", help="write the summary and all series")
    command.add_argument(
        "--tables", action="store_true", help="print the tables too if a file is written"
    )
    command.add_argument(
        "--watch", action="store_true", help="show the report again as the runs grow, until Ctrl-C"
    )
    command.add_argument(
        "--interval",
        metavar="SECONDS",
        type=seconds,
        help="how often --watch looks at the files (default: 5)",
    )


def _add_open(commands: _Commands) -> None:
    command = _command(
        commands,
        "open",
        "start TensorBoard on a log folder, and open its Ranks tab",
        """\
It prints the tab's address, and runs until Ctrl-C.

examples:
  rankmon open logs
  rankmon open logs --no-browser           on a machine without a display
  rankmon open logs --port 7000""",
    )
    command.add_argument("logdir", metavar="LOGDIR", help="a log folder, with or without runs")
    command.add_argument(
        "--port",
        metavar="N",
        type=whole,
        help="the port of the server (default: the first free one from 6006 on)",
    )
    command.add_argument(
        "--no-browser", action="store_true", help="only print the address of the tab"
    )


def _add_compare(commands: _Commands) -> None:
    command = _command(
        commands,
        "compare",
        "compare the final ranks of runs, and find their first difference",
        """\
Each RUN is a run folder, or a folder that contains several runs; all of them are
compared. The run of medians over seeds, which rankmon writes itself, is left out.

examples:
  rankmon compare logs/adam logs/sgd       two runs
  rankmon compare logs/seeds               all runs in a folder: median and range
  rankmon compare logs/seeds --json - | jq .ranks""",
    )
    command.add_argument("runs", metavar="RUN", nargs="+", help="a folder with one or more runs")
    _add_tags(command, "ranks to compare; can be repeated")
    command.add_argument("--json", metavar="FILE", help="write the comparison; - for stdout")


def _add_predict(commands: _Commands) -> None:
    command = _command(
        commands,
        "predict",
        "predict ranks from the widths of a network's layers",
        """\
The closed forms hold for deep linear networks whose weights have full rank. For
other stacks of dense layers, they are reference values, not claims.

Other linear networks, without biases:
  D --residual M_1,M_2,...       blocks x + B_l A_l x, with A_l: m_l x d
  D M_1 ... K --residual         W_l + I in each layer, I cut to the shape of W_l;
                                 write --residual after the widths
  D M K --tied N                 W_out W^N W_in, with one M x M matrix W
  D --tied N                     W^N
  D M D --tied transpose         W^T W, with W: M x d
  --conv C_0xC_1x...xC_L --kernels k_1,...,k_L
                                 1-D convolutions with stride 1; C_l channels
                                 after layer l, k_l taps in layer l

examples:
  rankmon predict 30 25 20 15 10
  rankmon predict 30 25 20 15 10 --rank-residual 7
  rankmon predict 30 25 20 15 10 --rank-true 10
  rankmon predict 784 100 10 --bias --loss cross_entropy --rank-input 500
  rankmon predict 8 6 3 --json - | jq .ranks.H_L
  rankmon predict 6 --residual 2,3 --rank-residual 2
  rankmon predict 6 4 3 --tied 5
  rankmon predict --conv 5x3x2 --kernels 3,3""",
    )
    command.add_argument("widths", metavar="WIDTH", nargs="*", type=whole, help="d, M_1, ..., K")
    command.add_argument(
        "--rank-input", metavar="R", type=whole, help="r, the rank of the inputs (default: full)"
    )
    command.add_argument(
        "--rank-residual",
        metavar="S",
        type=whole,
        help="s, the rank of E[residual x^T] (default: the maximum)",
    )
    command.add_argument(
        "--rank-true",
        metavar="R",
        type=whole,
        help="the rank of the true linear map, for the learning coefficient",
    )
    command.add_argument("--bias", action="store_true", help="add a bias to every layer")
    networks = command.add_mutually_exclusive_group()
    networks.add_argument(
        "--residual",
        metavar="M_1,M_2,...",
        nargs="?",
        const=(),
        type=whole_numbers,
        help="a residual network: the inner widths of its blocks; without them, W_l + I",
    )
    networks.add_argument(
        "--tied",
        metavar="N",
        type=repeats_or_transpose,
        help="tied weights: the number of times that W is applied, or transpose for W^T W",
    )
    networks.add_argument(
        "--conv",
        metavar="C_0xC_1x...",
        type=channels,
        help="convolutions: the channels, from the inputs' to the outputs', without widths",
    )
    command.add_argument(
        "--kernels", metavar="k_1,k_2,...", type=whole_numbers, help="the taps of each convolution"
    )
    command.add_argument(
        "--length",
        metavar="N",
        type=whole,
        help="the positions of an input of --conv (default: one more than an output sees)",
    )
    command.add_argument(
        "--padding",
        choices=("valid", "circular"),
        help="whether --conv shortens its inputs or wraps around (default: valid)",
    )
    command.add_argument(
        "--loss",
        default="mse",
        choices=("mse", "cosh", "cross_entropy"),
        help="the loss (default: %(default)s)",
    )
    command.add_argument(
        "--examples",
        metavar="N",
        type=whole,
        help="the number of examples, for a bound on the rank",
    )
    command.add_argument("--json", metavar="FILE", help="write the prediction; - for stdout")


def _add_doctor(commands: _Commands) -> None:
    command = _command(
        commands,
        "doctor",
        "check this installation, and suggest a remedy for each problem",
        """\
The exit code is 1 if something is broken. Missing packages and data are needed
only by some commands or by the examples.

examples:
  rankmon doctor
  rankmon doctor /scratch/logs             check that runs can be written there""",
    )
    command.add_argument(
        "logdir",
        metavar="LOGDIR",
        nargs="?",
        default="logs",
        help="a folder for future runs (default: %(default)s)",
    )


def _add_completions(commands: _Commands) -> None:
    command = _command(
        commands,
        "completions",
        "print a completion script for the shell",
        """\
All shells but fish need shtab: pip install "rankmon[completions]".

examples:
  rankmon completions bash > ~/.local/share/bash-completion/completions/rankmon
  rankmon completions zsh > ~/.zfunc/_rankmon   (~/.zfunc must be in your fpath)
  rankmon completions fish > ~/.config/fish/completions/rankmon.fish""",
    )
    command.add_argument("shell", choices=SHELLS)


def _add_tags(command: argparse.ArgumentParser, says: str) -> None:
    command.add_argument("--tags", metavar="GLOB", action="append", help=says)
