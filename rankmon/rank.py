"""From singular values to numerical ranks with their margins, and what else weights tell.

Nothing here knows a network. A rank is a count of singular values above a cut; how far the spectrum
is from crossing that cut travels with it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._checks import check_concrete
from rankmon._kernels import matrices
from rankmon._precision import DOUBLE, eps_of
from rankmon._views import MatrixAxes, Views
from rankmon.problem import Problem
from rankmon.spectrum import singular_values


@dataclass(frozen=True)
class Tolerance:
    """How the cut is chosen below which a singular value counts as zero.

    cut = relative * max(||X||_2, ||reference||_2), or `absolute` where that is given. For the parts
    of the Hessian the reference is H_L, one common cut: relative to its own norm the rank of a
    vanishing H_f would never fall. `relative` defaults to p * eps for the Hessian, with the eps of
    the arithmetic, and to what `weight_rank` says for weights.

    Args:
      relative: multiple of the norm; None for the default.
      absolute: the cut itself, in the units of the singular values; None to use `relative`.
    """

    relative: float | None = None
    absolute: float | None = None

    def __post_init__(self) -> None:
        if self.relative is not None and self.absolute is not None:
            raise ValueError(
                f"expected relative or absolute, got both ({self.relative}, {self.absolute}); "
                "give the one that you mean"
            )
        for name, value in asdict(self).items():
            if value is not None and not isinstance(value, Real):
                raise TypeError(
                    f"expected {name} to be a number, got {type(value).__name__}; for the default "
                    "leave it out"
                )
            if value is not None and not 0 <= float(value) < float("inf"):
                raise ValueError(
                    f"expected {name} to be finite and >= 0, got {value}; for the default leave "
                    "it out"
                )

    def cut(self, norm: float, *, default: float, reference_norm: float = 0.0) -> float:
        """The cut for a matrix of this norm; `default` is the multiple to use where none is set."""
        if self.absolute is not None:
            return self.absolute
        relative = default if self.relative is None else self.relative
        return relative * max(norm, reference_norm)

    def rule(self, default: str) -> str:
        """The cut in words; `default` says what it is where none is set."""
        if self.absolute is not None:
            return f"{self.absolute:g}"
        return default if self.relative is None else f"{self.relative:g} times the norm"


DEFAULT_TOLERANCE = Tolerance()


def common_cuts(
    norms: Mapping[str, float], tolerance: Tolerance, *, default: float
) -> dict[str, float]:
    """The cut of each of the Hessian's parts, relative to the larger of its norm and H_L's."""
    return {
        part: tolerance.cut(norm, default=default, reference_norm=norms["H_L"])
        for part, norm in norms.items()
    }


def finest_cuts(norms: Mapping[str, float], *, p: int, eps: float) -> dict[str, float]:
    """Return the least cut of each part that tells eigenvalues from the rounding of products.

    As for `common_cuts`, H_L's norm counts too; a part by itself has `finest_cut`.
    """
    return {part: finest_cut(max(norm, norms["H_L"]), p=p, eps=eps) for part, norm in norms.items()}


def finest_cut(norm: float, *, p: int, eps: float) -> float:
    """Return the rounding of products with a matrix of this norm, and of its spectrum."""
    return min(p, 10) * eps * norm


def below_rounding(cuts: Mapping[str, float], finest: Mapping[str, float]) -> tuple[str, ...]:
    """Return what the user should know of cuts below the finest ones, if any are.

    The same words at every step, so that they are said once.
    """
    if all(cut >= finest[part] for part, cut in cuts.items()):
        return ()
    return (
        "expected a tolerance above the rounding of the Hessian's products, 10 eps times its norm, "
        "got a smaller one: rank and low count what is above that rounding, high all that may be; "
        "raise the tolerance or leave it out",
    )


def as_tolerance(tolerance: Tolerance | None) -> Tolerance:
    """The tolerance, or the default one for None.

    Raises:
      TypeError: for a bare number, which NumPy and JAX read differently.
    """
    if tolerance is not None and not isinstance(tolerance, Tolerance):
        raise TypeError(
            f"expected tolerance to be a rankmon.Tolerance, got {type(tolerance).__name__}; write "
            "Tolerance(relative=...) or Tolerance(absolute=...)"
        )
    return tolerance or DEFAULT_TOLERANCE


@dataclass(frozen=True)
class NumericalRank:
    """A rank and how sure it is.

    Attributes:
      rank: the number of singular values above `tolerance`; None where the matrix is not finite.
      tolerance: the cut, absolute.
      size: the most that the rank could be (p for a Hessian, min(m, n) for a matrix).
      low: the count above 10 x tolerance.
      high: the count above tolerance / 10. low = rank = high: no singular value is near the cut.
      gap: ratio of the singular values on either side of the cut; infinite with nothing (or exact
        zeros) below it, NaN at rank 0.
    """

    rank: int | None
    tolerance: float
    size: int
    low: int | None
    high: int | None
    gap: float

    @property
    def certain(self) -> bool:
        """Whether no singular value lies within a factor 10 of the cut."""
        return self.rank is not None and self.low == self.rank == self.high


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


def numerical_rank(
    values: Float[np.ndarray, " m"],
    cut: float,
    *,
    size: int | None = None,
    errors: Float[np.ndarray, " m"] | None = None,
    finest: float = 0.0,
) -> NumericalRank:
    """Counts the singular values (or absolute eigenvalues) above a cut.

    Args:
      values: non-negative, finite, in any order; values left out are exact zeros.
      cut: the absolute tolerance.
      size: the most that the rank could be; the number of values where not given.
      errors: how far off each value may be: `low` then counts what is above 10 x cut for certain,
        and `high` what may be above cut / 10.
      finest: the least cut that tells values from rounding. Below it `rank` and `low` count at this
        cut instead, and `high` all that is not an exact zero.
    """
    values = np.asarray(values, np.float64)
    off = np.zeros_like(values) if errors is None else errors
    ordered = np.sort(values)[::-1]
    told = max(cut, finest)
    rank = int(np.sum(ordered > told))
    below = ordered[rank] if rank < ordered.size else 0.0
    if rank == 0:
        gap = float("nan")
    else:
        with np.errstate(over="ignore"):
            gap = float(ordered[rank - 1] / below) if below > 0 else float("inf")
    return NumericalRank(
        rank=rank,
        tolerance=float(cut),
        size=ordered.size if size is None else size,
        low=int(np.sum(values - off > 10 * told)),
        high=int(np.sum(values + off > (cut / 10 if cut >= finest else 0.0))),
        gap=gap,
    )


def undefined_rank(size: int) -> NumericalRank:
    """The rank of a matrix with NaN or infinite entries: none."""
    return NumericalRank(None, float("nan"), size, None, None, float("nan"))


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
