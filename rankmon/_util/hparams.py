"""Check the hyperparameters of a run: values that TensorBoard and JSON can represent."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

Hparam = bool | int | float | str


def as_hparams(hparams: Mapping[str, Any]) -> dict[str, Hparam]:
    """Return the hyperparameters as built-in Python values.

    Raises:
      TypeError: for anything but a mapping from names to numbers, strings and bools.
      ValueError: for a number that is not finite, and a name that is empty.
    """
    if not isinstance(hparams, Mapping):
        raise TypeError(
            f"expected hparams to map names to values, got {type(hparams).__name__}; for instance "
            "hparams={'lr': 0.1}"
        )
    return {_name(name): _value(name, value) for name, value in hparams.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(
            f"expected the names of hparams to be strings, got {name!r} ({type(name).__name__}); "
            f"write {str(name)!r}"
        )
    if not name.strip():
        raise ValueError(
            f"expected the names of hparams to be non-empty, got {name!r}; give each a name"
        )
    return name


def _value(name: str, value: Any) -> Hparam:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(
            f"expected hparams[{name!r}] to be a number, a string or a bool, got {value!r} "
            f"({type(value).__name__}); write a number of an array as float(...), anything else "
            "as str(...), or leave it out"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(
            f"expected hparams[{name!r}] to be finite, got {value!r}, which TensorBoard cannot "
            "show; write it as a string, or leave it out"
        )
    return int(value) if isinstance(value, numbers.Integral) else number
