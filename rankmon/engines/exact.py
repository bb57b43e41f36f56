"""Exact ranks: counts in all the eigenvalues of an exact engine, kept for the next call."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankmon._util.tags import HESSIAN_PARTS
from rankmon.engines.base import ExactEngine, Ranks, Spectra
from rankmon.engines.cuts import below_rounding, common_cuts, finest_cut, finest_cuts
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance, numerical_rank
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point

# Three spectra of matrices of this order, order^3 times this: read off 7,000 rows on two cores.
_SECONDS = 3.5e-10


@dataclass(frozen=True)
class ExactRanks:
    """The engine that counts in all the eigenvalues of each part.

    Attributes:
      flat: the problem.
      engine: gives the eigenvalues.
    """

    flat: FlatProblem
    engine: ExactEngine

    @property
    def name(self) -> str:
        """The name of the engine that gives the eigenvalues."""
        return self.engine.name

    def compile(self, *, cotangents: int) -> None:
        """Compile what the eigenvalues need."""
        self.engine.compile(cotangents=cotangents)

    def ranks(self, point: Point, tolerance: Tolerance) -> Ranks | None:
        """Return the ranks and the eigenvalues of the parts; None if one of them is not finite."""
        order = self.engine.order
        self.flat.pace.say(f"the spectra of {order:,} rows", spectra_seconds(order))
        spectra = self.engine.spectra(point)
        if spectra is None:
            return None
        flat, norms = self.flat, _norms(spectra)
        finest = finest_cuts(norms, p=flat.p, eps=flat.precision.eps)
        own_finest = finest_cut(norms["H_f"], p=flat.p, eps=flat.precision.eps)
        ranks = spectra_to_ranks(spectra, flat, tolerance)
        own = tolerance.cut(norms["H_f"], default=flat.p * flat.precision.eps)
        return Ranks(
            ranks,
            numerical_rank(np.abs(spectra["H_f"]), own, finest=own_finest).rank or 0,
            {part: spectra[part] for part in norms},
            told=below_rounding({part: rank.tolerance for part, rank in ranks.items()}, finest),
        )

    def describe(self) -> str:
        """Return the engine's line of the run's card."""
        return self.engine.describe()


def spectra_seconds(order: int) -> float:
    """Return about how long the spectra of three matrices of this order take."""
    return _SECONDS * order**3


def spectra_to_ranks(
    spectra: Spectra, flat: FlatProblem, tolerance: Tolerance
) -> dict[str, NumericalRank]:
    """Return the parts' ranks at their common cut, by default p * eps * max(||H_L||_2, ||X||_2)."""
    norms = _norms(spectra)
    cuts = common_cuts(norms, tolerance, default=flat.p * flat.precision.eps)
    finest = finest_cuts(norms, p=flat.p, eps=flat.precision.eps)
    return {
        part: numerical_rank(np.abs(spectra[part]), cut, finest=finest[part])
        for part, cut in cuts.items()
    }


def _norms(spectra: Spectra) -> dict[str, float]:
    return {part: float(abs(spectra[part][0])) for part in HESSIAN_PARTS if part in spectra}


class Remembering:
    """An exact engine that does not measure the same parameters twice in a row.

    Args:
      engine: does the measuring.
    """

    def __init__(self, engine: ExactEngine) -> None:
        self._engine = engine
        self.name, self.order = engine.name, engine.order
        self.compile, self.describe = engine.compile, engine.describe
        self._last: tuple[bytes, Spectra | None] | None = None

    def spectra(self, point: Point) -> Spectra | None:
        """Return the eigenvalues of the parts; None if something overflows."""
        key = digest([*point.leaves, *point.functional_residuals])
        last = self._last
        if last is None or last[0] != key:
            last = (key, self._engine.spectra(point))
            self._last = last
        return last[1]


def digest(arrays: Sequence[np.ndarray | np.generic]) -> bytes:
    """Return a digest of the arrays, which may be large and belong to others."""
    found = hashlib.blake2b()
    for array in arrays:
        found.update(array.tobytes())  # bfloat16 has no buffer
    return found.digest()
