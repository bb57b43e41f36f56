"""`RankMonitor.scan`: a training loop as one compiled program that stops at the due steps.

The length of a `jax.lax.scan` is compiled into the program, so a schedule with gaps of many lengths
would need many programs. Here the first and the last step are arguments of a single program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rankmon.monitor.alerts import StopTraining
from rankmon.problem.device_copy import copies

StepFunction = Callable[[Any, Any], tuple[Any, Any]]


class CompiledSteps:
    """The steps first, ..., stop - 1 of a function, compiled into one program.

    Args:
      step_fn: step_fn(carry, x) -> (carry, y).
    """

    def __init__(self, step_fn: StepFunction) -> None:
        self.step_fn = step_fn
        self.advance = jax.jit(self._advance, donate_argnums=(0, 1))

    def _advance(self, carry: Any, ys: Any, xs: Any, first: Any, stop: Any) -> Any:
        """Return the carry and the outputs after the steps first, ..., stop - 1."""

        def body(i: Any, state: Any) -> Any:
            carry, ys = state
            x = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), xs)
            carry, y = self.step_fn(carry, x)
            put = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
            return carry, jax.tree.map(put, ys, y)

        return lax.fori_loop(first, stop, body, (carry, ys))


class CompiledLoop:
    """Computes `jax.lax.scan(step_fn, carry, xs, length)` in any number of pieces.

    Args:
      steps: the program.
      carry: pytree of arrays; it is copied once, and the copy is donated from piece to piece.
      length: the number of steps.
      xs: None, or a pytree of arrays with leading axis `length`.

    Attributes:
      carry: the carry after the steps run so far.
      ys: the steps' outputs, leading axis `length`; zeros for steps that have not run yet.

    Raises:
      TypeError: inside jit or vmap; or if step_fn does not return a pair, or returns a carry of
        another structure, shape or dtype than its argument.
      ValueError: if a leading axis of xs is not `length`.
    """

    def __init__(self, steps: CompiledSteps, carry: Any, length: int, xs: Any = None) -> None:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((carry, xs))):
            raise TypeError(
                "expected monitor.scan outside jax.jit and jax.vmap, got a traced carry; for "
                "several seeds, vmap step_fn and call a SeedsMonitor in the Python loop; for "
                "weights inside a compiled program, use hooks.report_weights"
            )
        for leaf in jax.tree.leaves(xs):
            if np.shape(leaf)[:1] != (length,):
                raise ValueError(
                    f"expected xs with leading axis steps = {length}, got shape {np.shape(leaf)}; "
                    "pass one entry per step"
                )
        self._steps, self._length, self._done = steps, length, 0
        # The user's transfer guard is for the training step, not for these copies before it.
        with jax.transfer_guard("allow"):
            leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, carry))
            self.carry = jax.tree.unflatten(structure, copies(leaves))
            self._xs = jax.tree.map(jnp.asarray, xs)
        outputs = self._outputs()
        with jax.transfer_guard("allow"):
            self.ys = jax.tree.map(lambda y: jnp.zeros((length, *y.shape), y.dtype), outputs)

    def _outputs(self) -> Any:
        """Return the shapes of one step's outputs."""
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self._xs)
        made = jax.eval_shape(self._steps.step_fn, self.carry, x)
        if not (isinstance(made, tuple) and len(made) == 2):
            raise TypeError(
                "expected step_fn(carry, x) to return (carry, y), as for jax.lax.scan, got a "
                f"{type(made).__name__}; return (carry, None) if there is no output"
            )
        if not _alike(self.carry, made[0]):
            raise TypeError(
                f"expected step_fn to return a carry like its argument, {_described(self.carry)}, "
                f"got {_described(made[0])}; keep its structure, shapes and dtypes"
            )
        return made[1]

    def run(
        self,
        measure: Callable[[int, Any], Any],
        *,
        start: int,
        is_scheduled: Callable[[int], bool],
    ) -> None:
        """Run all steps, and stop the program at the due ones to measure.

        Args:
          measure: called as measure(step, carry); it may decide that the step is not due after all.
          start: the number of the first step in the schedule.
          is_scheduled: returns whether a step is due according to the schedule alone.

        Raises:
          StopTraining: raised by `measure`, with the `carry` and the `ys` so far.
        """
        end, step, ahead = start + self._length, start, 1
        while step < end:
            try:
                measure(step, self.carry)
            except StopTraining as stop:
                stop.carry, stop.ys = self.carry, self.ys
                raise
            # A step that `overhead` postponed is still due: look further and further ahead, so that
            # the program does not stop at every step until then.
            ahead = 2 * ahead if is_scheduled(step) else 1
            step = next(filter(is_scheduled, range(step + ahead, end)), end)
            self.advance(step - start)

    def advance(self, stop: int) -> None:
        """Dispatch the steps up to `stop`, exclusive, without waiting for them."""
        with jax.transfer_guard("allow"):
            first, last = jnp.asarray(self._done, jnp.int32), jnp.asarray(stop, jnp.int32)
        self.carry, self.ys = self._steps.advance(self.carry, self.ys, self._xs, first, last)
        self._done = stop


def _alike(taken: Any, given: Any) -> bool:
    """Return whether structures, shapes and dtypes agree; Python numbers may be promoted."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (taken, given)]
    return bool(structures[0] == structures[1]) and all(
        a.shape == b.shape and (a.dtype == b.dtype or a.weak_type)
        for a, b in zip(jax.tree.leaves(taken), jax.tree.leaves(given), strict=True)
    )


def _described(tree: Any) -> str:
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree))
