"""Support for several processes that train one network (`jax.distributed`).

All processes measure, and the first one writes.
"""

from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from rankmon._util.jaxpr import operations_of


def count() -> int:
    """Return the number of processes that train the network."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return count() == 1 or jax.process_index() == 0


def gathered(tree: Any) -> Any:
    """Return the tree with distributed arrays gathered; all processes must call this together."""

    def whole(leaf: Any) -> Any:
        spread = isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        return multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf

    return tree if count() == 1 else jax.tree.map(whole, tree)


def spans_processes(program: ClosedJaxpr) -> bool:
    """Return whether a program names a mesh of several processes, which have to run it together."""
    if count() == 1:
        return False
    values = (value for eqn in operations_of(program) for value in eqn.params.values())
    return any(_is_spread(leaf) for value in values for leaf in jax.tree.leaves(value))


def _is_spread(value: Any) -> bool:
    mesh = value.mesh if isinstance(value, NamedSharding) else value
    if isinstance(mesh, Mesh):
        return any(device.process_index != jax.process_index() for device in mesh.devices.flat)
    return isinstance(mesh, AbstractMesh) and mesh.size > jax.local_device_count()
