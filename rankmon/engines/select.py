"""Which engine gives the ranks of a Hessian, by its kind, size, memory and time.

Exact spectra where they fit and are done in time (`engines`), else `large`; neither is here.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from rankmon._util.compile import operations
from rankmon._util.tags import HESSIAN_PARTS
from rankmon._util.text import bytes_text
from rankmon.engines.base import ENGINES as EXACT_ENGINES
from rankmon.engines.base import Engine, Spectra
from rankmon.engines.cuts import below_rounding, common_cuts, finest_cut, finest_cuts
from rankmon.engines.exact import engine_of
from rankmon.engines.lanczos import StochasticHessian
from rankmon.engines.sketch import LargeHessian, Ranks
from rankmon.hessian.operators import functional_product, outer_product
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance, numerical_rank
from rankmon.network.recognized_stack import recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import abstract_array

ENGINES = (*EXACT_ENGINES, "sketch", "slq")


# Operations of products that are done in a second, about.
_OPERATIONS = 1.5e10


# Operations with one parameter for one example: a convolution's kernels are used at every place.
_MOST_USES = 1e4


# Three spectra of matrices of this order, order^3 times this: read off 7,000 rows on two cores.
_SECONDS = 3.5e-10


@runtime_checkable
class RankEngine(Protocol):
    """One way to the ranks of one problem."""

    @property
    def name(self) -> str:
        """As in `ENGINES`, without "auto"."""

    def compile(self, *, cotangents: int) -> None:
        """Compiles what a measurement with so many residuals needs."""

    def ranks(
        self,
        snapshot: Snapshot,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"] | None,
        tolerance: Tolerance,
    ) -> Ranks | None:
        """The ranks of the parts at finite parameters; None where something overflows."""

    def describe(self) -> str:
        """What the run's card says of it."""


@dataclass(frozen=True)
class ExactRanks:
    """Counts in all the eigenvalues of each part."""

    flat: FlatProblem
    engine: Engine

    @property
    def name(self) -> str:
        """The name of the engine that gives the eigenvalues."""
        return self.engine.name

    def compile(self, *, cotangents: int) -> None:
        """Compiles what the eigenvalues need."""
        self.engine.compile(cotangents=cotangents)

    def ranks(
        self,
        snapshot: Snapshot,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"] | None,
        tolerance: Tolerance,
    ) -> Ranks | None:
        """The ranks and the eigenvalues of the parts; None where one of them is not finite."""
        self.flat.pace.say(
            f"the spectra of {self.engine.order:,} rows", _SECONDS * self.engine.order**3
        )
        spectra = self.engine.spectra(snapshot, delta, reference)
        if spectra is None:
            return None
        flat, norms = self.flat, _norms(spectra)
        finest = finest_cuts(norms, p=flat.p, eps=flat.precision.eps)
        own_finest = finest_cut(norms["H_f"], p=flat.p, eps=flat.precision.eps)
        ranks = spectra_to_ranks(spectra, flat, tolerance)
        own = tolerance.cut(norms["H_f"], default=flat.p * flat.precision.eps)
        return Ranks(
            ranks,
            numerical_rank(np.abs(spectra["H_f"]), own, finest=own_finest).rank or 0,
            {part: spectra[part] for part in norms},
            told=below_rounding({part: rank.tolerance for part, rank in ranks.items()}, finest),
        )

    def describe(self) -> str:
        """What the run's card says of it."""
        return self.engine.describe()


def spectra_to_ranks(
    spectra: Spectra, flat: FlatProblem, tolerance: Tolerance
) -> dict[str, NumericalRank]:
    """The parts' ranks at their common cut, p * eps * max(||H_L||_2, ||X||_2) by default."""
    norms = _norms(spectra)
    cuts = common_cuts(norms, tolerance, default=flat.p * flat.precision.eps)
    finest = finest_cuts(norms, p=flat.p, eps=flat.precision.eps)
    return {
        part: numerical_rank(np.abs(spectra[part]), cut, finest=finest[part])
        for part, cut in cuts.items()
    }


def _norms(spectra: Spectra) -> dict[str, float]:
    return {part: float(abs(spectra[part][0])) for part in HESSIAN_PARTS if part in spectra}


@dataclass(frozen=True)
class Choice:
    """An engine, why it was chosen, and what the user should know of that."""

    engine: RankEngine
    why: str
    told: tuple[str, ...] = ()


