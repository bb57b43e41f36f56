"""Test the examples of large networks in quick mode, as processes.

They are in a file of their own because they take minutes, and pytest's workers divide files.
"""

import pytest

from example_scripts import run

SCALE = [
    "scale_coverage",
    "scale_outer",
    "slq_peers",
    "curvature_peers",
    "scale_growth",
    "large_cnn",
    "many_classes",
    "mesh",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALE)
def test_what_is_past_dense_matrices_keeps_its_claims(name, tmp_path):
    keeps = name in ("scale_growth", "large_cnn", "mesh")
    done = run(name, "--quick", *(["--logdir", str(tmp_path)] if keeps else []))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds" in done.stdout
    assert "FAILS" not in done.stdout
    if name == "scale_growth":
        assert (tmp_path / "growth.png").stat().st_size > 20_000
