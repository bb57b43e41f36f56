"""Ranks of weights from inside compiled code: an Optax transformation, and a call in a `lax.scan`.

A compiled training step has no access to the probe batch. For the Hessian use `RankMonitor`, or its
`scan`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback
from jaxtyping import Array, Int, UInt

from rankmon.monitor.schedule import EveryN
from rankmon.network.matrix_views import Views
from rankmon.problem.problem import Problem
from rankmon.weights.traced import Scalars, weight_scalars


class Reporter(Protocol):
    """An object that accepts numbers measured elsewhere, such as a `RankMonitor`."""

    def report(self, step: int, scalars: dict[str, float]) -> None:
        """Accept the numbers of one step on any thread, and return at once."""


class WatchState(NamedTuple):
    """The state of `watch_weights`.

    Attributes:
      updates: the number of updates so far.
      step: the step of the last measurement, -1 before the first.
      bits: the bits of `scalars` as integers, so that `jax_debug_nans` does not object to NaN.
    """

    updates: Int[Array, ""]
    step: Int[Array, ""]
    bits: dict[str, UInt[Array, ""]]

    @property
    def scalars(self) -> Scalars:
        """The last measurement, with the tags of the "weights" probe; zeros before the first."""
        return {tag: _numbers(bits) for tag, bits in self.bits.items()}


def watch_weights(
    every: int,
    *,
    reporter: Reporter | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    views: Views | Problem | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Create an Optax transformation that measures the weights' ranks and changes no update.

    It can be placed anywhere in `optax.chain`. It measures the parameters before the update, inside
    the compiled step and in their own precision. It has no access to the batch, so it measures
    neither the Hessian nor the loss nor features, and without `views` it cannot find the leaves
    that hold the matrices of several layers. Undefined values are NaN. Under `jax.vmap` it works
    without a reporter.

    Args:
      every: measure if the step is a multiple of this. The step is the number of updates so far,
        or the argument of `update(..., step=)`.
      reporter: receives the numbers while training runs, for instance a `RankMonitor`; None to
        keep them only in the state.
      include: globs over parameter names.
      exclude: globs over parameter names to leave out.
      views: which axes of kernels are rows and columns, as for `weight_ranks`.

    Returns:
      A transformation whose state is a `WatchState`, of one structure from `init` on.

    Raises:
      TypeError, ValueError: for input that does not fit; at `init`, if no leaf is a matrix.

    Example:
      >>> import jax.numpy as jnp, optax, rankmon
      >>> tx = optax.chain(rankmon.hooks.watch_weights(every=10), optax.sgd(0.1))
      >>> params = {"W": jnp.ones((3, 4))}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> int(state[0].scalars["rank_weights/W"])
      1
    """
    every = EveryN(every).n
    measure = partial(_measured_bits, include=include, exclude=exclude, views=views)

    def init(params: Any) -> WatchState:
        return WatchState(
            jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), _blank(measure, params)
        )

    def update(
        updates: Any, state: WatchState, params: Any = None, *, step: Any = None, **extra: Any
    ) -> tuple[Any, WatchState]:
        if params is None:
            raise ValueError(
                "expected update(updates, state, params), got no params; watch_weights measures "
                "the parameters, so pass them as the third argument"
            )
        now = state.updates if step is None else jnp.asarray(step, jnp.int32)
        due = now % every == 0
        last, bits = jax.lax.cond(
            due, lambda: (now, measure(params)), lambda: (state.step, state.bits)
        )
        if reporter is not None:
            _report(reporter, due, now, bits)
        return updates, WatchState(state.updates + 1, last, bits)

    return optax.GradientTransformationExtraArgs(init, update)


def report_weights(
    reporter: Reporter,
    step: Any,
    params: Any,
    *,
    every: int,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    views: Views | Problem | None = None,
) -> None:
    """Measure the weights' ranks inside traced code, such as your own `lax.scan`, if step is due.

    Call it outside of differentiated and vmapped functions, which do not support callbacks.

    Args:
      reporter: receives the numbers while the program runs, for instance a `RankMonitor`.
      step: the step, traced or not.
      params: pytree of arrays.
      every: measure if the step is a multiple of this.
      include: globs over parameter names.
      exclude: globs over parameter names to leave out.
      views: which axes of kernels are rows and columns, as for `weight_ranks`.

    Raises:
      TypeError, ValueError: for input that does not fit, while tracing.
    """
    now = jnp.asarray(step, jnp.int32)
    due = now % EveryN(every).n == 0
    measure = partial(_measured_bits, include=include, exclude=exclude, views=views)
    blank = _blank(measure, params)
    _report(reporter, due, now, jax.lax.cond(due, lambda: measure(params), lambda: blank))


def _measured_bits(
    params: Any, *, include: Sequence[str], exclude: Sequence[str], views: Views | Problem | None
) -> dict[str, UInt[Array, ""]]:
    """Return the bits of the scalars of `weight_scalars`; traceable."""
    with jax.debug_nans(False), jax.debug_infs(False):  # the checks run without jit
        scalars = weight_scalars(params, include=include, exclude=exclude, views=views)
        return {
            tag: jax.lax.bitcast_convert_type(value, f"uint{8 * value.dtype.itemsize}")
            for tag, value in scalars.items()
        }


def _numbers(bits: Any) -> Any:
    """Return the floats with these bits, for traced arrays, arrays on the host, or shapes."""
    dtype = f"float{8 * bits.dtype.itemsize}"
    if isinstance(bits, jax.core.Tracer):
        return jax.lax.bitcast_convert_type(bits, dtype)
    if isinstance(bits, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(bits.shape, dtype)
    return np.asarray(bits).view(dtype)


def _blank(measure: Callable[[Any], Any], params: Any) -> dict[str, UInt[Array, ""]]:
    """Return zeros for all scalars."""
    shapes = jax.eval_shape(measure, params)
    return {tag: jnp.zeros(shape.shape, shape.dtype) for tag, shape in shapes.items()}


def _report(reporter: Reporter, due: Array, step: Array, bits: dict[str, UInt[Array, ""]]) -> None:
    """Add a callback to the traced program that reports the numbers if the step is due."""
    tags = list(bits)

    def on_host(step: np.ndarray, *values: np.ndarray) -> None:
        # Only NumPy: a JAX computation here could wait for the program that made this call.
        numbers = [float(_numbers(np.asarray(value))) for value in values]
        reporter.report(int(np.asarray(step)), dict(zip(tags, numbers, strict=True)))

    @custom_vmap
    def of_one_seed(values: list[Array]) -> list[Array]:
        return values

    @of_one_seed.def_vmap
    def refuse(*_: Any) -> NoReturn:
        raise TypeError(
            "expected weights to be reported outside jax.vmap, got several seeds at once; call "
            "a SeedsMonitor in the Python loop, or use watch_weights without a reporter"
        )

    # JAX supports ordered effects only on a single device.
    ordered = jax.device_count() == 1
    # Outside of custom_vmap, because JAX 0.8 drops effects inside it.
    values = of_one_seed(list(bits.values()))
    call = partial(io_callback, on_host, None, step, *values, ordered=ordered)
    jax.lax.cond(due, call, lambda: None)
