"""Every engine with parameters that are sharded over a mesh."""

import os
import subprocess
import sys

import pytest

SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import rankmon
from rankmon import theory
from rankmon.engines.select import ENGINES

assert len(jax.devices()) == 4
mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("model"))
rng = np.random.default_rng(0)
params = [jax.device_put(rng.normal(size=s).astype(np.float32), split) for s in ((8, 8), (8, 4))]
x, y = rng.normal(size=(12, 8)), rng.normal(size=(12, 4))
problem = rankmon.Problem(lambda w, x: x @ w[0] @ w[1], loss="mse", inputs=x, targets=y)
coarse = rankmon.Tolerance(relative=0.2)
with jax.set_mesh(mesh):
    expected = rankmon.hessian_ranks(problem, params, engine="dense", tolerance=coarse)
    for engine in ENGINES:
        if engine == "slq":
            found = rankmon.hessian_ranks(problem, params, engine=engine, tolerance=coarse)
            assert found["H_L"].low <= expected["H_L"].low <= expected["H_L"].high
            assert expected["H_L"].high <= found["H_L"].high
        else:
            found = rankmon.hessian_ranks(problem, params, engine=engine)
            assert found["H_L"].rank == theory.rank_loss((8, 8, 4)), engine
            assert found["H_o"].rank == theory.rank_outer((8, 8, 4)), engine
assert len(params[0].sharding.device_set) == 4
"""


@pytest.mark.slow
def test_every_engine_runs_with_sharded_parameters_under_a_mesh():
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=flags, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
