"""The exact engines of p x p matrices: "stack", assembled by contractions, and "dense"."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from rankmon._util.compile import operations
from rankmon._util.optional_readers import optionally
from rankmon.engines.block_spectra import BlockSpectra, LayerRows
from rankmon.engines.dense import Curvature
from rankmon.engines.dense_parts import HessianParts, is_wide, largest_layer, small_order
from rankmon.engines.dense_stack import StackCurvature
from rankmon.engines.exact import SPECTRUM_SECONDS, ExactEngine, Found
from rankmon.hessian.memory import refuse_oversize
from rankmon.hessian.operators import HessianPrograms, traced_product
from rankmon.linalg.spectrum import padded
from rankmon.network.activations import UnsupportedActivationError
from rankmon.network.coordinates import Coordinates, coordinates_of
from rankmon.network.layers import Layer
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.problem.point import Point
from rankmon.problem.precision import DOUBLE

# Operations of products in a second, about.
_OPERATIONS = 1.5e10

# Seconds; a shorter estimate is not refined: that compiles a program, for seconds of its own.
_SHORT = 5.0

# Operations with one parameter for one example: a convolution's kernels are used at every place.
_MOST_USES = 1e4


@runtime_checkable
class Assembly(Protocol):
    """An assembly of the matrices: `dense.Curvature` or `dense_stack.StackCurvature`."""

    @property
    def layers(self) -> tuple[slice, ...]:
        """The rows of the parameters of each layer, or of each leaf."""

    @property
    def order(self) -> Int[np.ndarray, " q"]:
        """The place of each row among the coordinates."""

    def compile(self, *, cotangents: int) -> None:
        """Compile the programs of an assembly with so many residuals."""

    def parts(self, point: Point) -> HessianParts:
        """Return H_o, and H_f for each of the point's residuals."""


@dataclass(eq=False)
class _AssembledEngine(ExactEngine):
    """An exact engine that computes the eigenvalues of q x q matrices.

    Attributes:
      coordinates: the q directions of the parameters on which the outputs depend.
      assembly: computes the matrices.
    """

    coordinates: Coordinates
    assembly: Assembly

    @property
    def order(self) -> int:
        """The number of coordinates, q."""
        return self.coordinates.reduced.p

    def compile(self, *, cotangents: int) -> None:
        """Compile the assembly."""
        self.assembly.compile(cotangents=cotangents)

    def _parts(self, point: Point) -> HessianParts:
        """Return the matrices at this point."""
        return self.assembly.parts(point)

    def _measured(self, point: Point, layers: Sequence[Layer]) -> Found | None:
        held_residuals, needed = point.reference, set(point.needed)
        if held_residuals is not None and np.array_equal(held_residuals, point.residuals):
            point = point.holding(None)  # H_f_fixed is H_f
            needed |= {"H_f"} if "H_f_fixed" in needed else set()
        parts = self._parts(point)
        if not parts.is_finite:
            return None
        spectra = {
            part: padded(values, self.flat.p) for part, values in parts.spectra(needed).items()
        }
        if "H_f_fixed" in needed and "H_f_fixed" not in spectra:
            spectra["H_f_fixed"] = spectra["H_f"]
        rows = [self._rows(layer) for layer in layers]
        return Found(spectra, BlockSpectra.of_parts(parts, rows, point.asked) if rows else None)

    def _rows(self, layer: Layer) -> LayerRows:
        """Return the rows of a layer's coordinates in the matrices."""
        places = layer.places(self.coordinates.reduced)
        rows = np.flatnonzero(np.isin(self.assembly.order, places))
        if rows.size and rows[-1] - rows[0] == rows.size - 1:
            return slice(int(rows[0]), int(rows[-1]) + 1)  # without copies
        return rows

    @property
    def _spectra_seconds(self) -> float:
        """The approximate seconds of the spectra, with the zero block of H_f if there is one."""
        reduced, q = self.coordinates.reduced, self.order
        whole = 3 * SPECTRUM_SECONDS * q**3
        if whole < _SHORT or not self._has_zero_block:
            return whole
        largest = largest_layer(self.assembly.layers)
        rows = reduced.root_rows if is_wide(reduced) else q
        orders = [small_order(q, largest, rows), *2 * [small_order(q, largest)], min(rows, q)]
        return sum(SPECTRUM_SECONDS * order**3 + 2 * q * order**2 / _OPERATIONS for order in orders)

    @cached_property
    def _has_zero_block(self) -> bool:
        """Whether H_f is zero in the largest layer, at Gaussian parameters."""
        reduced, rng = self.coordinates.reduced, np.random.default_rng(0)
        theta, fixed = reduced.split(gaussian_leaves(reduced, rng))
        delta = rng.standard_normal((reduced.positions, reduced.k))
        block = self.assembly.order[largest_layer(self.assembly.layers)]
        functional = HessianPrograms(reduced, residuals=1).at(theta, fixed, [delta])
        return functional.vanishes_in(block, rng)

    def describe(self) -> str:
        """Return the engine's line of the run's card."""
        if self.coordinates.is_whole:
            return f"{self.name}: {self.flat.p} x {self.flat.p} matrices"
        return (
            f"{self.name}: {self.order} x {self.order} matrices: the outputs depend on "
            f"{self.order:,} of {self.flat.p:,} directions"
        )


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
        coordinates = coordinates_of(flat)
        assembly = optionally(
            flat.problem,
            "the layers' activations",
            lambda: _contraction(coordinates, stack, memory_limit),
            otherwise=None,
        )
        return None if assembly is None else cls(flat, coordinates, assembly)


