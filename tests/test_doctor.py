"""The doctor, in this installation and in ones that were made worse for the purpose."""

import json
from importlib import metadata

import jax
import pytest

from rankmon import doctor
from rankmon._precision import NATIVE
from rankmon.doctor import DATA_SETS, Finding, findings


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, Finding]:
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        before = dict(jax.config.values)
        found = {finding.name: finding for finding in findings(folder / "logs" / "new")}
        assert dict(jax.config.values) == before
        assert list(folder.iterdir()) == []
    return found


def test_this_installation_is_not_broken(here):
    assert not [finding for finding in here.values() if finding.status == "broken"]
    for name in ("python", "devices", "float64", "measurement", "matplotlib", "shtab", "logdir"):
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


def test_data_that_are_not_prepared(here):
    for name in DATA_SETS:
        assert here[name].status == "missing"
        assert here[name].detail.startswith("not prepared in ")
        assert here[name].remedy.endswith(f"python examples/datasets.py prepare {name}")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_data_that_are_prepared(tmp_path, monkeypatch, file_format):
    version = "3.0.1"
    folder = tmp_path / "mnist" / version
    folder.mkdir(parents=True)
    info = {"name": "mnist", "version": version, "fileFormat": file_format}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text("{}")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (mnist,) = [finding for finding in doctor._data_sets() if finding.name == "mnist"]
    if file_format == "array_record":
        assert mnist == Finding("mnist", "ok", "prepared")
    else:
        assert mnist.detail == "tfrecord files, which only TensorFlow reads"
        assert mnist.status == "missing"


def test_without_tfds(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name in ("tensorflow-datasets", "scipy", "shtab"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.name: finding for finding in doctor._data_sets()}
    assert list(found) == ["TensorFlow Datasets"]
    assert found["TensorFlow Datasets"].status == "missing"
    assert doctor._library("scipy") == Finding(
        "scipy", "broken", "not installed", "pip install scipy"
    )
    assert (
        'pip install "rankmon[completions]"' in doctor._extra("shtab", "completions", "it").remedy
    )


@pytest.fixture
def distribution(tmp_path, monkeypatch):
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

    return install


def test_a_plugin_that_loads(distribution):
    distribution("class Plugin: pass")
    assert list(doctor._plugins()) == [
        Finding("TensorBoard plugin", "ok", "ranks (a_plugin:Plugin) loads")
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("raise SystemExit(3)", "exit code 3"),
        ("x = 1", "module 'a_plugin' has no attribute 'Plugin'"),
    ],
)
def test_a_plugin_that_fails_is_broken(distribution, code, error):
    distribution(code)
    (finding,) = doctor._plugins()
    assert finding.status == "broken"
    assert error in finding.detail


def test_a_plugin_that_is_not_registered(distribution):
    distribution(None)
    (finding,) = doctor._plugins()
    assert (finding.status, finding.detail) == ("missing", "not registered")


def test_float64_that_is_lost(monkeypatch):
    monkeypatch.setattr(doctor, "DOUBLE", NATIVE)
    assert doctor._double().status == "broken"


def test_a_rank_that_is_wrong(monkeypatch):
    monkeypatch.setattr(doctor.theory, "rank_loss", lambda dims: 50)
    finding = doctor._measurement()
    assert (finding.status, finding.detail) == (
        "broken",
        "rank H_L of 8-6-3 is 51, not 50 as predicted",
    )


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def devices() -> None:
        raise RuntimeError("no device\nat all")

    monkeypatch.setattr(jax, "devices", devices)
    finding = doctor._tried(doctor._devices)
    assert (finding.name, finding.status) == ("devices", "broken")
    assert finding.detail == "RuntimeError: no device at all"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    finding = doctor._writable(tmp_path / "file" / "logs")
    assert (finding.name, finding.status) == ("logdir", "broken")
    assert doctor._writable(tmp_path / "a" / "b").status == "ok"
    assert not (tmp_path / "a").exists()
