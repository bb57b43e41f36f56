"""The choice of the engine that measures a Hessian: by name, or the first within the limits.

Exact engines first, in the order deep linear network, stack of dense layers, any network; then the
sketch, if it is expected to show the whole ranks; else estimates.
"""

from dataclasses import dataclass
from typing import TypeVar

from rankmon._util.text import bytes_text
from rankmon._util.validate import check_engine
from rankmon.engines.assembled import DenseEngine, StackEngine
from rankmon.engines.base import Engine, differentiated_twice
from rankmon.engines.deep_linear import DeepLinearEngine
from rankmon.engines.exact import ExactEngine
from rankmon.engines.lanczos import LanczosEngine
from rankmon.engines.quadrature import QuadratureEngine
from rankmon.engines.sketch import SketchEngine
from rankmon.hessian.memory import dense_bytes
from rankmon.problem.flat import FlatProblem
from rankmon.problem.placement import Placement

# In the order in which "auto" tries them.
_EXACT: tuple[type[ExactEngine], ...] = (DeepLinearEngine, StackEngine, DenseEngine)

ENGINES = (
    "auto",
    *(engine.name for engine in _EXACT),
    SketchEngine.name,
    LanczosEngine.name,
    QuadratureEngine.name,
)

# The engines that measure sharded parameters on their mesh, or choose one that does.
ON_MESH = ("auto", LanczosEngine.name)

_E = TypeVar("_E", SketchEngine, LanczosEngine)

DEFAULT_TIME_LIMIT = 120.0


@dataclass(frozen=True)
class Choice:
    """An engine, why it was chosen, and warnings to the user about the choice."""

    engine: Engine
    why: str
    warnings: tuple[str, ...] = ()


def select_engine(
    flat: FlatProblem,
    *,
    name: str,
    memory_limit: int,
    time_limit: float,
    placement: Placement | None = None,
) -> Choice:
    """Return the engine of this name; for "auto" the first one that is expected to finish in time.

    With the placement of sharded parameters, this is an exact engine, which takes a copy of them
    on one device, or estimates on their mesh.

    Raises:
      ValueError: if the engine does not apply to the network.
      MemoryError: if its matrices do not fit in memory_limit.
    """
    requested = "it was requested"
    if placement is not None and name not in ON_MESH:
        raise ValueError(
            f"expected engine to be {' or '.join(map(repr, ON_MESH))} with mesh=, got {name!r}; "
            "leave out mesh=, so that a copy of the parameters on one device is measured"
        )
    if name == SketchEngine.name:
        return Choice(_kept(flat, SketchEngine, memory_limit, time_limit), requested)
    if name == LanczosEngine.name:
        return Choice(_lanczos(flat, memory_limit, time_limit, placement), requested)
    if name == QuadratureEngine.name:
        slq = QuadratureEngine.of(flat, memory_limit=memory_limit, time_limit=time_limit)
        return Choice(slq, requested)
    if name != "auto":
        return Choice(exact_engine(flat, name=name, memory_limit=memory_limit), requested)
    refusal: MemoryError | None = None
    try:
        engine = exact_engine(flat, name=name, memory_limit=memory_limit)
        seconds = engine.seconds(time_limit=time_limit)
        if seconds <= time_limit:
            return Choice(engine, engine.why)
        reason = (
            f"matrices of {engine.order:,} rows and their spectra take about {seconds:.0f} s, more "
            f"than time_limit = {time_limit:g} s"
        )
    except MemoryError as error:
        refusal = error
        reason = f"the matrices of exact engines exceed memory_limit = {bytes_text(memory_limit)}"
    try:
        return _beyond_matrices(flat, reason, memory_limit, time_limit, placement)
    except MemoryError:
        raise refusal or MemoryError(reason) from None


