"""Which engine measures a Hessian: by name, or the first that applies and is within the limits.

Exact engines first, in the order deep linear network, stack of dense layers, any network; else the
sketch.
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from rankmon._util.compile import operations
from rankmon._util.optional_readers import optionally
from rankmon._util.text import bytes_text
from rankmon._util.validate import check_engine
from rankmon.engines.base import Engine, ExactEngine
from rankmon.engines.deep_linear import DeepLinearEngine
from rankmon.engines.dense import Curvature
from rankmon.engines.dense_parts import DenseEngine
from rankmon.engines.dense_stack import StackCurvature
from rankmon.engines.exact import ExactRanks, Remembering, spectra_seconds
from rankmon.engines.lanczos import LanczosEngine
from rankmon.engines.sketch import SketchEngine
from rankmon.hessian.gauss_newton import outer_product
from rankmon.hessian.operators import functional_product
from rankmon.network.activations import UnsupportedActivationError
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import DOUBLE, abstract_array

EXACT_ENGINES = ("auto", "deep_linear", "stack", "dense")
ENGINES = (*EXACT_ENGINES, "sketch", "slq")

DEFAULT_TIME_LIMIT = 120.0

# Operations of products in a second, about.
_OPERATIONS = 1.5e10

# Operations with one parameter for one example: a convolution's kernels are used at every place.
_MOST_USES = 1e4


@dataclass(frozen=True)
class Choice:
    """An engine, why it was chosen, and what the user should know of that."""

    engine: Engine
    why: str
    told: tuple[str, ...] = ()


def select_engine(flat: FlatProblem, *, name: str, memory_limit: int, time_limit: float) -> Choice:
    """Return the engine of this name; for "auto" the first exact one within limits, else "sketch".

    Raises:
      ValueError: if the engine does not apply to the network.
      MemoryError: if its matrices do not fit in memory_limit.
    """
    if name == "sketch":
        return Choice(_sketch(flat, memory_limit, time_limit), "asked for")
    if name == "slq":
        stochastic = LanczosEngine.of(flat, memory_limit=memory_limit, time_limit=time_limit)
        return Choice(stochastic, "asked for")
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
    exact = ExactRanks(flat, engine)
    if name != "auto":
        return Choice(exact, "asked for")
    seconds = spectra_seconds(engine.order)
    if engine.name == "dense":
        seconds += _assembly_seconds(flat, time_limit)
    if seconds <= time_limit:
        return Choice(exact, _why(flat, engine))
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
    check_engine(name, EXACT_ENGINES)
    key = ("engine", name, memory_limit)
    if key not in flat.memo:
        flat.memo[key] = Remembering(_exact(flat, name, memory_limit))
    return flat.memo[key]


def _exact(flat: FlatProblem, name: str, memory_limit: int) -> ExactEngine:
    if name == "dense":
        return DenseEngine(name, flat, Curvature(flat, memory_limit=memory_limit))
    refusals: list[MemoryError] = []
    for kind, make in (("deep_linear", _deep_linear), ("stack", _stack)):
        if name in ("auto", kind):
            try:
                engine = make(flat, memory_limit)
            except MemoryError as error:
                refusals.append(error)
            else:
                if engine is not None:
                    return engine
    if name == "auto":
        try:
            return _exact(flat, "dense", memory_limit)
        except MemoryError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    kind = "a deep linear network" if name == "deep_linear" else "a stack of dense layers"
    raise ValueError(
        f"expected {kind} that computes in float64 with every parameter differentiated, got a "
        f"network that is not recognized as one; use engine='auto' instead of {name!r}"
    )


def _deep_linear(flat: FlatProblem, memory_limit: int) -> ExactEngine | None:
    stack = recognized_stack(flat)
    if stack is None or not stack.linear:
        return None
    return DeepLinearEngine.of(flat, stack, memory_limit)


def _stack(flat: FlatProblem, memory_limit: int) -> ExactEngine | None:
    stack = recognized_stack(flat)
    # A float32 operation inside rounds as the network does only if the network itself is evaluated.
    if stack is None or flat.precision.eps > DOUBLE.eps:
        return None
    return optionally(
        flat.problem,
        "the layers' activations",
        lambda: _contracted(flat, stack, memory_limit),
        otherwise=None,
    )


def _contracted(flat: FlatProblem, stack: DenseStack, memory_limit: int) -> ExactEngine | None:
    try:
        contraction = StackCurvature(flat, stack, memory_limit=memory_limit)
    except UnsupportedActivationError:
        return None
    agree = _agree(flat, contraction, Curvature(flat, memory_limit=memory_limit))
    return DenseEngine("stack", flat, contraction) if agree else None


def _agree(flat: FlatProblem, contraction: StackCurvature, curvature: Curvature) -> bool:
    """Return whether both multiply a vector alike, at Gaussian parameters.

    They do not if the derivative rules of an activation contradict one another.
    """
    rng = np.random.default_rng(0)
    leaves = [
        rng.standard_normal(spec.shape) / np.sqrt(max(spec.shape[:-1], default=1))
        for spec in flat.specs
    ]
    theta, fixed = flat.split(leaves)
    delta = rng.standard_normal((flat.positions, flat.k))
    v = rng.standard_normal(flat.p)
    parts = contraction.parts(leaves, flat.output_hessians(theta, fixed), [delta])
    pairs = (
        (parts.outer, curvature.outer_product(theta, fixed, v)),
        (parts.functional[0], curvature.functional_product(theta, fixed, delta, v)),
    )
    for matrix, want in pairs:
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(matrix @ v[contraction.order] - want[contraction.order])
        if not np.max(error) <= 1e3 * flat.p * DOUBLE.eps * np.max(np.abs(want)):
            return False
    return True


def _assembly_seconds(flat: FlatProblem, time_limit: float) -> float:
    """Return about how long p products take; 0 if that is surely less than the limit."""
    most = flat.p**2 * flat.positions * _MOST_USES
    if most < _OPERATIONS * time_limit:
        return 0.0
    return flat.p * _operations(flat) / _OPERATIONS


def _operations(flat: FlatProblem) -> float:
    """Return about how many operations the products with H_o and H_f take; 0 if unknown."""
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


def _sketch_instead(sketch: SketchEngine, reason: str) -> Choice:
    exact = "" if sketch.outer is None else "H_o's is exact, those of H_L and H_f "
    told = (
        f"the Hessian's ranks come from a sketch, since {reason}: {exact or 'they '}are intervals, "
        f"and a probe may take {sketch.time_limit:g} s; "
        "RankMonitor(overhead=0.05) keeps probes to that share of the time, engine='dense' insists "
        "on matrices"
    )
    return Choice(sketch, f"chosen since {reason}", (told,))


def _sketch(flat: FlatProblem, memory_limit: int, time_limit: float) -> SketchEngine:
    """Return the sketch engine, one a problem."""
    key = ("sketch", memory_limit, time_limit)
    if key not in flat.memo:
        flat.memo[key] = SketchEngine.of(flat, memory_limit=memory_limit, time_limit=time_limit)
    return flat.memo[key]


def _why(flat: FlatProblem, engine: ExactEngine) -> str:
    kind = {
        "deep_linear": "the network is recognized as a deep linear one",
        "stack": "the network is recognized as a stack of dense layers",
    }
    if engine.name == "dense" and recognized_stack(flat) is None:
        return "chosen since the network is not recognized as a stack of dense layers"
    fits = "it is the first that applies to this network and fits in memory_limit"
    return f"chosen since {kind.get(engine.name, fits)}"
