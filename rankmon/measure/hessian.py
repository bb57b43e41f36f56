"""Ranks and spectra of the loss Hessian and its parts at given parameters, without a monitor."""

from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.validate import as_parts, check_engine, check_time_limit
from rankmon._util.warnings import warn_user
from rankmon.engines.base import compile_derivatives
from rankmon.engines.select import DEFAULT_TIME_LIMIT, ENGINES, exact_engine, select_engine
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance, as_tolerance, undefined_rank
from rankmon.problem.point import Point
from rankmon.problem.problem import Problem


def hessian_ranks(
    problem: Problem,
    params: Any,
    *,
    reference: Float[np.ndarray, "n k"] | None = None,
    parts: Collection[str] | None = None,
    tolerance: Tolerance | None = None,
    engine: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    time_limit: float = DEFAULT_TIME_LIMIT,
) -> dict[str, NumericalRank]:
    """Return the ranks of the loss Hessian and its parts at given parameters.

    H_L = H_o + H_f, the Hessian of the mean loss over the probe batch, with rows in the order of
    the parameters' leaves. Computed in float64 whatever the parameters are stored in.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      parts: the parts to measure, for example ("H_L",); all by default. Eigenvalues of others are
        not computed, except for those of H_L, whose norm sets the common cut.
      tolerance: another cut than p * eps * max(||H_L||_2, ||X||_2) for part X.
      engine: "deep_linear" (the coordinates of a deep linear network that can be non-zero), "stack"
        (dense layers with elementwise activations, each block one contraction), "dense" (any
        network, by automatic differentiation), "sketch" (products with random vectors: H_o exactly,
        the others as a `SketchedRank`, for p up to 10^5 and beyond), "lanczos" (H_o exactly, of the
        others only bounds), "slq" (epsilon-ranks at coarse cuts), or "auto", the first of the exact
        engines, "sketch" and "lanczos" that applies, fits and is expected to finish in time. The
        exact engines give the same ranks, and but for a few dozen parameters, for which a tenth of
        the cut is rounding, the same `high`.
      memory_limit: bytes for the matrices and their assembly.
      time_limit: seconds; "auto" and "sketch" begin no sketch that is expected to end later.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to `NumericalRank`; `rank` is None if
      the weights or the Hessian are not finite, or if only `low` and `high` are known.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the matrices do not fit in memory_limit.

    Source: arXiv 2106.16225, section 3; the common cut is rankmon's.
    """
    tolerance = as_tolerance(tolerance)
    check_engine(engine, ENGINES)
    check_time_limit(time_limit)
    point = _point(problem, params, reference, parts)
    choice = select_engine(
        point.flat, name=engine, memory_limit=memory_limit, time_limit=time_limit
    )
    # One residual for H_f, and another one for H_f_fixed.
    compile_derivatives(choice.engine, cotangents=len(point.parts) - 2)
    point.flat.warn_once()
    found = choice.engine.ranks(point, tolerance) if point.is_finite else None
    if found is None:
        return {part: undefined_rank(point.flat.p) for part in point.asked}
    for text in (*choice.warnings, *found.warnings):
        warn_user(text)
    return {part: found.parts[part] for part in point.asked}


def hessian_spectra(
    problem: Problem,
    params: Any,
    *,
    reference: Float[np.ndarray, "n k"] | None = None,
    parts: Collection[str] | None = None,
    engine: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> dict[str, Float[np.ndarray, " p"]]:
    """Return the eigenvalues of the loss Hessian and its parts at given parameters.

    H_L = H_o + H_f, the Hessian of the mean loss over the probe batch, in float64.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      parts: the parts whose eigenvalues to return, for example ("H_L",); all by default.
      engine: as for `hessian_ranks`, but for "sketch".
      memory_limit: bytes for the matrices and their assembly.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to p eigenvalues with their signs, the
      largest in magnitude first; NaN throughout if the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the matrices do not fit in memory_limit.

    Source: arXiv 2106.16225, section 3.
    """
    point = _point(problem, params, reference, parts)
    exact = exact_engine(point.flat, name=engine, memory_limit=memory_limit)
    compile_derivatives(exact, cotangents=len(point.parts) - 2)
    point.flat.warn_once()
    spectra = exact.spectra(point) if point.is_finite else None
    if spectra is None:
        return {part: np.full(point.flat.p, np.nan) for part in point.asked}
    return {part: spectra[part].copy() for part in point.asked}  # the engine keeps its own


def _point(problem: Problem, params: Any, reference: Any, parts: Collection[str] | None) -> Point:
    wanted = as_parts(parts)
    if parts is not None and "H_f_fixed" in wanted and reference is None:
        raise ValueError(
            "expected reference residuals for the part H_f_fixed, got none; pass "
            "reference=problem.residuals(params) of the parameters whose residuals it holds"
        )
    return Point.of(problem, params, reference, wanted)
