"""Test the wheel and the source distribution: their files, and the Ranks tab after installation."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import distribution, entry_points
from pathlib import Path
from zipfile import ZipFile

import pytest
from test_readme import SNIPPETS

from paths import ROOT
from rankmon.tensorboard.plugin import RanksLoader
from tensorboard_process import fetch, fetch_until, tensorboard_server

METADATA = ("PKG-INFO", "setup.cfg", "rankmon.egg-info/")


def test_tensorboard_finds_the_tab():
    (found,) = entry_points(group="tensorboard_plugins", name="ranks")
    assert found.load() is RanksLoader
    assert "ranks" in distribution("rankmon").entry_points.select(group="tensorboard_plugins").names


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The names of the repository's files."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: its files cannot be told from others")
    command = ["git", "ls-files", "-z"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution of a fresh copy, and the wheel that is built from it."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("made")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "tests" / "__pycache__").mkdir()
    (source / "tests" / "__pycache__" / "stale.cpython-311.pyc").touch()
    (source / "logs" / "mine").mkdir()
    (source / "logs" / "mine" / "rankmon.jsonl").touch()
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,), (wheel,) = made.glob("rankmon-*.tar.gz"), made.glob("rankmon-*.whl")
    return archive, wheel


@pytest.mark.slow
def test_distributions_pass_twines_check(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    subprocess.run(command, check=True)


@pytest.mark.slow
def test_the_source_distribution_has_the_whole_repository(built, tracked):
    with tarfile.open(built[0]) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert {name for name in names if not name.startswith(METADATA)} == tracked - {".gitignore"}


@pytest.mark.slow
def test_the_wheel_has_the_whole_package_and_no_more(built, tracked):
    with ZipFile(built[1]) as archive:
        names = archive.namelist()
        (entries,) = [name for name in names if name.endswith("/entry_points.txt")]
        written = archive.read(entries).decode()
    package = {name for name in tracked if name.startswith("rankmon/")}
    vendor = "rankmon/tensorboard/static/vendor/LICENSE.txt"
    assert {"rankmon/py.typed", vendor} <= package
    assert {name for name in names if ".dist-info/" not in name} == package
    licenses = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licenses == {"LICENSE", vendor}
    assert "[tensorboard_plugins]\nranks = rankmon.tensorboard.plugin:RanksLoader\n" in written
    assert "[console_scripts]\nrankmon = rankmon.cli.main:main\n" in written


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_runs_the_readmes_loop_and_shows_the_tab(
    built, tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with tempfile.TemporaryDirectory() as environment:
        binaries = Path(environment) / "bin"
        python = binaries / "python"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        installed = subprocess.run(
            [*pip, "install", "-q", built[1]], stderr=subprocess.PIPE, text=True
        )
        if installed.returncode and not os.environ.get("CI"):
            pytest.skip(f"pip could not install: {installed.stderr.strip()[-200:]}")
        assert installed.returncode == 0, installed.stderr
        subprocess.run([*pip, "check"], check=True)

        loop = SNIPPETS["loop"] + "\nassert 'site-packages' in rankmon.__file__\n"
        subprocess.run([python, "-c", loop], check=True, cwd=tmp_path)
        for command in ([binaries / "rankmon"], [python, "-m", "rankmon"]):
            done = subprocess.run(
                [*command, "report", "logs", "--json", "-"],
                check=True,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
            )
            (run,) = json.loads(done.stdout)["runs"]
            assert run["scalars"]["rank_weights/W1"]["steps"] == [0, 100, 200, 299]
        with tensorboard_server(tmp_path / "logs", python=str(python)) as address:
            runs = fetch_until(address, "ranks/runs", lambda answer: answer["runs"])
            assert [run["name"] for run in runs["runs"]] == ["mine"]
            assert (
                "rank/H_L"
                in fetch(address, "ranks/scalars", run="mine", prefix="rank/")["runs"]["mine"]
            )
