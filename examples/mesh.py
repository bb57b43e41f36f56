"""A transformer of a million parameters under FSDP on eight host devices: ranks and sharpness.

Parameters, optimizer and the vectors of the power iteration stay sharded; no device holds them all.
"""

import argparse
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import rankmon
from mesh_training import fully_sharded, initial, sequences, train, transformer
from plotting import check

PROBE = 2  # sequences, whose activations each device keeps


@jax.jit
def normalized(vector):
    """Return a vector, which is a pytree, divided by its norm."""
    norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(vector)))
    return jax.tree.map(lambda leaf: leaf / norm, vector)


@jax.jit
def quotient(vector, product):
    """Return the inner product of two vectors."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, vector, product)))


def sharpness(operator, vector, products):
    """Return the Rayleigh quotient after a power iteration, and the last vector."""
    with jax.enable_x64(True):
        vector = jax.tree.map(jax.device_put, vector, operator.sharding)
        for _ in range(products):
            before = jax.block_until_ready(normalized(vector))
            vector = jax.block_until_ready(operator @ before)
        return float(quotient(before, vector)), vector


def held(tree):
    """Return the bytes of a tree on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def main():
    """Train with and without the monitor, and measure on one and on eight devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logdir", type=Path, default=Path("logs/mesh"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--products", type=int, default=20, help="steps of the power iteration")
    parser.add_argument("--quick", action="store_true", help="a narrow network, 10 steps")
    options = parser.parse_args()
    width, depth, steps = (32, 2, 10) if options.quick else (options.width, 5, options.steps)
    tokens, targets = sequences(PROBE, seed=10**6)
    problem = rankmon.Problem(transformer, loss="cross_entropy", inputs=tokens, targets=targets)

    meshes = {d: Mesh(np.array(jax.devices()[:d]), ("data",)) for d in (1, 8)}
    start = fully_sharded(initial(width, depth), meshes[8])
    monitor = rankmon.RankMonitor(
        problem, every=max(1, steps // 5), probes=["weights"], logdir=options.logdir
    )
    params, bare = train(start, steps, monitor), train(start, steps)
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(bare), strict=True))
    print(f"p = {sum(leaf.size for leaf, _ in pairs):,}")
    print(f"{'devices':>8}{'parameters':>12}{'vector':>12}{'temporary':>12}  sharpness")
    found, totals = {}, {}
    for devices, mesh in meshes.items():
        own = fully_sharded(jax.device_get(params), mesh)
        operator = rankmon.hessian_operator(problem, own, mesh=mesh)
        noise = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), own)
        found[devices], vector = sharpness(operator, noise, options.products)
        row = held(own), held(vector), operator.temporary_bytes
        totals[devices] = sum(row)
        print(f"{devices:8}" + "".join(f"{n:12,}" for n in row) + f"  {found[devices]:.10g}")
    records = rankmon.read_jsonl(options.logdir / "rankmon.jsonl")
    ranks = {tag: n for tag, n in records[-1].scalars.items() if tag.startswith("rank_weights/")}
    known = rankmon.weight_ranks(jax.device_get(params))
    check(
        {
            "trained with and without the monitor: the same bits": all(
                np.array_equal(a, b) for a, b in pairs
            ),
            "each device holds an eighth of the parameters": 8 * held(params)
            == sum(leaf.nbytes for leaf, _ in pairs),
            "and of each vector": 8 * held(vector)
            == sum(x.nbytes for x in jax.tree.leaves(vector)),
            f"with a product it needs {totals[8] / totals[1]:.2f} of one device's memory": (
                3 * totals[8] < totals[1] or options.quick
            ),
            "the sharpness is the same up to rounding": abs(found[8] / found[1] - 1) < 1e-10,
            "the ranks are those of the gathered weights": sorted(ranks.values())
            == sorted(one.rank for one in known.values()),
        }
    )


if __name__ == "__main__":
    main()
