"""The Hessian's parts at sharded parameters, with vectors that stay on the parameters' mesh."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from rankmon._util.arrays import check_concrete
from rankmon._util.compile import temporary_bytes
from rankmon.engines.base import differentiated_twice
from rankmon.hessian.mesh_products import MeshProducts
from rankmon.problem.flat import FlatProblem
from rankmon.problem.mesh_point import MeshPoint
from rankmon.problem.placement import Placement
from rankmon.problem.point import checked
from rankmon.problem.problem import Problem


@dataclass(frozen=True, eq=False)
class MeshOperator:
    """One part of the Hessian at sharded parameters, as a symmetric linear operator.

    Vectors are pytrees like the parameters. Each leaf is sharded like its parameter, in float64
    if the network can be traced in it; compute with them under `jax.enable_x64(True)`.

    Attributes:
      part: "H_L", "H_o", "H_f" or "H_f_fixed".
    """

    part: str
    _products: MeshProducts

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        p = self._products.flat.p
        return p, p

    @property
    def sharding(self) -> Any:
        """The sharding of each leaf of a vector, as a pytree like the parameters."""
        flat, placement = self._products.flat, self._products.placement
        return jax.tree.unflatten(flat.structure, placement.leaves)

    @property
    def temporary_bytes(self) -> int:
        """The bytes of temporary memory that a product takes on each device, by the compiler."""
        return temporary_bytes(self._products.program())

    def matvec(self, v: Any) -> Any:
        """Return the product with a vector; both are pytrees like the parameters.

        Leaves held fixed are ignored in v, and None in the product.

        Raises:
          ValueError: if the structure or a shape is not that of the parameters.
        """
        flat, placement = self._products.flat, self._products.placement
        moving = placement.settled(leaves_of(flat, v))
        return tree_of(flat, placement.settled(self._products.mv(moving)))

    def __matmul__(self, other: Any) -> Any:
        return self.matvec(other)


def leaves_of(flat: FlatProblem, v: Any) -> list[Any]:
    """Return the differentiated leaves of a vector, a pytree like the parameters.

    Raises:
      TypeError: for arrays that JAX is tracing.
      ValueError: if the structure or a shape is not that of the parameters.
    """
    tree = flat.problem.unpack(v)
    check_concrete("a vector to be multiplied", tree)
    try:
        leaves = flat.structure.flatten_up_to(tree)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected a vector as a pytree like the parameters, {flat.structure}, got "
            f"{jax.tree.structure(tree)}; make one by jax.tree.map over the parameters"
        ) from error
    moving = [x for x, s in zip(leaves, flat.specs, strict=True) if s.differentiated]
    shapes = [getattr(x, "shape", None) for x in moving]
    known = [spec.shape for spec in flat.specs if spec.differentiated]
    if shapes != known:
        raise ValueError(
            f"expected a vector with leaves of shapes {known}, got {shapes}; make one by "
            "jax.tree.map over the parameters"
        )
    return moving


def tree_of(flat: FlatProblem, moving: Iterable[Any]) -> Any:
    """Return a vector as a pytree like the parameters, with None for leaves held fixed."""
    found = iter(moving)
    leaves = [next(found) if spec.differentiated else None for spec in flat.specs]
    return jax.tree.unflatten(flat.structure, leaves)


def mesh_operator(
    problem: Problem,
    params: Any,
    part: str,
    reference: Float[np.ndarray, "n k"] | None,
    memory_limit: int,
    mesh: Mesh,
    batch_spec: PartitionSpec | None,
) -> MeshOperator:
    """Return a part of the loss Hessian at sharded parameters; arguments as `hessian_operator`."""
    tree = problem.unpack(params)
    check_concrete("parameters to be measured", tree)
    flat, reference = checked(problem, params, reference)
    leaves = jax.tree.leaves(tree)
    placement = Placement.of(leaves, problem.n, mesh, batch_spec)
    held = reference if part == "H_f_fixed" else None
    kind = "H_f" if part == "H_f_fixed" else part
    with differentiated_twice():
        point = MeshPoint.copied(flat, leaves, placement)
        products = MeshProducts.of(point, kind, held, room=memory_limit)
        products.program()  # compiled here, so that errors come before the products
    flat.warn_once()
    return MeshOperator(part, products)
