"""Tables for a terminal of 80 columns or a pipe: summaries, comparisons, predictions, findings.

Names come from files and may hold any characters: those that cannot be printed are escaped.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isnan

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rankmon._util.facts import Finding
from rankmon._util.tags import EPSILON_RANKS, HESSIAN_PARTS
from rankmon._util.text import counted, printable
from rankmon.report.compare import ComparedTag, Comparison
from rankmon.report.intervals import count_text, estimate_text, interval_text, range_text
from rankmon.report.names import Name, add_rows, common_beginning
from rankmon.report.summary import (
    Curve,
    Determinant,
    EstimatedCurve,
    RankCurve,
    RunSummary,
    WeightCurves,
)
from rankmon.theory.tables import ClosedForms, FamilyForms

COLORS = {"ok": "green", "missing": "yellow", "broken": "bold red"}
RUNS_A_TABLE = 4  # more columns would not fit next to tag, median, range and first difference
STEPS_SHOWN = 6
_NUMBERED = re.compile(r"_\d+(?=/|$)")  # the number of a layer, as in dense_2/kernel


def report(summary: RunSummary) -> RenderableType:
    """Return the tables of one run."""
    parts: list[RenderableType] = [_headline(summary)]
    if summary.ranks:
        parts.append(_ranks(summary))
        if notes := [*_notes(summary)]:
            parts.append(Text("\n".join(notes)))
    if summary.curvature:
        parts += _curvature(summary.curvature, over_batches=summary.batches is not None)
    if summary.weights:
        parts.append(_weights(summary.weights))
    if summary.determinants:
        parts.append(_determinants(summary.determinants))
    if summary.alerts:
        parts.append(_alerts(summary))
    return _stacked(parts)


def _headline(summary: RunSummary) -> Text:
    loss = summary.loss
    lines = [f"{counted(summary.probes, 'probe')}, {_span(summary.first_step, summary.last_step)}"]
    if not isnan(loss.first):
        lines.append(f"loss {loss.first:.4g} to {loss.last:.4g}, lowest {loss.lowest:.4g}")
    if summary.over_seeds:
        lines.append("medians over seeds; low..high is their range")
    if summary.batches is not None:
        count = f"{summary.batches} " if summary.batches else "the "
        lines.append(f"medians over {count}probe batches; low..high is their range")
    if summary.errors:
        lines.append(f"{counted(summary.errors, 'error')} in the monitor")
    of = f"\nHessian: {printable(summary.measured)}" if summary.measured else ""
    return Text.assemble((printable(summary.name), "bold"), "\n" + "; ".join(lines), of)


def _ranks(summary: RunSummary) -> Table:
    """Return the table of ranks, without the columns that are empty in every row."""
    headings = ("first", "last", "min", "theory", "agrees", "linear", "low..high", "changed")
    rows = [_rank_cells(curve) for curve in summary.ranks]
    optional = ("theory", "agrees", "linear")
    kept = [i for i, name in enumerate(headings) if name not in optional or any(r[i] for r in rows)]
    table = _table("rank", *(headings[i] for i in kept))
    cells = ([Text(row[i]) for i in kept] for row in rows)
    shown = zip((curve.tag for curve in summary.ranks), cells, strict=True)
    for group, found in groupby(shown, key=lambda row: _group(row[0])):
        tags, lines = zip(*found, strict=True)
        add_rows(table, [tag.removeprefix(group) for tag in tags], lines, below=group)
    return table


def _notes(summary: RunSummary) -> Iterator[str]:
    """Yield the sentences below the table of ranks."""
    if (agreement := _agreement(summary)) is not None:
        yield agreement
    if any(not isnan(curve.landmark) for curve in summary.ranks):
        yield "linear: the rank of the same layers without activations, for reference."
    if summary.vanished is not None and any(c.tag == "rank_self/H_f" for c in summary.ranks):
        yield (
            f"From step {summary.vanished} on, all of H_f is below a tenth of the cut: "
            "rank_self/H_f then counts rounding errors."
        )


def _agreement(summary: RunSummary) -> str | None:
    """Return a sentence on the steps at which the cut leaves no doubt, if any rank disagrees."""
    known = [curve for curve in summary.ranks if curve.certain_steps]
    disagree = [curve for curve in known if curve.agreed_steps < curve.predicted_steps]
    if summary.over_seeds or summary.batches is not None or not disagree:
        return None
    found = (
        f"{curve.tag.partition('/')[2]} {curve.agreed_certain_steps}/{curve.certain_steps}"
        for curve in disagree
    )
    return f"Agreement at the steps with low = rank = high: {', '.join(found)}."


def _rank_cells(curve: RankCurve) -> list[str]:
    """Return the cells of all columns; a rank of which only bounds are known has no last value."""
    first, last, lowest = (count_text(n) for n in (curve.first, curve.last, curve.lowest))
    if curve.is_bounded:
        last = ""
        if isnan(curve.first):  # no rank of this curve is known
            first = lowest = ""
    return [
        first,
        last,
        lowest,
        count_text(curve.theory) if curve.predicted_steps else "",
        f"{curve.agreed_steps}/{curve.predicted_steps}" if curve.predicted_steps else "",
        "" if isnan(curve.landmark) else count_text(curve.landmark),
        _range(curve.low, curve.high),
        "" if curve.changed is None else f"at {curve.changed}",
    ]


def _curvature(curves: Sequence[EstimatedCurve], *, over_batches: bool) -> list[RenderableType]:
    """Return tables of the last values: numbers with their intervals or ranges, and counts."""
    by_tag = {curve.tag: curve for curve in curves}
    titles = {"eigenvalue_max": "largest", "eigenvalue_min": "smallest", "trace": "trace"}
    first = "median (range)" if over_batches else "eigenvalues at the end"
    numbers = _table(first, *titles.values())
    shares = {family: 100 * float(family.removeprefix("rank_")) for family in EPSILON_RANKS}
    counts = {"negative_0.01": "λ < -1%"}
    counts |= {family: f"|λ| > {share:g}%" for family, share in shares.items()}
    counted = _table("", *counts.values())
    number = _median if over_batches else _number
    for part in HESSIAN_PARTS:
        for table, families, text in ((numbers, titles, number), (counted, counts, _counted)):
            found = [by_tag.get(f"{family}/{part}") for family in families]
            if any(found):
                cells = (Text("" if curve is None else text(curve)) for curve in found)
                table.add_row(_indented(part), *cells)
    heading = Text("Number of eigenvalues λ at the end, in % of ‖H_L‖₂ (the largest |λ| of H_L)")
    both = ((numbers, numbers), (counted, Group(heading, counted)))
    return [shown for table, shown in both if table.row_count]


def _number(curve: EstimatedCurve) -> str:
    return estimate_text(curve.last, curve.low, curve.high)


def _median(curve: EstimatedCurve) -> str:
    return range_text(curve.last, curve.low, curve.high)


def _counted(curve: EstimatedCurve) -> str:
    known = isnan(curve.low) or isnan(curve.high)
    return count_text(curve.last) if known else interval_text(curve.low, curve.high)


def _weights(weights: Sequence[WeightCurves]) -> Table:
    table = _table("weight", "stable rank", "effective rank", "condition number")
    rows = [
        [
            Text(_first_to_last(curve))
            for curve in (weight.stable_rank, weight.effective_rank, weight.condition_number)
        ]
        for weight in weights
    ]
    add_rows(table, [weight.layer for weight in weights], rows)
    return table


def _determinants(determinants: Sequence[Determinant]) -> Table:
    table = _table("determinant", "log|det|", "sign", "changes sign at")
    rows = []
    for one in determinants:
        signs = f"{one.sign.first:+.0f} to {one.sign.last:+.0f}"
        shown = [str(step) for step in one.sign_changes[:STEPS_SHOWN]]
        more = len(one.sign_changes) - len(shown)
        steps = ", ".join([*shown, *([f"{more} more"] if more else [])]) or "never"
        rows.append([Text(_first_to_last(one.log_abs)), Text(signs), Text(steps)])
    add_rows(table, [one.layer for one in determinants], rows)
    return table


def _alerts(summary: RunSummary) -> Table:
    table = _table("alert", "")
    table.columns[0].no_wrap = True
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    for alert in summary.alerts:
        for line in alert.text.splitlines():
            message = printable(line.removeprefix("* "))
            table.add_row(f"step {alert.step}", Text(message, style="red"))
    return table


def comparison(compared: Comparison) -> RenderableType:
    """Return the tables of several runs side by side."""
    count, legend = len(compared.runs), _table("run", "", "probes", "steps", "loss")
    legend.columns[0].justify = "right"
    legend.columns[1].justify, legend.columns[1].no_wrap = "left", False
    names = [run.name for run in compared.runs]
    if beginning := common_beginning(names):
        legend.add_row("", Name(beginning))
    for number, run in enumerate(compared.runs, 1):
        steps = f"{run.first_step}..{run.last_step}"
        loss = _first_to_last(run.loss)
        name = Name(
            run.name.removeprefix(beginning),
            among=[name.removeprefix(beginning) for name in names],
            indent=2 if beginning else 0,
        )
        legend.add_row(str(number), name, str(run.probes), steps, loss)
    # Many runs need several tables: the spread over all runs first, then eight runs in each.
    if count <= RUNS_A_TABLE:
        tables = [_final_ranks(compared.ranks, range(count), with_spread=True)]
    else:
        chunks = [range(count)[i : i + 8] for i in range(0, count, 8)]
        tables = [_final_ranks(compared.ranks, range(0), with_spread=True)]
        tables += [_final_ranks(compared.ranks, chunk, with_spread=False) for chunk in chunks]
    return _stacked([legend, *tables, Text("\n".join(_sentences(compared)))])


def _final_ranks(ranks: Sequence[ComparedTag], runs: range, *, with_spread: bool) -> Table:
    """Return a table of the last ranks of some runs, optionally with the spread over all runs."""
    numbers = [str(run + 1) for run in runs]
    spread = ("median", "range", "differs") if with_spread else ()
    table = _table("rank at the end", *numbers, *spread)
    rows: list[list[Text]] = []
    for rank in ranks:
        cells = [_final(rank, run) for run in runs]
        if with_spread:
            never = "never" if _is_shared(rank) else ""
            differs = never if rank.differ is None else f"at {rank.differ}"
            reach = _range(rank.lowest, rank.highest)
            cells += [count_text(rank.median), reach, differs]
        rows.append([*map(Text, cells)])
    for group, found in groupby(zip(ranks, rows, strict=True), key=lambda row: _group(row[0].tag)):
        members = [*found]
        names = [rank.tag for rank, _ in members]
        add_rows(table, names, [cells for _, cells in members], longer_than=group)
    return table


def _final(rank: ComparedTag, run: int) -> str:
    value, bounds = rank.last[run], rank.bounds[run]
    if value is None:
        return ""
    return count_text(value) if bounds is None else interval_text(*bounds)


def _sentences(compared: Comparison) -> list[str]:
    """Return the conclusions below the tables."""
    lines, loss = [_first_difference(compared)], compared.loss
    if loss is not None:
        lines.append(
            f"Loss at the end: median {loss.median:.4g}, {loss.lowest:.4g}..{loss.highest:.4g}."
        )
    return lines


def _first_difference(compared: Comparison) -> str:
    """Return a sentence that says at which step the runs' ranks begin to differ, and which do."""
    if not any(_is_shared(rank) for rank in compared.ranks):
        alone = "No rank was logged by more than one of the runs."
        return f"{alone} {_renumbered(compared)}".rstrip()
    first = compared.first_differing
    if not first:
        return "The ranks agree at every step that the runs share."
    tags = ", ".join(printable(rank.tag) for rank in first)
    return f"The ranks differ first at step {first[0].differ}: {tags}."


