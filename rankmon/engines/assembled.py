"""The exact engines of p x p matrices: "stack", assembled by contractions, and "dense"."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from rankmon._util.compile import operations
from rankmon._util.optional_readers import optionally
from rankmon.engines.base import Spectra
from rankmon.engines.dense import Curvature
from rankmon.engines.dense_parts import HessianParts
from rankmon.engines.dense_stack import StackCurvature
from rankmon.engines.exact import ExactEngine
from rankmon.hessian.operators import HessianPrograms, traced_product
from rankmon.linalg.spectrum import padded, symmetric_spectrum
from rankmon.network.activations import UnsupportedActivationError
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point
from rankmon.problem.precision import DOUBLE

# Operations of products in a second, about.
_OPERATIONS = 1.5e10

# Operations with one parameter for one example: a convolution's kernels are used at every place.
_MOST_USES = 1e4


@runtime_checkable
class Assembly(Protocol):
    """An assembly of the matrices: `dense.Curvature` or `dense_stack.StackCurvature`."""

    def compile(self, *, cotangents: int) -> None:
        """Compile the programs of an assembly with so many residuals."""

    def parts(self, leaves: list[np.ndarray], b: Any, deltas: Sequence[Any]) -> HessianParts:
        """Return H_o, and H_f for each of these residuals."""


@dataclass(eq=False)
class _AssembledEngine(ExactEngine):
    """An exact engine that computes the eigenvalues of p x p matrices.

    Attributes:
      assembly: computes the matrices.
    """

    assembly: Assembly

    @property
    def order(self) -> int:
        """The number of parameters, p."""
        return self.flat.p

    def compile(self, *, cotangents: int) -> None:
        """Compile the assembly."""
        self.assembly.compile(cotangents=cotangents)

    def _spectra(self, point: Point) -> Spectra | None:
        parts = self.assembly.parts(point.leaves, point.output_hessians, point.functional_residuals)
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
        if point.reference is not None:
            same = np.array_equal(point.reference, point.residuals)
            spectra["H_f_fixed"] = spectra["H_f"] if same else symmetric_spectrum(held[0])
        return spectra

    def describe(self) -> str:
        """Return the engine's line of the run's card."""
        return f"{self.name}, {self.flat.p} x {self.flat.p} matrices"


class StackEngine(_AssembledEngine):
    """The exact engine of stacks of dense layers, if their contractions agree with autodiff."""

    name: ClassVar[str] = "stack"
    kind: ClassVar[str] = "a stack of dense layers"
    why = "the network is recognized as a stack of dense layers"

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int) -> "StackEngine | None":
        """Return the engine if this is such a stack; errors as for `ExactEngine.of`."""
        stack = recognized_stack(flat)
        # A float32 operation inside rounds as the network does only if the network is evaluated.
        if stack is None or flat.precision.eps > DOUBLE.eps:
            return None
        assembly = optionally(
            flat.problem,
            "the layers' activations",
            lambda: _contraction(flat, stack, memory_limit),
            otherwise=None,
        )
        return None if assembly is None else cls(flat, assembly)


class DenseEngine(_AssembledEngine):
    """The exact engine of any network, by automatic differentiation."""

    name: ClassVar[str] = "dense"
    kind: ClassVar[str] = "any network"

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int) -> "DenseEngine":
        """Return the engine for this problem; errors as for `ExactEngine.of`."""
        return cls(flat, Curvature(flat, memory_limit=memory_limit))

    @property
    def why(self) -> str:
        """The reason why "auto" takes it."""
        if recognized_stack(self.flat) is None:
            return "the network is not recognized as a stack of dense layers"
        return "it is the first that applies to this network and fits in memory_limit"

    def seconds(self, *, time_limit: float) -> float:
        """Return the approximate seconds that p products and the spectra take."""
        flat, seconds = self.flat, self._spectra_seconds
        most = flat.p**2 * flat.positions * _MOST_USES
        if most < _OPERATIONS * time_limit:
            return seconds  # the products take far less: do not compile them for an estimate
        return seconds + flat.p * self._operations / _OPERATIONS

    @cached_property
    def _operations(self) -> float:
        """The approximate number of operations of one product with each part; 0 if unknown."""
        try:
            return _counted_operations(self.flat)
        except Exception:  # noqa: BLE001  `compile_derivatives` refuses such a network
            return 0.0


def _counted_operations(flat: FlatProblem) -> float:
    with flat.precision.scope():
        return sum(operations(traced_product(flat, part).lower()) for part in ("H_o", "H_f"))


def _contraction(flat: FlatProblem, stack: DenseStack, memory_limit: int) -> StackCurvature | None:
    """Return the assembly by contractions; None if it cannot be trusted with this network."""
    try:
        contraction = StackCurvature(flat, stack, memory_limit=memory_limit)
    except UnsupportedActivationError:
        return None
    return contraction if _agree(flat, contraction) else None


def _agree(flat: FlatProblem, contraction: StackCurvature) -> bool:
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
        (parts.outer, HessianPrograms(flat, outer=True).at(theta, fixed)),
        (parts.functional[0], HessianPrograms(flat, residuals=1).at(theta, fixed, [delta])),
    )
    for matrix, operator in pairs:
        want = operator.mv(v)
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(matrix @ v[contraction.order] - want[contraction.order])
        if not np.max(error) <= 1e3 * flat.p * DOUBLE.eps * np.max(np.abs(want)):
            return False
    return True
