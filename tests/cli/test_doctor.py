"""Test `rankmon doctor` in this installation and in deliberately damaged ones."""

import json
import os
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest

from rankmon._util.facts import Finding
from rankmon.cli.doctor import findings


def prepared(folder: Path, name: str, file_format: str) -> None:
    """What TensorFlow Datasets looks for in a folder of prepared data."""
    version = "3.0.1"
    there = folder / name / version
    there.mkdir(parents=True)
    info = {"name": name, "version": version, "fileFormat": file_format}
    (there / "dataset_info.json").write_text(json.dumps(info))
    (there / "features.json").write_text("{}")


def found(name: str, logdir: Path) -> Finding:
    """The first finding of this name; what comes after it is not looked at."""
    return next(finding for finding in findings(logdir) if finding.name == name)


# As much of TensorFlow Datasets as the doctor asks for. Importing the real one takes seconds.
QUICK_TFDS = """
from pathlib import Path
from types import SimpleNamespace

class builder:
    def __init__(self, name):
        self.data_path = Path(__file__).parent / "data" / name / "3.0.1"
        self.info = SimpleNamespace(file_format=SimpleNamespace(
            value="array_record" if name == "mnist" else "tfrecord"))

    def is_prepared(self):
        return self.data_path.exists()
"""


@pytest.fixture(
    scope="module",
    params=[True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["quick TFDS", "real TFDS"],
)
def here(request, tmp_path_factory) -> dict[str, Finding]:
    """All findings; of the data sets, one is prepared, one in another format, and one not at all.

    Each data set takes a process that imports TensorFlow Datasets.
    """
    folder = tmp_path_factory.mktemp("doctor")
    prepared(folder / "data", "mnist", "array_record")
    prepared(folder / "data", "fashion_mnist", "tfrecord")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        if request.param:
            (folder / "tensorflow_datasets.py").write_text(QUICK_TFDS)
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        there = sorted(folder.rglob("*"))
        before = dict(jax.config.values)
        all_found = {finding.name: finding for finding in findings(folder / "logs" / "new")}
        assert dict(jax.config.values) == before
        assert sorted(folder.rglob("*")) == there
    return all_found


def test_this_installation_is_not_broken(here):
    assert not [finding for finding in here.values() if finding.status == "broken"]
    for name in (
        "python",
        "devices",
        "float64",
        "measurement",
        "matplotlib",
        "shtab",
        "logdir",
        "tensorboard command",
    ):
        assert here[name].status == "ok"
        assert here[name].remedy == ""


def test_what_is_missing_comes_with_what_to_do(here):
    for finding in here.values():
        assert (finding.status == "ok") == (finding.remedy == "")


@pytest.mark.parametrize(
    "name", ["jax", "jaxlib", "flax", "optax", "numpy", "scipy", "tensorboard"]
)
def test_versions(here, name):
    assert here[name].detail == metadata.version(name)


def test_devices(here):
    devices = jax.devices()
    assert here["devices"].detail == f"{len(devices)} x cpu ({devices[0].device_kind})"


def test_data_that_are_prepared(here):
    assert here["mnist"] == Finding("mnist", "ok", "prepared")


@pytest.mark.parametrize(
    ("name", "detail"), [("fashion_mnist", "tfrecord"), ("cifar10", "not prepared in ")]
)
def test_data_that_cannot_be_read(here, name, detail):
    assert here[name].status == "missing"
    assert here[name].detail.startswith(detail)
    assert here[name].remedy.endswith(f"python examples/datasets.py prepare {name}")


@pytest.fixture
def without(monkeypatch):
    """A function that makes distributions look as if they were not installed."""
    real = metadata.version

    def uninstall(*names: str) -> None:
        def version(name: str) -> str:
            if name in names:
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(metadata, "version", version)

    return uninstall


@pytest.fixture
def distribution(tmp_path, monkeypatch, serving):
    """A function that installs a rankmon whose plugin module holds this code, or has no plugin."""

    def install(code: str | None) -> None:
        information = tmp_path / "rankmon-9.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: rankmon\nVersion: 9\n")
        if code is not None:
            points = "[tensorboard_plugins]\nranks = a_plugin:Plugin\n"
            (information / "entry_points.txt").write_text(points)
            (tmp_path / "a_plugin.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        serving("raise SystemExit('not looked at here')")

    return install


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """A function that puts a tensorboard whose main module holds this code before the real one."""

    def install(code: str) -> None:
        package = tmp_path / "served" / "tensorboard"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "main.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)

    return install


def test_without_some_distributions(without, distribution, tmp_path):
    distribution(None)
    without("tensorflow-datasets", "scipy", "shtab")
    all_found = {finding.name: finding for finding in findings(tmp_path)}
    assert all_found.keys().isdisjoint({"mnist", "fashion_mnist", "cifar10"})
    assert all_found["TensorFlow Datasets"].status == "missing"
    assert all_found["scipy"].status == "broken"
    assert all_found["scipy"].remedy == "pip install scipy"
    assert all_found["shtab"].status == "missing"
    assert 'pip install "rankmon[completions]"' in all_found["shtab"].remedy


def test_a_plugin_that_loads(distribution, tmp_path):
    distribution("class Plugin: pass")
    plugin = found("TensorBoard plugin", tmp_path)
    assert (plugin.status, plugin.remedy) == ("ok", "")
    assert "a_plugin:Plugin" in plugin.detail


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("raise SystemExit(3)", "exit code 3"),
        ("x = 1", "module 'a_plugin' has no attribute 'Plugin'"),
    ],
)
def test_a_plugin_that_fails_is_broken(distribution, tmp_path, code, error):
    distribution(code)
    plugin = found("TensorBoard plugin", tmp_path)
    assert plugin.status == "broken"
    assert error in plugin.detail


