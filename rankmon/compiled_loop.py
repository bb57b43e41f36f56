"""A training loop as one compiled program that can be stopped at any step; measures nothing.

`jax.lax.scan` has its length compiled in, so that a schedule with many gaps would compile many
programs. Here first and last step are arguments: one program, whatever the schedule.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rankmon._copies import copies

StepFunction = Callable[[Any, Any], tuple[Any, Any]]


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _advance(step_fn: StepFunction, carry: Any, ys: Any, xs: Any, first: Any, stop: Any) -> Any:
    """The carry and the outputs after the steps first, ..., stop - 1."""

    def body(i: Any, state: Any) -> Any:
        carry, ys = state
        x = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), xs)
        carry, y = step_fn(carry, x)
        put = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
        return carry, jax.tree.map(put, ys, y)

    return lax.fori_loop(first, stop, body, (carry, ys))


class CompiledLoop:
    """What `jax.lax.scan(step_fn, carry, xs, length)` computes, in as many goes as one likes.

    Args:
      step_fn: step_fn(carry, x) -> (carry, y).
      carry: pytree of arrays; it is copied, and the copy donated from step to step.
      length: the number of steps.
      xs: None, or a pytree of arrays with leading axis `length`.

    Attributes:
      carry: after the steps that were made.
      ys: the steps' outputs, leading axis `length`; zeros where a step was not made yet.

    Raises:
      TypeError: where step_fn does not give a pair.
      ValueError: where the leading axes of xs are not `length`.
    """

    def __init__(self, step_fn: StepFunction, carry: Any, length: int, xs: Any = None) -> None:
        for leaf in jax.tree.leaves(xs):
            if np.shape(leaf)[:1] != (length,):
                raise ValueError(
                    f"expected xs with leading axis steps = {length}, got shape {np.shape(leaf)}; "
                    "give one entry a step"
                )
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, carry))
        self.carry = jax.tree.unflatten(structure, copies(leaves))
        self._step_fn, self._done = step_fn, 0
        self._xs = jax.tree.map(jnp.asarray, xs)
        self.ys = jax.tree.map(lambda y: jnp.zeros((length, *y.shape), y.dtype), self._outputs())

    def _outputs(self) -> Any:
        """Shapes of one step's outputs."""
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self._xs)
        made = jax.eval_shape(self._step_fn, self.carry, x)
        if not (isinstance(made, tuple) and len(made) == 2):
            raise TypeError(
                "expected step_fn(carry, x) to give (carry, y), as for jax.lax.scan, got a "
                f"{type(made).__name__}; return carry, None where there is no output"
            )
        return made[1]

    def advance(self, stop: int) -> None:
        """Dispatches the steps up to `stop`, exclusive; waits for nothing."""
        self.carry, self.ys = _advance(
            self._step_fn, self.carry, self.ys, self._xs, np.int32(self._done), np.int32(stop)
        )
        self._done = stop
