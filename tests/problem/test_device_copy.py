"""Copies of parameters keep dtypes and bits."""

import jax
import jax.numpy as jnp
import numpy as np

from rankmon.problem.device_copy import copies


def test_copies_keep_dtypes_and_bits_whatever_the_settings():
    with jax.enable_x64(True):
        double = jnp.asarray([0.1, np.nan])
    single, host, number = jnp.asarray([0.1]), np.arange(3, dtype=np.int16), 0.5
    with jax.transfer_guard("disallow_explicit"), jax.debug_nans(True), jax.disable_jit():
        got = copies([double, host, single, number])
    assert [a.dtype for a in got] == [np.float64, np.int16, np.float32, np.float64]
    assert all(type(a) is type(b) for a, b in zip(got[:3], (double, host, single), strict=True))
    assert got[0].unsafe_buffer_pointer() != double.unsafe_buffer_pointer()
    jax.jit(lambda a: a + 1, donate_argnums=0)(single)
    assert single.is_deleted()
    np.testing.assert_array_equal(got[0], np.array([0.1, np.nan]))
    assert got[2][0] == np.float32(0.1)
    assert copies([]) == []
