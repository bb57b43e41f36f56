"""Ranks of weights that devices share are those of the gathered weights."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CHILD = Path(__file__).with_name("shards_child.py")

# With only half of the digits the Gram matrix decides neither a rank in float64 nor one at the cut;
# 60 columns are no multiple of eight devices.
GATHERED = {"low", "near", "odd", "bfloat16"}


def started(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def result(process):
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, out + errors
    return json.loads(out.splitlines()[-1])


def assert_the_same(found):
    for case, counts in found["small"].items():
        name = case.partition("-")[0]
        for shared, alone in counts.values():
            assert (shared is None) == (name in GATHERED), case
            if shared is not None:
                assert shared[:4] == alone[:4], case
                np.testing.assert_allclose(shared[4], alone[4], rtol=1e-13)
    for name, (shared, alone, gap, same_gap) in found["large"].items():
        assert shared[:4] == alone[:4], name
        assert gap == same_gap, name
        assert shared[4] == pytest.approx(alone[4], rel=1e-13)


@pytest.mark.slow
def test_eight_devices_certify_the_ranks_of_gathered_weights():
    found = result(started())
    assert len(found["small"]) == 33
    assert_the_same(found)
    # Of 1,024 singular values, some are near the cut of float32: their matrix is gathered.
    assert [found["large"][name][0][:3] for name in ("low", "full", "near")] == [
        [900, 900, 900],
        [1024, 1024, 1024],
        [742, 628, 856],
    ]


@pytest.mark.slow
def test_two_processes_certify_them_too():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for found in [result(each) for each in [started(process, port) for process in range(2)]]:
        assert len(found["small"]) == 11
        assert_the_same(found)
