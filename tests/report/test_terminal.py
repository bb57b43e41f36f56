"""Test the tables in a terminal of 80 columns and in a pipe, cell by cell."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from rankmon._util.facts import Finding
from rankmon.report import terminal
from rankmon.report.compare import comparison_of
from rankmon.report.intervals import estimate_text
from rankmon.report.summary import summary_of
from rankmon.runs.series import RunSeries
from rankmon.theory.tables import closed_forms
from run_records import series

NAN, INF = float("nan"), float("inf")


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


UNKNOWN = {
    "rank/H_L": series([NAN, NAN]),
    "rank_low/H_L": series([900, 1024]),
    "rank_high/H_L": series([19_000, 19_968]),
}


def test_an_interval_is_shown_as_an_interval():
    run = RunSeries("run", UNKNOWN | {"rank/H_o": series([5, 4]), "rank/H_f": series([7, NAN])})
    found = rows(shown(terminal.report(summary_of(run))))
    assert ["H_L", "1024..19968"] in found
    assert ["rank", "first", "last", "min", "low..high", "changed"] in found  # and no theory
    assert ["H_o", "5", "4", "4", "at 10"] in found
    assert ["H_f", "7", "NaN", "7"] in found  # nothing is known of it
    compared = comparison_of([run, RunSeries("other", {"rank/H_L": series([30, 20])})])
    found = rows(shown(terminal.comparison(compared)))
    assert ["rank/H_L", "1,024–19,968", "20", "NaN", "20..19968", "never"] in found


def test_curvature_in_two_tables_with_margins_and_intervals():
    tags = {
        "eigenvalue_max/H_L": (8, 7.9),
        "eigenvalue_min/H_L": (-1, -0.1106),
        "interval_low/eigenvalue_min/H_L": (-2, -0.1109),
        "interval_high/eigenvalue_min/H_L": (0, -0.1105),
        "trace/H_L": (10, 12.5),
        "negative_0.01/H_L": (4, 3),
        "rank_0.1/H_L": (6, 6),
        "rank_0.01/H_L": (60, 51),
        "interval_low/rank_0.01/H_L": (40, 46),
        "interval_high/rank_0.01/H_L": (70, 2056),
        "eigenvalue_max/H_o": (8, 7.8),
    }
    run = RunSeries("run", {tag: series(values) for tag, values in tags.items()})
    text = shown(terminal.report(summary_of(run)))
    found = rows(text)
    assert ["eigenvalues at the end", "largest", "smallest", "trace"] in found
    assert ["H_L", "7.9", "-0.1106 ± 0.0003", "12.5"] in found
    assert ["H_o", "7.8"] in found
    assert "in % of ‖H_L‖₂ (the largest |λ| of H_L)" in text
    assert ["λ < -1%", "|λ| > 10%", "|λ| > 1%", "|λ| > 0.1%"] in found
    assert ["H_L", "3", "6", "46–2,056"] in found
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (12.5, NAN, NAN, "12.5"),
        (-0.1106, -0.1109, -0.1105, "-0.1106 ± 0.0003"),
        (0.0007735, 0.0007735, 3.58, "0.00077 … 3.6"),
        (NAN, 0.0007735, 3.58, "0.00077 … 3.6"),
        (5.0, 4.0, 6.0, "5 ± 1"),
        (-44, -144, 56, "-44 ± 100"),
        (NAN, 1.2341, 1.2389, "1.234 … 1.239"),
        (NAN, -123.4, 0, "-130 … 0"),
        (NAN, NAN, NAN, "nan"),
        (NAN, 0, INF, "0 … inf"),
    ],
    ids=[
        "exact",
        "near",
        "one-sided",
        "unknown",
        "symmetric",
        "wide",
        "narrow",
        "zero",
        "NaN",
        "inf",
    ],
)
def test_intervals_show_both_ends_where_a_distance_would_mislead(value, low, high, text):
    assert estimate_text(value, low, high) == text


def test_a_part_of_the_network_batches_landmarks_and_rounding_errors():
    card = (
        "### Ranks\n\n| fact | value |\n| --- | --- |\n"
        r"| Hessian of | only a\|b/*, Dense\_1/* &lt;, p = 650 |"
        "\n| batches | 4 disjoint probe batches of 16 examples each: a curve |\n"
        "\n#### What\n\n| batches | 7 | no fact |"
    )
    tags = {
        "rank/H_L": [144, 143.5],
        "batches/rank/H_L/low": [140, 139],
        "batches/rank/H_L/high": [144, 144],
        "rank_low/H_L": [144, 144],
        "rank_high/H_L": [144, 144],
        "rank_landmark/H_L": [47, 46],
        "rank/H_f": [3, 0],
        "rank_low/H_f": [3, 0],
        "rank_high/H_f": [3, 0],
        "rank_self/H_f": [3, 400],
        "rank_features/W": [16, 16],
        "batches/rank_features/W/low": [16, 15],
        "batches/rank_features/W/high": [16, 16],
        "eigenvalue_max/H_L": [4, 4.5],
        "batches/eigenvalue_max/H_L/low": [4, 4.1],
        "batches/eigenvalue_max/H_L/high": [4, 4.9],
    }
    scalars = {tag: series(values) for tag, values in tags.items()}
    run = RunSeries("run", scalars, texts={"rankmon/card": {0: card}})
    text = shown(terminal.report(summary_of(run)))
    found = rows(text)
    assert "medians over 4 probe batches; low..high is their range" in " ".join(text.split())
    assert "Hessian: only a|b/*, Dense_1/* <, p = 650" in text
    assert ["H_L", "144", "143.5", "143.5", "46", "139..144", "at 10"] in found
    assert "linear: the rank of the same layers without activations" in text
    assert "From step 10 on, all of H_f is below a tenth of the cut" in text
    assert ["W", "16", "16", "16", "15..16"] in found
    assert ["H_L", "4.5 (4.1 … 4.9)"] in found


def test_hf_has_vanished_only_if_it_has_in_all_batches():
    always = {tag: series([0, 0]) for tag in ("rank/H_f", "rank_high/H_f", "batches/rank/H_f/high")}
    tags = {**always, "rank_self/H_f": series([9, 8]), "batches/rank/H_f/low": series([0, 0])}
    run = RunSeries("run", {**tags, "batches/rank_high/H_f/high": series([3, 2])})
    assert "rank_self" in shown(terminal.report(summary_of(run)))
    run = RunSeries("run", {**tags, "batches/rank_high/H_f/high": series([0, 0])})
    assert "rank_self" not in shown(terminal.report(summary_of(run)))


@pytest.mark.parametrize("values", [(NAN, NAN), (470, 410)], ids=["unknown", "rounding"])
def test_a_rank_of_hf_by_its_own_norm_that_says_nothing_is_left_out(values):
    always = {tag: series([0, 0]) for tag in ("rank/H_f", "rank_low/H_f", "rank_high/H_f")}
    tags = always if values[0] > 0 else UNKNOWN
    run = RunSeries("run", {**tags, "rank_self/H_f": series(values)})
    assert "rank_self" not in shown(terminal.report(summary_of(run)))


def test_the_widest_numbers_fit_in_80_columns():
    wide = {"eigenvalue_max": -1.2345e-105, "eigenvalue_min": -1.2345e-105, "trace": -1.2345e-105}
    scalars = {}
    for family, value in wide.items():
        tag = f"{family}/H_f_fixed"
        scalars[tag] = series([value])
        scalars[f"interval_low/{tag}"] = series([value - 1e-107])
        scalars[f"interval_high/{tag}"] = series([value + 1e-107])
    for family in ("negative_0.01", "rank_0.1", "rank_0.01", "rank_0.001"):
        tag = f"{family}/H_f_fixed"
        scalars[tag] = series([123456])
        scalars[f"interval_low/{tag}"] = series([123456])
        scalars[f"interval_high/{tag}"] = series([999999])
    text = shown(terminal.report(summary_of(RunSeries("run", scalars))))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("-1.234e-105 ± 1e-107") == 3
    assert text.count("123,456–999,999") == 4


def with_weights(names: list[str]) -> RunSeries:
    groups = ("rank_weights", "rank_low", "rank_high")
    ranks = {f"{group}/{name}": series([123456, 123456]) for group in groups for name in names}
    return RunSeries("run", ranks | {f"stable_rank/{name}": series([7.25]) for name in names})


def columns_of(text: str) -> int:
    return max(cell_len(line.rstrip()) for line in text.splitlines())


@pytest.mark.parametrize("width", [80, 200])
def test_it_keeps_to_the_width_and_shortens_names_in_their_middle(width):
    names = [f"params/Transformer_{i}/multi_head_attention/日本語/kernel_{i}" for i in range(30)]
    text = shown(terminal.report(summary_of(with_weights(names))), width=width)
    short = [name.removeprefix("params/") for name in names]
    assert columns_of(text) <= width
    assert "123456..123456" in text
    found = [row for row in rows(text) if row[1:2] == ["123456"]]
    if width == 80:
        middle = [row[0].split("…") for row in found]
        assert all(name.startswith(start) for name, (start, _) in zip(short, middle, strict=True))
        assert [end.rpartition("_")[2] for _, end in middle] == [str(i) for i in range(30)]
    else:
        assert [row[0] for row in found] == short
    assert ["rank_weights/"] in rows(text)
    assert text.count("params/") == 2  # once a table


def test_names_that_differ_in_their_middle_keep_it():
    names = [f"encoder_{i}_with_attention_and_all_that/kernel" for i in range(3)]
    text = shown(terminal.report(summary_of(with_weights(names))))
    found = [row[0] for row in rows(text) if row[1:2] == ["123456"]]
    assert len(set(found)) == 3
    assert all("…" in name for name in found)


def test_names_that_would_look_alike_continue_in_the_next_line():
    middle = "of_all_the_encoders_and_all_the_decoders"
    names = [f"{x}_{middle}_{y}_{middle}_{x}" for x in "ab" for y in "cd"]
    text = shown(terminal.report(summary_of(with_weights(names))))
    assert "…" not in text
    column = "".join(line.strip().split(" ")[0] for line in text.splitlines())
    assert all(name in column for name in names)


def test_layers_are_in_natural_order():
    names = [f"Dense_{i}" for i in range(12)]
    text = shown(terminal.report(summary_of(with_weights(sorted(names)))))
    assert [row[0] for row in rows(text) if row[1:2] == ["123456"]] == names
    assert [row[0] for row in rows(text) if row[1:2] == ["7.25 to 7.25"]] == names


def test_disagreement_says_at_which_steps_the_cut_leaves_no_doubt():
    tags = {
        "rank/H_L": series([9, 8, 7, 3]),
        "rank_theory/H_L": series([9, 3, 3, 3]),
        "rank_low/H_L": series([9, 8, 5, 3]),
        "rank_high/H_L": series([9, 8, 9, 3]),
        "rank/H_o": series([3, 3]),
        "rank_theory/H_o": series([3, 3]),
        "rank_low/H_o": series([3, 2]),
        "rank_high/H_o": series([3, 3]),
    }
    text = shown(terminal.report(summary_of(RunSeries("run", tags))))
    assert "Agreement at the steps with low = rank = high: H_L 2/3." in text
    agreeing = {tag: one for tag, one in tags.items() if tag.endswith("H_o")}
    assert "low = rank" not in shown(terminal.report(summary_of(RunSeries("run", agreeing))))


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
    found = rows(text)
    assert ["sweep/learning_rate=0.001,width=4096,depth=12,"] in found
    names = [row[1] for row in found if row[2:4] == ["2", "0..10"]]
    assert names == [f"seed={i}" for i in range(4)]
    assert "123453..123453" in text
    assert "No rank was logged by more than one of the runs." in text


def test_a_comparison_of_one_network_whose_layers_were_numbered_twice():
    names = ("conv2d", "conv2d_1"), ("conv2d_2", "conv2d_3")
    pair = [
        RunSeries(f"run_{i}", {f"rank_weights/{name}/kernel": series([9]) for name in layers})
        for i, layers in enumerate(names)
    ]
    text = " ".join(shown(terminal.comparison(comparison_of(pair))).split())
    assert "different numbers, as conv2d/kernel and conv2d_2/kernel" in text
    assert "clear_session()" in text
    other = RunSeries("other", {"rank_weights/head/kernel": series([9])})
    text = shown(terminal.comparison(comparison_of([pair[0], other])))
    assert "No rank was logged by more than one of the runs." in text
    assert "numbers" not in text


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
