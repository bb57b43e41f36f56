"""Products of rows with a part of the Hessian on a mesh, and bounds on its rank."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rankmon.engines.most_ranks import GRADIENTS, combinations, most_ranks_of
from rankmon.engines.part_products import NARROW, NOISE_FACTOR, NOISE_OF_DOUBLE
from rankmon.hessian.jacobian import weighted_gradient
from rankmon.hessian.mesh_products import MeshProducts
from rankmon.hessian.mesh_rows import MeshRows, MeshSpace, row_shardings
from rankmon.linalg.block_lanczos import Product
from rankmon.problem.flat import FlatProblem
from rankmon.problem.mesh_point import MeshPoint
from rankmon.problem.placement import Placement
from rankmon.problem.point import Point
from rankmon.problem.precision import DOUBLE

# Rows of a basis below which fewer vectors at once leave enough steps.
_MANY_ROWS, _MOST_WIDTH, _LESS_WIDTH = 256, 16, 8

# Seconds of a product of a block above which narrow blocks may be asked for.
_SLOW = 0.1


@dataclass(frozen=True)
class MeshPartProducts:
    """The products of one problem at sharded parameters; all directions are coordinates.

    Attributes:
      flat: the problem.
      placement: the shardings.
      memory_limit: bytes on each device, of which a product takes a quarter.
      width: the vectors of a block.
      seconds: the time of a product of a block, by part.
    """

    flat: FlatProblem
    placement: Placement
    memory_limit: int
    width: int
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    is_whole = True

    @classmethod
    def of(
        cls, flat: FlatProblem, placement: Placement, *, memory_limit: int
    ) -> "MeshPartProducts":
        """Return the products for this memory on each device."""
        many = memory_limit >= _MANY_ROWS * cls._bytes_of_row(flat, placement)
        return cls(flat, placement, memory_limit, _MOST_WIDTH if many else _LESS_WIDTH)

    @property
    def p(self) -> int:
        """The number of coordinates."""
        return self.flat.p

    @property
    def row_bytes(self) -> int:
        """The bytes of a row of a basis on each device, with those of other bases."""
        return self._bytes_of_row(self.flat, self.placement)

    @staticmethod
    def _bytes_of_row(flat: FlatProblem, placement: Placement) -> int:
        # Two bases, or one and the eigenvectors of another one. Single blocks are small.
        return 3 * 8 * max(placement.most_entries(flat), 1)

    def at(self, point: Point) -> MeshPoint:
        """Return the point itself, which is on the mesh."""
        assert isinstance(point, MeshPoint)
        return point

    @property
    def gaussian(self) -> MeshPoint:
        """The point at random parameters."""
        return MeshPoint.gaussian(self.flat, self.placement)

    def compile(self, parts: Iterable[str]) -> None:
        """Compile the products with these parts, and the operations on rows; once for each part."""
        missing = [part for part in parts if part not in self.seconds]
        point = self.gaussian if missing else None
        for part in missing:
            assert point is not None
            products = self._products(part, point, point.residuals)
            self.seconds[part] = self._seconds(products, self.width)
            if self.seconds[part] > _SLOW:
                self._seconds(products, NARROW)

    def _seconds(self, products: MeshProducts, width: int) -> float:
        """Return the time of a product of a block, after compilation."""
        space = MeshSpace(self.flat, self.placement, width=width)
        rows = space.drawn(width)
        space.less(rows, space.gram(rows, rows), space.combined(np.eye(width), rows))
        products.program(width)
        begun = time.monotonic()
        jax.block_until_ready(products.rows(rows).blocks)
        return time.monotonic() - begun

    def space(self, noise: float, width: int) -> MeshSpace:
        """Return the space of rows, with narrow blocks if these are asked for."""
        return MeshSpace(self.flat, self.placement, width=min(width, self.width))

    def rows(
        self, part: str, point: Point, deltas: Sequence[np.ndarray], *, double: bool = False
    ) -> tuple[Product, float]:
        """Return the product of rows with one part at this point, and its relative error.

        Args:
          part: "H_L", "H_o" or "H_f".
          point: the point.
          deltas: the residuals that the part takes.
          double: has no effect: the products are in the problem's precision.
        """
        eps = self.flat.precision.eps
        noise = NOISE_OF_DOUBLE if eps <= DOUBLE.eps else NOISE_FACTOR * eps
        return self._products(part, point, deltas[0] if deltas else None).rows, noise

    def _products(
        self, part: str, point: Point, delta: Float[np.ndarray, "n k"] | None
    ) -> MeshProducts:
        return MeshProducts.of(self.at(point), part, delta, room=self.memory_limit // 4)

    def zero_blocks(self, point: Point) -> bool:
        """Return whether each leaf's diagonal block of H_f maps a random vector to zero."""
        flat = self.flat
        delta = np.random.default_rng(1).standard_normal((flat.positions, flat.k))
        space, product = self._space_of_tests, self._products("H_f", point, delta).rows
        leaves = len(self._shapes)
        for first in range(0, leaves, self.width):
            own = np.eye(min(self.width, leaves - first), leaves, first)
            images = product(space.within(space.drawn(len(own)), own))
            if np.any(space.norms(space.within(images, own))):
                return False
        return True

    def most_ranks(self, point: Point, cut: float) -> dict[str, int]:
        """Return bounds on the ranks, as `engines.most_ranks` does."""
        weights = self.flat.weights[:, None]

        def seen(delta: Float[np.ndarray, "n k"], rng: np.random.Generator) -> "_SeenOnMesh":
            cotangents = np.stack([weights * (o * delta) for o in combinations(self.flat)])
            return _SeenOnMesh(
                self,
                self._products("H_f", point, delta).rows,
                self._gradients(self.at(point), cotangents),
            )

        return most_ranks_of(point, cut, seen)

    def _gradients(self, point: MeshPoint, cotangents: Float[np.ndarray, "m n k"]) -> MeshRows:
        """Return (dF/dtheta)^T u for some u, as rows."""
        flat, placement = self.flat, self.placement
        key = ("mesh gradients", placement)
        if key not in flat.memo:

            def gradients(theta: Any, fixed: Any, inputs: Any, us: Any) -> Any:
                one: Callable[..., Any] = lambda u: weighted_gradient(  # noqa: E731
                    flat, theta, fixed, inputs, u
                )
                return jax.lax.map(one, us)

            flat.memo[key] = jax.jit(gradients, out_shardings=row_shardings(flat, placement))
        with placement.scope(flat.precision):
            us = cotangents.astype(flat.dtype)
            block = placement.settled(flat.memo[key](point.theta, point.fixed, point.data[0], us))
        return MeshRows((block,), (len(us),))

    @property
    def _space_of_tests(self) -> MeshSpace:
        return MeshSpace(self.flat, self.placement, width=self.width, seed=1)

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [spec.shape for spec in self.flat.specs if spec.differentiated]


