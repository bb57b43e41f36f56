"""Tables as a terminal of 80 columns and a pipe get them: read back cell by cell."""

import io
import re

import pytest
from rich.console import Console

from rankmon._util.facts import Finding
from rankmon.report import terminal
from rankmon.report.compare import comparison_of
from rankmon.report.summary import summary_of
from rankmon.runs.series import RunSeries
from rankmon.theory.tables import closed_forms
from run_records import series

NAN = float("nan")


def shown(renderable, *, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        markup=False,
        highlight=False,
        emoji=False,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
    )
    console.print(renderable)
    return file.getvalue()


def rows(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()]


RUN = RunSeries(
    "läuft/<b>[red]x[/red]</b> :smile:",
    {
        "loss": series([8, 0.5]),
        "rank/H_L": series([1200, 993]),
        "rank_low/H_L": series([1200, 990]),
        "rank_high/H_L": series([1200, 1000]),
        "rank_theory/H_L": series([1200, 993]),
        "rank_weights/[0]": series([25, NAN]),
        "stable_rank/[0]": series([7.25, 6.5]),
        "det_sign/[0]": series([1, -1]),
        "log_abs_det/[0]": series([-3, -4]),
        "monitor/errors": series([0, 1]),
    },
    texts={"rankmon/alerts": {10: "* fell\n* \x1b[31mrose"}},
)


def test_a_report():
    text = shown(terminal.report(summary_of(RUN)))
    assert text.splitlines()[0].rstrip() == RUN.name
    assert "2 probes, steps 0 to 10; loss 8 to 0.5, lowest 0.5; 1 error in the monitor" in text
    found = rows(text)
    assert ["rank", "first", "last", "min", "theory", "agrees", "low..high", "changed"] in found
    assert ["H_L", "1200", "993", "993", "993", "2/2", "990..1000", "at 10"] in found
    assert ["[0]", "25", "NaN", "25"] in found
    assert ["[0]", "7.25 to 6.5"] in found
    assert ["[0]", "-3 to -4", "+1 to -1", "10"] in found
    assert ["step 10", "fell"] in found
    assert ["step 10", r"\x1b[31mrose"] in found


@pytest.mark.parametrize("width", [80, 200])
def test_it_keeps_to_the_width_and_loses_no_letter(width):
    names = [f"params/Transformer_{i}/multi_head_attention/日本語/kernel_{i}" for i in range(30)]
    run = RunSeries(
        "run",
        {
            **{f"rank_weights/{name}": series([123456, 123456]) for name in names},
            **{f"rank_low/{name}": series([123456, 123456]) for name in names},
            **{f"rank_high/{name}": series([123456, 123456]) for name in names},
        },
    )
    text = shown(terminal.report(summary_of(run)), width=width)
    for line in text.splitlines():
        assert sum(2 if c in "日本語" else 1 for c in line.rstrip()) <= width
    assert "123456..123456" in text
    # A name that is folded goes on in the same column of the next line.
    column = "".join(line[: line.find("123456")] if "123456" in line else line
                     for line in text.splitlines())  # fmt: skip
    letters = "".join(column.split())
    assert all(name in letters for name in names)


def test_colors_go_to_terminals_only():
    report = terminal.report(summary_of(RUN))
    assert "\x1b" not in shown(report)
    assert "\x1b[1m" in shown(report, terminal=True)


def test_sign_changes_beyond_a_few_are_counted():
    run = RunSeries("run", {"det_sign/W": series([(-1) ** i for i in range(10)])})
    assert "10, 20, 30, 40, 50, 60, 3 more" in shown(terminal.report(summary_of(run)))


def test_a_run_without_anything_but_its_card():
    run = RunSeries("run", texts={"rankmon/card": {0: "card"}})
    assert shown(terminal.report(summary_of(run))).split() == ["run", "1", "probe,", "step", "0"]


def runs(count: int) -> list[RunSeries]:
    return [
        RunSeries(
            f"seed_{i}",
            {"rank/H_L": series([9, i]), "rank/H_o": series([3, 3]), "loss": series([1, i + 1])},
        )
        for i in range(count)
    ]


def test_a_comparison():
    text = shown(terminal.comparison(comparison_of(runs(3))))
    found = rows(text)
    assert ["2", "seed_1", "2", "0..10", "1 to 2"] in found
    assert ["rank at the end", "1", "2", "3", "median", "range", "differs"] in found
    assert ["rank/H_L", "0", "1", "2", "1", "0..2", "at 10"] in found
    assert ["rank/H_o", "3", "3", "3", "3", "3..3", "never"] in found
    assert "The ranks differ first at step 10: rank/H_L." in text
    assert "Loss at the end: median 2, 1..3." in text


def test_a_comparison_of_many_runs():
    text = shown(terminal.comparison(comparison_of(runs(20))))
    found = rows(text)
    assert ["rank/H_L", "9.5", "0..19", "at 10"] in found
    assert ["rank/H_L", *map(str, range(8))] in found
    assert ["rank/H_L", "16", "17", "18", "19"] in found
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_a_comparison_of_long_names_and_large_ranks():
    many = [
        RunSeries(
            f"sweep/learning_rate=0.001,width=4096,depth=12,seed={i}",
            {
                f"rank_weights/params/Transformer_{i}/kernel": series([123456, 123450 + i]),
                "loss": series([1, 0.1]),
            },
        )
        for i in range(4)
    ]
    text = shown(terminal.comparison(comparison_of(many)))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    letters = "".join("".join(line[5:56].split()) for line in text.splitlines())
    assert all(run.name in letters for run in many)
    assert "123453..123453" in text
    assert "No rank was logged by more than one of the runs." in text


def test_a_comparison_of_equal_runs_and_of_missing_ranks():
    alone = RunSeries("alone", {"rank_weights/W": series([2]), "rank/H_o": series([3])})
    text = shown(terminal.comparison(comparison_of([runs(1)[0], alone])))
    assert ["rank_weights/W", "2", "2", "2..2"] in rows(text)
    assert "The ranks agree at every step that the runs share." in text


def test_a_prediction():
    text = shown(terminal.prediction(closed_forms((8, 6, 3), bias=False)))
    found = rows(text)
    assert "8-6-3, mse, without biases: p = 66 parameters" in text
    assert ["H_L", "51", "77.27%"] in found
    assert ["H_o", "24", "36.36%", "60"] in [row[:4] for row in found]
    assert "Theorem 9, for ReLU" in text
    assert ["1", "6 x 8", "18"] in found


def test_a_finding_says_what_to_do():
    text = terminal.finding(Finding("mnist", "missing", "not\nthere", "prepare it")).plain
    assert text.splitlines() == [f"{'missing':9}{'mnist':21}not\\nthere", f"{'':9}prepare it"]
    assert terminal.finding(Finding("python", "ok", "3.11")).plain.split() == [
        "ok",
        "python",
        "3.11",
    ]
