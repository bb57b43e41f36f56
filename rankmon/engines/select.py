"""The choice of the engine that measures a Hessian: by name, or the first within the limits.

Exact engines first, in the order deep linear network, stack of dense layers, any network; else the
sketch.
"""

from dataclasses import dataclass

from rankmon._util.text import bytes_text
from rankmon._util.validate import check_engine
from rankmon.engines.assembled import DenseEngine, StackEngine
from rankmon.engines.base import Engine
from rankmon.engines.deep_linear import DeepLinearEngine
from rankmon.engines.exact import ExactEngine
from rankmon.engines.lanczos import LanczosEngine
from rankmon.engines.sketch import SketchEngine
from rankmon.problem.flat import FlatProblem

# In the order in which "auto" tries them.
_EXACT: tuple[type[ExactEngine], ...] = (DeepLinearEngine, StackEngine, DenseEngine)

ENGINES = ("auto", *(engine.name for engine in _EXACT), SketchEngine.name, LanczosEngine.name)

DEFAULT_TIME_LIMIT = 120.0


@dataclass(frozen=True)
class Choice:
    """An engine, why it was chosen, and warnings to the user about the choice."""

    engine: Engine
    why: str
    warnings: tuple[str, ...] = ()


def select_engine(flat: FlatProblem, *, name: str, memory_limit: int, time_limit: float) -> Choice:
    """Return the engine of this name; for "auto" the first exact one within limits, else "sketch".

    Raises:
      ValueError: if the engine does not apply to the network.
      MemoryError: if its matrices do not fit in memory_limit.
    """
    if name == "sketch":
        return Choice(_sketch(flat, memory_limit, time_limit), "asked for")
    if name == "slq":
        lanczos = LanczosEngine.of(flat, memory_limit=memory_limit, time_limit=time_limit)
        return Choice(lanczos, "asked for")
    try:
        engine = exact_engine(flat, name=name, memory_limit=memory_limit)
    except MemoryError as error:
        if name != "auto":
            raise
        try:
            sketch = _sketch(flat, memory_limit, time_limit)
        except MemoryError:
            raise error from None
        limit = f"memory_limit = {bytes_text(memory_limit)}"
        return _sketch_instead(sketch, f"the matrices of exact engines exceed {limit}")
    if name != "auto":
        return Choice(engine, "asked for")
    seconds = engine.seconds(time_limit=time_limit)
    if seconds <= time_limit:
        return Choice(engine, f"chosen since {engine.why}")
    return _sketch_instead(
        _sketch(flat, memory_limit, time_limit),
        f"matrices of {engine.order:,} rows and their spectra take about {seconds:.0f} s, more "
        f"than time_limit = {time_limit:g} s",
    )


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


def _sketch_instead(sketch: SketchEngine, reason: str) -> Choice:
    exact = "" if sketch.outer is None else "H_o's is exact, those of H_L and H_f "
    warning = (
        f"the Hessian's ranks come from a sketch, since {reason}: {exact or 'they '}are intervals, "
        f"and a probe may take {sketch.time_limit:g} s; "
        "RankMonitor(overhead=0.05) keeps probes to that share of the time, engine='dense' insists "
        "on matrices"
    )
    return Choice(sketch, f"chosen since {reason}", (warning,))


def _sketch(flat: FlatProblem, memory_limit: int, time_limit: float) -> SketchEngine:
    """Return the sketch engine, one a problem."""
    key = ("sketch", memory_limit, time_limit)
    if key not in flat.memo:
        flat.memo[key] = SketchEngine.of(flat, memory_limit=memory_limit, time_limit=time_limit)
    return flat.memo[key]
