"""Arrays of any dtypes, packed into one float64 vector that holds their bytes.

The state of a probe consists of float64 arrays. Weights that are stored in float32 or bfloat16 take
a half or a quarter of the space this way, and they come back bit by bit. The vector is for storage
only: its entries are not the numbers of the arrays, and many of them are NaN.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

_WORD = np.dtype(np.float64).itemsize


def packed(arrays: Sequence[Any]) -> Float[np.ndarray, " words"]:
    """Return a vector with the bytes of the arrays, one after the other; `unpacked` undoes this.

    Args:
      arrays: arrays of numbers of any dtypes and shapes, of JAX or NumPy. Their bytes are taken in
        native byte order and C order, and each array is padded with zeros to whole words.
    """
    return np.concatenate([np.zeros(0), *(_words(np.asarray(array)) for array in arrays)])


def unpacked(
    vector: Float[np.ndarray, " words"], shapes: Sequence[Sequence[int]], dtypes: Sequence[Any]
) -> list[np.ndarray]:
    """Return the arrays that were packed into the vector, as copies.

    Args:
      vector: the result of `packed`.
      shapes: the shapes of the arrays.
      dtypes: the dtypes of the arrays.

    Raises:
      ValueError: if the vector does not have the length of such arrays.
    """
    vector, length = np.asarray(vector), packed_length(shapes, dtypes)
    if vector.dtype != np.float64 or vector.shape != (length,):
        raise ValueError(
            f"expected a float64 vector of {length} words, got {vector.dtype} "
            f"{list(vector.shape)}; unpack it with the shapes and dtypes that were packed"
        )
    bytes_, arrays, start = np.ascontiguousarray(vector).view(np.uint8), [], 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        size = _bytes_of(shape, dtype)
        own = bytes_[start : start + size].copy()
        arrays.append(own.view(_native(dtype)).reshape(tuple(shape)))
        start += _padded(size)
    return arrays


def packed_length(shapes: Sequence[Sequence[int]], dtypes: Sequence[Any]) -> int:
    """Return the number of words into which arrays of these shapes and dtypes are packed."""
    sizes = [_bytes_of(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return sum(map(_padded, sizes)) // _WORD


def _words(array: np.ndarray) -> Float[np.ndarray, " words"]:
    """Return the bytes of one array as whole words."""
    if array.dtype.hasobject:
        raise TypeError(
            f"expected arrays of numbers, got an array of {array.dtype}; convert it to numbers"
        )
    # Byte by byte, because a conversion of the numbers could change the bits of a NaN.
    own = np.ascontiguousarray(array, _native(array.dtype)).reshape(-1).view(np.uint8)
    words = np.zeros(_padded(own.size), np.uint8)
    words[: own.size] = own
    return words.view(np.float64)


def _native(dtype: Any) -> np.dtype:
    return np.dtype(dtype).newbyteorder("=")


def _bytes_of(shape: Sequence[int], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _padded(size: int) -> int:
    return -(-size // _WORD) * _WORD
