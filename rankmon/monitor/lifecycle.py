"""The end of a loop: the last call, and whether its parameters can still be measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon.problem.equinox_keras import is_live


class Call(NamedTuple):
    """The arguments of one call of the monitor."""

    step: int
    params: Any
    extra: Any
    scalars: Mapping[str, Any] | None
    opt_state: Any = None


def is_unchanged(call: Call, errors: ErrorPolicy) -> bool:
    """Return whether a call's parameters are certainly unchanged; warn if they may have changed.

    Args:
      call: the last call of a loop.
      errors: the error policy, which gives the warning.
    """
    changed = errors.guard("the last parameters", _why_perhaps_changed, call.params)
    if changed:
        errors.warn(
            f"the parameters of the last step, {call.step}, {changed}, so the last probe is "
            "missing; call monitor.close(step, params) with the final parameters"
        )
    return not changed


def _why_perhaps_changed(params: Any) -> str | None:
    """Return why the parameters may have changed since the call; None if they cannot."""
    if is_live(params):
        return "are variables (of NNX or Keras), which training changes in place"
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return "were traced: the monitor was called inside jax.jit"
    if any(getattr(leaf, "is_deleted", bool)() for leaf in leaves):
        return "were donated to your train step"
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return "are NumPy arrays, which may have changed in place"
    return None
