"""The base of exact engines, which count ranks in all the eigenvalues of each part."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rankmon.engines.base import Block, Blocks, Ranks, Spectra
from rankmon.engines.block_spectra import BlockSpectra
from rankmon.engines.cuts import Cut, HessianCuts, below_rounding
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance, numerical_rank
from rankmon.linalg.signed_spectrum import SignedSpectrum
from rankmon.network.layers import Layer, layers_of
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point

# Seconds that a spectrum takes, divided by order^3: measured at 7,000 rows on two cores.
SPECTRUM_SECONDS = 1.2e-10


@dataclass(frozen=True)
class Found:
    """The spectra at one point.

    Attributes:
      spectra: of each part that is needed p eigenvalues, by falling magnitude.
      blocks: the spectra of the blocks by layer, if they are asked for.
    """

    spectra: Spectra
    blocks: BlockSpectra | None = None


@dataclass(eq=False)
class ExactEngine(ABC):
    """An `Engine` that computes all eigenvalues and remembers those of the last point.

    Attributes:
      flat: the problem.
      name: the name by which users choose it: one of `select.ENGINES`.
      kind: the networks that it can measure, in words.
    """

    flat: FlatProblem
    _last: tuple[bytes, Found | None] | None = field(default=None, init=False, repr=False)

    name: ClassVar[str]
    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int) -> "ExactEngine | None":
        """Return the engine for this problem; None if it cannot measure the network.

        Raises:
          MemoryError: if its matrices do not fit in memory_limit.
        """

    @property
    @abstractmethod
    def why(self) -> str:
        """The reason why "auto" takes this engine."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The number of rows of the matrices whose eigenvalues it computes."""

    @abstractmethod
    def compile(self, *, cotangents: int) -> None:
        """Compile the programs of a measurement with so many residuals."""

    @abstractmethod
    def describe(self) -> str:
        """Return the engine's line of the run's card."""

    @abstractmethod
    def _measured(self, point: Point, layers: Sequence[Layer]) -> Found | None:
        """Return the eigenvalues of the parts that are needed; None if something overflows.

        Args:
          point: the parameters.
          layers: those whose blocks are measured as well; empty for no blocks.
        """

    def spectra(self, point: Point) -> Spectra | None:
        """Return the eigenvalues of the parts that are needed; None if something overflows.

        Each spectrum has p eigenvalues, by falling magnitude. The point must be finite.
        """
        found = self._found(point)
        return None if found is None else found.spectra

    def _found(self, point: Point) -> Found | None:
        asked = repr((point.needed, point.asked if point.by_layer else ())).encode()
        key = digest([*point.leaves, *point.functional_residuals]) + asked
        last = self._last
        if last is None or last[0] != key:
            self._last = last = (key, self._with_blocks(point))
        return last[1]

    def _with_blocks(self, point: Point) -> Found | None:
        layers = layers_of(self.flat) if point.by_layer else ()
        found = self._measured(point, layers if len(layers) > 1 else ())
        if found is None or len(layers) != 1:
            return found
        return Found(found.spectra, BlockSpectra.of_one_layer(found.spectra, point.asked))

    def ranks(self, point: Point, tolerance: Tolerance) -> Ranks | None:
        """Return the ranks and eigenvalues of the point's parts; None if something overflows."""
        self.flat.pace.say(f"the spectra of {self.order:,} rows", self._spectra_seconds)
        found = self._found(point)
        if found is None:
            return None
        spectra = {part: found.spectra[part] for part in point.needed}
        norms = {part: float(abs(spectrum[0])) for part, spectrum in spectra.items()}
        cuts = HessianCuts.of(norms, tolerance, self.flat)

        def counted(part: str, cut: Cut) -> NumericalRank:
            return numerical_rank(np.abs(spectra[part]), cut.value, finest=cut.finest)

        own = counted("H_f", cuts.own_functional).rank or 0 if "H_f" in spectra else None
        return Ranks(
            {part: counted(part, cuts.parts[part]) for part in point.asked},
            own,
            {part: spectra[part] for part in point.asked},
            warnings=below_rounding(cuts.parts.values()),
            curvature={
                part: SignedSpectrum.of_eigenvalues(
                    spectra[part], norm=norms["H_L"], cut=max(cuts.parts[part])
                )
                for part in point.asked
            },
            blocks=self._blocks(found.blocks, cuts, norms["H_L"]),
        )

    def _blocks(
        self, spectra: BlockSpectra | None, cuts: HessianCuts, norm: float
    ) -> Blocks | None:
        """Return the blocks with their ranks, at the cuts of the parts."""
        if spectra is None:
            return None
        layers = layers_of(self.flat)

        def block(values: np.ndarray, cut: Cut, layer: Layer) -> Block:
            rank = numerical_rank(np.abs(values), cut.value, size=layer.size, finest=cut.finest)
            curvature = SignedSpectrum.of_eigenvalues(
                values, norm=norm, cut=max(cut), size=layer.size
            )
            return Block(rank, curvature)

        diagonal = {
            part: {
                layer.name: block(of_layer, cuts.parts[part], layer)
                for layer, of_layer in zip(layers, values, strict=True)
            }
            for part, values in spectra.diagonal.items()
        }
        columns = {
            layer.name: numerical_rank(
                values, cuts.parts["H_f"].value, size=layer.size, finest=cuts.parts["H_f"].finest
            )
            for layer, values in zip(layers, spectra.columns or (), strict=bool(spectra.columns))
        }
        share = Estimate.exact(spectra.off_diagonal) if "H_L" in diagonal else None
        return Blocks(diagonal, columns, share)

    @property
    def _spectra_seconds(self) -> float:
        return 3 * SPECTRUM_SECONDS * self.order**3

    def seconds(self, *, time_limit: float) -> float:
        """Return the approximate seconds of a measurement.

        Args:
          time_limit: times that are certainly far below it may be left out of the estimate.
        """
        return self._spectra_seconds


def digest(arrays: Sequence[np.ndarray | np.generic]) -> bytes:
    """Return a digest of the arrays, which may be large and belong to others."""
    found = hashlib.blake2b()
    for array in arrays:
        found.update(array.tobytes())  # bfloat16 has no buffer
    return found.digest()
