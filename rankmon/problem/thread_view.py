"""The settings on which the programs of a problem depend, in one thread.

Settings of JAX, a mesh and the contexts of neural network libraries may belong to a thread.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rankmon._util.program_cache import without_addresses
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array, abstract_arrays


class ThreadView:
    """The settings of JAX, and the network and the loss as this thread traces them.

    Args:
      flat: the problem.
    """

    def __init__(self, flat: FlatProblem) -> None:
        leaves = [
            abstract_array(spec.shape, flat.precision.traced_dtype(spec.dtype))
            for spec in flat.specs
        ]
        outputs = abstract_array((flat.positions, flat.k), flat.dtype)
        loss, targets = flat.problem.loss, abstract_arrays(flat.targets)
        with flat.precision.scope():
            self._settings = {name: getattr(jax.config, name, None) for name in jax.config.values}
            self._mesh = jax.sharding.get_abstract_mesh()
            programs = [
                _traced(flat.apply_leaves, leaves, abstract_arrays(flat.inputs)),
                _traced(jax.vmap(loss.value), outputs, targets),
                _traced(jax.vmap(loss.hessian_product), outputs, targets, outputs),
            ]
        self._texts = [without_addresses(program) for program in programs]
        self._constants = [constant for program in programs for constant in program.consts]

    def __eq__(self, other: object) -> bool:
        """Return whether the programs of both threads are the same."""
        return (
            isinstance(other, ThreadView)
            and self._settings == other._settings
            and self._mesh == other._mesh
            and self._texts == other._texts
            and all(map(_same, self._constants, other._constants))
        )

    __hash__ = None  # type: ignore[assignment]


def _traced(function: Callable[..., Any], *shapes: Any) -> Any:
    # A new function, because JAX keeps the programs of those that it knows.
    return jax.make_jaxpr(lambda *arguments: function(*arguments))(*shapes)


def _same(a: Any, b: Any) -> bool:
    return a is b or (a.dtype == b.dtype and np.array_equal(a, b))
