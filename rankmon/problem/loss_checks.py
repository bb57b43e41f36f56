"""Check that a callable loss maps the outputs [k] and the target of one example to a scalar."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankmon._util.warnings import warn_user
from rankmon.problem.losses import Loss
from rankmon.problem.precision import NATIVE, abstract_array

_APPLY = (
    "put what couples examples (pairs, other views, statistics of the batch) into apply, which "
    "sees the whole batch: let it return each example's share [n, 1], with loss=lambda z, y: z[0]"
)

# The largest number of outputs at which a loss that slices its outputs is detected: the check takes
# more memory and time with more outputs.
_MOST_OUTPUTS = 256


def check_loss(loss: Loss, outputs: Any, targets: Any) -> None:
    """Refuse a callable loss that does not return a scalar for one example.

    Warn if it also accepts a whole batch and returns neither the mean nor the sum over the
    examples, because it may couple them.

    Args:
      loss: the loss; its name is "custom:..." if it is a callable.
      outputs: shape [n, ..., k] and dtype of the outputs of apply.
      targets: pytree of arrays with the leading axes of the outputs.

    Raises:
      ValueError: if the result is not a scalar; the message gives the correct code.
    """
    if not loss.name.startswith("custom:"):
        return
    axes = len(outputs.shape) - 1
    with NATIVE.scope():
        rows = jax.tree.map(lambda t: np.asarray(t).reshape(-1, *t.shape[axes:]), targets)
        z = abstract_array(outputs.shape[-1:], outputs.dtype)
        _check_scalar(loss.value, z, jax.tree.map(lambda t: t[0], rows))
        try:
            couples = _couples(loss.value, outputs, rows) and not _broadcasts(
                loss.value, outputs, rows
            )
        except Exception:  # noqa: BLE001  a loss that accepts no batch cannot couple examples
            return
    if couples:
        warn_user(
            "expected loss(output [k], target) to be one example's loss, got one that gives a "
            "scalar for a whole batch [n, k] too, which is not the mean or the sum over its "
            "examples: ranks are those of the mean over examples taken one by one; "
            f"{_APPLY}. If the loss is meant for one example, `assert z.ndim == 1` in it says so"
        )


def _check_scalar(value: Callable[[Any, Any], Any], z: Any, target: Any) -> None:
    """Refuse a loss that raises or does not return a floating scalar for one example."""
    try:
        got: Any = jax.eval_shape(value, z, target)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(_expected(z, target, f"{type(error).__name__}: {reason[:200]}")) from error
    if getattr(got, "shape", None) != () or not jnp.issubdtype(got.dtype, jnp.floating):
        raise ValueError(_expected(z, target, _shapes(got)))


def _expected(z: Any, target: Any, got: str) -> str:
    """Return the error message for a loss of these arguments; `got` describes its result."""
    return (
        "expected loss(output [k], target) to give a floating scalar for one example (output "
        f"{_shapes(z)}, target {_shapes(target)}), got {got}; write it for one example and sum "
        f"it over the outputs, or {_APPLY}"
    )


def _shapes(tree: Any) -> str:
    found = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree)]
    return ", ".join(found) or type(tree).__name__


def _broadcasts(value: Callable[[Any, Any], Any], outputs: Any, rows: Any) -> bool:
    """Return whether only the broadcast [n, 1] - [n] of one output and one target couples."""
    if outputs.shape[-1] > 1 or all(t.ndim > 1 for t in jax.tree.leaves(rows)):
        return False
    columns = jax.tree.map(lambda t: t[:, None] if t.ndim == 1 else t, rows)
    try:
        return not _couples(value, outputs, columns)
    except Exception:  # noqa: BLE001
        return False


def _couples(value: Callable[[Any, Any], Any], outputs: Any, rows: Any) -> bool:
    """Return whether the loss of a batch depends on how the outputs are grouped into examples.

    A norm of the batch is not the sum of the examples' norms, but it has the same value if the
    outputs of all examples form a single row. A loss that slices the outputs, z[:3], slices the
    examples of a batch instead, so it depends on their order if there are more examples than
    outputs.
    """
    k = outputs.shape[-1]
    m = min(k, _MOST_OUTPUTS) + 1
    rows = jax.tree.map(lambda t: np.resize(t, (m, *t.shape[1:])), rows)  # repeats the rows
    z = np.random.default_rng(0).standard_normal((m, k)).astype(outputs.dtype)
    if getattr(jax.eval_shape(value, z, rows), "shape", None) != ():
        return False

    def values(z: Any, rows: Any) -> Any:
        each = jax.vmap(value)(z, rows)
        in_a_row = value(z.ravel(), jax.tree.map(jnp.ravel, rows))
        backwards = value(z[::-1], jax.tree.map(lambda t: t[::-1], rows))
        others = [jnp.mean(each), jnp.sum(each), jnp.sum(in_a_row)]
        return value(z, rows), backwards, jnp.stack(others)

    whole, *others = (np.asarray(v, np.float64) for v in jax.jit(values)(z, rows))
    backwards, in_other_ways = others
    symmetric = np.isclose(backwards, whole, rtol=1e-2)
    return bool(symmetric and not np.any(np.isclose(in_other_ways, whole, rtol=1e-2)))
