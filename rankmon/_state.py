"""Checkpoints of the monitor: float64 arrays as the uint32 words that any checkpointer keeps.

JAX with x64 off would round float64 arrays to float32 on the way, and with them the residuals that
H_f^fixed holds. Nothing here knows what the arrays mean.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt32

Arrays = Mapping[str, Mapping[str, Float[np.ndarray, "..."]]]


def encode(states: Arrays) -> dict[str, dict[str, UInt32[np.ndarray, "... 2"]]]:
    """Each array as the bits of its numbers, two words a number."""
    return {
        name: {key: _to_bits(value) for key, value in state.items()}
        for name, state in states.items()
    }


def decode(states: Mapping[str, Any]) -> dict[str, dict[str, Float[np.ndarray, "..."]]]:
    """The arrays that `encode` was given.

    Raises:
      ValueError: where an array is not made of pairs of uint32 words.
    """
    return {
        name: {key: _from_bits(name, key, bits) for key, bits in state.items()}
        for name, state in states.items()
    }


def _to_bits(value: np.ndarray | np.generic) -> np.ndarray:
    array = np.ascontiguousarray(value, np.float64)
    return array.view(np.uint32).reshape(*np.shape(value), 2)


def _from_bits(name: str, key: str, bits: Any) -> np.ndarray:
    array = np.asarray(bits)
    if array.dtype != np.uint32 or array.ndim < 1 or array.shape[-1] != 2:
        raise ValueError(
            f"expected {name}/{key} as uint32 [..., 2], got {array.dtype} {array.shape}; restore "
            "monitor.state as it was saved"
        )
    return np.ascontiguousarray(array).view(np.float64)[..., 0]
