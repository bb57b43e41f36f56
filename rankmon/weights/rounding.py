"""Bounds on the rounding errors in stored weights, in their products and in their changes.

A weight W is given by its factors: (W,), or (A, B) for the product W = A B. Each factor is stored
in a dtype with spacing eps at 1, so that storage changes an entry w by at most eps / 2 |w|.

A change W_t - W_0 is exact in float64, or nearly, but both weights have rounding errors, and so has
each of the t updates between them. Entries that did not change at all have none: a change of theirs
that is too small to be stored is not part of the weights. Let S be (|W_t| + |W_0|) / 2 in entries
that changed, and 0 in all others.

  storage    The errors of W_t and W_0 have together at most the norm eps ||S||_F. This contains
             weights of which each entry moved to the next number of its dtype.
  updates    If the roundings of t updates are independent, each entry has the standard deviation
             sqrt(t) eps / 2 |w| / sqrt(3) at most, and the norm of such a random matrix is about
             sqrt(t) eps / 2 (the largest norm of a row of S + that of a column) / sqrt(3), up to
             terms of lower order (Bandeira and van Handel 2016, arXiv 1408.6185). Without the
             sqrt(3), it is a bound in practice, two to four times the norms of such errors.

The cut of a change is the larger one: storage dominates for few updates of large matrices.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rankmon.problem.precision import DOUBLE

Factors = Sequence[Float[np.ndarray, "_m _n"]]


def storage_rounding(factors: Factors, eps: Sequence[float]) -> float:
    """Return a bound on the 2-norm of the errors that storage causes in a weight.

    For W = A B it is eps / 2 (||A||_F ||B||_2 + ||A||_2 ||B||_F), with the eps of either factor,
    and the rounding of the product in float64.

    Args:
      factors: the factors of the weight, finite.
      eps: the eps of the dtype of each factor.
    """
    if len(factors) == 1:
        return eps[0] / 2 * frobenius_norm(factors[0])
    (a, b), (a_norm, b_norm) = factors, map(_spectral_norm, factors)
    stored = eps[0] / 2 * frobenius_norm(a) * b_norm + eps[1] / 2 * a_norm * frobenius_norm(b)
    return stored + _product_rounding(factors) * a_norm * b_norm


def change_rounding(now: Factors, before: Factors, *, eps: Sequence[float], steps: int) -> float:
    """Return a bound on the 2-norm of the rounding errors in the change of a weight.

    Args:
      now: the factors of the weight, finite.
      before: the same factors at an earlier step.
      eps: the eps of the dtype of each factor.
      steps: the number of updates between the two, t in the docstring of this module.
    """
    errors = [
        _moved_rounding(new, old, spacing, steps)
        for new, old, spacing in zip(now, before, eps, strict=True)
    ]
    if len(now) == 1:
        return errors[0]
    pairs = list(zip(now, before, strict=True))
    a, b = (max(_spectral_norm(new), _spectral_norm(old)) for new, old in pairs)
    moved = [_spectral_norm(new - old) for new, old in pairs]
    return errors[0] * b + a * errors[1] + _product_rounding(now) * (moved[0] * b + a * moved[1])


def frobenius_norm(matrix: Float[np.ndarray, "m n"]) -> float:
    """Return ||W||_F without overflow of its squares."""
    scale = power_of_two(matrix)
    return float(np.linalg.norm(matrix / scale) * scale)


def power_of_two(matrix: Float[np.ndarray, "m n"]) -> float:
    """Return a power of two as a scale, so that squares stay in the range of floats.

    Scaling by a power of two is exact.
    """
    _, exponent = np.frexp(np.max(np.abs(matrix), initial=0.0))
    return float(np.ldexp(1.0, min(int(exponent), 1023)))


def _moved_rounding(
    now: Float[np.ndarray, "m n"], before: Float[np.ndarray, "m n"], eps: float, steps: int
) -> float:
    """Return the bound for the change of one stored matrix: eps ||S||_F or that of the updates."""
    sizes = np.where(now != before, np.abs(now) / 2 + np.abs(before) / 2, 0.0)
    scale = power_of_two(sizes)
    S = sizes / scale
    row, column = (float(np.max(np.linalg.norm(S, axis=axis), initial=0.0)) for axis in (1, 0))
    updates = np.sqrt(max(steps, 1)) / 2 * (row + column)
    return float(eps * max(float(np.linalg.norm(S)), updates) * scale)


def _spectral_norm(matrix: Float[np.ndarray, "m n"]) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def _product_rounding(factors: Factors) -> float:
    """Return the relative error of a product in float64, as for singular values."""
    return max(side for factor in factors for side in factor.shape) * DOUBLE.eps
