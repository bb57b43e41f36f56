"""Trains sharded parameters on several host devices, or in several processes, under a monitor.

Arguments: run folder, number of devices of this process, process, number of processes, port;
"background" to measure on a worker; the step at which the last process ends. Prints as JSON the
ranks that the monitor returned, those that other functions give at the end, the refusals, and
whether training had the same result as without a monitor.
"""

import json
import os
import sys

folder, devices, process, processes, port = sys.argv[1], *map(int, sys.argv[2:6])
background, end = "background" in sys.argv[6:], int((*sys.argv[7:], -1)[0])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import rankmon  # noqa: E402

if processes > 1:
    jax.distributed.initialize(
        f"localhost:{port}", processes, process, heartbeat_timeout_seconds=10
    )

RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 8)).astype(np.float32)
Y = RNG.standard_normal((16, 4)).astype(np.float32)
START = {
    "W1": RNG.standard_normal((8, 8)).astype(np.float32),
    "W2": RNG.standard_normal((8, 4)).astype(np.float32),
}
MESH = Mesh(np.array(jax.devices()), ("model",))


def placed(array, *spec):
    sharding = NamedSharding(MESH, PartitionSpec(*spec))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def apply(params, x):
    return jnp.tanh(x @ params["W1"]) @ params["W2"]


@jax.jit
def train_step(params, x, y):
    grads = jax.grad(lambda p: jnp.mean((apply(p, x) - y) ** 2))(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def train(monitor=None):
    params = {"W1": placed(START["W1"], None, "model"), "W2": placed(START["W2"], "model", None)}
    x, y = placed(X, "model"), placed(Y, "model")
    for step in range(5):
        if step == end and process == processes - 1:
            os._exit(3)
        if monitor is not None:
            momenta = (optax.TraceState(trace=params), optax.EmptyState())
            found.append(monitor(step, params, opt_state=momenta))
        params = train_step(params, x, y)
    if monitor is not None:
        monitor.close(5, params)
    return params


found = []
problem = rankmon.Problem(apply, loss="mse", inputs=placed(X, "model"), targets=placed(Y, "model"))
gradients = rankmon.GradientsProbe(optimizer=optax.sgd(0.1, momentum=0.9))
monitor = rankmon.RankMonitor(
    problem,
    logdir=folder,
    every=2,
    probes=["hessian", "weights", gradients],
    background=background,
)
watched, bare = train(monitor), train()
shards = zip(jax.tree.leaves(watched), jax.tree.leaves(bare), strict=True)
same = all(
    np.array_equal(a.addressable_data(i), b.addressable_data(i))
    for a, b in shards
    for i in range(jax.local_device_count())
)


def constrained(params, x):
    hidden = jnp.tanh(x @ params["W1"])
    split = NamedSharding(MESH, PartitionSpec(None, "model"))
    return jax.lax.with_sharding_constraint(hidden, split) @ params["W2"]


def refusal(act):
    try:
        act()
    except ValueError as error:
        return str(error)
    return ""


refused = []
if processes > 1:
    other = rankmon.Problem(constrained, loss="mse", inputs=X, targets=Y)
    refused = [
        refusal(lambda: rankmon.RankMonitor(problem, every=2, overhead=0.05)),
        refusal(lambda: rankmon.RankMonitor(other, every=2, background=True)(0, watched)),
    ]
ranks = [None if record is None else record.scalars["rank/H_L"] for record in found]
ends = {
    "outer": rankmon.outer_rank(problem, watched).rank,
    "H_L": rankmon.hessian_ranks(problem, watched)["H_L"].rank,
    "weights": [one.rank for one in rankmon.weight_ranks(watched).values()],
}
print(json.dumps({"same": same, "ranks": ranks, "refused": refused} | ends))
