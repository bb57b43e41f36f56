"""Multiplies with the Jacobian, and in two processes also with the Hessian, of sharded networks.

Arguments: "products" or "memory"; for two processes of four host devices, instead of one of eight,
also the process and the port. Prints what it saw as JSON.

"products": for each network and placement the largest difference from plain automatic
differentiation on one device, relative to the product's norm, and whether each leaf is sharded like
its parameter. "memory": bytes and collectives of products with a dense stack under FSDP, on one and
on eight devices.
"""

import json
import os
import re
import sys

job, *together = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 if together else 8}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from rankmon import Problem, hessian_operator, hessian_ranks, jacobian_operator  # noqa: E402

if together:
    process, port = map(int, together)
    jax.distributed.initialize(f"localhost:{port}", 2, process)

RNG = np.random.default_rng(0)
DEVICES = np.array(jax.devices())
MESHES = {
    "replicated": Mesh(DEVICES, ("data",)),
    "fsdp": Mesh(DEVICES, ("data",)),
    "tensor": Mesh(DEVICES.reshape(2, 4), ("data", "model")),
}


def gaussian(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def relu(w, x):
    return jax.nn.relu(x @ w["a"] + w["c"]) @ w["b"]


def cnn(w, x):
    z = jax.lax.conv_general_dilated(
        x, w["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(z).mean((1, 2)) @ w["b"]


def attention(w, tokens):
    x = w["embedding"][tokens]
    q, k, v = (x @ w[name] for name in ("q", "k", "v"))
    return (x + jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 4.0) @ v) @ w["out"]


X, Y = RNG.standard_normal((16, 16)), RNG.standard_normal((16, 8))
NETWORKS = {
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
    "attention": (
        attention,
        {"embedding": gaussian(24, 16), "out": gaussian(16, 24)}
        | {name: gaussian(16, 16) for name in "qkv"},
        RNG.integers(24, size=(16, 6)),
        RNG.integers(24, size=(16, 6)),
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


def raveled(tree):
    """The entries of all leaves, from all processes, as one vector."""

    def whole(leaf):
        spread = together and isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf

    return np.concatenate([np.ravel(whole(leaf)) for leaf in jax.tree.leaves(tree)])


def are_like(product, placed):
    """Whether the leaves of a product are in float64, and sharded like these parameters."""
    pairs = zip(jax.tree.leaves(product), jax.tree.leaves(placed), strict=True)
    return all(
        got.dtype == np.float64 and got.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
        for got, leaf in pairs
    )


def off(got, expected):
    return float(np.linalg.norm(raveled(got) - expected) / np.linalg.norm(expected))


def compared(name, way):
    apply, params, x, y, loss = NETWORKS[name]
    problem, mesh = Problem(apply, loss=loss, inputs=x, targets=y), MESHES[way]
    placed = jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec_of(way, leaf))), params
    )
    J = jacobian_operator(problem, placed, mesh=mesh)
    v = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape), params)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

        def outputs(w):
            z = apply(w, problem.inputs)
            return z.reshape(-1, z.shape[-1])

        z, jv = jax.jvp(outputs, (wide,), (v,))
        u = RNG.standard_normal(z.shape)
        (ju,) = jax.vjp(outputs, wide)[1](jnp.asarray(u))
        ahead, back = J @ v, J.rmatvec(u)
        shared = J.rmatvec(ahead)  # outputs as they come from J v
    errors = {
        "J v": off(ahead, np.ravel(jv)),
        "J^T u": off(back, raveled(ju)),
        "adjoint": float(abs(raveled(v) @ raveled(shared) / np.linalg.norm(jv) ** 2 - 1)),
    }
    kept = are_like(back, placed) and are_like(shared, placed)
    kept &= ahead.sharding.is_equivalent_to(J.output_sharding, 2)
    for part in ("H_L", "H_f") if together else ():
        product = hessian_operator(problem, placed, part, mesh=mesh) @ v
        errors[part] = off(product, hessian_operator(problem, params, part) @ raveled(v))
        kept &= are_like(product, placed)
    refused = ""
    if together:
        try:
            hessian_ranks(problem, placed, mesh=mesh)
        except ValueError as error:
            refused = str(error)
    examples = len({str(shard.index) for shard in ahead.addressable_shards})
    return {"errors": errors, "kept": bool(kept), "examples": examples, "refused": refused}


WIDTH, DEPTH = 512, 4
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter)(?:-start)?\(")


def stack(weights, x):
    for w in weights[:-1]:
        x = jnp.tanh(x @ w)
    return x @ weights[-1]


def measured(devices):
    mesh = Mesh(DEVICES[:devices], ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    params = [jax.device_put(gaussian(WIDTH, WIDTH), split) for _ in range(DEPTH)]
    x = RNG.standard_normal((16, WIDTH))
    problem = Problem(stack, loss="mse", inputs=x, targets=x)
    products = jacobian_operator(problem, params, mesh=mesh)._products
    return {"J v": of_program(products.forward), "J^T u": of_program(products.backward)}


def of_program(program):
    memory, largest = program.memory_analysis(), {}
    for shapes, kind in COLLECTIVE.findall(program.as_text()):
        for shape in re.findall(r"\[([\d,]+)\]", shapes):
            size = int(np.prod([int(d) for d in shape.split(",")]))
            largest[kind] = max(largest.get(kind, 0), size)
    parts = [memory.temp_size_in_bytes, memory.argument_size_in_bytes, memory.output_size_in_bytes]
    return {"bytes": sum(parts), "largest": largest}


if job == "memory":
    found = {str(devices): measured(devices) for devices in (1, 8)} | {"layer": WIDTH**2}
else:
    ways = ("fsdp", "tensor") if together else MESHES
    found = {f"{name}-{way}": compared(name, way) for name in NETWORKS for way in ways}
print(json.dumps(found))
