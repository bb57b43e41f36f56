"""Test the README: its snippets run (all with `pytest -m ""`), and it stays short."""

import re

import pytest

import rankmon
from paths import ROOT

README = (ROOT / "README.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- test: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def test_every_python_snippet_is_tested():
    assert README.count("```python") == len(SNIPPETS)
    assert SNIPPETS.keys() == {"loop", "one"}


def test_it_is_read_in_five_minutes():
    assert len(README.split()) < 1200


def test_the_first_page_of_the_site_has_the_same_loop():
    assert SNIPPETS["loop"] in (ROOT / "docs/index.md").read_text()


@pytest.fixture(scope="module", params=[10, pytest.param(1, marks=pytest.mark.slow)], ids=str)
def loop(request, tmp_path_factory):
    """A tenth of the loop or all, and the folder that it was run in."""
    code, share = SNIPPETS["loop"], request.param
    for text, number in (("every={})", 100), ("range({})", 300)):
        assert text.format(number) in code
        code = code.replace(text.format(number), text.format(number // share))
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {})
    return share, folder


def test_the_loop_runs(loop):
    share, folder = loop
    records = rankmon.read_jsonl(folder / "logs/mine/rankmon.jsonl")
    every, last = 100 // share, 300 // share - 1
    assert [record.step for record in records] == [0, every, 2 * every, last]
    assert records[0].scalars["rank_weights/W1"] == 6
    assert list((folder / "logs/mine").glob("*tfevents*"))


def test_the_single_measurement_prints_what_it_says(capsys):
    exec(SNIPPETS["one"], {})
    said = re.findall(r"# (\d[\d ]*)", SNIPPETS["one"])
    printed = capsys.readouterr().out.splitlines()
    assert len(said) == len(printed) > 0
    for claim, line in zip(said, printed, strict=True):
        assert line.startswith(claim.strip())


@pytest.mark.parametrize("name", ["jax", "flax"])
def test_lowest_versions_are_those_declared(name):
    declared = re.search(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert f"{name} {declared}" in README
