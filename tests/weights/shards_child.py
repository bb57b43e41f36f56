"""Counts ranks of weights that eight host devices share; prints what it saw as JSON.

Arguments: none; for two processes of four devices, the process and the port.
"""

import json
import os
import sys

together = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 if together else 8}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from rankmon import weight_ranks  # noqa: E402
from rankmon.weights.matrices import matrices  # noqa: E402
from rankmon.weights.ranks import weight_count  # noqa: E402
from rankmon.weights.sharded import count_on_devices  # noqa: E402

if together:
    process, port = map(int, together)
    jax.distributed.initialize(f"localhost:{port}", 2, process)

EPS = float(np.finfo(np.float64).eps)
RNG = np.random.default_rng(0)
MESH = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


def spectrum(m, n, values):
    """A matrix with these singular values."""
    U, _ = np.linalg.qr(RNG.standard_normal((m, len(values))))
    V, _ = np.linalg.qr(RNG.standard_normal((n, len(values))))
    return U * values @ V.T


def with_zeros(matrix):
    matrix[3], matrix[:, 5:9] = 0.0, 0.0
    return matrix


SMALL = {
    "full": RNG.standard_normal((48, 64)),
    "tall": RNG.standard_normal((64, 24)),
    "low": spectrum(48, 64, np.geomspace(1, 1e-2, 20)),
    "float32": spectrum(48, 64, np.geomspace(1, 1e-2, 20)).astype(np.float32),
    "zeros": with_zeros(RNG.standard_normal((48, 64))),
    "layers": RNG.standard_normal((2, 24, 32)),
    "scaled": 1e200 * RNG.standard_normal((48, 64)),
    "infinite": np.where(np.eye(48, 64) > 0, np.inf, 1.0),
    "near": spectrum(48, 64, np.r_[np.ones(20), 3e-14 * np.ones(20)]),
    "odd": RNG.standard_normal((48, 60)),
    "bfloat16": np.asarray(jnp.asarray(RNG.standard_normal((48, 64)), jnp.bfloat16)),
}
LARGE = {
    "low": spectrum(1024, 1056, np.geomspace(1, 1e-2, 900)).astype(np.float32),
    "full": RNG.standard_normal((1024, 1056)).astype(np.float32),
    "near": spectrum(1024, 1056, np.geomspace(1, 1e-9, 1024)).astype(np.float32),
    "layers": RNG.standard_normal((2, 8, 16)).astype(np.float32),
}


def placed(array, *spec):
    sharding = NamedSharding(MESH, PartitionSpec(*spec))
    with jax.enable_x64(array.dtype == np.float64):
        return jax.device_put(array, sharding)


def small(name, *spec):
    array = SMALL[name]
    views = {name: ((1,), (2,))} if array.ndim == 3 else None
    leaf = placed(array, *spec)
    found = {}
    for one, view, _ in matrices({name: array}, views=views):
        eps = float(jnp.finfo(one.dtype).eps)
        matrix = view.of(array)

        def cut_of(norm, stable, shape=matrix.shape, eps=eps):
            stored = eps / 2 * np.sqrt(stable) if eps > EPS else 0.0
            return norm * (max(shape) * EPS + stored)

        count = count_on_devices(view, leaf, cut_of, least=8)
        known = weight_count(matrix, eps=eps)
        found[view.name] = [None if count is None else listed(count), listed(known)]
    return found


def listed(count):
    return [count.rank, count.low, count.high, count.size, count.tolerance]


def large():
    where = {
        "low": ("data", "model"),
        "full": ("model",),
        "near": (None, "data"),
        "layers": ("data",),
    }
    leaves = {name: placed(array, *where[name]) for name, array in LARGE.items()}
    shared, alone = (weight_ranks(tree, largest=512) for tree in (leaves, LARGE))
    return {
        name: [listed(shared[name]), listed(alone[name]), shared[name].gap, alone[name].gap]
        for name in alone
    }


SPECS = {"rows": ("data", None), "columns": (None, "model"), "both": ("model", "data")}
found = {
    f"{name}-{way}": small(name, *(None,) * (SMALL[name].ndim - 2), *spec)
    for name in SMALL
    for way, spec in SPECS.items()
    if way == "both" or not together
}
print(json.dumps({"small": found, "large": large()}))
