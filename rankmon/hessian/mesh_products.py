"""Products with a part of the Hessian on a mesh, with vectors sharded like the parameters.

theta and v are tuples of leaves, each with its own shape and sharding: one vector in R^p would have
to be gathered. The compiler partitions the program and inserts its collectives.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.compile import temporary_bytes
from rankmon._util.expected_time import compiled
from rankmon._util.text import bytes_text
from rankmon.hessian.gauss_newton import outer_product
from rankmon.hessian.operators import functional_product, loss_product
from rankmon.problem.flat import FlatProblem
from rankmon.problem.placement import Placement

Leaves = tuple[Array, ...]


@dataclass(frozen=True)
class MeshProducts:
    """A part of the Hessian at sharded parameters.

    Attributes:
      flat: the problem.
      placement: the shardings.
      program: the compiled product of one vector.
      known: all of its arguments but the vector.
    """

    flat: FlatProblem
    placement: Placement
    program: Any
    known: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        flat: FlatProblem,
        placement: Placement,
        leaves: Sequence[Any],
        part: str,
        held: Float[np.ndarray, "n k"] | None,
        *,
        room: int,
    ) -> "MeshProducts":
        """Return the products at these parameters, of which copies are taken.

        Args:
          flat: the problem.
          placement: the shardings.
          leaves: all parameter leaves, on their devices.
          part: "H_L", "H_o" or "H_f".
          held: the residuals to hold; by default those at these parameters.
          room: bytes of temporary memory of a product on each device.

        Raises:
          MemoryError: if a product does not fit.
        """
        batch = placement.batch
        with _scope(flat, placement):
            # Copies, because training may donate the originals.
            stored = jax.device_put(list(leaves), list(placement.leaves), may_alias=False)
            lifted = jax.jit(flat.lifted, out_shardings=list(placement.leaves))(stored)
            theta, fixed = _parted(flat, lifted)
            data = jax.device_put((flat.inputs, flat.targets, flat.typed_weights), batch)
            known: tuple[Any, ...] = (theta, fixed, *data)
            if part != "H_o":
                known += (_weighted(flat, batch, known, held),)
            program = _compiled(flat, placement, part, known)
        need = temporary_bytes(program)
        if need > room:
            raise MemoryError(
                f"expected a product with {part} to fit in memory_limit = {bytes_text(room)} on "
                f"each device, got {bytes_text(need)}; raise memory_limit, or take a smaller probe "
                "batch"
            )
        return cls(flat, placement, program, known)

    def mv(self, v: Sequence[Any]) -> Leaves:
        """Return the product with a vector, given and returned by the differentiated leaves."""
        flat, shardings = self.flat, _moving(self.flat, self.placement.leaves)
        with _scope(flat, self.placement):
            placed = jax.device_put(tuple(v), shardings)
            typed = tuple(x.astype(t.dtype) for x, t in zip(placed, self.known[0], strict=True))
            return self.program(*self.known, jax.device_put(typed, shardings))


@contextmanager
def _scope(flat: FlatProblem, placement: Placement) -> Iterator[None]:
    with flat.precision.scope(), jax.set_mesh(placement.mesh):
        yield


def _moving(flat: FlatProblem, leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Return the entries of the differentiated leaves."""
    return tuple(x for x, s in zip(leaves, flat.specs, strict=True) if s.differentiated)


def _parted(flat: FlatProblem, leaves: Sequence[Any]) -> tuple[Leaves, Leaves]:
    """Return the differentiated leaves and those held fixed."""
    fixed = tuple(x for x, s in zip(leaves, flat.specs, strict=True) if not s.differentiated)
    return _moving(flat, leaves), fixed


def _weighted(
    flat: FlatProblem, batch: Any, known: tuple[Any, ...], held: Float[np.ndarray, "n k"] | None
) -> Float[Array, "n k"]:
    """Return the residuals times the weights of the mean, split over the examples."""
    if held is not None:
        return jax.device_put((flat.weights[:, None] * held).astype(flat.dtype), batch)

    def weighted(theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any) -> Any:
        delta = jax.vmap(flat.problem.loss.residual)(flat.outputs(theta, fixed, inputs), targets)
        counted = weights[:, None] > 0  # 0 times the NaN of a masked position would be NaN
        return (weights[:, None] * jnp.where(counted, delta, 0.0)).astype(flat.dtype)

    return jax.jit(weighted, out_shardings=batch)(*known)


def _compiled(
    flat: FlatProblem, placement: Placement, part: str, known: tuple[Any, ...]
) -> Callable[..., Any]:
    """Return the program of a part, compiled once for each placement."""
    key = ("mesh product", part, placement)
    if key not in flat.memo:
        parts: dict[str, Callable[..., Any]] = {
            "H_L": loss_product,
            "H_o": outer_product,
            "H_f": _functional,
        }
        product = jax.jit(partial(parts[part], flat), out_shardings=_moving(flat, placement.leaves))
        traced = product.trace(*known, known[0])
        flat.memo[key] = compiled(f"a product with {part}", traced, placed=placement)
    return flat.memo[key]


def _functional(
    flat: FlatProblem, theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any, *rest: Any
) -> Any:
    """Return H_f v from the arguments of H_L v."""
    return functional_product(flat, theta, fixed, inputs, *rest)
