"""How the Hessian's spectra are computed: of deep linear networks, stacks of layers, any network.

Every engine gives the eigenvalues of the same matrices; they differ in cost alone. Ranks are
counted in `rank`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from rankmon._util.optional_readers import optionally
from rankmon._util.text import bytes_text
from rankmon._util.validate import check_engine
from rankmon.engines.base import ENGINES, Engine, Spectra
from rankmon.engines.deep_linear import InputBasis, Layers, Reduction, coordinate_count
from rankmon.engines.dense import Curvature
from rankmon.engines.dense_stack import StackCurvature
from rankmon.hessian.memory import HessianParts
from rankmon.linalg.spectrum import padded, symmetric_spectrum
from rankmon.network.activations import UnsupportedActivationError
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.output_hessians import EVALUATED_ALIVE, OutputHessians
from rankmon.problem.point import Snapshot
from rankmon.problem.precision import DOUBLE

# H_L, H_f, the copy that LAPACK overwrites, and what their assembly holds for a moment.
_REDUCED_MATRICES_ALIVE = 4


def engine_of(flat: FlatProblem, *, name: str, memory_limit: int) -> Engine:
    """The engine of this name, or for "auto" the first that applies and fits; one for each problem.

    Raises:
      ValueError: for an unknown name, and where the engine does not apply to the network.
      MemoryError: where its matrices do not fit in memory_limit.
    """
    check_engine(name, ENGINES)
    key = ("engine", name, memory_limit)
    if key not in flat.memo:
        flat.memo[key] = _Remembering(_chosen(flat, name, memory_limit))
    return flat.memo[key]


def _chosen(flat: FlatProblem, name: str, memory_limit: int) -> Engine:
    if name == "dense":
        return _Dense(name, flat, Curvature(flat, memory_limit=memory_limit))
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
            return _chosen(flat, "dense", memory_limit)
        except MemoryError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    kind = "a deep linear network" if name == "deep_linear" else "a stack of dense layers"
    raise ValueError(
        f"expected {kind} that computes in float64 with every parameter differentiated, got a "
        f"network that is not recognized as one; use engine='auto' instead of {name!r}"
    )


def _deep_linear(flat: FlatProblem, memory_limit: int) -> Engine | None:
    stack = recognized_stack(flat)
    if stack is None or not stack.linear:
        return None
    return _DeepLinear.of(flat, stack, memory_limit)


def _stack(flat: FlatProblem, memory_limit: int) -> Engine | None:
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


def _contracted(flat: FlatProblem, stack: DenseStack, memory_limit: int) -> Engine | None:
    try:
        contraction = StackCurvature(flat, stack, memory_limit=memory_limit)
    except UnsupportedActivationError:
        return None
    agree = _agree(flat, contraction, Curvature(flat, memory_limit=memory_limit))
    return _Dense("stack", flat, contraction) if agree else None


def _agree(flat: FlatProblem, contraction: StackCurvature, curvature: Curvature) -> bool:
    """Whether both multiply a vector alike, at Gaussian parameters.

    An activation whose derivative rules contradict one another has no Hessian that a contraction
    knows.
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


@runtime_checkable
class _Assembly(Protocol):
    def compile(self, *, cotangents: int) -> None: ...

    def parts(self, leaves: list[np.ndarray], b: Any, deltas: Sequence[Any]) -> HessianParts: ...


@dataclass(frozen=True)
class _Dense:
    """p x p matrices, however they are assembled."""

    name: str
    flat: FlatProblem
    assembly: _Assembly

    @property
    def order(self) -> int:
        """All parameters: p."""
        return self.flat.p

    def compile(self, *, cotangents: int) -> None:
        self.assembly.compile(cotangents=cotangents)

    def spectra(
        self,
        snapshot: Snapshot,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"] | None,
    ) -> Spectra | None:
        b = self.flat.output_hessians(snapshot.theta, snapshot.fixed)
        deltas = [delta] if reference is None else [delta, reference]
        parts = self.assembly.parts(snapshot.leaves, b, deltas)
        functional, *held = parts.functional
        if not all(np.all(np.isfinite(H)) for H in (parts.outer, functional, *held)):
            return None
        spectra = {"H_f": symmetric_spectrum(functional)}
        spectra["H_o"] = (
            symmetric_spectrum(parts.outer)
            if parts.outer_values is None
            else padded(parts.outer_values, self.flat.p)
        )
        functional += parts.outer
        spectra["H_L"] = symmetric_spectrum(functional)
        if reference is not None:
            same = np.array_equal(reference, delta)
            spectra["H_f_fixed"] = spectra["H_f"] if same else symmetric_spectrum(held[0])
        return spectra

    def describe(self) -> str:
        return f"{self.name}, {self.flat.p} x {self.flat.p} matrices"