class DenseEngine(_AssembledEngine):
    """The exact engine of any network, by automatic differentiation."""

    name: ClassVar[str] = "dense"
    kind: ClassVar[str] = "any network"

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int) -> "DenseEngine":
        """Return the engine for this problem; errors as for `ExactEngine.of`."""
        coordinates = coordinates_of(flat)
        reduced = coordinates.reduced
        refuse_oversize(flat.p, memory_limit, active=reduced.p)
        return cls(flat, coordinates, Curvature(reduced, memory_limit=memory_limit))

    def _parts(self, point: Point) -> HessianParts:
        return self.assembly.parts(self.coordinates.at(point))

    @property
    def why(self) -> str:
        """The reason why "auto" takes it."""
        if recognized_stack(self.flat) is None:
            return "the network is not recognized as a stack of dense layers"
        return "it is the first that applies to this network and fits in memory_limit"

    def seconds(self, *, time_limit: float) -> float:
        """Return the approximate seconds that q products and the spectra take."""
        flat, seconds = self.coordinates.reduced, self._spectra_seconds
        most = flat.p**2 * flat.positions * _MOST_USES
        if most < _OPERATIONS * time_limit:
            return seconds  # the products take far less: do not compile them for an estimate
        return seconds + flat.p * self._operations / _OPERATIONS

    @cached_property
    def _operations(self) -> float:
        """The approximate number of operations of one product with each part; 0 if unknown."""
        try:
            return _counted_operations(self.coordinates.reduced)
        except Exception:  # noqa: BLE001  `compile_derivatives` refuses such a network
            return 0.0


def _counted_operations(flat: FlatProblem) -> float:
    with flat.precision.scope():
        return sum(operations(traced_product(flat, part).lower()) for part in ("H_o", "H_f"))


def _contraction(
    coordinates: Coordinates, stack: DenseStack, memory_limit: int
) -> StackCurvature | None:
    """Return the assembly by contractions; None if it cannot be trusted with this network."""
    try:
        contraction = StackCurvature(coordinates, stack, memory_limit=memory_limit)
    except UnsupportedActivationError:
        return None
    return contraction if _agree(coordinates, contraction) else None


def _agree(coordinates: Coordinates, contraction: StackCurvature) -> bool:
    """Return whether both multiply a vector alike, at Gaussian parameters.

    They do not if the derivative rules of an activation contradict one another.
    """
    flat, rng = coordinates.flat, np.random.default_rng(0)
    leaves = gaussian_leaves(flat, rng)
    delta = rng.standard_normal((flat.positions, flat.k))
    point = Point(flat, 0, leaves, delta)
    parts = contraction.parts(point)
    reduced = coordinates.reduced
    theta, fixed = reduced.split(coordinates.inward(leaves))
    v = rng.standard_normal(reduced.p)
    pairs = (
        (parts.outer, HessianPrograms(reduced, outer=True).at(theta, fixed)),
        (parts.functional[1], HessianPrograms(reduced, residuals=1).at(theta, fixed, [delta])),
    )
    for matrix, operator in pairs:
        want = operator.mv(v)
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(matrix @ v[contraction.order] - want[contraction.order])
        if not np.max(error) <= 1e3 * flat.p * DOUBLE.eps * np.max(np.abs(want)):
            return False
    return True
