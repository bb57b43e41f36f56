"""The README's snippets run as they stand, and what it says of the package is so."""

import re
import shlex
from pathlib import Path

import pytest

import rankmon
import rankmon_tensorboard
from rankmon import legend
from rankmon.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OUTPUTS = re.findall(r"<!-- output: rankmon (.+) -->\n```text\n(.*?)```", README, re.DOTALL)
SNIPPETS = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def test_every_python_snippet_is_tested():
    assert README.count("```python") == len(SNIPPETS) == 3


def test_the_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(SNIPPETS["loop"], {})
    records = rankmon.read_jsonl(tmp_path / "logs/mine/rankmon.jsonl")
    assert [record.step for record in records] == [0, 100, 200, 299]
    assert records[0].scalars["rank_weights/W1"] == 6
    assert list((tmp_path / "logs/mine").glob("*tfevents*"))


def test_runs_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(SNIPPETS["loop"], names)
    exec(SNIPPETS["hparams"], names)
    for lr in (0.1, 0.01):
        (record,) = rankmon.read_jsonl(tmp_path / f"logs/lr_{lr}/rankmon.jsonl")
        assert record.hparams["lr"] == lr
        assert {"widths", "engine", "input_rank"} <= record.hparams.keys()


def test_what_curves_mean_is_what_the_cards_say():
    section = README.split("## What each curve means")[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table]
    assert rows[0] == list(legend.HEADER)
    assert rows[2:] == [list(entry.row) for entry in (*legend.LEGEND, legend.OVER_SEEDS)]


def test_the_single_measurement_prints_what_it_says(capsys):
    exec(SNIPPETS["one"], {})
    said = re.findall(r"# (\d[\d ]*)", SNIPPETS["one"])
    printed = capsys.readouterr().out.splitlines()
    assert len(said) == len(printed) == 3
    for claim, line in zip(said, printed, strict=True):
        assert line.startswith(claim.strip())


def test_the_commands_print_what_it_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(OUTPUTS) == README.count("```text") == 1
    for command, said in OUTPUTS:
        assert main(shlex.split(command)) == 0
        assert said in capsys.readouterr().out


def test_pictures_and_files_that_it_names_exist():
    for path in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
    for script in re.findall(r"examples/\w+\.py", README):
        assert (ROOT / script).exists(), script


def test_modules_that_it_lists_are_those_that_exist():
    table = README.split("## How it is built")[1]
    listed = set(re.findall(r"`(_?[a-z0-9_]+)`", table))
    for package in (rankmon, rankmon_tensorboard):
        modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
        assert modules - {"__init__"} <= listed


@pytest.mark.parametrize("name", ["jax", "flax"])
def test_lowest_versions_are_those_declared(name):
    declared = re.search(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert f"{name} {declared}" in README
