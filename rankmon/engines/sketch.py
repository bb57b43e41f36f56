"""The engine "sketch": H_o's rank exactly, the others' from random sketches within the limits.

`linalg.sketch` has the sketch itself.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rankmon._util.expected_time import OutOfTimeError
from rankmon._util.text import bytes_text
from rankmon.engines.base import Ranks
from rankmon.engines.cuts import HessianCuts, below_rounding
from rankmon.engines.most_ranks import most_ranks
from rankmon.hessian.gauss_newton import OuterSpectrum
from rankmon.hessian.operators import HessianOperator, HessianPrograms, compiled_product
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, NumericalRank, Tolerance
from rankmon.linalg.sketch import Products, Sketch, side_for, sketched, spectral_norm
from rankmon.network.coordinates import Coordinates, coordinates_of
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.problem.point import Point

# Small: its time shows which side is affordable next; twice the side costs at most four times it.
_FIRST_SIDE = 64
_MOST_VECTORS, _MOST_ROWS = 1024, 256

# Operations of products of matrices in a second, about.
_OPERATIONS = 2e10

# Products that the norms of all parts take, about.
_NORM_PRODUCTS = 40
_SEED = 0


@dataclass
class _Progress:
    """State between measurements: compiled programs, and the side of a sketch that was enough."""

    side: int = _FIRST_SIDE
    outer_is_slow: bool = False
    blocks: dict[int, HessianPrograms] = field(default_factory=dict)


class _Sizes(NamedTuple):
    """Vectors at once, rows of Y at once, and the largest side of a sketch."""

    batch: int
    rows: int
    side: int


@dataclass(frozen=True)
class SketchEngine:
    """H_o by `outer`, the other parts by sketches that grow until they show the whole rank.

    Attributes:
      coordinates: the directions of the parameters on which the outputs depend.
      memory_limit: bytes for sketches, products and blocks of the Jacobian.
      time_limit: seconds for a measurement; a sketch that would take longer is not begun, but for
        the first one of 64 rows.
      outer: None if the Gram matrix of N k rows does not fit: then H_o is sketched as well.
    """

    coordinates: Coordinates
    memory_limit: int
    time_limit: float
    outer: OuterSpectrum | None
    progress: _Progress = field(default_factory=_Progress, compare=False)
    name: str = "sketch"

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int, time_limit: float) -> "SketchEngine":
        """Return the engine for this problem.

        Raises:
          MemoryError: if not even a small sketch fits.
        """
        coordinates = coordinates_of(flat)
        q = coordinates.reduced.p
        least = cls.least_bytes(q)
        if least > memory_limit:
            raise MemoryError(
                f"expected a sketch of {_FIRST_SIDE} rows and some vectors of {q:,} "
                f"parameters to fit in memory_limit = {bytes_text(memory_limit)}, got "
                f"{bytes_text(least)}; raise memory_limit, choose fewer parameters with "
                "Problem(include=...), or watch the weights alone (RankMonitor: "
                "oversize='weights')"
            )
        outer = OuterSpectrum.if_it_fits(flat, memory_limit=memory_limit)
        return cls(coordinates, memory_limit, time_limit, outer)

    @staticmethod
    def least_bytes(q: int) -> int:
        """Return the bytes of a small sketch of q coordinates, without which `of` raises."""
        return 2 * 8 * 4 * (_FIRST_SIDE**2 + 8 * q)

    @property
    def flat(self) -> FlatProblem:
        """The problem in these coordinates."""
        return self.coordinates.reduced

    def compile(self, *, cotangents: int) -> None:
        """Compile the products with the Hessian for so many residuals."""
        self.coordinates.flat.compile()
        kept = self.progress
        for part in ("H_o", "H_f"):
            compiled_product(self.flat, part)
        if cotangents not in kept.blocks:
            kept.blocks[cotangents] = HessianPrograms(
                self.flat,
                outer=True,
                residuals=cotangents,
                batch=self._sizes(cotangents).batch,
                room=self.memory_limit // 4,
            )
            kept.blocks[cotangents].block  # noqa: B018  compiles it

    def is_expected_to_finish(self) -> bool:
        """Return whether memory and time are expected to suffice for the whole ranks.

        The rank of H_L is at least about that of H_o, which rules out most large networks without
        compilation. Else it is bounded at Gaussian parameters.
        """
        flat = self.flat
        if not self._affords(side_for(min(flat.root_rows, flat.p)), product_seconds=0.0):
            return False
        self.compile(cotangents=2)
        rng = np.random.default_rng(_SEED)
        delta = rng.standard_normal((flat.positions, flat.k))
        point = Point(flat, 0, gaussian_leaves(flat, rng), delta)
        begun = time.monotonic()
        norms = self._norms(point)
        seconds = (time.monotonic() - begun) / _NORM_PRODUCTS
        if not all(map(math.isfinite, norms.values())):
            return False
        cuts = HessianCuts.of(norms, DEFAULT_TOLERANCE, self.coordinates.flat)
        most = most_ranks(point, cuts.parts["H_L"].value / 10)
        return self._affords(side_for(most["H_L"]), product_seconds=seconds)

    def _affords(self, side: int, *, product_seconds: float) -> bool:
        """Return whether a sketch of this side fits in memory and time, and is no whole matrix."""
        parts, q = 3, self.flat.p  # H_L, H_f and H_f_fixed
        seconds = 2 * parts * side**2 * q / _OPERATIONS + side * product_seconds
        most = min(self._sizes(2).side, q - 1)
        return side <= most and seconds <= self.time_limit

    def ranks(self, point: Point, tolerance: Tolerance) -> Ranks | None:
        """Return the ranks of the parts at a finite point; None if something overflows."""
        begun = time.monotonic()
        residuals = len(point.functional_residuals)
        self.compile(cotangents=residuals)
        whole, point = point, self.coordinates.at(point)
        self._say_expected_time(point)
        norms = self._norms(point)
        if not all(map(math.isfinite, norms.values())):
            return None
        common = HessianCuts.of(norms, tolerance, whole.flat)
        own, cuts = common.own_functional, common.parts
        ranks: dict[str, NumericalRank] = {}
        outer = self._outer_rank(whole, cuts["H_o"].value) if "H_o" in point.asked else None
        if outer is not None:
            ranks["H_o"] = outer
            if outer.rank is None:
                return None
        others = [part for part in point.asked if part not in ranks]
        products = _products(self.progress.blocks[residuals], point, others)
        counted_at = {part: max(cuts[part]) for part in others}
        sizes = self._sizes(residuals)
        sketches = self._grown(products, sizes, counted_at, begun) if others else {}
        if not all(sketch.is_finite for sketch in sketches.values()):
            return None
        counted = {
            part: sketch.counted(cuts[part].value, finest=cuts[part].finest)
            for part, sketch in sketches.items()
        }
        incomplete = [part for part, rank in counted.items() if not rank.complete]
        if incomplete:
            most = most_ranks(point, min(cut.value for cut in cuts.values()) / 10)
            counted |= {part: counted[part].at_most(most[part]) for part in incomplete}
        p = whole.flat.p
        ranks |= {part: replace(rank, size=p) for part, rank in counted.items()}
        return Ranks(
            {part: ranks[part] for part in point.asked},
            sketches["H_f"].counted(own.value, finest=own.finest).known
            if "H_f" in sketches
            else None,
            warnings=(
                *((self._incomplete_warning(incomplete),) if incomplete else ()),
                *below_rounding(cuts[part] for part in others),
            ),
        )

    def _outer_rank(self, point: Point, cut: float) -> NumericalRank | None:
        """Return H_o's rank from its rows; None if that takes memory or over half of the time."""
        if self.outer is None or self.progress.outer_is_slow:
            return None
        try:
            return self.outer.rank(
                point.leaves,
                Tolerance(absolute=cut),
                "auto",
                time_limit=self.time_limit / 2,
            )
        except OutOfTimeError:
            self.progress.outer_is_slow = True
            return None

    def _say_expected_time(self, point: Point) -> None:
        """Log the time that a sketch takes at least, if it is long."""
        product = self._products_for_norms(point)[0]
        begun = time.monotonic()
        product(np.ones(self.flat.p))
        seconds = (time.monotonic() - begun) * (_NORM_PRODUCTS + 2 * self.progress.side)
        self.flat.pace.say("a sketch of the Hessian", seconds)

    def _products_for_norms(self, point: Point) -> tuple[Callable[[Any], Any], ...]:
        """Return the products with a vector of each part."""
        outer = HessianPrograms(self.flat, outer=True).at(point.theta, point.fixed).mv
        functional, *held = (
            self._functional(point, delta).mv for delta in point.functional_residuals
        )
        return (lambda v: outer(v) + functional(v), outer, functional, *held)

    def _norms(self, point: Point) -> dict[str, float]:
        """Return ||H||_2 of each part."""
        products = self._products_for_norms(point)
        return {
            part: spectral_norm(product, self.flat.p, seed=_SEED)
            for part, product in zip(point.parts, products, strict=True)
            if part in point.needed
        }

    def _grown(
        self, products: Products, sizes: _Sizes, cuts: Mapping[str, float], begun: float
    ) -> dict[str, Sketch]:
        """Return sketches that are complete, or the largest that memory and time allow."""
        batch, rows, most = sizes
        most = min(most, self.flat.p)  # then it is the matrix itself
        side = min(self.progress.side, most)
        while True:
            started = time.monotonic()
            sketches = sketched(products, self.flat.p, side, batch=batch, rows=rows, seed=_SEED)
            seconds = time.monotonic() - started
            if not all(sketch.is_finite for sketch in sketches.values()):
                return sketches
            sides = {
                part: sketch.next_side(cuts[part])
                for part, sketch in sketches.items()
                if not sketch.is_sharp(cuts[part] / 10)
            }
            if not sides:
                least = side_for(max(s.exceeding(cuts[part]) for part, s in sketches.items()))
                self.progress.side = side if side <= 2 * least else least  # ranks may fall
                return sketches
            left = self.time_limit - (time.monotonic() - begun)
            # Its time grows with the square of its side, or more slowly.
            affordable = int(side * math.sqrt(max(left, 0.0) / max(seconds, 1e-9)))
            wanted = min(max(sides.values()), most)
            if wanted > affordable or wanted <= side:
                self.progress.side = side
                return sketches
            side = wanted

    def _functional(self, point: Point, delta: Float[np.ndarray, "n k"]) -> HessianOperator:
        return HessianPrograms(self.flat, residuals=1).at(point.theta, point.fixed, [delta])

    def _sizes(self, residuals: int) -> _Sizes:
        """Return the largest sizes that fit, each in its share of memory, for so many residuals."""
        share, p = self.memory_limit // 4, self.flat.p
        outer = self.outer is None or self.progress.outer_is_slow
        parts = 1 + residuals + outer  # H_L, H_f, H_f_fixed, perhaps H_o
        return _Sizes(
            batch=min(max(share // (8 * p * (parts + 1)), 1), _MOST_VECTORS),
            rows=min(max(share // (4 * 8 * p), 1), _MOST_ROWS),
            side=math.isqrt(share // (8 * (parts + 1))),
        )

    def _incomplete_warning(self, parts: Sequence[str]) -> str:
        return (
            f"the ranks of {', '.join(parts)} are more than a sketch shows within memory_limit = "
            f"{bytes_text(self.memory_limit)} and time_limit = {self.time_limit:g} s: rank is the "
            "least that they are, high the most; raise the limits, or choose fewer parameters with "
            "include="
        )

    def describe(self) -> str:
        """Return the engine's line of the run's card."""
        outer = "exactly, from the rows of the Jacobian" if self.outer else "from such sketches too"
        return (
            f"{self.name}: H_L and H_f from two-sided random sketches of up to "
            f"{self._sizes(1).side:,} rows, within {self.time_limit:g} s per probe; H_o {outer}"
        )


def _products(programs: HessianPrograms, point: Point, parts: Collection[str]) -> Products:
    """Return a function: rows v -> rows H v of each of these parts; it reuses their arrays."""
    operator = programs.at(point.theta, point.fixed, point.functional_residuals)
    images: dict[str, np.ndarray] = {}

    def products(vectors: Float[np.ndarray, "m p"]) -> dict[str, Float[np.ndarray, "m p"]]:
        count, m = len(vectors), programs.block[1]
        for part in parts:
            if part not in images or len(images[part]) < count:
                images[part] = np.empty(vectors.shape)
        for i in range(0, count, m):
            rows = dict(zip(point.parts[1:], operator.matmat(vectors[i : i + m]), strict=True))
            for part in parts:
                out = images[part][i : min(i + m, count)]
                if part == "H_L":
                    np.add(rows["H_o"], rows["H_f"], out=out)
                else:
                    out[:] = rows[part]
        return {part: image[:count] for part, image in images.items()}

    return products
