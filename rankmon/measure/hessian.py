"""Ranks and spectra of the loss Hessian and its parts at given parameters, without a monitor."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from rankmon._util.arrays import check_concrete
from rankmon._util.validate import as_parts, check_engine, check_time_limit
from rankmon._util.warnings import warn_user
from rankmon.engines.base import Ranks, compile_derivatives
from rankmon.engines.select import (
    DEFAULT_TIME_LIMIT,
    ENGINES,
    Choice,
    exact_engine,
    select_engine,
)
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance, as_tolerance, undefined_rank
from rankmon.linalg.signed_spectrum import SignedSpectrum
from rankmon.problem.flat import FlatProblem
from rankmon.problem.mesh_point import MeshPoint
from rankmon.problem.placement import Placement
from rankmon.problem.point import Point, checked
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
    mesh: Mesh | None = None,
    batch_spec: PartitionSpec | None = None,
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
      memory_limit: bytes for the matrices and their assembly; with mesh, on each device.
      time_limit: seconds; "auto" and "sketch" begin no sketch that is expected to end later.
      mesh: the mesh of sharded parameters: "lanczos", or "auto" if no exact engine fits, then
        measures on it, with all vectors sharded like the parameters. By default, and for exact
        engines, the parameters are copied to one device.
      batch_spec: with mesh, the axes over which the examples are split, as for
        `hessian_operator`.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to `NumericalRank`; `rank` is None if
      the weights or the Hessian are not finite, or if only `low` and `high` are known.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the matrices do not fit in memory_limit.

    Source: arXiv 2106.16225, section 3; the common cut is rankmon's.
    """
    point, found = _measured(
        problem,
        params,
        _Asked(reference, parts, tolerance, engine, memory_limit, time_limit, mesh, batch_spec),
    )
    if found is None:
        return {part: undefined_rank(point.flat.p) for part in point.asked}
    return {part: found.parts[part] for part in point.asked}


def hessian_curvature(
    problem: Problem,
    params: Any,
    *,
    reference: Float[np.ndarray, "n k"] | None = None,
    parts: Collection[str] | None = None,
    engine: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    time_limit: float = DEFAULT_TIME_LIMIT,
    mesh: Mesh | None = None,
    batch_spec: PartitionSpec | None = None,
) -> dict[str, SignedSpectrum]:
    """Return extremes, moments and counts of the eigenvalues of the loss Hessian and its parts.

    H_L = H_o + H_f, the Hessian of the mean loss over the probe batch. Exact engines give intervals
    without width, "lanczos" 95 % intervals.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      parts: the parts to measure, for example ("H_L",); all by default.
      engine: as for `hessian_ranks`, but for "sketch" and "slq", which have no such numbers.
      memory_limit: bytes for matrices, vectors and products; with mesh, on each device.
      time_limit: seconds; more of them resolve more eigenvalues.
      mesh: the mesh of sharded parameters, as for `hessian_ranks`.
      batch_spec: with mesh, the axes over which the examples are split.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to a `SignedSpectrum`; empty if the weights
      or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if matrices, vectors or products do not fit in memory_limit.

    Example:
      >>> import numpy as np, rankmon
      >>> x, y = np.diag([1.0, 2.0, 3.0, 4.0]), np.ones((4, 1))
      >>> problem = rankmon.Problem(lambda w, x: x @ w, loss="mse", inputs=x, targets=y)
      >>> found = rankmon.hessian_curvature(problem, np.ones((4, 1)), parts=("H_L",))
      >>> round(found["H_L"].largest.value, 12), round(found["H_L"].trace.value, 12)
      (4.0, 7.5)

    Source: arXiv 2106.16225, section 3.
    """
    asked = _Asked(
        reference, parts, None, engine, memory_limit, time_limit, mesh, batch_spec, _WITH_CURVATURE
    )
    point, found = _measured(problem, params, asked)
    return {} if found is None else {part: found.curvature[part] for part in point.asked}


# Engines that find signed eigenvalues.
_WITH_CURVATURE = tuple(name for name in ENGINES if name not in ("sketch", "slq"))


@dataclass(frozen=True)
class _Asked:
    """The options of `hessian_ranks`, and the engines that can answer."""

    reference: Any
    parts: Collection[str] | None
    tolerance: Tolerance | None
    engine: str
    memory_limit: int
    time_limit: float
    mesh: Mesh | None
    batch_spec: PartitionSpec | None
    able: tuple[str, ...] = ENGINES


def _measured(problem: Problem, params: Any, asked: _Asked) -> tuple[Point, Ranks | None]:
    """Return the point, and its measurement; None if something is not finite."""
    tolerance = as_tolerance(asked.tolerance)
    check_engine(asked.engine, asked.able)
    check_time_limit(asked.time_limit)

    def choose(flat: FlatProblem, placement: Placement | None = None) -> Choice:
        select = partial(
            select_engine,
            flat,
            memory_limit=asked.memory_limit,
            time_limit=asked.time_limit,
            placement=placement,
        )
        choice = select(name=asked.engine)
        if choice.engine.name not in asked.able:  # "auto" took a sketch
            choice = select(name="lanczos")
        return choice

    if asked.mesh is None:
        if asked.batch_spec is not None:
            raise ValueError(
                f"expected a mesh with batch_spec={asked.batch_spec!r}, got none; pass mesh="
            )
        point = _point(problem, params, asked.reference, asked.parts)
        choice = choose(point.flat)
    else:
        point, choice = _on_mesh(problem, params, asked, choose)
    # One residual for H_f, and another one for H_f_fixed.
    compile_derivatives(choice.engine, cotangents=len(point.parts) - 2)
    point.flat.warn_once()
    found = choice.engine.ranks(point, tolerance) if point.is_finite else None
    for text in () if found is None else (*choice.warnings, *found.warnings):
        warn_user(text)
    return point, found


def _on_mesh(
    problem: Problem, params: Any, asked: _Asked, choose: Callable[..., Choice]
) -> tuple[Point, Choice]:
    """Return sharded parameters on their mesh, or a copy for an exact engine; and the engine."""
    assert asked.mesh is not None
    if any(device.process_index != jax.process_index() for device in asked.mesh.devices.flat):
        raise ValueError(  # each process would end its Krylov spaces at another step
            "expected a mesh of this process's devices, got one of several processes; leave out "
            "mesh=, so that every process measures a copy"
        )
    wanted = _wanted(asked.reference, asked.parts)
    tree = problem.unpack(params)
    check_concrete("parameters to be measured", tree)
    flat, reference = checked(problem, params, asked.reference)
    leaves = jax.tree.leaves(tree)
    placement = Placement.of(leaves, problem.n, asked.mesh, asked.batch_spec)
    choice = choose(flat, placement)
    if getattr(choice.engine, "placement", None) is None:
        return _point(problem, params, asked.reference, asked.parts), choice
    known = {"reference": reference, "wanted": wanted}
    return MeshPoint.copied(flat, leaves, placement, **known), choice


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
    return Point.of(problem, params, reference, _wanted(reference, parts))


def _wanted(reference: Any, parts: Collection[str] | None) -> tuple[str, ...]:
    wanted = as_parts(parts)
    if parts is not None and "H_f_fixed" in wanted and reference is None:
        raise ValueError(
            "expected reference residuals for the part H_f_fixed, got none; pass "
            "reference=problem.residuals(params) of the parameters whose residuals it holds"
        )
    return wanted
