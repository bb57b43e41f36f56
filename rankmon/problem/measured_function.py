"""Choose the function to measure: the user's network as given, or lifted to float64."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rankmon._util.optional_readers import optionally
from rankmon.problem.float64 import lifted_at
from rankmon.problem.precision import (
    DOUBLE,
    NATIVE,
    Precision,
    choose_precision,
    coarsest_eps,
    eps_of,
)

Network = Callable[[Any, Any], Any]
Measured = Callable[[Network], Callable[..., Any]]

# The outputs of the lifted network may differ from those of the given one by this many roundings,
# and by at most this share of the largest output.
_ROUNDINGS, _MOST = 1e3, 0.25


class _Problem(Protocol):
    inputs: Any
    targets: Any
    lift_dtype: bool


def chosen_network(
    problem: _Problem,
    network: Network,
    measured: Measured,
    shapes: Sequence[Any],
    leaves: Sequence[Any],
) -> tuple[Network, Precision]:
    """Return the network to measure, as given or lifted, and the arithmetic to measure it in.

    The network is lifted if the user asks for it. It is also lifted if it cannot be traced in
    float64 although it computes in the dtype of its parameters throughout: lifting then adds
    digits without removing an intended rounding. (Examples: a float32 carry of a recurrent
    network; a closed-over NumPy array of int64 or float64, which JAX keeps as int32 or float32
    after its first use.)

    Args:
      problem: the user's problem.
      network: the function (leaves, inputs) -> outputs.
      measured: maps a network to the function of leaves, inputs and targets to measure.
      shapes: the leaves' shapes and dtypes.
      leaves: the parameters at which the lifted network is compared with the given one.
    """
    arguments = (shapes, problem.inputs, problem.targets)
    if problem.lift_dtype:
        return _lifted(problem, network, measured, shapes, leaves)
    precision = choose_precision(measured(network), *arguments)
    stored = max((eps_of(shape.dtype) for shape in shapes), default=DOUBLE.eps)
    # It cannot be traced in float64, but computes nowhere below the dtype of its parameters.
    if precision.dtype is None and precision.eps <= stored:
        try:
            program = _lift(network, shapes, problem.inputs)
            found = choose_precision(measured(program), *arguments)
            if found == DOUBLE and _difference(network, program, leaves, problem.inputs) is None:
                return program, found
        except Exception:  # noqa: BLE001  it is measured as given, with a warning
            return network, precision
    return network, precision


def _lift(network: Network, shapes: Sequence[Any], inputs: Any) -> Network:
    """Trace the network in its own dtypes, and return the trace lifted to float64."""
    with NATIVE.scope():
        return lifted_at(network, list(shapes), inputs)


def _lifted(
    problem: _Problem,
    network: Network,
    measured: Measured,
    shapes: Sequence[Any],
    leaves: Sequence[Any],
) -> tuple[Network, Precision]:
    """Return the lifted network as the user asked, or the given one if lifting fails."""

    def read() -> tuple[Network, str | None]:
        program = _lift(network, shapes, problem.inputs)
        return program, _difference(network, program, leaves, problem.inputs)

    program, difference = optionally(
        problem, "the operations to lift", read, otherwise=(network, None)
    )
    arguments = (shapes, problem.inputs, problem.targets)
    precision = choose_precision(measured(program), *arguments, lifts=True)
    return program, precision.with_warning(difference)


def _difference(
    network: Network, program: Network, leaves: Sequence[Any], inputs: Any
) -> str | None:
    """Return a warning if the lifted outputs differ by more than rounding, or None.

    There is nothing to compare for shapes, traced arrays and arrays of other processes, which have
    no values here.
    """
    if not all(map(_has_values, leaves)):
        return None
    with NATIVE.scope():
        stored = [_host(NATIVE, leaf) for leaf in leaves]
        outputs = jax.jit(network)(stored, inputs)
        eps = max(eps_of(outputs.dtype), coarsest_eps(jax.make_jaxpr(network)(stored, inputs)))
        given = np.asarray(outputs, np.float64)
    with DOUBLE.scope():
        wide = jax.tree.map(lambda leaf: _host(DOUBLE, leaf), (stored, inputs))
        got = np.asarray(jax.jit(program)(*wide), np.float64)
    finite = np.isfinite(given) & np.isfinite(got)
    scale = np.max(np.abs(given), initial=0.0, where=finite)
    off = np.max(np.abs(got - given), initial=0.0, where=finite)
    allowed = min(_ROUNDINGS * eps, _MOST)
    if off <= allowed * scale:
        return None
    return (
        f"expected the lifted network's outputs to be the given ones up to rounding, {allowed:.1e} "
        f"of the largest, got {off / scale if scale else np.inf:.1e}: ranks are those of the "
        "lifted network; leave out lift_dtype=True, or report it with the network"
    )


def _has_values(leaf: Any) -> bool:
    """Return whether all values of a leaf are available in this process."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer) and leaf.is_fully_addressable
    return isinstance(leaf, (np.ndarray, np.generic, float, int))


def _host(precision: Precision, leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", np.dtype(float))
    return leaf if jnp.issubdtype(dtype, jax.dtypes.extended) else precision.lift(leaf)
