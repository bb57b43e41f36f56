"""Support for several processes that train one network (`jax.distributed`).

All processes measure, and the first one writes.
"""

from typing import Any

import jax
from jax.experimental import multihost_utils


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
