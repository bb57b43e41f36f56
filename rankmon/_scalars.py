"""The user's own scalars: as floats, and under tags beside the monitor's; makes none of its own."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rankmon._trouble import Trouble


class UserScalars:
    """Converts the scalars of one monitor's user.

    Args:
      trouble: decides what becomes of those that are no numbers.
      reserved: tags that are the monitor's from the beginning.
    """

    def __init__(self, trouble: Trouble, *, reserved: Iterable[str]) -> None:
        self._trouble = trouble
        self._reserved = set(reserved)

    def numbers(self, scalars: Mapping[str, Any] | None, step: int) -> dict[str, float]:
        """The scalars as floats; NaN for what cannot be converted."""
        return self._trouble.guard(f"scalars at step {step}", self._numbers, scalars, step) or {}

    def _numbers(self, scalars: Mapping[str, Any] | None, step: int) -> dict[str, float]:
        numbers = {}
        for tag, value in (scalars if scalars is not None else {}).items():
            number = self._trouble.guard(f"scalar {tag!r} at step {step}", _number, value)
            numbers[str(tag)] = float("nan") if number is None else number
        return numbers

    def beside(self, own: Iterable[str], numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers, under "user/<tag>" where `own` has the tag now or had it before."""
        self._reserved |= set(own)
        taken = self._reserved & numbers.keys()
        for tag in sorted(taken):
            self._trouble.warn(
                f"{tag!r} is a tag of the monitor's own; your scalar is written as 'user/{tag}'",
                key="user tags",
            )
        return {f"user/{tag}" if tag in taken else tag: numbers[tag] for tag in numbers}


def _number(value: Any) -> float:
    array = np.asarray(value)
    if array.shape or np.iscomplexobj(array):
        raise TypeError(
            f"expected a real number, got {array.dtype} of shape {array.shape}; reduce it first"
        )
    return float(array)
