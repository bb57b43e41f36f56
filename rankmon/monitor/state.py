"""The format of `monitor.state`: float64 arrays as uint32 words, which any checkpointer can save.

With x64 off, JAX would round float64 arrays to float32 when they are saved, and with them the
residuals of H_f^fixed. The module `restart` defines the arrays.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt32

ADDED = frozenset({"last_report", "batch"})  # of the monitor's own entries

Arrays = Mapping[str, Mapping[str, Float[np.ndarray, "..."]]]


def encode(states: Arrays) -> dict[str, dict[str, UInt32[np.ndarray, "... 2"]]]:
    """Return each array as the bits of its numbers, two uint32 words for each float64."""
    return {
        name: {key: _to_bits(value) for key, value in state.items()}
        for name, state in states.items()
    }


def decode(states: Mapping[str, Any]) -> dict[str, dict[str, Float[np.ndarray, "..."]]]:
    """Return the original arrays: the inverse of `encode`.

    Raises:
      ValueError: if an array is not made of pairs of uint32 words.
    """
    return {
        name: {key: _from_bits(name, key, bits) for key, bits in state.items()}
        for name, state in states.items()
    }


def checked(
    state: Any,
    expected: Mapping[str, Mapping[str, Any]],
    *,
    optional: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Return the state with exactly the entries of the expected one, or raise.

    Empty entries may be missing, because checkpointers that save only leaves drop them. States of
    former versions lack `ADDED` and optional entries.

    Args:
      state: the saved state.
      expected: the state of this monitor.
      optional: entries of the probes that may be missing, by the probe's name.

    Raises:
      TypeError: if the state is not a mapping of mappings.
      ValueError: if other entries are missing, or if there are unexpected ones.
    """
    if not isinstance(state, Mapping) or not all(
        values is None or isinstance(values, Mapping) for values in state.values()
    ):
        raise TypeError(
            f"expected the state as a mapping of mappings, got {type(state).__name__}; pass "
            "the saved monitor.state as your checkpointer returns it"
        )
    given = {name: dict(values or {}) for name, values in state.items()}
    got = {name: set(values) for name, values in given.items() if values}
    wanted = {name: set(values) for name, values in expected.items() if values}
    for name, keys in {**optional, "monitor": ADDED}.items():
        if keys and got.get(name, set()) | set(keys) == wanted.get(name):
            got[name] = wanted[name]
    if got != wanted:
        raise ValueError(
            f"expected the state of a monitor with {wanted}, got {got}; restore into a "
            "monitor with the same probes as the saved one"
        )
    return {name: given.get(name, {}) for name in expected}


def digest(arrays: Iterable[Any]) -> float:
    """Return an integer hash of the arrays' values, rounded to float32.

    It does not depend on the dtype: the same batch may be float64 in NumPy and float32 in JAX.
    """
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        # By kind, so that the hash is the same with x64 on and off.
        dtype = {"b": "i8", "i": "i8", "u": "i8", "c": "c8"}.get(array.dtype.kind, "f4")
        with np.errstate(over="ignore"):
            values = array.astype(dtype) + np.zeros((), dtype)  # -0 is 0
        found.update(f"{array.shape} ".encode())
        found.update(values.tobytes())
    # 48 bits, which a float64 of the state holds exactly.
    return float(int.from_bytes(found.digest()[:6], "little"))


def _to_bits(value: np.ndarray | np.generic) -> np.ndarray:
    array = np.ascontiguousarray(value, np.float64)
    return array.view(np.uint32).reshape(*np.shape(value), 2)


def _from_bits(name: str, key: str, bits: Any) -> np.ndarray:
    """Return the float64 array with these words; refuse anything but pairs of uint32."""
    array = np.asarray(bits)
    if array.dtype != np.uint32 or array.ndim < 1 or array.shape[-1] != 2:
        raise ValueError(
            f"expected {name}/{key} as uint32 [..., 2], got {array.dtype} {array.shape}; restore "
            "monitor.state as it was saved"
        )
    return np.ascontiguousarray(array).view(np.float64)[..., 0]
