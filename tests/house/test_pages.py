"""Test the pages: links have targets, snippets run, commands exist, and tables are complete."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import jax
import pytest

import rankmon
from paths import ROOT
from rankmon.cli.main import main
from rankmon.cli.parser import arguments
from rankmon.writers import legend

NAMES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/README.md",
    "logs/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
PAGES = {name: (ROOT / name).read_text() for name in NAMES}
NOTEBOOKS = {
    f"docs/notebooks/{path.name}": json.loads(path.read_text())["cells"]
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
}
BLOCK = r"<!-- {} -->\n```{}\n(.*?)```"
LINK = re.compile(r'(?:\]\(|(?:href|src)=")(?!https?:)([^)"#\s]*)(?:#([^)"\s]+))?[)"]')


def cells(line: str) -> tuple[str, ...]:
    """The cells of a Markdown row, without the spaces that only align them."""
    parts = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return tuple(" ".join(part.split()) for part in parts)


def table(first: str, page: str) -> list[tuple[str, ...]]:
    """The rows below the header of the one table whose first column has this name."""
    blocks = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    tables = [[cells(line) for line in block.splitlines()] for block in blocks]
    (found,) = [rows for rows in tables if rows[0][0] == first]
    return found[2:]


def anchors(page: str) -> set[str]:
    """The anchors that a site gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    kept = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in kept}


def python_blocks(name: str) -> list[str]:
    blocks = re.findall(BLOCK.format(r"test: \w+", "python"), PAGES[name], re.DOTALL)
    assert len(blocks) == PAGES[name].count("```python"), f"a block of {name} without a test"
    return blocks


def cells_of(name: str, kind: str) -> str:
    """The text of a notebook's cells of one kind."""
    return "\n\n".join("".join(c["source"]) for c in NOTEBOOKS[name] if c["cell_type"] == kind)


@pytest.mark.parametrize("name", [*PAGES, *NOTEBOOKS])
def test_links_of_a_page_have_targets(name):
    page = PAGES[name] if name in PAGES else cells_of(name, "markdown")
    for path, anchor in LINK.findall(page):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text()), f"{path}#{anchor}"
    for path in re.findall(r"\b(?:docs|examples|rankmon|tests)/[\w./]+\.(?:md|py)\b", page):
        assert (ROOT / path).exists(), path


def test_every_picture_is_on_the_contact_sheet():
    sheet = PAGES["examples/README.md"].partition("## All pictures")[2]
    shown = re.findall(r'<img src="(\S+)" width="200"', sheet)
    pictures = [*(ROOT / "examples/pictures").iterdir(), *(ROOT / "logs").rglob("*.png")]
    tracked = [path for path in pictures if "reference" in path.parts or "pictures" in path.parts]
    assert sorted((ROOT / "examples" / path).resolve() for path in shown) == sorted(tracked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in PAGES if name != "README.md" and "```python" in PAGES[name]]
)
def test_snippets_of_a_page_run_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if name == "docs/tensorboard.md":
        compare_runs()  # it is about runs with hyperparameters
    names = {}
    for block in python_blocks(name):
        capsys.readouterr()
        exec(block, names)
        printed = capsys.readouterr().out.splitlines()
        said = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        for claim, line in zip(said, printed, strict=False):
            assert line.startswith(claim.partition(",")[0])
    for folder in re.findall(r'logdir="(logs/\w+)"', PAGES[name]):
        assert list((tmp_path / folder).rglob("*tfevents*")), folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
    assert not any(cell.get("outputs") for cell in NOTEBOOKS[name])
    command = [sys.executable, "-W", "error", "-c", cells_of(name, "code")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)


def compare_runs():
    """Run the snippet that compares runs, in this folder."""
    page = PAGES["docs/loop.md"]
    code = dict(re.findall(BLOCK.format(r"test: (\w+)", "python"), page, re.DOTALL))
    names = {}
    exec(code["data"], names)
    probe = {"inputs": names["x"], "targets": names["targets"]}
    names["problem"] = rankmon.Problem(names["apply"], loss="mse", **probe)
    names["params"] = names["initial_params"](jax.random.key(0))
    exec(code["hparams"], names)


def test_the_snippet_of_hyperparameters_adds_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare_runs()
    for lr in (0.1, 0.01):
        (record,) = rankmon.read_jsonl(tmp_path / f"logs/lr_{lr}/rankmon.jsonl")
        assert record.hparams["lr"] == lr
        assert {"widths", "engine", "input_rank"} <= record.hparams.keys()


def commands(page: str) -> list[list[str]]:
    """The commands of the page's bash blocks, without the folder of the environment."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = (part for line in lines for part in line.split(" && "))
    split = (shlex.split(part.removeprefix(".venv/bin/"), comments=True) for part in parts)
    return [words for words in split if words]


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_are_there(name):
    for program, *rest in commands(PAGES[name]):
        assert program in {"git", "mkdocs", "pip", "python", "python3", "rankmon", "tensorboard"}
        if program == "rankmon":
            arguments(rest)
        elif program == "python" and rest[0] != "-m":
            assert (ROOT / rest[0]).exists()
        elif program == "pip":
            extras = re.findall(r"\[(\w+)\]", " ".join(rest))
            declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(extras) <= declared["optional-dependencies"].keys()


OUTPUTS = [
    (name, *found)
    for name, page in PAGES.items()
    for found in re.findall(BLOCK.format("output: rankmon (.+)", "text"), page, re.DOTALL)
]


def test_the_commands_print_what_the_pages_say(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(OUTPUTS) == sum(page.count("```text") for page in PAGES.values()) > 0
    for _, command, said in OUTPUTS:
        assert main(shlex.split(command)) == 0
        shown = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [line for line in map(str.split, said.splitlines()) if line not in shown] == []


def test_what_curves_mean_is_what_the_cards_say():
    entries = [*legend.LEGEND, legend.OVER_SEEDS]
    said = {
        frozenset(row[0].split(", ")): row[1:]
        for row in table(legend.HEADER[0], PAGES["docs/curves.md"])
    }
    remedy = "run `python .ci/curves`, which writes the table of docs/curves.md"
    assert len(said) == len(entries), remedy
    for entry in entries:
        tags, *rest = cells("|".join(entry.row))
        assert said.get(frozenset(tags.split(", "))) == tuple(rest), f"{tags}: {remedy}"


def test_names_to_copy_are_in_the_files_that_contributing_gives():
    given = re.findall(r"`((?:rankmon|tests)/[\w/]+\.py)`\s+\(([^)]+)\)", PAGES["CONTRIBUTING.md"])
    assert given
    for path, names in given:
        for name in re.findall(r"`(\w+)`", names):
            defined = rf"^(?:class |def )?{name}\b"
            assert re.search(defined, (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_folders_are_listed_in_the_order_of_their_imports():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in declared["contracts"] if c["type"] == "layers"]
    rows = table("folder", PAGES["CONTRIBUTING.md"])
    assert [row[0].strip("`") for row in rows] == layers[::-1]
    folders = (ROOT / "rankmon").glob("*/__init__.py")
    assert {path.parent.name for path in folders} == set(layers)
