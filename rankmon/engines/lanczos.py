"""The engine "lanczos": estimates with intervals, for networks whose exact ranks take too long.

H_o is exact, from the rows of its Jacobian. The extremes, moments and epsilon-ranks of the other
parts are estimated by `linalg.krylov`; their ranks at the cut of float64 are only bounded.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from jaxtyping import Float

from rankmon._util.expected_time import OutOfTimeError
from rankmon._util.tags import HESSIAN_PARTS
from rankmon._util.text import bytes_text
from rankmon.engines.base import Ranks
from rankmon.engines.cuts import Cut, HessianCuts, below_rounding
from rankmon.engines.mesh_part_products import MeshPartProducts
from rankmon.engines.part_products import NARROW, PartProducts
from rankmon.hessian.gauss_newton import OuterRank, OuterSpectrum
from rankmon.linalg.estimate import Estimate
from rankmon.linalg.gram import BoundedSpectrum
from rankmon.linalg.krylov import WIDTH, Limits, krylov_spectrum
from rankmon.linalg.krylov_spectrum import KrylovSpectrum, ends_of_norm
from rankmon.linalg.numerical_rank import NumericalRank, Tolerance, numerical_rank
from rankmon.linalg.signed_spectrum import SignedSpectrum
from rankmon.problem.flat import FlatProblem
from rankmon.problem.placement import Placement
from rankmon.problem.point import Point

# Rows of a basis: more resolve more eigenvalues, and take time with their square.
_MOST_ROWS, _LEAST_ROWS = 768, 32

# Leaves that are tried for a zero diagonal block, with a product each.
_MOST_LEAVES = 64

# A norm within this factor gives the cut of a rank: low and high are those at ten times the cut and
# a tenth of it.
_KNOWN_NORM = 2.0

# Steps of a wide space that resolve most extremes, for two spaces.
_LEAST_STEPS = 20

# Of the time limit: the rest is for the bounds on ranks, and for steps that take longer than the
# ones before them.
_SHARE = 0.85


@dataclass(frozen=True)
class LanczosEngine:
    """H_o exactly, and the spectra of H_L and H_f as Krylov spaces show them within the limits.

    Attributes:
      products: the products, in the coordinates on which the outputs depend, or on a mesh.
      outer: None if the Gram matrix of N k rows does not fit: then H_o is estimated as well.
      rows: the most rows of a basis that memory allows.
      memory_limit: bytes for bases, products and blocks of the Jacobian.
      time_limit: seconds for a measurement.
    """

    products: PartProducts | MeshPartProducts
    outer: OuterSpectrum | None
    rows: int
    memory_limit: int
    time_limit: float
    name: str = "lanczos"

    @classmethod
    def of(
        cls,
        flat: FlatProblem,
        *,
        memory_limit: int,
        time_limit: float,
        placement: Placement | None = None,
    ) -> "LanczosEngine":
        """Return the engine for this problem, or for its parameters on a mesh.

        Raises:
          MemoryError: if not even a small basis fits.
        """
        products: PartProducts | MeshPartProducts
        if placement is None:
            products = PartProducts.of(flat, memory_limit=memory_limit)
        else:
            products = MeshPartProducts.of(flat, placement, memory_limit=memory_limit)
        q, row = products.p, products.row_bytes
        rows = min(memory_limit // row, _MOST_ROWS)
        if rows < _LEAST_ROWS:
            raise MemoryError(
                f"expected {_LEAST_ROWS} vectors of {q:,} parameters and their "
                f"products to fit in memory_limit = {bytes_text(memory_limit)}, got "
                f"{bytes_text(row * _LEAST_ROWS)}; raise memory_limit, choose fewer parameters "
                "with Problem(include=...), or watch the weights alone (RankMonitor: "
                "oversize='weights')"
            )
        outer = OuterSpectrum.if_it_fits(flat, memory_limit=memory_limit // 2)
        return cls(products, outer, rows, memory_limit, time_limit)

    @classmethod
    def least_bytes(cls, q: int) -> int:
        """Return the bytes of a small basis of q coordinates, without which `of` raises."""
        return PartProducts.bytes_of_row(q) * _LEAST_ROWS

    def compile(self, *, cotangents: int) -> None:
        """Compile the products with the Hessian, and the gradients for bounds on ranks."""
        self.products.compile(("H_L", "H_f") if self.outer else HESSIAN_PARTS[:3])
        self.traceless  # noqa: B018  measured once

    def ranks(self, point: Point, tolerance: Tolerance) -> Ranks | None:
        """Return bounds on the ranks, and the curvature; None if something overflows."""
        self.compile(cotangents=len(point.functional_residuals))
        begun = time.monotonic()  # the time limit is one after compilation
        outer = self._outer(point, tolerance) if "H_o" in point.asked else None
        if outer is not None and outer.spectrum is None:
            return None
        reduced = self.products.at(point)
        estimate_outer = outer is None or not outer.is_positive
        needed = [part for part in point.needed if part != "H_o" or estimate_outer]
        spectra = self._spectra(reduced, begun, needed)
        if spectra is None:
            return None
        least = {part: spectrum.norm for part, spectrum in spectra.items()}
        norms = {part: _norm_of_cut(spectrum) for part, spectrum in spectra.items()}
        if outer is not None:
            least["H_o"] = norms["H_o"] = outer.norm
        found = HessianCuts.of(norms, tolerance, point.flat)
        cuts = {part: cut.value for part, cut in found.parts.items()}
        lowest = HessianCuts.of(least, tolerance, point.flat).parts.values()
        most = self.products.most_ranks(reduced, min(cut.value for cut in lowest) / 10)
        ranks: dict[str, NumericalRank] = {
            part: _rank(spectrum, found.parts[part], most[part], point.flat.p)
            for part, spectrum in spectra.items()
        }
        curvature: dict[str, SignedSpectrum] = {}
        if outer is not None:
            ranks["H_o"] = outer.rank(cuts["H_o"])
        whole = spectra["H_L"].norm, spectra["H_L"].most_norm
        if outer is not None and outer.is_positive:
            curvature["H_o"] = outer.curvature(whole, cuts["H_o"], point.flat.p)
        traceless = self.traceless and self._blocks_are_zero(reduced)
        for part, spectrum in spectra.items():
            trace = _known_trace(part, curvature.get("H_o")) if traceless else None
            signed = spectrum.signed(whole, trace=trace)
            signed = signed if self.products.is_whole else signed.with_zeros()
            if part == "H_o" and point.flat.problem.loss.root is not None:  # B_i = C_i C_i^T
                signed = signed.without_negative()
            curvature[part] = signed.with_rank_at_most(most[part]).without_vague_values()
        return Ranks(
            {part: ranks[part] for part in point.asked},
            None,
            warnings=(
                *below_rounding(found.parts.values()),
                *self._short_of_time(curvature),
                *self._without_outer(point, outer),
            ),
            curvature={part: curvature[part] for part in point.asked},
        )

    def _short_of_time(self, curvature: Mapping[str, SignedSpectrum]) -> tuple[str, ...]:
        """Return a warning if the largest eigenvalue of a part is not known; always the same."""
        if not any(math.isnan(spectrum.largest.value) for spectrum in curvature.values()):
            return ()
        return (
            f"time_limit = {self.time_limit:g} s allowed too few products to find the largest "
            "eigenvalue of every part: those not found are NaN, with intervals. Measure fewer "
            "examples, or some layers alone (HessianProbe(include=...)), or raise the limit "
            "(HessianProbe(time_limit=...))",
        )

    def _without_outer(self, point: Point, outer: "_Outer | None") -> tuple[str, ...]:
        """Return a warning if the time did not suffice for an exact H_o."""
        if outer is not None or self.outer is None or "H_o" not in point.asked:
            return ()
        return (
            f"the rank of H_o is bounded only, because the rows of its Jacobian are expected to "
            f"take more than half of time_limit = {self.time_limit:g} s; measure fewer examples, "
            "or raise the limit",
        )

    @property
    def placement(self) -> Placement | None:
        """The mesh of the points to measure; None for points on the host."""
        products = self.products
        return products.placement if isinstance(products, MeshPartProducts) else None

    @cached_property
    def traceless(self) -> bool:
        """Whether each leaf's diagonal block of H_f is zero, at Gaussian parameters.

        The outputs are linear in each leaf if activations are piecewise linear and no weights are
        tied. Every point is tried again, since an activation may be linear in a part of its range.
        """
        return self._blocks_are_zero(self.products.gaussian)

    def _blocks_are_zero(self, point: Point) -> bool:
        """Return whether each leaf's diagonal block of H_f maps a random vector to zero."""
        leaves = [leaf for leaf in point.flat.leaf_slices if leaf.start < leaf.stop]
        return len(leaves) <= _MOST_LEAVES and self.products.zero_blocks(point)

    def _outer(self, point: Point, tolerance: Tolerance) -> "_Outer | None":
        """Return the exact eigenvalues of H_o; None if they take memory, or half of the time."""
        if self.outer is None:
            return None
        try:
            found = self.outer.measured(
                point.leaves, tolerance, "auto", time_limit=self.time_limit / 2
            )
        except OutOfTimeError:
            return None
        return _Outer(self.outer, *found)

    def _spectra(
        self, point: Point, begun: float, needed: Sequence[str]
    ) -> dict[str, KrylovSpectrum] | None:
        """Return the estimates of the needed parts; None if something overflows.

        Args:
          point: the point, in the engine's coordinates.
          begun: the time at which the measurement began, from which the time limit counts.
          needed: the parts to estimate, H_L first: its norm sets the scale for the others.
        """
        deadline = begun + _SHARE * self.time_limit
        own, *held = point.functional_residuals
        same = held and np.array_equal(held[0], own)
        all_jobs = {"H_L": ("H_L", [own]), "H_f": ("H_f", [own]), "H_o": ("H_o", [])}
        if held:
            all_jobs["H_f_fixed"] = ("H_f", held)
        # H_L first, for its norm; and nothing twice.
        copied = same and {"H_f", "H_f_fixed"} <= set(needed)
        jobs = [part for part in needed if not (copied and part == "H_f_fixed")]
        found: dict[str, KrylovSpectrum] = {}
        for done, part in enumerate(jobs):
            programs, deltas = all_jobs[part]
            now = time.monotonic()
            parts = len(jobs) - done + (part == "H_L")  # H_L twice: the others' cuts need its norm
            share = 2 if part == "H_L" else 1
            limits = Limits(now + (deadline - now) * share / parts, self.rows)
            norm = found["H_L"].norm if found else None
            # A complete basis gives exact ranks.
            complete = self.products.p <= self.rows
            product, noise = self.products.rows(programs, point, deltas, double=complete)
            width = self._width(programs, limits.deadline - time.monotonic())
            space = self.products.space(noise, width)
            spectrum = krylov_spectrum(
                product,
                self.products.p,
                norm=norm,
                limits=limits,
                width=min(width, space.width),
                noise=noise,
                space=space,
            )
            if spectrum is None:
                return None
            found[part] = spectrum
        if copied:
            found["H_f_fixed"] = found["H_f"]
        return found

    def _width(self, programs: str, seconds: float) -> int:
        """Return the vectors from which spaces start: few find extremes in the least products."""
        step = self.products.seconds.get(programs, 0.0)
        return WIDTH if _LEAST_STEPS * step <= seconds else NARROW

    def describe(self) -> str:
        """Return the engine's line of the run's card."""
        exactly = "exactly, if the rows of its Jacobian take less than half of that"
        outer = exactly if self.outer else "in the same way"
        return (
            f"{self.name}: H_L and H_f by block Lanczos with up to {self.rows} vectors"
            f"{' on the mesh of the parameters' if self.placement else ''}, within "
            f"{self.time_limit:g} s per measurement; H_o {outer}"
        )


