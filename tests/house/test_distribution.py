"""What is installed: the Ranks tab's entry point, and all files that it serves."""

import shutil
import subprocess
import sys
from importlib.metadata import distribution, entry_points
from pathlib import Path
from zipfile import ZipFile

import pytest

import rankmon
import rankmon.tensorboard
from paths import ROOT
from rankmon.tensorboard.plugin import RanksLoader

PACKAGES = [Path(module.__file__).parent for module in (rankmon, rankmon.tensorboard)]


def test_tensorboard_finds_the_tab():
    (found,) = entry_points(group="tensorboard_plugins", name="ranks")
    assert found.load() is RanksLoader
    assert "ranks" in distribution("rankmon").entry_points.select(group="tensorboard_plugins").names


@pytest.mark.slow
def test_a_wheel_has_every_file_of_both_packages(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, source / package.name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    files = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package.name).rglob("*")
        if path.is_file()
    }
    assert {"rankmon/py.typed", "rankmon_tensorboard/static/vendor/LICENSE.txt"} <= files

    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True)
    (wheel,) = tmp_path.glob("rankmon-*.whl")
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entries,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        written = archive.read(entries).decode()
    assert packed == files
    assert "[tensorboard_plugins]\nranks = rankmon.tensorboard.plugin:RanksLoader\n" in written
