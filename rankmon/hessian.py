"""Spectra and ranks of the loss Hessian and its parts, and the probe that watches them.

H_L = H_o + H_f, H_f^fixed; assembly is in `engines` and below, counting in `rank`, predictions in
`expectation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._checks import check_engine
from rankmon._diagnosis import check_uses_parameters
from rankmon._hparams import Hparam
from rankmon._once import Once
from rankmon._warnings import warn_user
from rankmon.choice import (
    ENGINES,
    Choice,
    check_time_limit,
    chosen_engine,
    compile_derivatives,
)
from rankmon.engines import ENGINES as EXACT_ENGINES
from rankmon.engines import engine_of
from rankmon.expectation import Expectation
from rankmon.flat import FlatProblem
from rankmon.large import DEFAULT_TIME_LIMIT, Ranks
from rankmon.measurement import Description, Fact, Measurement, Snapshot, State, rank_scalars
from rankmon.parts import DEFAULT_MEMORY_LIMIT, HESSIAN_PARTS
from rankmon.predictions import Claims, widths_text
from rankmon.problem import Problem
from rankmon.rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    Tolerance,
    as_tolerance,
    undefined_rank,
)


@dataclass(frozen=True)
class HessianProbe:
    """Ranks and spectra of H_L, H_o, H_f, H_f^fixed; the rank of Omega; predictions; the loss.

    Args:
      tolerance: another cut than p * eps * max(||H_L||_2, ||X||_2) for part X.
      memory_limit: bytes for the matrices and their assembly together.
      engine: as for `hessian_ranks`.
      time_limit: seconds that a measurement may take, for "auto" and "sketch" to decide by.
      include: globs over parameter names, beside those of the problem: only matching leaves are
        differentiated, for instance a large network's last layer.
      exclude: globs over parameter names; matching leaves are held fixed.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    engine: str = "auto"
    time_limit: float = DEFAULT_TIME_LIMIT
    include: str | Sequence[str] = ("*",)
    exclude: str | Sequence[str] = ()
    name: str = "hessian"

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        check_engine(self.engine, ENGINES)
        check_time_limit(self.time_limit)

    def placeholder_state(self, problem: Problem) -> State:
        """The residuals to hold, as zeros, and a flag that they are not known yet."""
        targets = problem.targets
        shape = targets.shape if isinstance(targets, np.ndarray) else (problem.n,)
        if not problem.loss.has_dense_targets:
            shape = (*shape[:1], 1)
        reference = np.zeros((int(np.prod(shape[:-1])), shape[-1]))
        return {"reference": reference, "started": np.zeros(())}

    def prepare(self, flat: FlatProblem) -> "PreparedHessian":
        """Checks the memory and finds what theory says of this network.

        Raises:
          ValueError: where the outputs do not depend on the parameters, JAX cannot differentiate
            the network twice, or a filter matches nothing.
          MemoryError: where p is past what dense matrices allow in `memory_limit`.
        """
        flat = flat.narrowed(self.include, self.exclude)
        check_uses_parameters(flat)
        choice = chosen_engine(
            flat, name=self.engine, memory_limit=self.memory_limit, time_limit=self.time_limit
        )
        compile_derivatives(choice.engine, cotangents=2)
        return PreparedHessian(
            flat=flat,
            choice=choice,
            tolerance=self.tolerance,
            expectation=Expectation.of(flat),
        )


@dataclass(frozen=True)
class PreparedHessian:
    """`HessianProbe` for one problem."""

    flat: FlatProblem
    choice: Choice
    tolerance: Tolerance
    expectation: Expectation

    def initial_state(self) -> State:
        """Residuals [N, k] as zeros and a flag."""
        return {
            "reference": np.zeros((self.flat.positions, self.flat.k)),
            "started": np.zeros(()),
        }

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """The ranks at the snapshot; NaN throughout where anything in it is not finite."""
        snapshot = replace(snapshot, flat=self.flat)
        if snapshot.nonfinite:
            return self._undefined(float("nan")), state
        loss, delta = self.flat.loss_and_residuals(snapshot.theta, snapshot.fixed)
        if not state["started"] and np.all(np.isfinite(delta)):
            state = {"reference": delta, "started": np.ones(())}
        found = self._found(snapshot, delta, state["reference"])
        if found is None:
            told = "the outputs or the Hessian are not finite: its ranks are logged as NaN"
            return self._undefined(loss, told), state
        scalars = {"loss": loss}
        for part, rank in found.parts.items():
            scalars |= rank_scalars("rank", part, rank)
        scalars["rank_self/H_f"] = found.own_functional
        scalars |= self.expectation.scalars(
            snapshot, delta, state["reference"], vanished=found.parts["H_f"].high == 0
        )
        arrays = {}
        for part, spectrum in found.spectra.items():
            nonzero = spectrum[spectrum != 0]
            arrays[f"spectrum/{part}"] = np.log10(np.abs(nonzero))
            scalars[f"spectrum_zeros/{part}"] = spectrum.size - nonzero.size
        warnings = (*self._precision_warning(), *self.choice.told, *found.told)
        return Measurement(scalars, arrays, warnings), state

    def _found(
        self, snapshot: Snapshot, delta: Float[np.ndarray, "n k"], reference: np.ndarray
    ) -> Ranks | None:
        if not np.all(np.isfinite(delta)):
            return None
        return self.choice.engine.ranks(snapshot, delta, reference, self.tolerance)

    def _undefined(self, loss: float, *told: str) -> Measurement:
        scalars = {"loss": loss, "rank_self/H_f": float("nan")}
        for part in HESSIAN_PARTS:
            scalars |= rank_scalars("rank", part, undefined_rank(self.flat.p))
        return Measurement(scalars, warnings=(*self._precision_warning(), *told))

    def _precision_warning(self) -> tuple[str, ...]:
        return (self.flat.warning,) if self.flat.warning else ()

    def describe(self) -> Description:
        """Sizes, arithmetic, cut, engine and predictions of this network."""
        claims = Claims(self.flat, self.expectation)
        return Description(
            facts=[
                *claims.facts,
                Fact("p", f"{self.flat.p:,}: parameters that are differentiated"),
                Fact("Hessian in", self._arithmetic()),
                Fact("Hessian's cut", self._cut()),
                Fact("engine", f"{self.choice.engine.describe()}; {self.choice.why}"),
            ],
            network=claims.network,
            predictions=claims.predictions,
            reservation=claims.reservation,
            hparams=self._hparams(claims),
        )

    def _arithmetic(self) -> str:
        precision = self.flat.precision
        dtype = "the dtype of training" if precision.dtype is None else str(precision.dtype)
        return f"{dtype}, ranks at eps = {precision.eps:.3g}"

    def _cut(self) -> str:
        norm = "max(‖H_L‖₂, ‖X‖₂) for part X"
        relative = self.tolerance.relative
        return (
            f"{relative:g} {norm}" if relative is not None else self.tolerance.rule(f"p eps {norm}")
        )

    def _hparams(self, claims: Claims) -> dict[str, Hparam]:
        flat = self.flat
        hparams: dict[str, Hparam] = {"engine": self.choice.engine.name, "eps": flat.precision.eps}
        if flat.p != sum(spec.size for spec in flat.specs):
            hparams["differentiated"] = flat.p
        if self.expectation.stack is not None:
            hparams["widths"] = widths_text(self.expectation.stack)
        if self.expectation.inputs is not None:
            hparams["input_rank"] = self.expectation.r
        if claims.bottleneck is not None:
            hparams["bottleneck"] = claims.bottleneck
        return hparams


