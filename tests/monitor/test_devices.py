"""Sharded parameters: on eight devices of the host, and over two processes on the loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import Problem, hessian_ranks, read_jsonl
from refusals import assert_explains

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("devices_child.py")


def start(folder, *numbers):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(CHILD), str(folder), *map(str, numbers)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def result(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    return json.loads(out.splitlines()[-1])


def start_of_training():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (16, 4)))
    params = {
        n: rng.standard_normal(s).astype(np.float32) for n, s in (("W1", (8, 8)), ("W2", (8, 4)))
    }
    return x, y, params


def expected_update():
    """The first update of the last weight by momentum 0.9 that begins with the weight itself."""
    x, y, params = start_of_training()
    hidden, last = np.tanh(x @ params["W1"]), params["W2"]
    gradient = hidden.T @ (hidden @ last - y) / len(x)
    return np.linalg.norm(0.1 * (gradient + 0.9 * last)) / np.linalg.norm(last)


def expected():
    """The ranks along the same training, on one device."""
    x, y, params = start_of_training()
    problem = Problem(lambda p, x: jnp.tanh(x @ p["W1"]) @ p["W2"], loss="mse", inputs=x, targets=y)
    return hessian_ranks(problem, params)["H_L"].rank


def test_eight_devices(tmp_path):
    found = result(start(tmp_path, 8, 0, 1, 0, "background"))
    assert found["same"]
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 2, 4, 5]
    assert records[0].scalars["rank/H_L"] == expected()
    assert records[0].scalars["update_to_weight/W2"] == pytest.approx(expected_update(), rel=1e-5)
    assert records[0].scalars["monitor/errors"] == 0
    assert found["outer"] == records[-1].scalars["rank/H_o"]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("way", ["here", "background"])
def test_two_processes_measure_and_one_writes(way, tmp_path):
    port = free_port()
    running = [start(tmp_path, 2, i, 2, port, way) for i in range(2)]
    first, second = [result(process) for process in running]
    assert first == second
    assert first["same"]
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 2, 4, 5]
    assert records[0].scalars["rank/H_L"] == expected()
    assert records[0].scalars["monitor/errors"] == 0
    if way == "here":
        assert first["ranks"][0] == expected()
        assert [rank is None for rank in first["ranks"]] == [False, True, False, True, False]
    overhead, constraints = first["refused"]
    assert_explains(overhead, "2 processes", "0.05")
    assert_explains(constraints, "2 processes", "background=True", "apply")
    assert records[0].scalars["update_to_weight/W2"] == pytest.approx(expected_update(), rel=1e-5)
    last = records[-1].scalars
    assert [first["outer"], first["H_L"]] == [last["rank/H_o"], last["rank/H_L"]]
    assert first["weights"] == [last["rank_weights/W1"], last["rank_weights/W2"]]
    assert len(list(tmp_path.glob("*tfevents*"))) == 1


def test_a_process_that_ends_is_an_error_of_jax_in_the_others(tmp_path):
    port = free_port()
    first, second = [start(tmp_path, 2, i, 2, port, "background", 2) for i in range(2)]
    second.communicate(timeout=300)
    assert second.returncode == 3
    _, errors = first.communicate(timeout=120)  # the heartbeat's timeout is ten seconds
    assert first.returncode not in (0, 3)
    assert "distributed service" in errors
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert records[0].scalars["rank/H_L"] == expected()
