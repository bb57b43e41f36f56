"""The exact engine of p x p matrices: spectra of H_o, H_f and H_L, however these are assembled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rankmon.engines.base import Spectra
from rankmon.linalg.spectrum import padded, singular_values, symmetric_spectrum
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point


@dataclass
class HessianParts:
    """Dense parts of one Hessian, all in the same order of parameters.

    Attributes:
      outer: H_o.
      functional: H_f for each of the residuals that were asked for.
      outer_values: the non-zero eigenvalues of H_o as squares of singular values of the weighted
        Jacobian, which keep the digits that H_o loses; None if H_o is not large enough for that
        to be the cheaper way, or B_i is indefinite.
    """

    outer: Float[np.ndarray, "p p"]
    functional: tuple[Float[np.ndarray, "p p"], ...]
    outer_values: Float[np.ndarray, " nk"] | None


def is_wide(flat: FlatProblem) -> bool:
    """Return whether the Jacobian, n k x p, has so few rows that its singular values are cheaper.

    An SVD costs about three times what the eigenvalues of a symmetric matrix of that size cost.
    """
    return 2 * flat.positions * flat.k <= flat.p


def root_values(root: Float[np.ndarray, "m p"]) -> Float[np.ndarray, " m"]:
    """Return the eigenvalues of A^T A, without the zeros that p > m implies, descending."""
    return singular_values(root) ** 2


@runtime_checkable
class Assembly(Protocol):
    """One way to the matrices: `dense.Curvature` or `dense_stack.StackCurvature`."""

    def compile(self, *, cotangents: int) -> None:
        """Compile what an assembly with so many residuals needs."""

    def parts(self, leaves: list[np.ndarray], b: Any, deltas: Sequence[Any]) -> HessianParts:
        """Return H_o, and H_f for each of these residuals."""


@dataclass(frozen=True)
class DenseEngine:
    """The eigenvalues of p x p matrices.

    Attributes:
      name: "stack" or "dense".
      flat: the problem.
      assembly: of the matrices.
    """

    name: str
    flat: FlatProblem
    assembly: Assembly

    @property
    def order(self) -> int:
        """All parameters: p."""
        return self.flat.p

    def compile(self, *, cotangents: int) -> None:
        """Compile the assembly."""
        self.assembly.compile(cotangents=cotangents)

    def spectra(self, point: Point) -> Spectra | None:
        """Return the eigenvalues of the parts; None if something overflows."""
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