@dataclass(frozen=True)
class _DeepLinear:
    """A deep linear network, in the coordinates that can be non-zero."""

    flat: FlatProblem
    stack: DenseStack
    basis: InputBasis
    coordinates: int
    name: str = "deep_linear"

    @property
    def order(self) -> int:
        """The coordinates that can be non-zero."""
        return self.coordinates

    @classmethod
    def of(cls, flat: FlatProblem, stack: DenseStack, memory_limit: int) -> "_DeepLinear":
        (x,) = jax.tree.leaves(flat.inputs)
        x = np.asarray(x, np.float64).reshape(len(x), -1)
        biases = [layer.bias is not None for layer in stack.layers]
        basis = InputBasis.of(x, flat.weights, affine=any(biases))
        count = coordinate_count(stack.dims, biases, basis)
        moment = flat.k * basis.axes.shape[1]
        need = 8 * (_REDUCED_MATRICES_ALIVE * count**2 + 2 * moment * (moment + count))
        if flat.problem.loss.root is None:
            need += 8 * EVALUATED_ALIVE * flat.k**2
        if need > memory_limit:
            raise MemoryError(
                f"expected the Hessian's {count:,} coordinates that can be non-zero (of p = "
                f"{flat.p:,} parameters) to fit in memory_limit = {bytes_text(memory_limit)}, got "
                f"{bytes_text(need)} for their matrices; raise memory_limit, choose fewer "
                "parameters with Problem(include=...), or watch the weights alone (RankMonitor: "
                "oversize='weights')"
            )
        return cls(flat, stack, basis, count)

    def compile(self, *, cotangents: int) -> None:
        """Compiles what is evaluated at every measurement; the reduction is NumPy's."""
        self.flat.compile()

    def spectra(
        self,
        snapshot: Snapshot,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"] | None,
    ) -> Spectra | None:
        b = self.flat.output_hessians(snapshot.theta, snapshot.fixed)
        try:
            with np.errstate(over="raise", invalid="raise"):
                return self._spectra(snapshot, b, delta, reference)
        except (FloatingPointError, OverflowError):
            return None

    def _spectra(
        self,
        snapshot: Snapshot,
        b: OutputHessians,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"] | None,
    ) -> Spectra:
        leaves, p = snapshot.leaves, self.flat.p
        layers = Layers.at(self.stack.weights(leaves), self.stack.biases(leaves), self.basis.axes)
        moment = self.basis.second_moment(b)
        if not np.all(np.isfinite(moment)):  # zero weights would drop it, and not every BLAS raises
            raise OverflowError("expected finite output Hessians, got NaN or infinite entries")
        reduction = Reduction(layers, self.basis.omega(delta))
        spectra = {
            "H_L": _finite_spectrum(reduction.loss(moment)),
            "H_o": _finite_spectrum(reduction.outer(moment)),
            "H_f": _finite_spectrum(reduction.functional()),
        }
        if reference is not None:
            same = np.array_equal(reference, delta)
            held = Reduction(layers, self.basis.omega(reference))
            spectra["H_f_fixed"] = spectra["H_f"] if same else _finite_spectrum(held.functional())
        return {part: padded(values, p) for part, values in spectra.items()}

    def describe(self) -> str:
        return (
            f"{self.name}, at most {self.coordinates} coordinates of {self.flat.p} can be non-zero"
        )


def _finite_spectrum(matrix: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"]:
    if not np.all(np.isfinite(matrix)):
        raise OverflowError("expected a finite matrix, got NaN or infinite entries")
    return symmetric_spectrum(matrix)


class _Remembering:
    """An engine that does not measure the same parameters twice."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.order = engine.name, engine.order
        self.compile, self.describe = engine.compile, engine.describe
        self._last: tuple[bytes, Spectra | None] | None = None

    def spectra(
        self,
        snapshot: Snapshot,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"] | None,
    ) -> Spectra | None:
        key = _digest([*snapshot.leaves, delta, *([] if reference is None else [reference])])
        last = self._last
        if last is None or last[0] != key:
            last = (key, self._engine.spectra(snapshot, delta, reference))
            self._last = last
        return last[1]


def _digest(arrays: Sequence[np.ndarray | np.generic]) -> bytes:
    """A digest in place of the arrays, which may be large and belong to others."""
    digest = hashlib.blake2b()
    for array in arrays:
        digest.update(array.tobytes())  # bfloat16 has no buffer
    return digest.digest()
