"""Spectra and ranks of the loss Hessian and its parts, and the probe that watches them.

H_L = H_o + H_f, H_f^fixed; assembly is in `engines` and below, counting in `rank`, predictions in
`expectation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._hparams import Hparam
from rankmon.engines import Engine, Spectra, check_engine, engine_of
from rankmon.expectation import Expectation
from rankmon.flat import FlatProblem
from rankmon.measurement import Description, Fact, Measurement, Snapshot, State, rank_scalars
from rankmon.parts import DEFAULT_MEMORY_LIMIT
from rankmon.predictions import Claims, widths_text
from rankmon.problem import Problem
from rankmon.rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    Tolerance,
    as_tolerance,
    numerical_rank,
    undefined_rank,
)

HESSIAN_PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")


@dataclass(frozen=True)
class HessianProbe:
    """Ranks and spectra of H_L, H_o, H_f, H_f^fixed; the rank of Omega; predictions; the loss.

    Args:
      tolerance: another cut than p * eps * max(||H_L||_2, ||X||_2) for part X.
      memory_limit: bytes for the matrices and their assembly together.
      engine: as for `hessian_ranks`.
      include: globs over parameter names, beside those of the problem: only matching leaves are
        differentiated, for instance a large network's last layer.
      exclude: globs over parameter names; matching leaves are held fixed.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    engine: str = "auto"
    include: str | Sequence[str] = ("*",)
    exclude: str | Sequence[str] = ()
    name: str = "hessian"

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        check_engine(self.engine)

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
          ValueError: where JAX cannot differentiate the network twice, or a filter matches nothing.
          MemoryError: where p is past what dense matrices allow in `memory_limit`.
        """
        flat = flat.narrowed(self.include, self.exclude)
        engine = engine_of(flat, name=self.engine, memory_limit=self.memory_limit)
        try:
            engine.compile(cotangents=2)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(
                "expected a network and a loss that JAX can differentiate twice, got "
                f"{type(error).__name__}: {error}; mend the network, or watch the weights alone: "
                "probes=['weights']"
            ) from error
        return PreparedHessian(
            flat=flat,
            engine=engine,
            tolerance=self.tolerance,
            expectation=Expectation.of(flat),
            requested=self.engine,
        )


@dataclass(frozen=True)
class PreparedHessian:
    """`HessianProbe` for one problem."""

    flat: FlatProblem
    engine: Engine
    tolerance: Tolerance
    expectation: Expectation
    requested: str  # the engine, perhaps "auto"

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
        spectra = _spectra(self.engine, snapshot, delta, state["reference"])
        if spectra is None:
            told = "the outputs or the Hessian are not finite: its ranks are logged as NaN"
            return self._undefined(loss, told), state
        ranks = spectra_to_ranks(spectra, self.flat, self.tolerance)
        scalars = {"loss": loss}
        for part, rank in ranks.items():
            scalars |= rank_scalars("rank", part, rank)
        own = np.abs(spectra["H_f"])
        cut = self.tolerance.cut(own[0], default=self.flat.p * self.flat.precision.eps)
        scalars["rank_self/H_f"] = numerical_rank(own, cut).rank or 0
        scalars |= self.expectation.scalars(
            snapshot, delta, state["reference"], vanished=ranks["H_f"].high == 0
        )
        arrays = {}
        for part, spectrum in spectra.items():
            nonzero = spectrum[spectrum != 0]
            arrays[f"spectrum/{part}"] = np.log10(np.abs(nonzero))
            scalars[f"spectrum_zeros/{part}"] = spectrum.size - nonzero.size
        return Measurement(scalars, arrays, self._precision_warning()), state

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
                Fact("engine", f"{self.engine.describe()}; {self._why_that_engine()}"),
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

    def _why_that_engine(self) -> str:
        if self.requested != "auto":
            return "asked for"
        kind = {
            "deep_linear": "the network is recognized as a deep linear one",
            "stack": "the network is recognized as a stack of dense layers",
        }
        if self.engine.name == "dense" and self.expectation.stack is None:
            return "chosen since the network is not recognized as a stack of dense layers"
        fits = "it is the first that applies to this network and fits in memory_limit"
        return f"chosen since {kind.get(self.engine.name, fits)}"

    def _hparams(self, claims: Claims) -> dict[str, Hparam]:
        flat = self.flat
        hparams: dict[str, Hparam] = {"engine": self.engine.name, "eps": flat.precision.eps}
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
        network, by automatic differentiation), or "auto", the first of these that applies and fits.
        All give the same ranks, and but for a few dozen parameters, where a tenth of the cut is
        rounding, the same `high`.
      memory_limit: bytes for the matrices and their assembly.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to `NumericalRank`; `rank` is None where
      the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: where the matrices do not fit in memory_limit.

    Source: arXiv 2106.16225, section 3; the common cut is rankmon's.
    """
    tolerance = as_tolerance(tolerance)
    once = _Once.of(problem, params, reference, engine, memory_limit)
    spectra = once.spectra()
    if spectra is None:
        return {part: undefined_rank(once.flat.p) for part in once.parts}
    return spectra_to_ranks(spectra, once.flat, tolerance)


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
      engine: as for `hessian_ranks`.
      memory_limit: bytes for the matrices and their assembly.

    Returns:
      A dict from "H_L", "H_o", "H_f" (and "H_f_fixed") to p eigenvalues with their signs, the
      largest in magnitude first; NaN throughout where the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: where the matrices do not fit in memory_limit.

    Source: arXiv 2106.16225, section 3.
    """
    once = _Once.of(problem, params, reference, engine, memory_limit)
    spectra = once.spectra()
    if spectra is None:
        return {part: np.full(once.flat.p, np.nan) for part in once.parts}
    return {part: values.copy() for part, values in spectra.items()}  # the engine keeps its own


@dataclass(frozen=True)
class _Once:
    """One measurement without a monitor: what it needs, checked."""

    flat: FlatProblem
    engine: Engine
    snapshot: Snapshot
    reference: Float[np.ndarray, "n k"] | None

    @classmethod
    def of(
        cls, problem: Problem, params: Any, reference: Any, engine: str, memory_limit: int
    ) -> "_Once":
        check_engine(engine)
        flat = problem.flat(params)
        if reference is not None:
            reference = np.array(reference, np.float64)
            if reference.shape != (flat.positions, flat.k):
                raise ValueError(
                    f"expected reference residuals of shape {(flat.positions, flat.k)}, got "
                    f"{reference.shape}; pass one row for each position of the outputs"
                )
        chosen = engine_of(flat, name=engine, memory_limit=memory_limit)
        flat.warn_once()
        return cls(flat, chosen, Snapshot.take(flat, 0, params), reference)

    @property
    def parts(self) -> tuple[str, ...]:
        return HESSIAN_PARTS if self.reference is not None else HESSIAN_PARTS[:3]

    def spectra(self) -> Spectra | None:
        """The eigenvalues of each part; None where something is not finite."""
        snapshot = self.snapshot
        if snapshot.nonfinite:
            return None
        _, delta = self.flat.loss_and_residuals(snapshot.theta, snapshot.fixed)
        return _spectra(self.engine, snapshot, delta, self.reference)


def _spectra(
    engine: Engine,
    snapshot: Snapshot,
    delta: Float[np.ndarray, "n k"],
    reference: Float[np.ndarray, "n k"] | None,
) -> Spectra | None:
    """The parts' eigenvalues in the order of `HESSIAN_PARTS`; None where one is not finite."""
    if not np.all(np.isfinite(delta)):
        return None
    spectra = engine.spectra(snapshot, delta, reference)
    if spectra is None:
        return None
    return {part: spectra[part] for part in HESSIAN_PARTS if part in spectra}


def spectra_to_ranks(
    spectra: Mapping[str, Float[np.ndarray, " p"]], flat: FlatProblem, tolerance: Tolerance
) -> dict[str, NumericalRank]:
    """The parts' ranks at their common cut, p * eps * max(||H_L||_2, ||X||_2) by default."""
    reference_norm = float(abs(spectra["H_L"][0]))
    default = flat.p * flat.precision.eps
    return {
        part: numerical_rank(
            np.abs(spectrum),
            tolerance.cut(float(abs(spectrum[0])), default=default, reference_norm=reference_norm),
        )
        for part, spectrum in spectra.items()
    }