@dataclass(frozen=True)
class _SeenOnMesh:
    """The images and gradients from which a rank is bounded: one leaf at a time on the host."""

    products: MeshPartProducts
    product: Product
    gradient_rows: MeshRows

    @cached_property
    def _space(self) -> MeshSpace:
        return self.products._space_of_tests

    @cached_property
    def _images(self) -> MeshRows:
        return self.product(self._space.drawn(GRADIENTS))

    def is_finite(self) -> bool:
        """Return whether all entries are finite."""
        gradients = [self._space.norms(self.gradient_rows), self._space.norms(self._images)]
        return bool(np.all(np.isfinite(gradients)))

    def images(self, leaf: int) -> Float[np.ndarray, "m s"]:
        """Return the images' entries at one leaf with entries."""
        return self._at(self._images, leaf)

    def gradients(self, leaf: int) -> Float[np.ndarray, "m s"]:
        """Return the gradients' entries at one leaf with entries."""
        return self._at(self.gradient_rows, leaf)

    def block_norms(self, leaf: int) -> Float[np.ndarray, " m"]:
        """Return the norms of images of random vectors under a leaf's diagonal block."""
        space = self._space
        own = np.tile(np.eye(len(self.products._shapes))[self._places[leaf]], (GRADIENTS, 1))
        images = self.product(space.within(space.drawn(GRADIENTS), own))
        return space.norms(space.within(images, own))

    @cached_property
    def _places(self) -> list[int]:
        """The indices of the leaves that have entries."""
        return [i for i, shape in enumerate(self.products._shapes) if math.prod(shape)]

    def _at(self, rows: MeshRows, leaf: int) -> Float[np.ndarray, "m s"]:
        ((block,), (count,)) = rows.blocks, rows.counts
        return np.asarray(block[self._places[leaf]], np.float64)[:count].reshape(count, -1)
