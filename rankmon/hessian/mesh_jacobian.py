"""Products with the Jacobian dF/dtheta and its transpose on a mesh.

Vectors of parameters are sharded like the parameters, vectors of outputs over the examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from rankmon._util.compile import temporary_bytes
from rankmon._util.expected_time import compiled
from rankmon._util.text import bytes_text
from rankmon.hessian.gauss_newton import pushed_forward
from rankmon.hessian.jacobian import weighted_gradient
from rankmon.problem.flat import FlatProblem
from rankmon.problem.mesh_point import MeshPoint
from rankmon.problem.placement import Placement
from rankmon.problem.precision import abstract_array

Leaves = tuple[Float[Array, "..."], ...]


@dataclass(frozen=True)
class MeshJacobianProducts:
    """The Jacobian J of all outputs at sharded parameters.

    Attributes:
      point: the parameters.
      known: the arguments of both programs but the vector.
      forward: the compiled product J v of one vector.
      backward: the compiled product J^T u of one array [N, k].
    """

    point: MeshPoint
    known: tuple[Leaves, tuple[Any, ...], Any]
    forward: Any
    backward: Any

    @classmethod
    def of(cls, point: MeshPoint, *, room: int) -> "MeshJacobianProducts":
        """Return the products at these parameters.

        Args:
          point: the parameters.
          room: bytes of temporary memory of a product on each device.

        Raises:
          MemoryError: if a product does not fit.
        """
        flat, placement = point.flat, point.placement

        def forward(theta: Any, fixed: Any, inputs: Any, v: Any) -> Any:
            z, pull_back = jax.vjp(lambda t: flat.outputs(t, fixed, inputs), theta)
            return pushed_forward(pull_back, z, v).astype(flat.dtype)

        def backward(theta: Any, fixed: Any, inputs: Any, u: Any) -> Any:
            return weighted_gradient(flat, theta, fixed, inputs, u)

        known = point.theta, point.fixed, point.data[0]
        with placement.scope(flat.precision):
            one = abstract_array((flat.positions, flat.k), flat.dtype)
            u = jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=placement.batch)
            ways = (
                ("J v", forward, point.theta, placement.batch),
                ("J^T u", backward, u, placement.moving(flat)),
            )
            programs = [_compiled(flat, placement, known, *way, room=room) for way in ways]
        return cls(point, known, *programs)

    @property
    def flat(self) -> FlatProblem:
        """The problem."""
        return self.point.flat

    @property
    def placement(self) -> Placement:
        """The shardings."""
        return self.point.placement

    def mv(self, v: Sequence[Any]) -> Float[Array, "N k"]:
        """Return J v for a vector given by the differentiated leaves."""
        shardings = self.placement.moving(self.flat)
        with self.placement.scope(self.flat.precision):
            placed = jax.device_put(tuple(v), shardings)
            typed = tuple(x.astype(t.dtype) for x, t in zip(placed, self.known[0], strict=True))
            return self.forward(*self.known, jax.device_put(typed, shardings))

    def rmv(self, u: Any) -> Leaves:
        """Return J^T u for an array [N, k], by the differentiated leaves."""
        batch = self.placement.batch
        with self.placement.scope(self.flat.precision):
            typed = jax.device_put(u, batch).astype(self.flat.dtype)
            product: Leaves = self.backward(*self.known, jax.device_put(typed, batch))
            return product


def _compiled(
    flat: FlatProblem,
    placement: Placement,
    known: tuple[Any, ...],
    what: str,
    product: Callable[..., Any],
    vector: Any,
    out: Any,
    *,
    room: int,
) -> Any:
    """Return the program of a product, compiled once for each placement."""
    key = ("mesh Jacobian", what, placement)
    if key not in flat.memo:
        traced = jax.jit(product, out_shardings=out).trace(*known, vector)
        flat.memo[key] = compiled(f"a product {what}", traced, placed=placement)
    need = temporary_bytes(flat.memo[key])
    if need > room:
        raise MemoryError(
            f"expected a product {what} to fit in memory_limit = {bytes_text(room)} on each "
            f"device, got {bytes_text(need)}; raise memory_limit, or take a smaller probe batch"
        )
    return flat.memo[key]