def certainly_finds_engine(flat: FlatProblem, *, name: str, memory_limit: int) -> bool:
    """Return whether `select_engine` finds an engine, as far as the sizes show; compile nothing."""
    sketch, lanczos = SketchEngine.least_bytes(flat.p), LanczosEngine.least_bytes(flat.p)
    least = {
        "auto": max(sketch, lanczos),  # if the matrices do not fit, or take too long
        DenseEngine.name: dense_bytes(flat.p) + 1,
        SketchEngine.name: sketch,
        LanczosEngine.name: lanczos,
    }
    return name in least and least[name] <= memory_limit


def _beyond_matrices(
    flat: FlatProblem,
    reason: str,
    memory_limit: int,
    time_limit: float,
    placement: Placement | None,
) -> Choice:
    """Return the sketch if it is expected to show the whole ranks, else estimates."""
    if placement is None:
        sketch = _kept(flat, SketchEngine, memory_limit, time_limit)
        with differentiated_twice():
            finishes = sketch.is_expected_to_finish()
        if finishes:
            return _instead(sketch, reason, "come from a random sketch")
    lanczos = _lanczos(flat, memory_limit, time_limit, placement)
    return _instead(lanczos, reason, "are bounds, with estimates of its largest eigenvalues")


def exact_engine(flat: FlatProblem, *, name: str, memory_limit: int) -> ExactEngine:
    """Return the exact engine of this name, for "auto" the first that applies; one a problem.

    Raises:
      ValueError: for an unknown name, or if the engine does not apply to the network.
      MemoryError: if its matrices do not fit in memory_limit.
    """
    check_engine(name, ("auto", *(engine.name for engine in _EXACT)))
    key = ("engine", name, memory_limit)
    if key not in flat.memo:
        flat.memo[key] = _first_exact(flat, name, memory_limit)
    return flat.memo[key]


def _first_exact(flat: FlatProblem, name: str, memory_limit: int) -> ExactEngine:
    asked = [engine for engine in _EXACT if name in ("auto", engine.name)]
    refusals: list[MemoryError] = []
    for engine in asked:
        try:
            found = engine.of(flat, memory_limit=memory_limit)
        except MemoryError as error:
            refusals.append(error)
        else:
            if found is not None:
                return found
    if refusals:
        raise refusals[0]
    raise ValueError(
        f"expected {asked[0].kind} that computes in float64 with every parameter differentiated, "
        f"got a network that is not recognized as one; use engine='auto' instead of {name!r}"
    )


def _instead(engine: SketchEngine | LanczosEngine, reason: str, how: str) -> Choice:
    limit = f"A probe may take {engine.time_limit:g} s"
    if engine.outer is not None:
        limit += "; the rank of H_o is exact if its rows take less than half of that"
    warning = (
        f"the ranks of the Hessian {how}, because {reason}. {limit}. For exact ranks measure fewer "
        "examples or some layers alone, probes=[HessianProbe(include=...), ...], or raise its "
        "time_limit= and memory_limit=; overhead=0.05 limits probes to that fraction of the time"
    )
    return Choice(engine, reason, (warning,))


def _lanczos(
    flat: FlatProblem, memory_limit: int, time_limit: float, placement: Placement | None
) -> LanczosEngine:
    """Return the estimates, on one device or the parameters' mesh; one engine for each."""
    if placement is None:
        return _kept(flat, LanczosEngine, memory_limit, time_limit)
    key = (LanczosEngine, memory_limit, time_limit, placement)
    if key not in flat.memo:
        flat.memo[key] = LanczosEngine.of(
            flat, memory_limit=memory_limit, time_limit=time_limit, placement=placement
        )
    return flat.memo[key]


def _kept(flat: FlatProblem, kind: type[_E], memory_limit: int, time_limit: float) -> _E:
    """Return the engine of this kind, one for each problem and its limits."""
    key = (kind, memory_limit, time_limit)
    if key not in flat.memo:
        flat.memo[key] = kind.of(flat, memory_limit=memory_limit, time_limit=time_limit)
    return flat.memo[key]
