"""Conditions of the closed forms for convolutional linear networks, measured at parameters.

The layers compose to one filter G of D taps, and the Hessians depend on the data through the
windows of G and through Omega_G, the sums of Omega = E[delta x^T] along its diagonals (see
`theory.Convolutional`). Weights are generic if the derivative of G has the predicted rank, and
residuals if the block Hankel matrices of Omega_G have full rank.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon.linalg.spectrum import singular_values
from rankmon.network.linear_maps import Convolution, filter_of
from rankmon.network.recognized_family import RecognizedFamily
from rankmon.theory.convolutional import Convolutional

Filter = Float[np.ndarray, "_taps _inputs _outputs"]

# The number of products above which the derivative of G is not measured at every probe.
_MOST_WORK = 4e9


def filters_are_generic(network: RecognizedFamily, leaves: Sequence[Any], relative: float) -> bool:
    """Return whether the derivative of the composed filter has the rank that theory predicts."""
    family = network.family
    assert isinstance(family, Convolutional)
    filters = [
        filter_of(factor, leaves)
        for factor in reversed(network.map.factors)
        if isinstance(factor, Convolution)
    ]
    taps, p = min(family.receptive_field, family.length), family.number_of_parameters()
    entries = taps * family.channels[0] * family.channels[-1]
    if min(entries, p) ** 2 * max(entries, p) > _MOST_WORK:
        return False
    values = singular_values(_derivative(filters, taps))
    known = int(np.sum(values > relative * values[0]))
    outer = family.ranks().get("H_o")  # none for some that wrap around
    return outer is not None and known == outer.value


def windows_are_generic(
    network: RecognizedFamily, omega: Float[np.ndarray, "k d"], relative: float
) -> bool:
    """Return whether Omega_G is generic: its block Hankel matrices have full rank."""
    family = network.family
    assert isinstance(family, Convolutional)
    windows = _windows(network, family, omega)
    if family.receptive_field > family.length:
        # On a circle that G covers, each frequency is on its own.
        matrices = list(np.fft.fft(windows, axis=0))
    else:
        D, kernels = len(windows), family.kernels
        ends = np.cumsum([k - 1 for k in kernels])[:-1] + 1
        lengths = {*ends.tolist(), *(kernels if set(family.channels) == {1} else ())}
        matrices = [_hankel(windows, length) for length in lengths if length <= D]
    values = [np.linalg.svd(matrix, compute_uv=False) for matrix in matrices]
    return all(one[-1] > relative * np.linalg.norm(windows) for one in values)


def _derivative(filters: Sequence[Filter], taps: int) -> Float[np.ndarray, "p _entries"]:
    """Return the derivative of the composed filter, one row for each parameter."""
    rows = list[np.ndarray]()
    for layer, kernel in enumerate(filters):
        k, inputs, outputs = kernel.shape
        before = _composed(filters[:layer], inputs, first=filters[0].shape[1])
        after = _composed(filters[layer + 1 :], filters[-1].shape[2], first=outputs)
        around = np.zeros((len(before) + len(after) - 1, inputs, outputs, *_ends(before, after)))
        for a, P in enumerate(before):
            around[a : a + len(after)] += np.einsum("ai,tob->tioab", P, after)
        block = np.zeros((k, inputs, outputs, taps, *_ends(before, after)))
        for step in range(k):
            for at, one in enumerate(around):
                block[step, :, :, (at + step) % taps] += one
        rows.append(block.reshape(kernel.size, -1))
    return np.concatenate(rows)


def _ends(before: Filter, after: Filter) -> tuple[int, int]:
    return before.shape[1], after.shape[2]


def _composed(filters: Sequence[Filter], outputs: int, *, first: int) -> Filter:
    """Return the composition of filters; the identity for none."""
    if not filters:
        return np.eye(first, outputs)[None]
    total = filters[0]
    for kernel in filters[1:]:
        longer = np.zeros((len(total) + len(kernel) - 1, total.shape[1], kernel.shape[2]))
        for step, one in enumerate(kernel):
            longer[step : step + len(total)] += total @ one
        total = longer
    return total


def _windows(
    network: RecognizedFamily, family: Convolutional, omega: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, "_taps _outputs _inputs"]:
    """Return Omega_G: the sums of the blocks of Omega along its diagonals, by tap."""
    (C, *_, K), N, positions = family.channels, family.length, family.positions
    inputs_first, outputs_first = network.layout
    left = (K, positions) if outputs_first else (positions, K)
    right = (C, N) if inputs_first else (N, C)
    blocks = omega.reshape(*left, *right)
    blocks = blocks.swapaxes(0, 1) if outputs_first else blocks
    blocks = blocks.swapaxes(2, 3) if inputs_first else blocks
    shift = sum(
        factor.wrapped.before
        for factor in network.map.factors
        if isinstance(factor, Convolution) and factor.wrapped is not None
    )
    taps, at = min(family.receptive_field, N), np.arange(positions)
    return np.stack([blocks[at, :, (at + tap - shift) % N].sum(axis=0) for tap in range(taps)])


def _hankel(
    windows: Float[np.ndarray, "taps outputs inputs"], length: int
) -> Float[np.ndarray, "_rows _columns"]:
    """Return the block Hankel matrix whose columns see `length` taps of the inputs."""
    D, K, C = windows.shape
    rows = np.arange(D - length + 1)[:, None] + np.arange(length)
    return windows[rows].transpose(0, 2, 1, 3).reshape((D - length + 1) * K, length * C)
