"""Convert numbers to strict JSON, which has no NaN and no infinities."""

from typing import Any

import numpy as np


def json_numbers(values: Any) -> Any:
    """Return a number or array as nested lists of floats, with non-finite values as strings."""
    array = np.asarray(values, np.float64)
    if np.all(np.isfinite(array)):
        return array.tolist()
    names = array.astype(object)
    names[np.isnan(array)] = "NaN"
    names[np.isposinf(array)] = "Infinity"
    names[np.isneginf(array)] = "-Infinity"
    return names.tolist()
