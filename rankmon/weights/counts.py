"""The numerical ranks of weight matrices where nothing but the counts is asked.

`rank` computes all singular values and what else they tell. Of a large matrix of which none is near
the cut, `certificates` gives the count for less; of others they are computed here as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.arrays import check_concrete
from rankmon.linalg.certified_rank import certified_count, spectral_norm
from rankmon.linalg.gram import Gram
from rankmon.linalg.numerical_rank import (
    NumericalRank,
    Tolerance,
    as_tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.network.kernel_axes import matrices
from rankmon.network.matrix_views import Views
from rankmon.problem.precision import DOUBLE, eps_of
from rankmon.problem.problem import Problem
from rankmon.weights.ranks import default_relative

# Below this the singular values are a matter of a second.
_LARGE = 1024


def weight_counts(
    params: Any, *, tolerance: Tolerance | None = None, views: Views | Problem | None = None
) -> dict[str, NumericalRank]:
    """The ranks of every matrix among the parameters, as `weight_ranks`, and nothing else of them.

    The same counts at the same cut, several times faster for matrices of more than a thousand rows
    and columns of which no singular value is within a factor 10 of the cut, which is certified.

    Args:
      params: any pytree of arrays.
      tolerance: another cut than the default of `weight_rank`.
      views: as for `weight_ranks`.

    Returns:
      A dict from the leaf's path to its `NumericalRank`; where the count was certified, `gap` is a
      lower bound: infinite at full rank, else 100.

    Raises:
      TypeError: for complex leaves and leaves that are not arrays.
      ValueError: where no leaf is a matrix.

    Example:
      >>> import numpy as np, rankmon
      >>> rankmon.weight_counts({"W": np.ones((3, 4))})["W"].rank
      1
    """
    tolerance = as_tolerance(tolerance)
    check_concrete("weights to be measured", params)
    return {
        view.name: weight_count(
            view.of(np.asarray(leaf)), eps=eps_of(spec.dtype), tolerance=tolerance
        )
        for spec, view, leaf in matrices(params, views=views)
    }


def weight_count(
    matrix: Float[np.ndarray, "m n"],
    *,
    eps: float = DOUBLE.eps,
    tolerance: Tolerance | None = None,
) -> NumericalRank:
    """The rank of one weight matrix, and nothing else of it; as for `weight_counts`.

    Args:
      matrix: real; converted to float64.
      eps: of the dtype that the weights are stored in.
      tolerance: another cut than the default of `weight_rank`.
    """
    matrix, tolerance = np.asarray(matrix).astype(np.float64), as_tolerance(tolerance)
    size = min(matrix.shape)
    if not np.all(np.isfinite(matrix)):
        return undefined_rank(size)
    scale = _power_of_two(matrix)
    live = _without_zeros(matrix) / scale

    def cut_of(norm: float, stable_rank: float) -> float:
        default = default_relative(matrix.shape, eps, stable_rank)
        return tolerance.cut(norm * scale, default=default) / scale

    if min(live.shape) >= _LARGE:
        found = _certified(live, cut_of)
        if found is not None:
            cut, count = found
            gap = float("inf") if count == min(live.shape) else 100.0
            return NumericalRank(count, float(cut * scale), size, count, count, gap)
    values = singular_values(live) if live.size else np.zeros(1)
    norm = float(values[0])
    cut = cut_of(norm, float(np.sum((values / norm) ** 2)) if norm > 0 else 0.0)
    return numerical_rank(values * scale, cut * scale, size=size)


def _power_of_two(matrix: Float[np.ndarray, "m n"]) -> float:
    """A scale that costs no digit, so that squares stay in the range of floats."""
    _, exponent = np.frexp(np.max(np.abs(matrix), initial=0.0))
    return float(np.ldexp(1.0, int(exponent)))


def _without_zeros(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "a b"]:
    """The matrix without rows and columns of zeros, which have no share in its rank."""
    return matrix[np.any(matrix, axis=1)][:, np.any(matrix, axis=0)]


def _certified(
    matrix: Float[np.ndarray, "m n"], cut_of: Callable[[float, float], float]
) -> tuple[float, int] | None:
    """The cut and the count where no singular value is near it; None where that is not certain."""
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = Gram.of([rows], len(rows))
    norm = spectral_norm(gram.matrix)
    cut = cut_of(norm, float(np.trace(gram.matrix)) / norm**2)
    count = certified_count(rows, gram, above=10 * cut, below=cut / 10)
    return None if count is None else (cut, count)
