"""The Marchenko-Pastur edge: the largest singular value that a random matrix of this size has.

If the entries of W [m, n], m <= n, are independent with variance sigma^2, then the squares of the
singular values of W / (sigma sqrt(n)) have the Marchenko-Pastur distribution with beta = m / n,

  density f(t) = sqrt((b - t) (t - a)) / (2 pi beta t),   a, b = (1 -+ sqrt(beta))^2,

and the largest singular value tends to the edge sigma (sqrt(m) + sqrt(n)). The variance is that of
the bulk: sigma = median singular value / sqrt(n mu), with the median mu of the distribution, does
not depend on a few large singular values (Gavish and Donoho 2014, IEEE Transactions on Information
Theory 60, arXiv 1305.5870).

Martin and Mahoney (2021, Journal of Machine Learning Research 22, 165) use the same edge for the
eigenvalues of W W^T / n, lambda_+ = sigma^2 (1 + 1 / sqrt(Q))^2 with Q = 1 / beta, and call the
singular values above it spikes. They fit sigma to the density of the bulk.
"""

from functools import cache

import numpy as np
from jaxtyping import Float


def marchenko_pastur_edge(values: Float[np.ndarray, " s"], shape: tuple[int, int]) -> float:
    """Return the edge for a matrix with these singular values; 0 if their median is 0.

    Args:
      values: all min(m, n) singular values, in any order; at least one.
      shape: the numbers of rows and columns.
    """
    m, n = sorted(shape)
    sigma = float(np.median(values)) / np.sqrt(n * marchenko_pastur_median(m / n))
    return float(sigma * (np.sqrt(m) + np.sqrt(n)))


@cache
def marchenko_pastur_median(beta: float) -> float:
    """Return the median of the Marchenko-Pastur distribution with variance 1.

    With t = 1 + beta - 2 sqrt(beta) cos(phi), the mass above t is the integral of
    2 sin(phi)^2 / (pi t) over the angles from phi to pi. The median lies at an angle between 0.8
    and pi / 2, above which the integrand is smooth for all beta.

    Args:
      beta: the ratio of the sides of the matrix, in (0, 1].
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)

    def mass_above(phi: float) -> float:
        angles = phi + (np.pi - phi) * (nodes + 1) / 2
        squares = 1 + beta - 2 * np.sqrt(beta) * np.cos(angles)
        density = 2 * np.sin(angles) ** 2 / (np.pi * squares)
        return float(weights @ density * (np.pi - phi) / 2)

    low, high = 0.5, np.pi
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass_above(middle) > 0.5 else (low, middle)
    return float(1 + beta - 2 * np.sqrt(beta) * np.cos(low))
