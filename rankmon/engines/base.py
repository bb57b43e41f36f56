"""What an exact engine is: one way to the spectra of one problem."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rankmon.problem.point import Snapshot

ENGINES = ("auto", "deep_linear", "stack", "dense")


Spectra = dict[str, Float[np.ndarray, " p"]]


@runtime_checkable
class Engine(Protocol):
    """One way to the spectra of one problem."""

    @property
    def name(self) -> str:
        """As in `ENGINES`."""

    @property
    def order(self) -> int:
        """Rows of the matrices whose eigenvalues it takes."""

    def compile(self, *, cotangents: int) -> None:
        """Compiles what a measurement with so many residuals needs."""

    def spectra(
        self,
        snapshot: Snapshot,
        delta: Float[np.ndarray, "n k"],
        reference: Float[np.ndarray, "n k"] | None,
    ) -> Spectra | None:
        """The eigenvalues of H_L, H_o, H_f and, with a reference, H_f_fixed, by falling magnitude.

        Args:
          snapshot: finite parameters.
          delta: finite residuals there.
          reference: the residuals that H_f_fixed holds.

        Returns:
          The spectra, each [p]; None where something overflows.
        """

    def describe(self) -> str:
        """What the run's card says of it."""
