"""The README's snippets run (as they stand with `pytest -m ""`), and what it says is so."""

import re
import shlex
from pathlib import Path

import pytest

import rankmon
import rankmon.tensorboard
from paths import ROOT
from rankmon.cli.main import main
from rankmon.writers import legend

README = (ROOT / "README.md").read_text()
OUTPUTS = re.findall(r"<!-- output: rankmon (.+) -->\n```text\n(.*?)```", README, re.DOTALL)
SNIPPETS = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def cells(line: str) -> tuple[str, ...]:
    """The cells of a Markdown row, without the spaces that only align them."""
    parts = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return tuple(" ".join(part.split()) for part in parts)


def table(first: str) -> list[tuple[str, ...]]:
    """The rows below the header of the one table whose first column has this name."""
    blocks = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    tables = [[cells(line) for line in block.splitlines()] for block in blocks]
    (found,) = [rows for rows in tables if rows[0][0] == first]
    return found[2:]


def test_every_python_snippet_is_tested():
    assert README.count("```python") == len(SNIPPETS)
    assert SNIPPETS.keys() == {"loop", "hparams", "one"}


@pytest.fixture(scope="module", params=[10, pytest.param(1, marks=pytest.mark.slow)], ids=str)
def loop(request, tmp_path_factory):
    """A tenth of the loop or all, the folder that it was run in, and the names that it defined."""
    code, share = SNIPPETS["loop"], request.param
    for text, number in (("every={})", 100), ("range({})", 300)):
        assert text.format(number) in code
        code = code.replace(text.format(number), text.format(number // share))
    folder, names = tmp_path_factory.mktemp("readme"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, names)
    return share, folder, names


def test_the_loop_runs(loop):
    share, folder, _ = loop
    records = rankmon.read_jsonl(folder / "logs/mine/rankmon.jsonl")
    every, last = 100 // share, 300 // share - 1
    assert [record.step for record in records] == [0, every, 2 * every, last]
    assert records[0].scalars["rank_weights/W1"] == 6
    assert list((folder / "logs/mine").glob("*tfevents*"))


def test_runs_are_compared(loop, monkeypatch):
    _, folder, names = loop
    monkeypatch.chdir(folder)
    exec(SNIPPETS["hparams"], dict(names))
    for lr in (0.1, 0.01):
        (record,) = rankmon.read_jsonl(folder / f"logs/lr_{lr}/rankmon.jsonl")
        assert record.hparams["lr"] == lr
        assert {"widths", "engine", "input_rank"} <= record.hparams.keys()


def test_what_curves_mean_is_what_the_cards_say():
    entries = [*legend.LEGEND, legend.OVER_SEEDS]
    said = {frozenset(row[0].split(", ")): row[1:] for row in table(legend.HEADER[0])}
    assert len(said) == len(entries)
    for entry in entries:
        tags, *rest = cells("|".join(entry.row))
        assert said[frozenset(tags.split(", "))] == tuple(rest), tags


def test_the_single_measurement_prints_what_it_says(capsys):
    exec(SNIPPETS["one"], {})
    said = re.findall(r"# (\d[\d ]*)", SNIPPETS["one"])
    printed = capsys.readouterr().out.splitlines()
    assert len(said) == len(printed) > 0
    for claim, line in zip(said, printed, strict=True):
        assert line.startswith(claim.strip())


def test_the_commands_print_what_it_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(OUTPUTS) == README.count("```text") > 0
    for command, said in OUTPUTS:
        assert main(shlex.split(command)) == 0
        shown = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [line for line in map(str.split, said.splitlines()) if line not in shown] == []


def test_pictures_and_files_that_it_names_exist():
    for path in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
    for script in re.findall(r"examples/\w+\.py", README):
        assert (ROOT / script).exists(), script


def test_modules_that_it_lists_are_those_that_exist():
    listed = set(re.findall(r"`(_?[a-z0-9_]+)`", str(table("module"))))
    for package in (rankmon, rankmon.tensorboard):
        modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
        assert modules - {"__init__"} <= listed


@pytest.mark.parametrize("name", ["jax", "flax"])
def test_lowest_versions_are_those_declared(name):
    declared = re.search(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert f"{name} {declared}" in README