def chosen_engine(flat: FlatProblem, *, name: str, memory_limit: int, time_limit: float) -> Choice:
    """The engine of this name; for "auto" the first exact one within both limits, else "sketch".

    Raises:
      ValueError: where the engine does not apply to the network.
      MemoryError: where its matrices do not fit in memory_limit.
    """
    if name == "sketch":
        return Choice(_large(flat, memory_limit, time_limit), "asked for")
    if name == "slq":
        stochastic = StochasticHessian.of(flat, memory_limit=memory_limit, time_limit=time_limit)
        return Choice(stochastic, "asked for")
    try:
        engine = engine_of(flat, name=name, memory_limit=memory_limit)
    except MemoryError as error:
        if name != "auto":
            raise
        try:
            large = _large(flat, memory_limit, time_limit)
        except MemoryError:
            raise error from None
        limit = f"memory_limit = {bytes_text(memory_limit)}"
        return _sketch_instead(large, f"the matrices of exact engines exceed {limit}")
    exact = ExactRanks(flat, engine)
    if name != "auto":
        return Choice(exact, "asked for")
    seconds = _SECONDS * engine.order**3
    if engine.name == "dense":
        seconds += _assembly_seconds(flat, time_limit)
    if seconds <= time_limit:
        return Choice(exact, _why(flat, engine))
    return _sketch_instead(
        _large(flat, memory_limit, time_limit),
        f"matrices of {engine.order:,} rows and their spectra take about {seconds:.0f} s, more "
        f"than time_limit = {time_limit:g} s",
    )


def _assembly_seconds(flat: FlatProblem, time_limit: float) -> float:
    """About how long p products take; 0 where that is surely less than the limit."""
    most = flat.p**2 * flat.positions * _MOST_USES
    if most < _OPERATIONS * time_limit:
        return 0.0
    return flat.p * _operations(flat) / _OPERATIONS


def _operations(flat: FlatProblem) -> float:
    """About how many operations a product with H_o and one with H_f take; 0 if unknown."""
    if "operations" not in flat.memo:
        try:
            flat.memo["operations"] = _counted_operations(flat)
        except Exception:  # noqa: BLE001  what cannot be differentiated is refused elsewhere
            flat.memo["operations"] = 0.0
    return flat.memo["operations"]


def _counted_operations(flat: FlatProblem) -> float:
    theta, *known = flat.shapes_of(flat.inputs, flat.targets, flat.typed_weights)
    fixed, inputs, *_ = known
    with flat.precision.scope():
        weighted = abstract_array((flat.positions, flat.k), flat.dtype)
        outer = jax.jit(partial(outer_product, flat)).lower(theta, *known, theta)
        functional = jax.jit(partial(functional_product, flat))
        return operations(outer) + operations(
            functional.lower(theta, fixed, inputs, weighted, theta)
        )


def _sketch_instead(large: LargeHessian, reason: str) -> Choice:
    exact = "" if large.outer is None else "H_o's is exact, those of H_L and H_f "
    told = (
        f"the Hessian's ranks come from a sketch, since {reason}: {exact or 'they '}are intervals, "
        f"and a probe may take {large.time_limit:g} s; "
        "RankMonitor(overhead=0.05) keeps probes to that share of the time, engine='dense' insists "
        "on matrices"
    )
    return Choice(large, f"chosen since {reason}", (told,))


def _large(flat: FlatProblem, memory_limit: int, time_limit: float) -> LargeHessian:
    """One for each problem."""
    key = ("large", memory_limit, time_limit)
    if key not in flat.memo:
        flat.memo[key] = LargeHessian.of(flat, memory_limit=memory_limit, time_limit=time_limit)
    return flat.memo[key]


def _why(flat: FlatProblem, engine: Engine) -> str:
    kind = {
        "deep_linear": "the network is recognized as a deep linear one",
        "stack": "the network is recognized as a stack of dense layers",
    }
    if engine.name == "dense" and recognized_stack(flat) is None:
        return "chosen since the network is not recognized as a stack of dense layers"
    fits = "it is the first that applies to this network and fits in memory_limit"
    return f"chosen since {kind.get(engine.name, fits)}"


def compile_derivatives(engine: RankEngine | Engine, *, cotangents: int) -> None:
    """Compile what a measurement with so many residuals needs.

    Raises:
      ValueError: if JAX cannot differentiate the network or the loss twice.
      MemoryError: if a matrix or a program does not fit in memory_limit.
    """
    try:
        engine.compile(cotangents=cotangents)
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            "expected a network and a loss that JAX can differentiate twice, got "
            f"{type(error).__name__}: {reason[:300]}; write them in JAX's operations, and "
            "the rules of a custom_vjp or custom_jvp in operations that JAX can differentiate once "
            "more (a pure_callback needs a custom_jvp of its own), or watch the weights alone "
            "(RankMonitor: probes=['weights'])"
        ) from error
