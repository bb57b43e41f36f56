"""Test that arrays packed into a float64 vector come back bit by bit, also from checkpoints."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from rankmon._util.packed import packed, packed_length, unpacked
from rankmon.monitor.state import decode, encode
from refusals import refused

RNG = np.random.default_rng(0)
DTYPES = (
    np.float64,
    np.float32,
    np.float16,
    jnp.bfloat16,
    ml_dtypes.float8_e4m3fn,
    np.int8,
    np.uint8,
    np.int32,
    np.bool_,
    np.complex64,
)
SHAPES = ((), (0,), (1,), (3,), (5, 0), (2, 3, 5), (8, 8))


def of_any_bits(shape, dtype):
    """An array of random bytes, so that NaN with payloads, infinities and subnormals occur."""
    if dtype is np.bool_:
        return RNG.integers(0, 2, shape).astype(bool)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(RNG.bytes(size), np.dtype(dtype)).reshape(shape).copy()


ARRAYS = [of_any_bits(shape, dtype) for dtype in DTYPES for shape in SHAPES]
FORMS = [array.shape for array in ARRAYS], [array.dtype for array in ARRAYS]


def assert_same_bits(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def by_encoding(vector):
    return decode(encode({"a": {"b": vector}}))["a"]["b"]


def by_msgpack(vector):
    state = encode({"a": {"b": vector}})
    return decode(serialization.msgpack_restore(serialization.msgpack_serialize(state)))["a"]["b"]


def by_jax_without_x64(vector):
    """As a checkpointer that holds the state as JAX arrays on a device (Orbax)."""
    state = jax.tree.map(jnp.asarray, encode({"a": {"b": vector}}))
    assert not jax.config.jax_enable_x64
    return decode(jax.tree.map(np.asarray, state))["a"]["b"]


def by_file(vector, folder):
    np.savez(folder / "state.npz", bits=encode({"a": {"b": vector}})["a"]["b"])
    with np.load(folder / "state.npz") as kept:
        return decode({"a": {"b": kept["bits"]}})["a"]["b"]


@pytest.mark.parametrize("kept", [np.array, by_encoding, by_msgpack, by_jax_without_x64])
def test_arrays_come_back_bit_by_bit(kept):
    vector = packed(ARRAYS)
    assert vector.dtype == np.float64
    assert vector.ndim == 1
    assert_same_bits(unpacked(kept(vector), *FORMS), ARRAYS)


def test_arrays_come_back_from_a_file(tmp_path):
    assert_same_bits(unpacked(by_file(packed(ARRAYS), tmp_path), *FORMS), ARRAYS)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_the_length_is_that_of_the_padded_bytes(dtype):
    for shape in SHAPES:
        words = -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 8)
        array = of_any_bits(shape, dtype)
        assert packed([array]).size == packed_length([shape], [dtype]) == words


def test_nothing_is_packed_into_nothing():
    assert packed([]).shape == (0,)
    assert unpacked(packed([]), [], []) == []
    assert packed_length([], []) == 0


def test_order_and_bytes_of_memory_do_not_matter():
    matrix = RNG.standard_normal((4, 6)).astype(np.float32)
    swapped = matrix.astype(matrix.dtype.newbyteorder("S"))
    for same in (np.asfortranarray(matrix), swapped, jnp.asarray(matrix)):
        (back,) = unpacked(packed([same]), [(4, 6)], [same.dtype])
        assert_same_bits([back], [matrix])
    (strided,) = unpacked(packed([matrix[::2, ::-1]]), [(2, 6)], [np.float32])
    assert_same_bits([strided], [np.ascontiguousarray(matrix[::2, ::-1])])


def test_unpacked_arrays_are_copies():
    vector = packed([np.ones(3), np.zeros(2)])
    first, _ = unpacked(vector, [(3,), (2,)], [np.float64] * 2)
    first[:] = 7
    assert vector.tolist() == [1, 1, 1, 0, 0]


def test_vectors_of_other_arrays_are_refused():
    vector = packed([np.ones((2, 3), np.float32)])
    with refused(ValueError, "4 words", "shapes"):
        unpacked(vector, [(2, 4)], [np.float32])
    with refused(ValueError, "float32"):
        unpacked(vector.astype(np.float32), [(2, 3)], [np.float32])
    with refused(TypeError, "object"):
        packed([np.array([None])])
