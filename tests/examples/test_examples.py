"""Test that the examples run in quick mode, that their claims hold, and which files they write.

One runs here; all run as processes of their own (`pytest -m ""`).
"""

import importlib
import importlib.util
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

import rankmon
from example_scripts import run
from paths import REFERENCE, ROOT
from reading import legacy_events

SCRIPTS = [
    "linear_teacher",
    "relu_mnist",
    "gradient_flow",
    "ordinary_mlp",
    "plasticity",
    "column_blocks",
    "edge_of_stability",
    "group_bound",
    "rank_deficiency",
    "walls",
]


def keeps_its_claims(out, folder):
    """The claims that an example prints, its figure, and its logs."""
    assert "holds" in out
    assert "FAILS" not in out
    (figure,) = folder.glob("*.png")
    assert figure.stat().st_size > 20_000
    assert list(folder.rglob("*tfevents*"))


@pytest.fixture
def main_of(monkeypatch):
    """Runs an example's `main` here, with these arguments and the settings that it asks for."""
    before = jax.config.jax_enable_x64

    def main(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        monkeypatch.delitem(sys.modules, name, raising=False)  # its import sets options too
        # A new thread: its JAX settings are the process's, whatever tests left in this thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(importlib.import_module(name).main).result()

    yield main
    jax.config.update("jax_enable_x64", before)


def test_an_example_keeps_its_claims_in_quick_mode(main_of, tmp_path, capsys):
    main_of("linear_teacher", "--quick", "--every", 1000, "--logdir", tmp_path)
    keeps_its_claims(capsys.readouterr().out, tmp_path)


def test_closed_forms_are_the_exact_ranks_of_random_networks(main_of, capsys):
    main_of("exact_ranks", "--networks", 60)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8  # four ranks, without and with biases
    assert all(re.search(r"holds .* 30 networks +0 mismatches", line) for line in lines)


@pytest.mark.slow
def test_each_family_of_linear_networks_keeps_its_claims(tmp_path):
    done = run("linear_families", "--quick", "--logdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("residual", "tied", "convolutional"):
        keeps_its_claims(done.stdout, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_quick_mode_keeps_its_claims(name, tmp_path):
    done = run(name, "--quick", "--logdir", str(tmp_path / name))
    assert done.returncode == 0, done.stdout + done.stderr
    keeps_its_claims(done.stdout, tmp_path / name)


SUPPLEMENT = {
    "rank_sweeps": ["S13", "S18", "S19"],
    "simulated_ranks": ["S3", "S20"],
    "plateaus": ["S4", "S5", "S6", "S7"],
    "reconstruction_error": ["S21", "S29"],
    "linear_counterparts": ["S30", "S33"],
    "ntk_rank": ["S35"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPLEMENT)
def test_figures_of_the_supplement_keep_their_claims_and_resume(name, tmp_path):
    jobs = "2" if name == "ntk_rank" else "1"
    options = ["--quick", "--jobs", jobs, "--logdir", str(tmp_path), "--figure", *SUPPLEMENT[name]]
    done = run(name, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds" in done.stdout
    assert "FAILS" not in done.stdout
    for figure in SUPPLEMENT[name]:
        assert (tmp_path / f"{figure}.png").stat().st_size > 10_000
        events = legacy_events(tmp_path / figure)
        assert events.summary_metadata[figure].plugin_data.plugin_name == "images"
    files = {path: path.read_bytes() for path in tmp_path.rglob("rankmon.jsonl")}
    assert len(files) >= len(SUPPLEMENT[name])
    again = run(name, *options)
    assert again.returncode == 0
    assert {path: path.read_bytes() for path in files} == files  # nothing was measured twice


LOOPS = {
    "linen_cnn": {"rank/H_L", "rank_features/head/kernel", "dead_units/Dense_0/kernel"},
    "nnx_cnn": {"rank/H_L", "rank_features/head/kernel", "dead_units/dense/kernel"},
    "equinox_mlp": {"rank/H_L", "rank_features/head/weight", "dead_units/hidden/weight"},
    "haiku_mlp": {"rank/H_L", "rank_features/head/w", "dead_units/hidden/w"},
    "keras_fit": {"rank/H_L", "rank_features/head/kernel", "dead_units/hidden/kernel"},
    "optax_weights": {"rank_weights/0", "condition_number/2"},
    "scanned_loop": {"rank/H_f", "rank_features/2", "dead_units/1"},
    "batches": {"rank/H_L", "batches/rank/H_L/low", "batches/loss/high"},
    "seeds": {"rank/H_L/median", "rank/H_L/low", "dead_units/1/high"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_training_loops_are_watched_and_left_alone(name, tmp_path):
    done = run(name, "--quick", "--logdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds  trained with and without the monitor: the same bits" in done.stdout
    assert "FAILS" not in done.stdout
    folder = tmp_path / "median" if name == "seeds" else tmp_path
    events = legacy_events(folder)
    assert LOOPS[name] <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_a_wrong_prediction_is_an_error(tmp_path):
    options = ["--quick", "--jobs", "1", "--logdir", str(tmp_path), "--figure", "S10"]
    assert run("rank_sweeps", *options).returncode == 0
    path = tmp_path / "S10" / "width" / "rankmon.jsonl"
    path.write_text(re.sub(r'"rank_theory/H_f": \d+', '"rank_theory/H_f": 1', path.read_text()))
    done = run("rank_sweeps", *options)
    assert done.returncode == 1
    assert "FAILS  predicted ranks are measured: 1 mismatches" in done.stdout


CIFAR = ROOT.parent / "shared" / "data" / "cifar10_jpeg_subset.npz"


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 subset is not beside the project")
def test_predictions_hold_on_cifar(tmp_path):
    options = ["--quick", "--jobs", "1", "--logdir", str(tmp_path), "--cifar-npz", str(CIFAR)]
    done = run("rank_sweeps", *options, "--figure", "S8", "S19")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds  predicted ranks are measured: 0 mismatches" in done.stdout


@pytest.mark.slow
def test_the_benchmark_compares_and_draws(tmp_path):
    done = run("benchmark", "--quick", "--logdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT KEPT" not in done.stdout
    assert (tmp_path / "benchmark.png").stat().st_size > 20_000
    assert (tmp_path / "benchmark.txt").read_text().strip() in done.stdout
    results = json.loads((tmp_path / "benchmark.json").read_text())["results"]
    assert {"rankmon", "JAX", "floor"} <= set(results["S2"])
    for way, module in (("PyTorch", "torch"), ("curvlinops", "curvlinops")):
        if importlib.util.find_spec(module):
            shared = results["S2"][way]["ranks"].items()
            assert shared <= results["S2"]["rankmon"]["ranks"].items()
        else:
            assert f"{module} is not installed: pip install -e '.[benchmark]'" in done.stdout


@pytest.mark.slow
def test_a_training_loop_pays_what_is_promised(tmp_path):
    done = run("benchmark_loop", "--quick", "--logdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT KEPT" not in done.stdout
    assert "wall time with / without the monitor" in (tmp_path / "benchmark_loop.txt").read_text()


@pytest.mark.slow
def test_exact_ranks_have_a_quick_mode():
    done = run("exact_ranks", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 100 networks    0 mismatches") == 8


@pytest.mark.slow
def test_a_claim_that_fails_is_an_error(tmp_path):
    done = run("linear_teacher", "--quick", "--epochs", "40", "--logdir", str(tmp_path))
    assert done.returncode == 1
    assert "FAILS  at the end H_f = 0 and H_L = H_o" in done.stdout


@pytest.mark.parametrize("run", ["linear_teacher", "relu_mnist", "gradient_flow/flow"])
def test_reference_runs_are_small_and_readable(run):
    folder = REFERENCE / run
    # rankmon.jsonl is ignored by git, and only there where the run was made.
    committed = [path for path in folder.rglob("*") if path.suffix in ("", ".png", ".rankmon")]
    size = sum(path.stat().st_size for path in committed if path.is_file())
    assert size < 2 * 2**20
    events = legacy_events(folder)
    assert "rank/H_L" in events.Tags()["scalars"]


def test_the_reference_run_is_figure_s1():
    events = legacy_events(REFERENCE / "linear_teacher")

    def curve(tag):
        return [event.value for event in events.Scalars(tag)]

    assert (curve("rank/H_L")[0], curve("rank/H_L")[-1]) == (1200, 300)
    assert set(curve("rank/H_o")) == {300}
    assert (curve("rank/H_f")[0], curve("rank/H_f")[-1]) == (1000, 0)
    assert set(curve("rank/H_f_fixed")) == {1000}
    for layer, rank in enumerate((25, 20, 15, 10)):
        assert set(curve(f"rank_weights/{layer}")) == {rank}
    dims = (30, 25, 20, 15, 10)
    assert curve("rank_theory/H_L")[0] == rankmon.theory.rank_loss(dims)
