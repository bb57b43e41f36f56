"""Multiplies with Hessians of sharded networks on eight host devices; prints what it saw as JSON.

For each network and placement: the largest difference from the operator of one device, relative to
the product's norm, and whether each leaf of the product is sharded like its parameter. Then the
memory and the collectives of a product with a dense stack under FSDP, on one and on eight devices:
of one vector, and of a block of rows. Or, with the argument "estimates", how far ranks and
curvature of the engine "lanczos" on the mesh are from those of one device.
"""

import json
import os
import re
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from rankmon import Problem, hessian_operator, hessian_ranks  # noqa: E402
from rankmon.engines.lanczos import LanczosEngine  # noqa: E402
from rankmon.hessian.mesh_products import MeshProducts  # noqa: E402
from rankmon.hessian.mesh_rows import MeshSpace, row_shardings  # noqa: E402
from rankmon.linalg.block_lanczos import BlockLanczos  # noqa: E402
from rankmon.linalg.krylov import Limits, krylov_spectrum  # noqa: E402

RNG = np.random.default_rng(0)
DEVICES = np.array(jax.devices())
MESHES = {
    "replicated": Mesh(DEVICES, ("data",)),
    "fsdp": Mesh(DEVICES, ("data",)),
    "tensor": Mesh(DEVICES.reshape(2, 4), ("data", "model")),
}


def gaussian(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def linear(w, x):
    return x @ w["a"] @ w["b"]


def relu(w, x):
    return jax.nn.relu(x @ w["a"] + w["c"]) @ w["b"]


def cnn(w, x):
    z = jax.lax.conv_general_dilated(
        x, w["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(z).mean((1, 2)) @ w["b"]


def transformer(w, tokens):
    x = w["embedding"][tokens]
    q, k, v = (x @ w[name] for name in ("q", "k", "v"))
    scores = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 4.0)
    x = x + scores @ v
    x = x + jax.nn.gelu(x @ w["a"]) @ w["b"]
    return x @ w["out"]


SQUARES = {"q": gaussian(8, 8), "k": gaussian(8, 8), "v": gaussian(8, 8)}
FEED = {"a": gaussian(8, 16), "b": gaussian(16, 8)}
X, Y = RNG.standard_normal((16, 16)), RNG.standard_normal((16, 8))
NETWORKS = {
    "linear": (linear, {"a": gaussian(16, 16), "b": gaussian(16, 8)}, X, Y, "mse"),
    "relu": (
        relu,
        {"a": gaussian(16, 24), "b": gaussian(24, 8), "c": gaussian(24)},
        X,
        RNG.integers(8, size=16),
        "cross_entropy",
    ),
    "cnn": (
        cnn,
        {"a": gaussian(3, 3, 2, 16), "b": gaussian(16, 8)},
        RNG.standard_normal((16, 6, 6, 2)),
        Y,
        "mse",
    ),
    "transformer": (
        transformer,
        {"embedding": gaussian(16, 8), "out": gaussian(8, 16)} | SQUARES | FEED,
        RNG.integers(16, size=(16, 6)),
        RNG.integers(16, size=(16, 6)),
        "cross_entropy",
    ),
}


def spec_of(way, leaf):
    """The largest axis over "data" (FSDP), or the last over "model", where it divides."""
    if way == "replicated":
        return PartitionSpec()
    axis = int(np.argmax(leaf.shape)) if way == "fsdp" else leaf.ndim - 1
    name, size = ("data", 8) if way == "fsdp" else ("model", 4)
    return PartitionSpec(*[None] * axis, name) if leaf.shape[axis] % size == 0 else PartitionSpec()


def placed_on(mesh, way, params):
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec_of(way, leaf))), params
    )


def compared(name, way):
    apply, params, x, y, loss = NETWORKS[name]
    problem, mesh = Problem(apply, loss=loss, inputs=x, targets=y), MESHES[way]
    placed = placed_on(mesh, way, params)
    vector = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape), params)
    errors, kept = {}, True
    for part in PARTS if way == "fsdp" else PARTS[:1]:
        reference = np.ones((16, 8)) if part == "H_f_fixed" else None
        if reference is not None and name == "transformer":
            continue
        alone = hessian_operator(problem, params, part, reference=reference)
        expected = alone.matvec(
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(vector)])
        )
        product = hessian_operator(problem, placed, part, reference=reference, mesh=mesh) @ vector
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(product)])
        scale = np.linalg.norm(expected) or 1.0
        errors[part] = float(np.linalg.norm(flat - expected) / scale)
        for got, leaf in zip(jax.tree.leaves(product), jax.tree.leaves(placed), strict=True):
            kept &= got.dtype == np.float64
            kept &= got.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    return {"errors": errors, "kept": bool(kept)}


PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")
WIDTH, DEPTH = 512, 4
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter)(?:-start)?\(")


def stack(weights, x):
    for w in weights[:-1]:
        x = jnp.tanh(x @ w)
    return x @ weights[-1]


def measured(devices, spec=None):
    mesh = Mesh(DEVICES[:devices], ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    params = [jax.device_put(gaussian(WIDTH, WIDTH), split) for _ in range(DEPTH)]
    x = RNG.standard_normal((16, WIDTH))
    problem = Problem(stack, loss="mse", inputs=x, targets=x)
    products = hessian_operator(problem, params, mesh=mesh, batch_spec=spec)._products
    return {"one": used(products.program()), "block": used(products.program(4))}


def used(program):
    memory, largest = program.memory_analysis(), {}
    for shapes, kind in COLLECTIVE.findall(program.as_text()):
        for shape in re.findall(r"\[([\d,]+)\]", shapes):
            size = int(np.prod([int(d) for d in shape.split(",")]))
            largest[kind] = max(largest.get(kind, 0), size)
    parts = [memory.temp_size_in_bytes, memory.argument_size_in_bytes, memory.output_size_in_bytes]
    return {"bytes": sum(parts), "parts": parts, "largest": largest}


def both(problem, params, options):
    """Return ranks and curvature by one measurement."""
    kept, measure = [], LanczosEngine.ranks

    def ranks(engine, point, tolerance):
        kept.append(measure(engine, point, tolerance))
        return kept[-1]

    LanczosEngine.ranks = ranks
    try:
        found = hessian_ranks(problem, params, **options)
    finally:
        LanczosEngine.ranks = measure
    (own,) = kept
    return found, own.curvature


def expected_of(name):
    """Return ranks and curvature of one device, and the eigenvalues of H_L."""
    apply, params, x, y, loss = NETWORKS[name]
    problem = Problem(apply, loss=loss, inputs=x, targets=y)
    ranks, curvature = both(problem, params, OPTIONS | {"engine": "lanczos"})
    operator = hessian_operator(problem, params)
    return ranks, curvature, np.linalg.eigvalsh(operator.matmat(np.eye(operator.shape[0])))


def estimated(name, way, expected):
    apply, params, x, y, loss = NETWORKS[name]
    problem, mesh = Problem(apply, loss=loss, inputs=x, targets=y), MESHES[way]
    placed, (ranks, curvature, values) = placed_on(mesh, way, params), expected
    options = OPTIONS | {"engine": "lanczos", "mesh": mesh}
    norm, same, off = float(np.max(np.abs(values))), True, 0.0
    own_ranks, own_curvature = both(problem, placed, options)
    for part, rank in own_ranks.items():
        alone = ranks[part]
        same &= abs(rank.tolerance - alone.tolerance) <= 1e-10 * norm
        same &= (rank.rank, rank.low, rank.high) == (alone.rank, alone.low, alone.high)
    for part, found in own_curvature.items():
        for end in ("largest", "smallest", "trace", "frobenius"):
            got, want = getattr(found, end), getattr(curvature[part], end)
            scale = norm * np.sqrt(values.size)
            if got.high - got.low <= 1e-9 * scale:
                off = max(off, abs(got.value - want.value) / scale)
            same &= got.low <= want.high + 1e-10 * norm and want.low <= got.high + 1e-10 * norm
    found = {"same": bool(same), "off": off}
    if name == "relu":
        found |= converged(problem, placed, mesh, values)
    return found


def converged(problem, placed, mesh, values):
    """Return the error of Ritz values that have converged, and whether the basis is sharded."""
    point = hessian_operator(problem, placed, mesh=mesh)._products.point
    products = MeshProducts.of(point, "H_L", None, room=2**30)
    space = MeshSpace(point.flat, point.placement, width=4)
    krylov = BlockLanczos(products.rows, space.drawn(4), space=space, most=96, noise=1e-13)
    while krylov.can_grow:
        krylov.grow()
    limits = Limits(rows=96)
    bounded = krylov_spectrum(products.rows, values.size, space=space, limits=limits)
    pairs, norm = krylov.ritz(), float(np.max(np.abs(values)))
    good = pairs.values[pairs.residuals < 1e-6 * norm]
    error = max(float(np.min(np.abs(values - one))) for one in good) / norm
    shardings = row_shardings(point.flat, point.placement)
    kept = all(
        leaf.sharding.is_equivalent_to(s, leaf.ndim)
        for block in krylov.rows.blocks
        for leaf, s in zip(block, shardings, strict=True)
    )
    top = float(pairs.values[-1] - values[-1]) / norm
    fresh = MeshSpace(point.flat, point.placement, width=4)
    drawn = [float(np.sum(np.asarray(leaf))) for leaf in fresh.drawn(4).blocks[0]]
    ends = (
        (bounded.largest(), values[-1]),
        (bounded.smallest(), values[0]),
        (bounded.trace(), values.sum()),
        (bounded.count(-0.1 * norm, 0.1 * norm), np.sum(np.abs(values) > 0.1 * norm)),
    )
    slack = 1e-10 * norm
    kept &= all(end.low - slack <= true <= end.high + slack for end, true in ends)
    return {"error": error, "top": top, "count": len(good), "kept": kept, "drawn": drawn}


OPTIONS = {"parts": ("H_L", "H_o", "H_f"), "time_limit": 500.0}
if sys.argv[1:] == ["estimates"]:
    found = {}
    for name in NETWORKS:
        expected = expected_of(name)
        for way in MESHES:
            found[f"{name}-{way}"] = estimated(name, way, expected)
            print(name, way, found[f"{name}-{way}"], file=sys.stderr, flush=True)
elif len(sys.argv) > 1:
    found = {str(d): measured(d) for d in (1, 8)} | {"layer": WIDTH**2, "p": DEPTH * WIDTH**2}
else:
    found = {f"{name}-{way}": compared(name, way) for name in NETWORKS for way in MESHES}
print(json.dumps(found))
