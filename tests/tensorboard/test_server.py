"""Test the Ranks tab in `tensorboard` processes: both loaders, and runs that grow."""

import base64
import json
import os
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from tensorboard.data.server_ingester import NoDataServerError, get_server_binary

from rankmon import Record, TensorBoardWriter
from run_records import blank_png
from tensorboard_process import fetch, fetch_until, tensorboard_server


def has_data_server() -> bool:
    try:
        return bool(get_server_binary())
    except NoDataServerError:
        return False


FAST = pytest.param(
    "true",
    marks=pytest.mark.skipif(not has_data_server(), reason="TensorBoard has no data server here"),
)
ODD = '<img src=x onerror=alert(1)>/läuft & "so" it\'s 100%25'
LONG = 150  # more than either loader keeps of a tag that it knows nothing of: 10 and 100
SPECTRUM = np.array([1.5, 0.5, -6.0])


def probed(step: int) -> Record:
    """As many eigenvalues above the cut as the step is odd or even."""
    return Record(
        step=step,
        attempt=1,
        wall_time=1.7e9 + step,
        scalars={"rank/H_L": 2.0, "tolerance/H_L": 0.01, f"rank_weights/{ODD}": float(step)},
        arrays={"spectrum/H_L": SPECTRUM - step % 2},
        texts={"rankmon/alerts": f"* step {step}"},
    )


def steps_of(answer, run: str = "long", tag: str = "rank/H_L") -> list[int]:
    return answer["runs"].get(run, {}).get(tag, {}).get("steps", [])


def counted(answer, position: int) -> list[int]:
    """One row of the counts of H_L, by the slider's position."""
    part = answer["parts"]["H_L"]
    table = np.frombuffer(base64.b64decode(part["counts"]), f"<u{part['bits'] // 8}")
    return table.reshape(-1, len(part["steps"]))[position].tolist()


@pytest.mark.parametrize("load_fast", [FAST, pytest.param("false", marks=pytest.mark.slow)])
def test_the_tab_shows_runs_as_they_grow(tmp_path, load_fast):
    logs = tmp_path / "logs"
    with TensorBoardWriter(logs / "torn") as writer:
        for step in range(5):
            writer.write(probed(step))
    (file,) = (logs / "torn").glob("*tfevents*")
    os.truncate(file, file.stat().st_size - 30)
    with TensorBoardWriter(logs / "long") as writer, TensorBoardWriter(logs / ODD) as odd:
        for step in range(LONG):
            writer.write(probed(step))
        odd.write(probed(0))
        flags = (f"--load_fast={load_fast}", "--reload_interval=1")
        with tensorboard_server(logs, *flags) as address:
            asked = {"run": ["long", ODD, "torn"], "prefix": ["rank"]}
            fetch_until(address, "ranks/runs", lambda answer: len(answer["runs"]) == 3)
            ready = fetch_until(
                address, "ranks/scalars", lambda answer: len(steps_of(answer)) == LONG, **asked
            )
            with urllib.request.urlopen(f"{address}data/plugins_listing", timeout=30) as response:
                tab = json.load(response)["ranks"]
            assert (tab["enabled"], tab["tab_name"]) == (True, "Ranks")
            assert tab["loading_mechanism"]["type"] == "IFRAME"

            runs = fetch(address, "ranks/runs")["runs"]
            assert sorted(run["name"] for run in runs) == sorted(["long", ODD, "torn"])
            assert all(f"rank_weights/{ODD}" in run["scalars"] for run in runs)
            assert steps_of(ready, ODD, f"rank_weights/{ODD}") == [0]
            assert steps_of(ready) == list(range(LONG))
            assert steps_of(ready, "torn") == [0, 1, 2, 3]

            heatmap = fetch(address, "ranks/heatmap", run="long", part="H_L")
            assert heatmap["logged"] == list(range(LONG))
            assert "NaN" not in heatmap["cut"]
            counts = fetch(address, "ranks/counts", run="long")
            # The cut times 10^2 is 1, between the second eigenvalues of even and of odd steps.
            assert counted(counts, 80) == [2] * LONG
            assert counted(counts, 100) == [2, 1] * (LONG // 2)
            texts = fetch(address, "ranks/texts", run="long")["rankmon/alerts"]
            assert (len(texts), texts[-1]["step"]) == (100, LONG - 1)

            for step in (200, 300):
                writer.write(probed(step))
            more = [*range(LONG), 200, 300]
            fetch_until(address, "ranks/scalars", lambda a: steps_of(a) == more, **asked)
            one = {"run": "long", "part": "H_L"}
            fetch_until(address, "ranks/heatmap", lambda a: a["logged"] == more, **one)
            assert fetch(address, "ranks/spectrum", step=1000, **one)["step"] == 300


@pytest.mark.slow
@pytest.mark.parametrize("load_fast", [FAST])  # the other loader: test_plugin.py
def test_what_the_user_says_of_samples_holds(tmp_path, load_fast):
    with TensorBoardWriter(tmp_path / "logs" / "run") as writer:
        for step in range(12):
            writer.write(probed(step))
            writer.write_image(step, "figure", blank_png(2, 1))
    flags = (f"--load_fast={load_fast}", "--samples_per_plugin=rankmon=5,images=3")
    with tensorboard_server(tmp_path / "logs", *flags) as address:
        asked = {"run": "run", "prefix": "rank/"}
        fetch_until(address, "ranks/runs", lambda answer: answer["runs"])
        fetch_until(address, "ranks/scalars", lambda a: len(steps_of(a, "run")) == 12, **asked)
        heatmap = fetch(address, "ranks/heatmap", run="run", part="H_L")
        pictures = fetch(address, "images/images", run="run", tag="figure", sample=0)
        texts = fetch(address, "ranks/texts", run="run")["rankmon/alerts"]
    assert (len(heatmap["logged"]), heatmap["logged"][-1]) == (5, 11)
    assert "NaN" not in heatmap["cut"]
    assert (len(pictures), pictures[-1]["step"]) == (3, 11)
    assert len(texts) == 12


@pytest.mark.slow
def test_the_tab_starts_where_jax_is_broken(tmp_path):
    broken = tmp_path / "broken"
    for name in ("flax", "jax", "jaxlib", "optax"):
        (broken / name).mkdir(parents=True)
        (broken / name / "__init__.py").write_text(f"raise ImportError('{name} is broken')")
    with TensorBoardWriter(tmp_path / "logs" / "run") as writer:
        writer.write(probed(0))
    path = os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])
    with tensorboard_server(tmp_path / "logs", PYTHONPATH=path) as address:
        fetch_until(address, "ranks/runs", lambda answer: answer["runs"])
        with urllib.request.urlopen(f"{address}data/plugins_listing", timeout=30) as response:
            assert json.load(response)["ranks"]["enabled"]
        asked = {"run": "run", "prefix": "rank/"}
        fetch_until(address, "ranks/scalars", lambda a: steps_of(a, "run") == [0], **asked)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "import jax"],
            check=True,
            env=os.environ | {"PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        )
