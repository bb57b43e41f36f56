"""The exact engine of deep linear networks: spectra in the coordinates that can be non-zero.

`hessian.deep_linear` has the reduction to these coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float

from rankmon._util.text import bytes_text
from rankmon.engines.base import Spectra
from rankmon.engines.block_spectra import (
    DIAGONAL_PARTS,
    BlockSpectra,
    Values,
    column_values,
    off_diagonal_share,
)
from rankmon.engines.exact import ExactEngine, Found
from rankmon.hessian.deep_linear import (
    InputBasis,
    Layers,
    Reduction,
    coordinate_count,
    rows_by_layer,
)
from rankmon.linalg.spectrum import padded, symmetric_spectrum
from rankmon.network.layers import Layer
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.output_hessians import EVALUATED_ALIVE, OutputHessians
from rankmon.problem.point import Point

# H_L, H_f, the copy that LAPACK overwrites, and temporary arrays of their assembly.
_REDUCED_MATRICES_ALIVE = 4


@dataclass(eq=False)
class DeepLinearEngine(ExactEngine):
    """The exact engine of deep linear networks.

    Attributes:
      stack: the network.
      basis: a basis of the probe batch's inputs.
      coordinates: the largest number of coordinates that can be non-zero.
    """

    stack: DenseStack
    basis: InputBasis
    coordinates: int

    name: ClassVar[str] = "deep_linear"
    kind: ClassVar[str] = "a deep linear network"
    why = "the network is recognized as a deep linear one"

    @property
    def order(self) -> int:
        """The number of coordinates that can be non-zero."""
        return self.coordinates

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int) -> "DeepLinearEngine | None":
        """Return the engine if this is a deep linear network; errors as for `ExactEngine.of`."""
        stack = recognized_stack(flat)
        if stack is None or not stack.linear:
            return None
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
        """Compile the loss and its derivatives in the outputs; the reduction uses NumPy."""
        self.flat.compile()

    def _measured(self, point: Point, layers: Sequence[Layer]) -> Found | None:
        b = point.output_hessians
        try:
            with np.errstate(over="raise", invalid="raise"):
                return self._reduced(point, b, by_layer=bool(layers))
        except (FloatingPointError, OverflowError):
            return None

    def _reduced(self, point: Point, b: OutputHessians, *, by_layer: bool) -> Found:
        leaves, p = point.leaves, self.flat.p
        layers = Layers.at(self.stack.weights(leaves), self.stack.biases(leaves), self.basis.axes)
        moment = self.basis.second_moment(b)
        # Zero weights would hide it, and some BLAS do not raise.
        if not np.all(np.isfinite(moment)):
            raise OverflowError("expected finite output Hessians, got NaN or infinite entries")
        reduction = Reduction(layers, self.basis.omega(point.residuals))
        matrices = {
            "H_L": lambda: reduction.loss(moment),
            "H_o": lambda: reduction.outer(moment),
            "H_f": reduction.functional,
        }
        held = point.reference
        if held is not None:
            fixed = Reduction(layers, self.basis.omega(held))
            matrices["H_f_fixed"] = fixed.functional
        same = held is not None and np.array_equal(held, point.residuals)
        spectra: Spectra = {}
        diagonal, blocks = dict[str, Values](), list[np.ndarray]()
        columns, share = None, float("nan")
        for part in point.needed:
            if same and part == "H_f_fixed" and "H_f" in spectra:
                spectra[part] = spectra["H_f"]
                continue
            matrix = matrices[part]()
            spectra[part] = padded(_finite_spectrum(matrix), p)
            if not by_layer or part not in point.asked:
                continue
            if part in DIAGONAL_PARTS:  # H_f has no diagonal blocks: those of H_L are H_o's
                blocks = blocks or [*map(_finite_spectrum, reduction.outer_blocks(moment))]
                diagonal[part] = blocks
            if part == "H_L":
                share = off_diagonal_share(matrix, rows_by_layer(reduction.loss_groups))
            elif part == "H_f":
                columns = column_values(matrix, rows_by_layer(reduction.functional_groups))
        return Found(spectra, BlockSpectra(diagonal, columns, share) if by_layer else None)

    def describe(self) -> str:
        """Return the engine's line of the run's card."""
        return (
            f"{self.name}: at most {self.coordinates} of {self.flat.p} rows are non-zero after a "
            "change of coordinates"
        )


def _finite_spectrum(matrix: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"]:
    if not np.all(np.isfinite(matrix)):
        raise OverflowError("expected a finite matrix, got NaN or infinite entries")
    return symmetric_spectrum(matrix)
