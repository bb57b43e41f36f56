"""Products of rows with a part of the Hessian, in float32 if that is precise enough."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from rankmon._util.warnings import warn_user
from rankmon.engines.most_ranks import most_ranks
from rankmon.hessian.operators import HessianOperator, HessianPrograms
from rankmon.linalg.block_lanczos import Product
from rankmon.linalg.krylov import WIDTH
from rankmon.linalg.rows import HostRows
from rankmon.network.coordinates import Coordinates, coordinates_of
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.problem.point import Point
from rankmon.problem.precision import SINGLE

_T = TypeVar("_T")

# Rows that are multiplied one by one.
NARROW = 2

# Products in float32 are taken if their error, relative to ||H||_2, is below this. For a random v
# ||dH v|| / ||H v|| is about ||dH||_F / ||H||_F: a factor allows for norms that differ by part.
_MOST_NOISE, NOISE_FACTOR = 1e-4, 16.0
NOISE_OF_DOUBLE = 1e-13


@dataclass(frozen=True)
class PartProducts:
    """The compiled products of one problem, in the coordinates on which the outputs depend.

    Attributes:
      coordinates: the directions of the parameters on which the outputs depend.
      memory_limit: bytes, of which a product takes a quarter.
      width: the vectors that a product takes at once.
      single: the problem in these coordinates, in float32.
      programs: the compiled products, by part and whether they are in float32.
      refused: the parts whose products cannot be computed in float32.
      seconds: the time that the last product of `width` rows took, by part.
    """

    coordinates: Coordinates
    memory_limit: int
    width: int
    single: FlatProblem
    programs: dict[tuple[str, bool], HessianPrograms] = field(default_factory=dict, compare=False)
    refused: set[str] = field(default_factory=set, compare=False)
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int, width: int = WIDTH) -> "PartProducts":
        """Return the products, one object for each problem, limit and width."""
        key = ("part products", memory_limit, width)
        if key not in flat.memo:
            coordinates = coordinates_of(flat)
            single = replace(coordinates.reduced, precision=SINGLE, memo={})
            flat.memo[key] = cls(coordinates, memory_limit, width, single)
        return flat.memo[key]

    @property
    def reduced(self) -> FlatProblem:
        """The problem in these coordinates."""
        return self.coordinates.reduced

    @property
    def p(self) -> int:
        """The number of coordinates."""
        return self.reduced.p

    @property
    def is_whole(self) -> bool:
        """Whether the coordinates are the parameters."""
        return self.coordinates.is_whole

    @property
    def row_bytes(self) -> int:
        """The bytes of a row of a basis, with those of other bases."""
        return self.bytes_of_row(self.p)

    @staticmethod
    def bytes_of_row(q: int) -> int:
        """Return the bytes of a row of q coordinates, with those of other bases."""
        # Two bases, the eigenvectors between them, and copies of some of their rows.
        return 2 * 8 * 3 * q

    def at(self, point: Point) -> Point:
        """Return the point in these coordinates."""
        return self.coordinates.at(point)

    @property
    def gaussian(self) -> Point:
        """The point at random parameters."""
        return Point(self.reduced, 0, gaussian_leaves(self.reduced, np.random.default_rng(1)))

    def compile(self, parts: Iterable[str]) -> None:
        """Compile the products with these parts, and the evaluation of the network."""
        self.coordinates.flat.compile()
        self.reduced.compile()
        for part in parts:
            self._programs(part, self.reduced).one  # noqa: B018  compiles it
            if self._in_single(part, lambda programs: programs.block) is None:
                self._programs(part, self.reduced).block  # noqa: B018

    def operator(self, part: str, point: Point, deltas: Sequence[np.ndarray]) -> HessianOperator:
        """Return one part at this point, in the precision of the point's problem."""
        return self._programs(part, point.flat).at(point.theta, point.fixed, deltas)

    def space(self, noise: float, width: int) -> HostRows:
        """Return the space of rows for products of this error; its blocks may have this width."""
        dtype = np.float64 if noise == NOISE_OF_DOUBLE else np.float32
        return HostRows(self.p, dtype, width=self.width)

    def zero_blocks(self, point: Point) -> bool:
        """Return whether each leaf's diagonal block of H_f maps a random vector to zero.

        Residuals are random as well; the point is one in these coordinates.
        """
        rng = np.random.default_rng(1)
        delta = rng.standard_normal((point.flat.positions, point.flat.k))
        functional = self.operator("H_f", point, [delta])
        leaves = [leaf for leaf in point.flat.leaf_slices if leaf.start < leaf.stop]
        return all(functional.vanishes_in(leaf, rng) for leaf in leaves)

    def most_ranks(self, point: Point, cut: float) -> dict[str, int]:
        """Return bounds on the ranks at a point in these coordinates."""
        return most_ranks(point, cut)

    def rows(
        self,
        part: str,
        point: Point,
        deltas: Sequence[np.ndarray],
        *,
        places: Int[np.ndarray, " b"] | None = None,
        double: bool = False,
    ) -> tuple[Product, float]:
        """Return the product of rows with one part at this point, and its relative error.

        It is in float32 if one random vector shows that this is precise enough: in each row of a
        block, since XLA has compiled programs that were wrong for many vectors alone.

        Args:
          part: "H_L", "H_o" or "H_f".
          point: the point, in these coordinates.
          deltas: the residuals that the part takes.
          places: the rows of a diagonal block, to multiply with that block alone.
          double: whether to take float64 in any case.
        """
        whole = point.flat.p
        at = slice(None) if places is None else places
        v = np.zeros(whole)
        v[at] = np.random.default_rng(0).standard_normal(v[at].size)
        exact = operator = self.operator(part, point, deltas)
        noise = math.inf
        at_single = self._in_float32(point)

        def several(programs: HessianPrograms) -> Float[np.ndarray, "m q"]:
            scales = (-2.0) ** np.arange(programs.block.width)  # float32 scales exactly
            single = programs.at(at_single.theta, at_single.fixed, deltas)
            begun = time.monotonic()
            found = single.matmat(scales[:, None] * v)[0]
            self.seconds[part] = time.monotonic() - begun
            return found[:, at] / scales[:, None]

        if not double and (found := self._in_single(part, several)) is not None:
            want = exact.mv(v)[at]
            off = float(np.max(np.linalg.norm(found - want, axis=1)))
            size = max(float(np.linalg.norm(want)), 1e-300)
            noise = NOISE_FACTOR * max(off / size, SINGLE.eps)
        if noise <= _MOST_NOISE:
            operator = self.operator(part, at_single, deltas)
        else:
            noise = NOISE_OF_DOUBLE
        width = operator.programs.block.width

        def product(rows: Float[np.ndarray, "m q"]) -> Float[np.ndarray, "m q"]:
            if len(rows) <= NARROW and exact.programs.one is not None:
                return np.stack([exact.mv(row) for row in rows])  # a block's other rows cost too
            pieces = [operator.matmat(rows[i : i + width])[0] for i in range(0, len(rows), width)]
            return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

        def within(rows: Float[np.ndarray, "m b"]) -> Float[np.ndarray, "m b"]:
            padded = np.zeros((len(rows), whole), rows.dtype)
            padded[:, at] = rows
            return product(padded)[:, at]

        return product if places is None else within, noise

    def _in_single(self, part: str, use: Callable[[HessianPrograms], _T]) -> _T | None:
        """Return what this use of the products in float32 gives; None if it raises, or one did.

        A network may compute in float64 of its own accord, for instance from an integer counter,
        and convolutions take arguments of one type only.
        """
        if part in self.refused:
            return None
        try:
            return use(self._programs(part, self.single))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  whatever the error, float64 may work
            if not self.refused:
                text = (str(error).strip().splitlines() or [""])[0][:200]
                warn_user(
                    "products with the Hessian are computed in float64 and take longer, because "
                    f"those in float32 raise {type(error).__name__}: {text}. "
                    "Problem(lift_dtype=True) lifts operations one by one, and may avoid this"
                )
            self.refused.add(part)
            return None

    def _in_float32(self, point: Point) -> Point:
        """Return the point with all arrays in float32."""
        with np.errstate(over="ignore"):  # then the products are not finite, and float64 is taken
            leaves = [SINGLE.lift(leaf) for leaf in point.leaves]
        return Point(self.single, point.step, leaves, point.reference)

    def _programs(self, part: str, flat: FlatProblem) -> HessianPrograms:
        """Return the products of one part, compiled at the first use."""
        key = (part, flat is self.single)
        if key not in self.programs:
            self.programs[key] = HessianPrograms(
                flat,
                loss=part == "H_L",
                outer=part == "H_o",
                residuals=int(part == "H_f"),
                batch=self.width,
                room=self.memory_limit // 4,
            )
        return self.programs[key]
