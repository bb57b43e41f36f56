"""The user's arrays: copy them to the host in native byte order, and refuse traced arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def in_machine_order(leaf: Any) -> Any:
    """Return the leaf, with NumPy arrays converted to native byte order, as JAX requires."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.isnative:
        return leaf
    return leaf.astype(leaf.dtype.newbyteorder("="))


def host_copies(name: str, tree: Any) -> Any:
    """Return copies of the arrays on the host, in native byte order."""

    def copy(leaf: Any) -> np.ndarray:
        if jnp.issubdtype(getattr(leaf, "dtype", np.float64), jax.dtypes.prng_key):
            raise TypeError(
                f"expected {name} to be arrays of numbers, got a random key ({leaf.dtype}); pass "
                "jax.random.key_data(key) and let apply call jax.random.wrap_key_data"
            )
        return np.array(in_machine_order(np.asarray(leaf)))

    return jax.tree.map(copy, tree)


def check_concrete(what: str, tree: Any) -> None:
    """Refuse arrays without values, which come from a function that JAX is tracing."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise _inside(what, "traced arrays")


def check_not_tracing(what: str) -> None:
    """Refuse a call from a function that JAX is compiling, even with arrays from outside of it."""
    with jax.transfer_guard("allow"):
        zero = jnp.zeros(())  # an operation of the program, while one is traced
    if isinstance(zero, jax.core.Tracer):
        raise _inside(what, "a call while a program is traced, which happens only once")


def _inside(what: str, got: str) -> TypeError:
    return TypeError(
        f"expected {what} outside of jax.jit, jax.vmap and jax.grad, got {got}; move the call into "
        "the Python loop around the compiled step. If the loop itself is compiled, as with "
        "lax.scan, use monitor.scan, or hooks.report_weights for the weights alone"
    )
