"""How a loop ends: a monitor as a context manager, and the last call that is left to measure."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

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


class ClosesOnExit(ABC):
    """A monitor as a context manager: it closes on the way out of the loop."""

    @abstractmethod
    def close(self) -> Any:
        """Measure the last parameters seen, and close."""

    @abstractmethod
    def _gives_up(self) -> None:
        """Measure nothing more, and note that the session failed: an exception left the loop."""

    def __enter__(self) -> Self:
        """Return the monitor itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after an exception in the loop without measuring once more."""
        if error is None:
            self.close()
            return
        self._gives_up()
        try:
            self.close()
        except Exception as trouble:  # noqa: BLE001  the loop's own exception is what counts
            error.add_note(f"rankmon: and then {type(trouble).__name__}: {trouble}")


def is_unchanged(call: Call, errors: ErrorPolicy) -> bool:
    """Return whether a call's parameters are still what they were; warn if they may have changed.

    Args:
      call: the last one of a loop.
      errors: decides what an error does, and warns.
    """
    changed = errors.guard("the last parameters", _why_perhaps_changed, call.params)
    if changed:
        errors.warn(
            f"the parameters of the last step, {call.step}, {changed}, so the last probe is "
            "missing; call monitor.close(step, params) with the final ones"
        )
    return not changed


def _why_perhaps_changed(params: Any) -> str | None:
    """Return why the parameters may have changed since the call; None if they cannot."""
    if is_live(params):
        return "are variables (of NNX or Keras), which training changes in place"
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return "were traced: the monitor was called inside of jax.jit"
    if any(getattr(leaf, "is_deleted", bool)() for leaf in leaves):
        return "were donated to your train step"
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return "are NumPy arrays, which may have changed in place"
    return None
