"""Sizes, directions and ranks of the gradient of one weight.

Symbols: G is the gradient of the mean loss with respect to one m x n weight matrix, computed in an
arithmetic with this eps; noise is the Frobenius norm of the change of G, divided by eps, that
rounding of relative size eps in outputs and residuals makes (`problem.gradient`).
"""

import math

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Float

from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    Tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.problem.precision import DOUBLE
from rankmon.weights.ranks import weight_count

# The error of G in the spectral norm was 0.6 to 5 times eps * noise in float32, for networks of 2
# to 10 layers before, during and after training.
_SAFETY = 10.0


def frobenius_norm(array: Float[np.ndarray, "..."]) -> float:
    """Return the root of the sum of squares, without overflow; NaN if an entry is not finite."""
    largest = float(np.max(np.abs(array), initial=0.0))
    if not math.isfinite(largest):
        return math.nan
    if largest == 0:
        return 0.0
    _, exponent = math.frexp(largest)
    scaled = np.ldexp(array, -exponent)
    with np.errstate(over="ignore"):
        return float(np.ldexp(math.sqrt(np.vdot(scaled, scaled)), exponent))


def ratio(size: float, of: float) -> float:
    """Return size / of, for norms: infinite for a non-zero size of zero, NaN for 0 / 0."""
    if of == 0:
        return math.nan if size == 0 or math.isnan(size) else math.inf
    return size / of


def direction(array: Float[np.ndarray, "..."]) -> np.ndarray:
    """Return the array divided by its norm, in float32; zeros if there is no direction."""
    size = frobenius_norm(array)
    if not 0 < size < math.inf:
        return np.zeros(array.shape, np.float32)
    _, exponent = math.frexp(size)
    scaled = np.ldexp(array, -exponent)
    return (scaled / frobenius_norm(scaled)).astype(np.float32)


def alignment(one: np.ndarray, other: np.ndarray) -> float:
    """Return the cosine of the angle between two directions; NaN if one of them is zero."""
    a, b = (np.ravel(x).astype(np.float64) for x in (one, other))
    sizes = math.sqrt(np.vdot(a, a)) * math.sqrt(np.vdot(b, b))
    return float(np.clip(np.vdot(a, b) / sizes, -1.0, 1.0)) if sizes > 0 else math.nan


def gradient_rank(
    matrix: Float[np.ndarray, "m n"],
    *,
    noise: float,
    eps: float,
    tolerance: Tolerance,
    largest: int,
) -> tuple[NumericalRank, float]:
    """Return the numerical rank of a gradient, and its stable rank ||G||_F^2 / ||G||_2^2.

    The default cut is max(m, n) * eps64 * ||G||_2, the error of singular values in float64, plus
    10 * eps * noise. With a cut relative to ||G||_2 alone, a gradient that consists of rounding
    errors, as after convergence, would have full rank; with this cut it has rank 0.

    Args:
      matrix: G, in float64.
      noise: as defined for this module.
      eps: the eps of the arithmetic.
      tolerance: the rule for the cut, if it is not the default.
      largest: if more rows and more columns than this are not zero, the rank is certified without
        singular values where that is possible.

    Returns:
      The rank, and the stable rank: NaN for a zero matrix, as for weights, and both undefined for a
      matrix that is not finite.
    """
    size = min(matrix.shape)
    if not (np.all(np.isfinite(matrix)) and math.isfinite(noise)):
        return undefined_rank(size), math.nan
    # Zero rows (of a table that is not looked up, of dead units) change no singular value.
    live = matrix[np.any(matrix, axis=1)][:, np.any(matrix, axis=0)]
    _, exponent = math.frexp(float(np.max(np.abs(live), initial=0.0)))
    live = np.ldexp(live, -exponent)  # exact, and squares stay in the range of floats
    values = None
    if min(live.shape) > largest:
        norm = _spectral_norm(live)
    else:
        values = singular_values(live) if live.size else np.zeros(0)
        norm = float(values[0]) if values.size else 0.0
    stable_rank = float(np.vdot(live, live)) / norm**2 if norm > 0 else math.nan
    norm = float(np.ldexp(norm, exponent))
    cut = max(matrix.shape) * DOUBLE.eps * norm + _SAFETY * eps * noise
    if tolerance != DEFAULT_TOLERANCE:
        cut = tolerance.cut(norm, default=0.0)
    if values is None:
        return weight_count(matrix, tolerance=Tolerance(absolute=cut)), stable_rank
    return numerical_rank(np.ldexp(values, exponent), cut, size=size), stable_rank


def _spectral_norm(matrix: Float[np.ndarray, "m n"]) -> float:
    """Return ||G||_2 by Lanczos iterations."""
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    return float(
        scipy.sparse.linalg.svds(matrix, k=1, v0=start, tol=1e-12, return_singular_vectors=False)[0]
    )
