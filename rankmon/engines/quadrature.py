"""The engine "slq": ranks of the Hessian's parts by stochastic Lanczos quadrature, at any p.

The Lanczos steps are matfree's; `linalg.lanczos` computes estimates of a spectrum from them.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankmon._util.expected_time import OutOfTimeError
from rankmon._util.text import bytes_text
from rankmon.engines.base import Ranks
from rankmon.engines.cuts import Cut, HessianCuts, below_rounding
from rankmon.hessian.gauss_newton import OuterSpectrum, outer_product
from rankmon.hessian.operators import functional_product, loss_product, traced_product
from rankmon.linalg.lanczos import StochasticSpectrum, starts
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point

_STEPS, _LEAST_PROBES, _MOST_PROBES = 96, 4, 64


@dataclass(frozen=True)
class Lanczos:
    """Lanczos steps with each part of a problem's Hessian; compiled at their first use."""

    flat: FlatProblem
    steps: int
    programs: dict[str, Callable[..., Any]]

    @classmethod
    def of(cls, flat: FlatProblem, *, steps: int, memory_limit: int) -> "Lanczos":
        """Return the steps for this problem; one object for each problem.

        Raises:
          MemoryError: if the vectors do not fit in memory_limit.
          ImportError: without matfree.
        """
        steps = min(steps, flat.p)
        need = 8 * flat.p * (steps + 8)
        if need > memory_limit:
            raise MemoryError(
                f"expected {steps} vectors of p = {flat.p:,} parameters to fit in memory_limit = "
                f"{bytes_text(memory_limit)}, got {bytes_text(need)}; raise memory_limit or take "
                "fewer steps"
            )
        key = ("lanczos", steps)
        if key not in flat.memo:
            flat.memo[key] = cls(flat, steps, _programs(flat, steps))
        return flat.memo[key]

    def at(self, point: Point) -> dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]:
        """Return for each part a function: start vector -> Lanczos' diagonal and off-diagonal."""
        own, *held = point.functional_residuals
        return {
            part: partial(self._decomposed, self.programs[part], point, delta)
            for part, delta in zip(point.parts, (own, own, own, *held), strict=True)
        }

    def _decomposed(
        self, program: Callable[..., Any], point: Point, delta: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        flat = self.flat
        typed = (flat.typed_weights, np.asarray(delta, flat.dtype))
        known = (point.theta, point.fixed, flat.inputs, flat.targets, *typed)
        with flat.precision.scope():
            diagonal, beside, last = program(np.asarray(v, flat.dtype), known)
            beside = np.append(np.asarray(beside, np.float64), float(last))
            return np.array(diagonal, np.float64), beside


def _programs(flat: FlatProblem, steps: int) -> dict[str, Callable[..., Any]]:
    """Return the Lanczos steps of each part from a start vector; compiled at the first use."""
    try:
        from matfree import decomp
    except ImportError as error:
        raise ImportError(
            "expected matfree, which does the Lanczos steps, got none installed; run "
            "pip install 'rankmon[scale]'"
        ) from error
    # tridiag_sym takes the mean of both triangles, of which the upper one is noise at a breakdown.
    hessenberg = decomp.hessenberg(steps, reortho="full", custom_vjp=False)

    def outer(v: Any, theta: Any, fixed: Any, inputs: Any, targets: Any, w: Any, _: Any) -> Any:
        return outer_product(flat, theta, fixed, inputs, targets, w, v)

    def functional(v: Any, theta: Any, fixed: Any, inputs: Any, _: Any, w: Any, delta: Any) -> Any:
        return functional_product(flat, theta, fixed, inputs, w[:, None] * delta, v)

    def loss(v: Any, theta: Any, fixed: Any, inputs: Any, targets: Any, w: Any, delta: Any) -> Any:
        return loss_product(flat, theta, fixed, inputs, targets, w, w[:, None] * delta, v)

    def program(product: Callable[..., Any]) -> Callable[..., Any]:
        @jax.jit
        def decomposed(v: Any, known: Any) -> Any:
            found = hessenberg(lambda u: product(u, *known), v)
            H = found.J_small
            return jnp.diagonal(H), jnp.diagonal(H, -1), jnp.linalg.norm(found.residual)

        return decomposed

    of_functional = program(functional)
    return {
        "H_L": program(loss),
        "H_o": program(outer),
        "H_f": of_functional,
        "H_f_fixed": of_functional,
    }


@dataclass(frozen=True)
class QuadratureEngine:
    """The engine "slq": H_o as `SketchEngine` has it, the other parts from random vectors.

    Attributes:
      flat: the problem.
      lanczos: its steps.
      outer: None if the Gram matrix of N k rows does not fit.
      time_limit: seconds; as many vectors are taken as it allows, from 4 to 64.
    """

    flat: FlatProblem
    lanczos: Lanczos
    outer: OuterSpectrum | None
    time_limit: float
    name: str = "slq"

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int, time_limit: float) -> "QuadratureEngine":
        """Return the engine for this problem.

        Raises:
          MemoryError: if the vectors do not fit in memory_limit.
          ImportError: without matfree.
        """
        steps = Lanczos.of(flat, steps=_STEPS, memory_limit=memory_limit)
        outer = OuterSpectrum.if_it_fits(flat, memory_limit=memory_limit)
        return cls(flat, steps, outer, time_limit)

    def compile(self, *, cotangents: int) -> None:
        """Compile the loss and its derivatives in the outputs; the steps compile at first use."""
        self.flat.compile()
        traced_product(self.flat, "H_f")  # fail now if it has no derivatives

    def ranks(self, point: Point, tolerance: Tolerance) -> Ranks | None:
        """Return the ranks of the parts as intervals; None if something overflows."""
        spectra = self._spectra(self.lanczos.at(point))
        norms = {part: spectrum.norm for part, spectrum in spectra.items()}
        if not all(map(math.isfinite, norms.values())):
            return None
        cuts = HessianCuts.of(norms, tolerance, self.flat)
        ranks: dict[str, NumericalRank] = {
            part: _counted(spectrum, cuts.parts[part]) for part, spectrum in spectra.items()
        }
        if self.outer is not None:
            cut = Tolerance(absolute=cuts.parts["H_o"].value)
            with suppress(OutOfTimeError):  # then random vectors show it too
                ranks["H_o"] = self.outer.rank(
                    point.leaves, cut, "auto", time_limit=self.time_limit
                )
            if ranks["H_o"].rank is None:
                return None
        return Ranks(
            ranks,
            _counted(spectra["H_f"], cuts.own_functional).rank or 0,
            warnings=below_rounding(cuts.parts.values()),
        )

    def _spectra(
        self, decompose: Mapping[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]
    ) -> dict[str, StochasticSpectrum]:
        begun = time.monotonic()
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {part: [] for part in decompose}
        for done, v in enumerate(starts(self.flat.p, _MOST_PROBES, seed=0)):
            if done >= _LEAST_PROBES:
                if (time.monotonic() - begun) * (done + 1) / done > self.time_limit:
                    break
            for part, steps in decompose.items():
                found[part].append(steps(v))
        return {part: StochasticSpectrum.of(self.flat.p, pairs) for part, pairs in found.items()}

    def describe(self) -> str:
        """Return the engine's line of the run's card."""
        return (
            f"{self.name}: stochastic Lanczos quadrature with {self.lanczos.steps} steps for each "
            f"of {_LEAST_PROBES} to {_MOST_PROBES} random vectors, within {self.time_limit:g} s "
            "per probe"
        )


def _counted(spectrum: StochasticSpectrum, cut: Cut) -> NumericalRank:
    """Return the rank at a cut; low and high end 95 % intervals at ten times more and less.

    If the cut is below its finest one, rank and low are counted at the finest.
    """
    counted_at = max(cut)
    value = spectrum.count(counted_at).value
    low = spectrum.count(10 * counted_at).low
    high = spectrum.count(cut.value / 10).high if cut.value >= cut.finest else float(spectrum.p)
    high = min(math.floor(high + 1e-6), spectrum.p)
    low = min(max(math.ceil(low - 1e-6), 0), high)
    rank = min(max(round(value), low), high)
    return NumericalRank(rank, cut.value, spectrum.p, low, high, math.nan)