def _renumbered(compared: Comparison) -> str:
    """Return a sentence on layers whose names differ between the runs in their numbers only."""
    first: dict[str, tuple[int, str]] = {}
    for rank in compared.ranks:
        run = next(i for i, value in enumerate(rank.last) if value is not None)
        known, tag = first.setdefault(_NUMBERED.sub("", rank.tag), (run, rank.tag))
        if known != run:
            names = " and ".join(printable(one.partition("/")[2]) for one in (tag, rank.tag))
            return (
                f"Their layers have different numbers, as {names}: Keras goes on counting layers "
                "within a session. Name the layers, or call keras.backend.clear_session() before "
                "each model."
            )
    return ""


def _is_shared(rank: ComparedTag) -> bool:
    """Return whether at least two runs logged the rank."""
    return sum(value is not None for value in rank.last) > 1


def prediction(forms: ClosedForms) -> RenderableType:
    """Return the tables of the closed forms."""
    biases = "with biases" if forms.bias else "without biases"
    widths = "-".join(map(str, forms.dims))
    ranks = _table("", "rank", "of p", "at most", "")
    ranks.columns[4].justify, ranks.columns[4].no_wrap = "left", False
    for part, rank in forms.ranks.items():
        bounds = [bound for bound in forms.bounds if bound.part == part]
        limits = ["\n".join(str(bound.value) for bound in bounds)]
        limits.append("\n".join(bound.source for bound in bounds))
        ranks.add_row(part, str(rank), f"{forms.per_parameter[part]:.2%}", *limits)
    columns = _table("layer", "weights", "rank of the columns of H_f")
    layers = zip(forms.dims[:-1], forms.dims[1:], forms.columns, strict=True)
    for number, (before, after, rank) in enumerate(layers, 1):
        columns.add_row(str(number), f"{after} x {before}", str(rank))
    heading = Text(
        f"{widths}, {forms.loss}, {biases}: p = {forms.p} parameters\n"
        f"r = {forms.r} (inputs), s = {forms.s} (residuals with inputs), q = {forms.q} (bottleneck)"
    )
    note = Text(
        "These formulas hold for deep linear networks with full-rank weights; for other networks, "
        "they describe the same layers without activations. docs/theory.md proves them for mse."
    )
    parts: list[RenderableType] = [heading, ranks, columns]
    if forms.coefficient is not None:
        value, multiplicity = forms.coefficient.value, forms.coefficient.multiplicity
        parts.append(
            Text(
                f"learning coefficient {value:g}, multiplicity {multiplicity} "
                "(for targets that the network can represent)"
            )
        )
    return _stacked([*parts, note])


