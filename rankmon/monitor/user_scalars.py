"""Convert the user's scalars to floats, with tags that differ from the monitor's."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rankmon._util.errors import ErrorPolicy
from rankmon.problem.device_copy import copies


class UserScalars:
    """Converts the user's scalars for one monitor.

    Args:
      errors: the error policy, applied to failing conversions.
      reserved: tags that the monitor uses from the beginning.
    """

    def __init__(self, errors: ErrorPolicy, *, reserved: Iterable[str]) -> None:
        self._errors = errors
        self._reserved = set(reserved)

    def held(self, scalars: Mapping[str, Any] | None, step: int) -> dict[str, Any]:
        """Return a copy of the scalars for a later `numbers`, without waiting for a device."""
        return self._each(_held, scalars, step)

    def numbers(self, scalars: Mapping[str, Any] | None, step: int) -> dict[str, float]:
        """Return the scalars as floats; a value that cannot be converted is NaN."""
        return self._each(_number, scalars, step)

    def _each(
        self, convert: Callable[[Any], Any], scalars: Mapping[str, Any] | None, step: int
    ) -> dict[str, Any]:
        """Convert each scalar under the error policy; one that fails is NaN."""

        def converted() -> dict[str, Any]:
            values = {}
            for tag, value in (scalars if scalars is not None else {}).items():
                value = self._errors.guard(f"scalar {tag!r} at step {step}", convert, value)
                values[str(tag)] = float("nan") if value is None else value
            return values

        return self._errors.guard(f"scalars at step {step}", converted) or {}

    def with_free_tags(self, own: Iterable[str], numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers; rename a tag to "user/<tag>" if `own` has it or had it before."""
        self._reserved |= set(own)
        taken = self._reserved & numbers.keys()
        for tag in sorted(taken):
            self._errors.warn(
                f"the monitor uses the tag {tag!r} itself; your scalar is written as 'user/{tag}'",
                key="user tags",
            )
        return {f"user/{tag}" if tag in taken else tag: numbers[tag] for tag in numbers}


def _held(value: Any) -> Any:
    """Return a copy on the device of a jax.Array, and any other scalar as a float."""
    return copies([value])[0] if isinstance(value, jax.Array) else _number(value)


def _number(value: Any) -> float:
    """Return a real scalar as a float."""
    with jax.transfer_guard("allow"):
        array = np.asarray(value)
    if array.shape or np.iscomplexobj(array):
        raise TypeError(
            f"expected a real number, got {array.dtype} of shape {array.shape}; reduce it to one "
            "number first"
        )
    return float(array)
