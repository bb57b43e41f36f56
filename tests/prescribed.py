"""Draw matrices with prescribed spectra."""

import numpy as np


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def with_singular_values(sigma, shape, seed=0):
    """Return a matrix with these singular values, all others zero, and random singular vectors."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((side, len(sigma))))[0] for side in shape)
    return (U * sigma) @ V.T
