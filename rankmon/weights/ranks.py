"""Ranks of weight matrices, with their soft ranks and determinants."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.arrays import check_concrete
from rankmon._util.validate import as_integer
from rankmon._util.warnings import warn_deprecated
from rankmon.linalg.certified_rank import certified_count, spectral_norm
from rankmon.linalg.gram import Gram
from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    SoftRanks,
    Tolerance,
    as_tolerance,
    numerical_rank,
    soft_ranks,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.network.matrix_views import MatrixAxes, MatrixView, Views
from rankmon.problem.precision import DOUBLE, eps_of
from rankmon.problem.problem import Problem
from rankmon.weights.matrices import matrices
from rankmon.weights.rounding import power_of_two
from rankmon.weights.sharded import certified_rank, count_on_devices, whole_matrix

# From this size on, singular values take seconds, and certifying the rank is faster.
_LARGE = 1024


@dataclass(frozen=True)
class WeightRank(NumericalRank):
    """The `NumericalRank` of a weight matrix W, its soft ranks and its determinant.

    For matrices beyond the `largest` of `weight_ranks`, the soft ranks are NaN and the determinant
    is None.

    Attributes:
      stable_rank: ||W||_F^2 / ||W||_2^2; NaN for a zero or non-finite matrix.
      effective_rank: exp of the entropy of the singular values, normalized to sum to 1 (Roy and
        Vetterli 2007); NaN for a zero or non-finite matrix.
      condition_number: ratio of the largest to the smallest of min(m, n) singular values; infinite
        if the smallest is zero, NaN for a zero or non-finite matrix.
      det_sign: sign of det W, or 0.0 if W is singular, that is if the smallest singular value is at
        most n eps64 ||W||_2; None unless W is square.
      log_abs_det: the natural logarithm of |det W|, -inf if singular; None unless W is square.
      view: in `weight_ranks`, the leaf's axes of rows and columns, and their source; None for a
        single matrix.
    """

    stable_rank: float
    effective_rank: float
    condition_number: float
    det_sign: float | None
    log_abs_det: float | None
    view: MatrixAxes | None = None


def weight_ranks(
    params: Any,
    *,
    tolerance: Tolerance | None = None,
    views: Views | Problem | None = None,
    largest: int | None = None,
) -> dict[str, WeightRank]:
    """Return the rank of every matrix among the parameters.

    A leaf with two axes is a matrix; a kernel with more axes is viewed as one. With a problem, the
    operation that uses the kernel determines the axes of rows and columns. Without a problem the
    shape decides, and `view` in the result says so: a convolution (kh, kw, in, out) of Flax is
    viewed as (kh kw in) x out, and a projection of attention, recognized by its name, as
    in x (heads head_dim). The spectrum is computed in float64; the cut depends on the dtype in
    which the leaf is stored.

    Args:
      params: any pytree of arrays; with a problem as `views`, parameters of that problem.
      tolerance: a cut other than the default of `weight_rank`.
      views: the axes of rows and of columns, by globs over the leaves' names; any other axes count
        layers, each of which is a matrix. Or the `Problem` whose network determines all axes.
      largest: for matrices with more rows and more columns than this, compute only the rank,
        without soft ranks and determinant; None for no limit. From about a thousand rows and
        columns on, the rank is certified, which is several times faster than computing singular
        values, unless a singular value is within a factor 10 of the cut. The gap of a certified
        rank is a lower bound: infinite at full rank, else 100. Devices that share such a matrix
        certify its rank together; any other matrix is gathered, one at a time.

    Returns:
      A dict from the leaf's path to its `WeightRank`; layers are numbered, "<path>/0" and so on.

    Raises:
      TypeError: for complex leaves, leaves that are not arrays, and a `largest` that is not an
        integer.
      ValueError: if no leaf is a matrix, a view matches none, or `largest` is negative.

    Example:
      >>> import numpy as np, rankmon
      >>> rankmon.weight_ranks({"W": np.ones((3, 4))})["W"].rank
      1
      >>> oihw = {"conv": np.random.default_rng(0).normal(size=(8, 4, 3, 3))}
      >>> rankmon.weight_ranks(oihw, views={"conv": ((1, 2, 3), (0,))})["conv"].rank
      8
    """
    side = None if largest is None else as_integer("largest", largest, least=0)
    tolerance = as_tolerance(tolerance)
    check_concrete("weights to be measured", params)

    def rank(view: MatrixView, leaf: Any, eps: float) -> WeightRank:
        if side is None or min(view.shape) <= side:
            return weight_rank(whole_matrix(view, leaf), eps=eps, tolerance=tolerance)
        count = None
        if min(view.shape) >= _LARGE:
            cut_of = partial(_cut, view.shape, eps=eps, tolerance=tolerance, rounding=None)
            count = count_on_devices(view, leaf, cut_of, least=_LARGE)
        if count is None:
            count = weight_count(whole_matrix(view, leaf), eps=eps, tolerance=tolerance)
        return _without_soft_ranks(count)

    return {
        view.name: replace(rank(view, leaf, eps_of(spec.dtype)), view=view.axes)
        for spec, view, leaf in matrices(params, views=views)
    }


def _without_soft_ranks(count: NumericalRank) -> WeightRank:
    """Return a count as a `WeightRank` with NaN for the soft ranks."""
    return WeightRank(**asdict(count), **asdict(SoftRanks()), det_sign=None, log_abs_det=None)


def weight_rank(
    matrix: Float[np.ndarray, "m n"],
    *,
    eps: float = DOUBLE.eps,
    tolerance: Tolerance | None = None,
    rounding: float | None = None,
    values: Float[np.ndarray, " s"] | None = None,
) -> WeightRank:
    """Return the rank of one weight matrix with its soft ranks and determinant.

    The default cut is max(m, n) * eps64 * ||W||_2, the error of singular values in float64. For
    weights stored in a coarser dtype, eps / 2 * ||W||_F is added: this bounds the norm of the
    rounding errors of storage, so singular values above the cut are not noise. (The usual
    max(m, n) * eps would exceed ||W||_2 in bfloat16 from 128 rows on, and the rank would be 0.)

    Args:
      matrix: a real matrix; it is converted to float64.
      eps: the eps of the dtype in which the weights are stored.
      tolerance: a cut other than the default.
      rounding: a bound on the norm of the rounding errors in the matrix, if it is not that of
        storage: it takes the place of eps / 2 * ||W||_F, and no cut is less.
      values: the singular values of a finite matrix, descending, if they are known.
    """
    matrix = np.asarray(matrix).astype(np.float64)
    m, n = matrix.shape
    square = m == n
    if not np.all(np.isfinite(matrix)):
        nan = float("nan")
        none = undefined_rank(min(m, n))
        return WeightRank(**asdict(none), **_determinant(nan, nan, square), **asdict(SoftRanks()))
    values = singular_values(matrix) if values is None else values
    rank, soft = ranks_of_values(
        values, matrix.shape, eps=eps, tolerance=tolerance, rounding=rounding
    )
    sign, log_abs = _sign_and_logarithm(matrix, values) if square else (0.0, 0.0)
    return WeightRank(**asdict(rank), **_determinant(sign, log_abs, square), **asdict(soft))


def ranks_of_values(
    values: Float[np.ndarray, " s"],
    shape: tuple[int, ...],
    *,
    eps: float = DOUBLE.eps,
    tolerance: Tolerance | None = None,
    rounding: float | None = None,
) -> tuple[NumericalRank, SoftRanks]:
    """Return the rank and the soft ranks of a matrix with these singular values, descending.

    The arguments and the cut are those of `weight_rank`.
    """
    norm = float(values[0]) if values.size else 0.0
    soft = soft_ranks(values)
    cut = _cut(shape, norm, soft.stable_rank, eps, as_tolerance(tolerance), rounding)
    return numerical_rank(values, cut), soft


def log_abs_det(matrix: Float[np.ndarray, "n n"]) -> float:
    """Return log|det W| of a finite square matrix, as defined in `WeightRank`."""
    return _sign_and_logarithm(matrix, singular_values(matrix))[1]


def _sign_and_logarithm(
    matrix: Float[np.ndarray, "n n"], values: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """Return the sign of det W and log|det W|; 0 and -inf if W is singular in float64.

    Singularity is decided at the eps of float64, not at the cut of the rank, because the
    determinant is that of the stored numbers.
    """
    if values.size and values[-1] <= len(values) * DOUBLE.eps * values[0]:
        return 0.0, -float("inf")
    sign, log_abs = np.linalg.slogdet(matrix)
    return float(sign), float(log_abs)


def _determinant(sign: float, log_abs: float, square: bool) -> dict[str, Any]:
    return {"det_sign": sign if square else None, "log_abs_det": log_abs if square else None}


def weight_counts(
    params: Any, *, tolerance: Tolerance | None = None, views: Views | Problem | None = None
) -> dict[str, NumericalRank]:
    """Return the rank of every matrix among the parameters, without its soft ranks.

    Deprecated: `weight_ranks(..., largest=1024)` gives the same counts, certified for larger
    matrices. The arguments, errors and counts are those of `weight_ranks(..., largest=0)`.
    """
    warn_deprecated(
        "expected weight_ranks(..., largest=1024), got weight_counts, which will be removed; the "
        "counts are the same"
    )
    ranks = weight_ranks(params, tolerance=tolerance, views=views, largest=0)
    return {
        name: NumericalRank(one.rank, one.tolerance, one.size, one.low, one.high, one.gap)
        for name, one in ranks.items()
    }


def weight_count(
    matrix: Float[np.ndarray, "m n"],
    *,
    eps: float = DOUBLE.eps,
    tolerance: Tolerance | None = None,
    rounding: float | None = None,
) -> NumericalRank:
    """Return the rank of one weight matrix, certified if that is possible and faster.

    Args:
      matrix: a real matrix; it is converted to float64.
      eps: the eps of the dtype in which the weights are stored.
      tolerance: a cut other than the default of `weight_rank`.
      rounding: as for `weight_rank`.
    """
    matrix, rule = np.asarray(matrix).astype(np.float64), as_tolerance(tolerance)
    size = min(matrix.shape)
    if not np.all(np.isfinite(matrix)):
        return undefined_rank(size)
    scale = power_of_two(matrix)
    live = _without_zeros(matrix) / scale

    def cut_of(norm: float, stable_rank: float) -> float:
        return _cut(matrix.shape, norm * scale, stable_rank, eps, rule, rounding) / scale

    if min(live.shape) >= _LARGE:
        found = _certified(live, cut_of)
        if found is not None:
            cut, count = found
            return certified_rank(count, cut * scale, size, min(live.shape))
    values = singular_values(live) if live.size else np.zeros(1)
    norm = float(values[0])
    cut = cut_of(norm, float(np.sum((values / norm) ** 2)) if norm > 0 else 0.0)
    return numerical_rank(values * scale, cut * scale, size=size)


def _without_zeros(matrix: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "a b"]:
    """Return the matrix without its zero rows and columns, which do not change its rank."""
    return matrix[np.any(matrix, axis=1)][:, np.any(matrix, axis=0)]


def _certified(
    matrix: Float[np.ndarray, "m n"], cut_of: Callable[[float, float], float]
) -> tuple[float, int] | None:
    """Return the cut and the count, or None if a singular value may be near the cut."""
    rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = Gram.of([rows], len(rows))
    norm = spectral_norm(gram.matrix)
    cut = cut_of(norm, float(np.trace(gram.matrix)) / norm**2)
    count = certified_count(rows, gram, above=10 * cut, below=cut / 10)
    return None if count is None else (cut, count)


def _cut(
    shape: tuple[int, ...],
    norm: float,
    stable_rank: float,
    eps: float,
    tolerance: Tolerance,
    rounding: float | None,
) -> float:
    """Return the cut of `weight_rank` for a matrix of this norm and stable rank."""
    default = max(shape) * DOUBLE.eps
    if rounding is not None:
        cut = tolerance.cut(norm, default=default)
        return cut + rounding if tolerance == DEFAULT_TOLERANCE else max(cut, rounding)
    if eps > DOUBLE.eps and stable_rank > 0:
        default += eps / 2 * np.sqrt(stable_rank)  # ||W||_F / ||W||_2
    return tolerance.cut(norm, default=default)
