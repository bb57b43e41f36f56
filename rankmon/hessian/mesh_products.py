"""Products with a part of the Hessian on a mesh, with vectors sharded like the parameters.

theta and v are tuples of leaves, each with its own shape and sharding: one vector in R^p would have
to be gathered. The compiler partitions the program and inserts its collectives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.compile import temporary_bytes
from rankmon._util.expected_time import compiled
from rankmon._util.text import bytes_text
from rankmon.hessian.gauss_newton import outer_product
from rankmon.hessian.mesh_rows import MeshRows, row_shardings
from rankmon.hessian.operators import functional_product, loss_product
from rankmon.problem.flat import FlatProblem
from rankmon.problem.mesh_point import MeshPoint
from rankmon.problem.placement import Placement
from rankmon.problem.precision import abstract_array

Leaves = tuple[Array, ...]


@dataclass(frozen=True)
class MeshProducts:
    """A part of the Hessian at sharded parameters.

    Attributes:
      point: the parameters.
      part: "H_L", "H_o" or "H_f".
      known: all arguments of the programs but the vectors.
      room: bytes of temporary memory of a product on each device.
    """

    point: MeshPoint
    part: str
    known: tuple[Any, ...]
    room: int

    @classmethod
    def of(
        cls, point: MeshPoint, part: str, held: Float[np.ndarray, "n k"] | None, *, room: int
    ) -> "MeshProducts":
        """Return the products at these parameters.

        Args:
          point: the parameters.
          part: "H_L", "H_o" or "H_f".
          held: the residuals to hold; by default those at these parameters.
          room: bytes of temporary memory of a product on each device.
        """
        known: tuple[Any, ...] = (point.theta, point.fixed, *point.data)
        if part != "H_o":
            known += (point.weighted(point.residuals if held is None else held),)
        return cls(point, part, known, room)

    @property
    def flat(self) -> FlatProblem:
        """The problem."""
        return self.point.flat

    @property
    def placement(self) -> Placement:
        """The shardings."""
        return self.point.placement

    def program(self, width: int | None = None) -> Any:
        """Return the compiled product of one vector, or of a block of so many rows.

        Raises:
          MemoryError: if a product does not fit.
        """
        program = self._compiled(width)
        need = temporary_bytes(program)
        if need > self.room:
            raise MemoryError(
                f"expected a product with {self.part} to fit in memory_limit = "
                f"{bytes_text(self.room)} on each device, got {bytes_text(need)}; raise "
                "memory_limit, or take a smaller probe batch"
            )
        return program

    def mv(self, v: Sequence[Any]) -> Leaves:
        """Return the product with a vector, given and returned by the differentiated leaves."""
        flat, shardings = self.flat, self.placement.moving(self.flat)
        with self.placement.scope(flat.precision):
            placed = jax.device_put(tuple(v), shardings)
            typed = tuple(x.astype(t.dtype) for x, t in zip(placed, self.known[0], strict=True))
            return self.program()(*self.known, jax.device_put(typed, shardings))

    def rows(self, rows: MeshRows) -> MeshRows:
        """Return the products with rows."""
        with self.placement.scope(self.flat.precision):
            placement = self.placement
            products = [
                placement.settled(self.program(len(b[0]))(*self.known, b)) for b in rows.blocks
            ]
        return MeshRows(tuple(products), rows.counts)

    def _compiled(self, width: int | None) -> Any:
        """Return a program, compiled once for each part, placement and width."""
        flat, placement = self.flat, self.placement
        key = ("mesh product", self.part, placement, width)
        if key in flat.memo:
            return flat.memo[key]
        parts: dict[str, Callable[..., Any]] = {
            "H_L": loss_product,
            "H_o": outer_product,
            "H_f": _functional,
        }
        product = partial(parts[self.part], flat)

        def block(*known_and_rows: Any) -> Any:
            *known, rows = known_and_rows
            # One after the other: a device holds the gathered weights of one product.
            return jax.lax.map(lambda v: product(*known, v), rows)

        with placement.scope(flat.precision):
            if width is None:
                jitted = jax.jit(product, out_shardings=placement.moving(flat))
                traced = jitted.trace(*self.known, self.known[0])
            else:
                shardings = row_shardings(flat, placement)
                pairs = zip(self.known[0], shardings, strict=True)
                rows = tuple(
                    abstract_array((width, *x.shape), flat.dtype, sharding=s) for x, s in pairs
                )
                traced = jax.jit(block, out_shardings=shardings).trace(*self.known, rows)
            flat.memo[key] = compiled(f"a product with {self.part}", traced, placed=placement)
        return flat.memo[key]


def _functional(
    flat: FlatProblem, theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any, *rest: Any
) -> Any:
    """Return H_f v from the arguments of H_L v."""
    return functional_product(flat, theta, fixed, inputs, *rest)
