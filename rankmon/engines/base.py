"""The protocol of engines, which compute the ranks of a Hessian, and the type of their results."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rankmon.linalg.estimate import Estimate
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance
from rankmon.linalg.signed_spectrum import SignedSpectrum
from rankmon.problem.point import Point

# The eigenvalues of each part, by falling magnitude.
Spectra = dict[str, Float[np.ndarray, " p"]]


@dataclass(frozen=True)
class Block:
    """The diagonal block of one layer in one part of a Hessian.

    Attributes:
      rank: at the cut of the part; None if it was not counted.
      curvature: of its signed eigenvalues the numbers that were measured.
    """

    rank: NumericalRank | None
    curvature: SignedSpectrum


@dataclass(frozen=True)
class Blocks:
    """The blocks of one Hessian, by layer.

    Attributes:
      diagonal: part -> layer -> diagonal block, for H_L and H_o if these are asked for.
      columns: layer -> rank of H_f's columns of that layer, at the cut of H_f.
      off_diagonal: the share of ||H_L||_F^2 outside the diagonal blocks; NaN for a zero H_L, None
        if it was not measured.
    """

    diagonal: Mapping[str, Mapping[str, Block]]
    columns: Mapping[str, NumericalRank] = field(default_factory=dict)
    off_diagonal: Estimate | None = None


@dataclass(frozen=True)
class Ranks:
    """The ranks of one Hessian.

    Attributes:
      parts: "H_L", "H_o", "H_f" and, with a reference, "H_f_fixed"; at least those asked for.
      own_functional: the rank of H_f at its own cut; None if only bounds are known, or without H_f.
      spectra: the eigenvalues of each part, if they were computed.
      warnings: messages to the user about limits of these ranks.
      curvature: of each part the extremes, moments and counts of its signed eigenvalues, if they
        were computed.
      blocks: the blocks by layer; None if they are not asked for, or were not measured.
    """

    parts: dict[str, NumericalRank]
    own_functional: int | None
    spectra: Mapping[str, Float[np.ndarray, " p"]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    curvature: Mapping[str, SignedSpectrum] = field(default_factory=dict)
    blocks: Blocks | None = None


@runtime_checkable
class Engine(Protocol):
    """An algorithm for the ranks of one problem."""

    @property
    def name(self) -> str:
        """The name by which users choose it: one of `select.ENGINES`, without "auto"."""

    def compile(self, *, cotangents: int) -> None:
        """Compile the programs of a measurement with so many residuals."""

    def ranks(self, point: Point, tolerance: Tolerance) -> Ranks | None:
        """Return the ranks of the parts at a finite point; None if something overflows."""

    def describe(self) -> str:
        """Return the engine's line of the run's card."""


def compile_derivatives(engine: Engine, *, cotangents: int) -> None:
    """Compile the programs of a measurement with so many residuals.

    Raises:
      ValueError: if JAX cannot differentiate the network or the loss twice.
      MemoryError: if a matrix or a program does not fit in memory_limit.
    """
    with differentiated_twice():
        engine.compile(cotangents=cotangents)


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Explain errors of the compilation in this block as those of second derivatives.

    Raises:
      ValueError: for any error but a MemoryError.
    """
    try:
        yield
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