def family_prediction(forms: FamilyForms) -> RenderableType:
    """Return the table of the closed forms of a residual, tied or other linear network."""
    ranks = _table("", "rank", "of p", "")
    ranks.columns[3].justify, ranks.columns[3].no_wrap = "left", False
    for part in ("H_L", "H_o", "H_f"):
        if part in forms.ranks:
            share = f"{forms.per_parameter[part]:.2%}"
            ranks.add_row(part, str(forms.ranks[part]), share, forms.bases[part])
        else:
            ranks.add_row(part, "", "", "no formula for this network at this s")
    heading = Text(
        f"{forms.network}, {forms.loss}, without biases: p = {forms.p} parameters\n"
        f"d = {forms.inputs} inputs of rank r = {forms.r}, K = {forms.outputs} outputs, "
        f"s = {forms.s} (residuals with inputs)"
    )
    note = Text(
        "These formulas hold for this linear network with parameters and residuals in general "
        "position."
    )
    return _stacked([heading, ranks, note])


def finding(found: Finding) -> Text:
    """Return a finding in one line, and its remedy in the next; print them without wrapping."""
    line = Text.assemble(
        (f"{found.status:9}", COLORS[found.status]), f"{found.name:21}", printable(found.detail)
    )
    return line.append(f"\n{'':9}{found.remedy}", style="bold") if found.remedy else line


def _stacked(parts: Sequence[RenderableType]) -> Group:
    """Return the parts below each other, separated by empty lines."""
    first, *others = parts
    return Group(first, *(Padding(part, (1, 0, 0, 0)) for part in others))


def _table(first: str, *others: str) -> Table:
    """Return an empty table with these headings; all columns but the first are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True, overflow="fold")
    return table


def _indented(name: str) -> Name:
    return Name(name, indent=2)


def _group(tag: str) -> str:
    return f"{tag.partition('/')[0]}/"


def _range(low: float, high: float) -> str:
    return "" if isnan(low) and isnan(high) else f"{count_text(low)}..{count_text(high)}"


def _first_to_last(curve: Curve) -> str:
    missing = isnan(curve.first) and isnan(curve.last)
    return "" if missing else f"{curve.first:.4g} to {curve.last:.4g}"


def _span(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"