def hessian_ranks(
    problem: Problem,
    params: Any,
    *,
    reference: Float[np.ndarray, "n k"] | None = None,
    tolerance: Tolerance | None = None,
    engine: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    time_limit: float = DEFAULT_TIME_LIMIT,
) -> dict[str, NumericalRank]:
    """The ranks of the loss Hessian and its parts at given parameters; no monitor.

    H_L = H_o + H_f, the Hessian of the mean loss over the probe batch, with rows in the order of
    the parameters' leaves. Computed in float64 whatever the parameters are stored in.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      tolerance: another cut than p * eps * max(||H_L||_2, ||X||_2) for part X.
      engine: "deep_linear" (the coordinates of a deep linear network that can be non-zero), "stack"
        (dense layers with elementwise activations, each block one contraction), "dense" (any
        network, by automatic differentiation), "sketch" (products with random vectors: H_o exactly,
        the others as a `SketchedRank`, for p up to 10^5 and beyond), or "auto", the first of these
        that applies, fits and is done in time. All but the last give the same ranks, and but for a
        few dozen parameters, where a tenth of the cut is rounding, the same `high`.
      memory_limit: bytes for the matrices and their assembly.
      time_limit: seconds, for "auto" and "sketch" to decide by: no sketch is begun that would end
        later.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to `NumericalRank`; `rank` is None where
      the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: where the matrices do not fit in memory_limit.

    Source: arXiv 2106.16225, section 3; the common cut is rankmon's.
    """
    tolerance = as_tolerance(tolerance)
    check_engine(engine, ENGINES)
    check_time_limit(time_limit)
    once = Once.of(problem, params, reference)
    choice = chosen_engine(once.flat, name=engine, memory_limit=memory_limit, time_limit=time_limit)
    compile_derivatives(choice.engine, cotangents=len(once.parts) - 2)
    delta = once.residuals()
    found = (
        None
        if delta is None
        else choice.engine.ranks(once.snapshot, delta, once.reference, tolerance)
    )
    if found is None:
        return {part: undefined_rank(once.flat.p) for part in once.parts}
    for text in (*choice.told, *found.told):
        warn_user(text)
    return found.parts


def hessian_spectra(
    problem: Problem,
    params: Any,
    *,
    reference: Float[np.ndarray, "n k"] | None = None,
    engine: str = "auto",
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> dict[str, Float[np.ndarray, " p"]]:
    """The eigenvalues of the loss Hessian and its parts at given parameters; no monitor.

    H_L = H_o + H_f, the Hessian of the mean loss over the probe batch, in float64.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      engine: as for `hessian_ranks`, but for "sketch".
      memory_limit: bytes for the matrices and their assembly.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to p eigenvalues with their signs, the
      largest in magnitude first; NaN throughout where the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: where the matrices do not fit in memory_limit.

    Source: arXiv 2106.16225, section 3.
    """
    check_engine(engine, EXACT_ENGINES)
    once = Once.of(problem, params, reference)
    exact = engine_of(once.flat, name=engine, memory_limit=memory_limit)
    compile_derivatives(exact, cotangents=len(once.parts) - 2)
    delta = once.residuals()
    spectra = None if delta is None else exact.spectra(once.snapshot, delta, once.reference)
    if spectra is None:
        return {part: np.full(once.flat.p, np.nan) for part in once.parts}
    return {part: spectra[part].copy() for part in once.parts}  # the engine keeps its own