@dataclass(frozen=True)
class _Outer:
    """The exact absolute eigenvalues of H_o.

    Attributes:
      of: computes them.
      own: the rank at the cut of H_o's own norm.
      spectrum: the absolute eigenvalues; None if something is not finite.
      is_positive: whether no eigenvalue is negative.
    """

    of: OuterSpectrum
    own: OuterRank
    spectrum: BoundedSpectrum | None
    is_positive: bool

    @property
    def norm(self) -> float:
        """||H_o||_2."""
        return float(self._values[0])

    @property
    def _values(self) -> Float[np.ndarray, " m"]:
        assert self.spectrum is not None
        return self.spectrum.values

    def rank(self, cut: float) -> NumericalRank:
        """Return the rank at this cut."""
        assert self.spectrum is not None
        return self.of.counted(self.spectrum, Tolerance(absolute=cut), self.own.method)

    def curvature(self, norms: tuple[float, float], cut: float, p: int) -> SignedSpectrum:
        """Return the summary of the eigenvalues, for a norm of H_L in this interval."""
        found = (
            SignedSpectrum.of_eigenvalues(self._values, norm=norm, cut=cut, size=p)
            for norm in ends_of_norm(*norms)
        )
        return reduce(SignedSpectrum.spanning_counts, found).without_vague_values()


def _norm_of_cut(spectrum: KrylovSpectrum) -> float:
    """Return the norm that a part's cut is relative to; if it is hardly known, its upper end.

    A bound from below on a rank is then one at the cut of the true norm, too.
    """
    known = spectrum.most_norm <= _KNOWN_NORM * spectrum.norm
    return spectrum.norm if known else spectrum.most_norm


def _known_trace(part: str, outer: SignedSpectrum | None) -> Estimate | None:
    """Return the trace of a part if that of H_f is zero, given the curvature of H_o."""
    if part == "H_L":
        return None if outer is None else outer.trace
    return None if part == "H_o" else Estimate.exact(0.0)


def _rank(spectrum: KrylovSpectrum, cut: Cut, most: int, p: int) -> NumericalRank:
    """Return the rank if the basis is complete, else its bounds.

    No more Ritz values exceed a cut than eigenvalues, so that they bound the rank from below.
    """
    values = np.abs(spectrum.first.values)
    if not spectrum.measures:
        return numerical_rank(values, cut.value, size=p, finest=cut.finest)
    low = int(np.sum(values > 10 * cut.value + spectrum.noise))
    return NumericalRank(None, cut.value, p, low, max(most, low), math.nan)