def test_a_plugin_that_is_not_registered(distribution, tmp_path):
    distribution(None)
    plugin = found("TensorBoard plugin", tmp_path)
    assert (plugin.status, plugin.detail) == ("missing", "not registered")


# As setuptools 82 leaves TensorBoard 2.20, and a server that knows no such plugin.
NO_RESOURCES = "import no_pkg_resources"
NO_TAB = """
from http.server import BaseHTTPRequestHandler, HTTPServer

def run_main():
    server = HTTPServer(("localhost", 0), BaseHTTPRequestHandler)
    address = f"http://localhost:{server.server_port}/"
    print(f"TensorBoard 9 at {address} (Press CTRL+C to quit)", flush=True)
    server.serve_forever()
"""
LAST_WORDS = "def run_main(): raise SystemExit('no space left')"


@pytest.mark.parametrize(
    ("code", "detail", "remedy"),
    [
        (NO_RESOURCES, "No module named 'no_pkg_resources'", "tensorboard>=2.21"),
        (LAST_WORDS, "no space left", "tensorboard>=2.21"),
        (NO_TAB, "501", "reinstall rankmon"),
    ],
    ids=["import fails", "ends at once", "no tab"],
)
def test_a_tensorboard_that_does_not_serve_the_tab(
    distribution, without, serving, tmp_path, code, detail, remedy
):
    distribution(None)
    without("tensorflow-datasets")
    (tmp_path / "served" / "tensorboard" / "main.py").write_text(code)
    command = found("tensorboard command", tmp_path)
    assert command.status == "broken"
    assert detail in command.detail
    assert remedy in command.remedy


def test_float64_that_is_lost(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "enable_x64", nullcontext)
    assert found("float64", tmp_path).status == "broken"


def test_a_rank_that_is_wrong(monkeypatch, tmp_path):
    class Zeros(np.random.Generator):
        def normal(self, size: tuple[int, ...]) -> np.ndarray:
            return np.zeros(size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Zeros(np.random.PCG64(seed)))
    finding = found("measurement", tmp_path)
    assert finding.status == "broken"
    assert "is 0, not 51" in finding.detail


def test_a_check_that_fails_is_a_finding(monkeypatch, tmp_path):
    def devices() -> None:
        raise RuntimeError("no device\nat all")

    monkeypatch.setattr(jax, "devices", devices)
    finding = found("devices", tmp_path)
    assert finding.status == "broken"
    assert finding.detail == "RuntimeError: no device at all"


def test_a_folder_that_cannot_be_written(without, distribution, tmp_path):
    distribution(None)
    without("tensorflow-datasets")
    (tmp_path / "file").write_text("")
    assert found("logdir", tmp_path / "file" / "logs").status == "broken"
    assert found("logdir", tmp_path / "a" / "b").status == "ok"
    assert not (tmp_path / "a").exists()
