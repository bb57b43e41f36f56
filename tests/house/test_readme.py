"""Test the pages: the README's snippets run (all with `pytest -m ""`), and links have targets."""

import re
import shlex
import tomllib

import pytest

import rankmon
from paths import ROOT
from rankmon.cli.main import main
from rankmon.writers import legend

PAGES = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/decisions.md",
        "docs/tensorboard.md",
        "docs/theory.md",
        "examples/README.md",
        "logs/README.md",
    )
}
README = PAGES["README.md"]
OUTPUTS = re.findall(r"<!-- output: rankmon (.+) -->\n```text\n(.*?)```", README, re.DOTALL)
SNIPPETS = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def cells(line: str) -> tuple[str, ...]:
    """The cells of a Markdown row, without the spaces that only align them."""
    parts = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return tuple(" ".join(part.split()) for part in parts)


def table(first: str, page: str = README) -> list[tuple[str, ...]]:
    """The rows below the header of the one table whose first column has this name."""
    blocks = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    tables = [[cells(line) for line in block.splitlines()] for block in blocks]
    (found,) = [rows for rows in tables if rows[0][0] == first]
    return found[2:]


def test_every_picture_is_on_the_contact_sheet():
    sheet = PAGES["examples/README.md"].partition("## All pictures")[2]
    shown = re.findall(r'<img src="(\S+)" width="200"', sheet)
    pictures = [*(ROOT / "examples/pictures").iterdir(), *(ROOT / "logs").rglob("*.png")]
    tracked = [path for path in pictures if "reference" in path.parts or "pictures" in path.parts]
    assert sorted((ROOT / "examples" / path).resolve() for path in shown) == sorted(tracked)


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


@pytest.mark.parametrize("name", PAGES)
def test_pictures_and_files_that_a_page_names_exist(name):
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", PAGES[name]):
        assert (ROOT / name).parent.joinpath(path).exists(), path
    for path in re.findall(r"\b(?:docs|examples|rankmon|tests)/[\w./]+\.(?:md|py)\b", PAGES[name]):
        assert (ROOT / path).exists(), path


def test_names_to_copy_are_in_the_files_that_contributing_gives():
    given = re.findall(r"`((?:rankmon|tests)/[\w/]+\.py)`\s+\(([^)]+)\)", PAGES["CONTRIBUTING.md"])
    assert given
    for path, names in given:
        for name in re.findall(r"`(\w+)`", names):
            defined = rf"^(?:class |def )?{name}\b"
            assert re.search(defined, (ROOT / path).read_text(), re.MULTILINE), (path, name)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_folders_are_listed_in_the_order_of_their_imports(name):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in declared["contracts"] if c["type"] == "layers"]
    assert [row[0].strip("`") for row in table("folder", PAGES[name])] == layers[::-1]
    folders = (ROOT / "rankmon").glob("*/__init__.py")
    assert {path.parent.name for path in folders} == set(layers)


@pytest.mark.parametrize("name", ["jax", "flax"])
def test_lowest_versions_are_those_declared(name):
    declared = re.search(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert f"{name} {declared}" in README
