"""Ranks, soft ranks and determinants of weight matrices."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.arrays import check_concrete
from rankmon.linalg.numerical_rank import (
    NumericalRank,
    Tolerance,
    as_tolerance,
    numerical_rank,
    undefined_rank,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.network.kernel_axes import matrices
from rankmon.network.matrix_views import MatrixAxes, Views
from rankmon.problem.precision import DOUBLE, eps_of
from rankmon.problem.problem import Problem


@dataclass(frozen=True)
class WeightRank(NumericalRank):
    """The `NumericalRank` of a weight matrix, and what else its singular values tell.

    Attributes:
      stable_rank: ||W||_F^2 / ||W||_2^2; NaN for a zero or non-finite matrix.
      effective_rank: exp of the entropy of the singular values over their sum (Roy and Vetterli
        2007); NaN likewise.
      condition_number: ratio of the largest to the smallest of min(m, n) singular values; infinite
        where that is zero, NaN likewise.
      det_sign: sign of det W, 0.0 if singular, that is if the smallest singular value is at most
        n eps64 ||W||_2; None unless W is square.
      log_abs_det: log|det W| (natural), -inf if singular; None unless W is square.
      view: in `weight_ranks`, which axes of the leaf are rows and columns, and what says so; None
        for a matrix by itself.
    """

    stable_rank: float
    effective_rank: float
    condition_number: float
    det_sign: float | None
    log_abs_det: float | None
    view: MatrixAxes | None = None


def weight_rank(
    matrix: Float[np.ndarray, "m n"],
    *,
    eps: float = DOUBLE.eps,
    tolerance: Tolerance | None = None,
) -> WeightRank:
    """The rank of one weight matrix, and its companions.

    The default cut is max(m, n) * eps64 * ||W||_2, the error of singular values in float64, plus,
    for weights stored in a coarser dtype, eps / 2 * ||W||_F, which bounds the norm of the rounding
    that the storing adds: singular values above it are not noise. (max(m, n) * eps would exceed
    ||W||_2 in bfloat16 from 128 rows on, and find no rank at all.)

    Args:
      matrix: real; converted to float64.
      eps: of the dtype that the weights are stored in: rounding noise of that size has full rank.
      tolerance: another cut than the default.
    """
    matrix = np.asarray(matrix).astype(np.float64)
    m, n = matrix.shape
    square = m == n
    if not np.all(np.isfinite(matrix)):
        nan = float("nan")
        none = undefined_rank(min(m, n))
        return WeightRank(**asdict(none), **_determinant(nan, nan, square), **_soft_ranks(None))
    values = singular_values(matrix)
    norm = float(values[0]) if values.size else 0.0
    soft = _soft_ranks(values)
    default = default_relative(matrix.shape, eps, soft["stable_rank"])
    cut = as_tolerance(tolerance).cut(norm, default=default)
    sign, log_abs = _sign_and_logarithm(matrix, values) if square else (0.0, 0.0)
    return WeightRank(
        **asdict(numerical_rank(values, cut)), **_determinant(sign, log_abs, square), **soft
    )


def log_abs_det(matrix: Float[np.ndarray, "n n"]) -> float:
    """Return log|det W| as `weight_rank` does, of a finite square matrix."""
    return _sign_and_logarithm(matrix, singular_values(matrix))[1]


def _sign_and_logarithm(
    matrix: Float[np.ndarray, "n n"], values: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """The sign of det W and log|det W|: 0 and -inf where float64 cannot tell W from a singular one.

    There, and not at the cut of ranks: the determinant is that of the stored numbers.
    """
    if values.size and values[-1] <= len(values) * DOUBLE.eps * values[0]:
        return 0.0, -float("inf")
    sign, log_abs = np.linalg.slogdet(matrix)
    return float(sign), float(log_abs)


def default_relative(shape: tuple[int, ...], eps: float, stable_rank: float) -> float:
    """The cut of a weight matrix over ||W||_2, as `weight_rank` says."""
    default = max(shape) * DOUBLE.eps
    if eps > DOUBLE.eps and stable_rank > 0:
        default += eps / 2 * np.sqrt(stable_rank)  # ||W||_F / ||W||_2
    return default


def _determinant(sign: float, log_abs: float, square: bool) -> dict[str, Any]:
    return {"det_sign": sign if square else None, "log_abs_det": log_abs if square else None}


def _soft_ranks(values: np.ndarray | None) -> dict[str, Any]:
    if values is None or values.size == 0 or not values[0] > 0:
        return dict.fromkeys(("stable_rank", "effective_rank", "condition_number"), float("nan"))
    scaled = values / values[0]  # squares of tiny or huge values would leave the range of floats
    share = scaled / np.sum(scaled)
    share = share[share > 0]
    return {
        "stable_rank": float(np.sum(scaled**2)),
        "effective_rank": float(np.exp(-np.sum(share * np.log(share)))),
        "condition_number": float(1 / scaled[-1]) if scaled[-1] > 0 else float("inf"),
    }


def weight_ranks(
    params: Any, *, tolerance: Tolerance | None = None, views: Views | Problem | None = None
) -> dict[str, WeightRank]:
    """The ranks of every matrix among the parameters.

    A leaf of two axes is a matrix; kernels of more axes are viewed as one. Which axes are its rows
    and columns is known with a problem, from the operation that uses the kernel. Without one the
    shape decides, and `view` in the result says so: Flax's convolution (kh, kw, in, out) is
    (kh kw in) x out, and a projection of attention, by its name, in x (heads head_dim). The
    spectrum is computed in float64, the cut follows the dtype that the leaf is stored in.

    Args:
      params: any pytree of arrays; with a problem as `views`, what that takes.
      tolerance: another cut than the default of `weight_rank`.
      views: the axes of rows and of columns, by globs over the leaves' names; axes left out count
        layers, each a matrix. Or the `Problem` whose network tells them all.

    Returns:
      A dict from the leaf's path to its `WeightRank`; layers are numbered, "<path>/0" and so on.

    Raises:
      TypeError: for complex leaves and leaves that are not arrays.
      ValueError: where no leaf is a matrix, or a view fits none.

    Example:
      >>> import numpy as np, rankmon
      >>> rankmon.weight_ranks({"W": np.ones((3, 4))})["W"].rank
      1
      >>> oihw = {"conv": np.random.default_rng(0).normal(size=(8, 4, 3, 3))}
      >>> rankmon.weight_ranks(oihw, views={"conv": ((1, 2, 3), (0,))})["conv"].rank
      8
    """
    check_concrete("weights to be measured", params)
    return {
        view.name: replace(
            weight_rank(view.of(np.asarray(leaf)), eps=eps_of(spec.dtype), tolerance=tolerance),
            view=view.axes,
        )
        for spec, view, leaf in matrices(params, views=views)
    }
