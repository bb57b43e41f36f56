"""The Jacobian of the network's outputs at sharded parameters, as a linear operator."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rankmon._util.arrays import check_concrete
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.hessian.mesh_jacobian import MeshJacobianProducts
from rankmon.measure.mesh_operator import leaves_of, tree_of
from rankmon.problem.mesh_point import MeshPoint
from rankmon.problem.placement import Placement
from rankmon.problem.point import checked
from rankmon.problem.problem import Problem


@dataclass(frozen=True, eq=False)
class MeshJacobian:
    """The Jacobian J = dF/dtheta of all outputs at sharded parameters, a linear operator.

    Vectors v of parameters are pytrees like the parameters, each leaf sharded like its parameter;
    arrays u of outputs are [N, k], one row for each position, sharded over the examples. Both are
    in float64 if the network can be traced in it; compute with them under `jax.enable_x64(True)`.
    """

    _products: MeshJacobianProducts

    @property
    def shape(self) -> tuple[int, int]:
        """(N k, p)."""
        flat = self._products.flat
        return flat.positions * flat.k, flat.p

    @property
    def sharding(self) -> Any:
        """The sharding of each leaf of a vector v, as a pytree like the parameters."""
        flat, placement = self._products.flat, self._products.placement
        return jax.tree.unflatten(flat.structure, placement.leaves)

    @property
    def output_sharding(self) -> NamedSharding:
        """The sharding of arrays u."""
        return self._products.placement.batch

    def matvec(self, v: Any) -> Float[Array, "N k"]:
        """Return J v, [N, k], for a pytree like the parameters; leaves held fixed are ignored.

        Raises:
          ValueError: if the structure or a shape is not that of the parameters.
        """
        flat, placement = self._products.flat, self._products.placement
        moving = placement.settled(leaves_of(flat, v))
        product: Float[Array, "N k"] = placement.settled(self._products.mv(moving))
        return product

    def rmatvec(self, u: Float[Array, "N k"] | Float[np.ndarray, "N k"]) -> Any:
        """Return J^T u as a pytree like the parameters, with None for leaves held fixed.

        Raises:
          ValueError: if u does not have the shape [N, k].
        """
        flat = self._products.flat
        check_concrete("outputs to be multiplied", u)
        u = u if isinstance(u, jax.Array) else np.asarray(u)
        if u.shape != (flat.positions, flat.k) or np.issubdtype(u.dtype, np.complexfloating):
            raise ValueError(
                f"expected real outputs u of shape {(flat.positions, flat.k)}, got {u.shape} of "
                f"{u.dtype}; pass one row for each position, as `matvec` returns"
            )
        placement = self._products.placement
        return tree_of(flat, placement.settled(self._products.rmv(placement.settled(u))))

    def __matmul__(self, other: Any) -> Float[Array, "N k"]:
        return self.matvec(other)


def jacobian_operator(
    problem: Problem,
    params: Any,
    *,
    mesh: Mesh,
    batch_spec: PartitionSpec | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> MeshJacobian:
    """Return the Jacobian of the outputs at sharded parameters as a linear operator.

    J = dF/dtheta has one row for each output of each position of the probe batch, in float64. With
    products alone, no device holds J, or all of the parameters. J J^T is `ntk_gram`.

    Args:
      problem: network and probe batch; its loss, targets and weights do not enter.
      params: the parameters, any pytree of arrays.
      mesh: the mesh on which the parameters lie; a mesh of one device is one too.
      batch_spec: the axes over which the examples are split; by default those that split no
        parameter, as far as they divide n. Axes that split both make devices gather weights.
      memory_limit: bytes of temporary memory of a product, on each device.

    Returns:
      An operator with `shape`, `matvec` and `rmatvec`; its products are NaN if the weights or the
      network's derivatives are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if a product does not fit in memory_limit.

    Example:
      >>> import jax, numpy as np, rankmon
      >>> x, y = np.eye(3, 4), np.ones((3, 2))
      >>> problem = rankmon.Problem(lambda W, x: x @ W, loss="mse", inputs=x, targets=y)
      >>> mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
      >>> J = rankmon.jacobian_operator(problem, np.ones((4, 2)), mesh=mesh)
      >>> np.asarray(J.matvec(np.arange(8.0).reshape(4, 2)))
      array([[0., 1.],
             [2., 3.],
             [4., 5.]])

    Source: arXiv 2106.16225, section 3.
    """
    tree = problem.unpack(params)
    check_concrete("parameters to be measured", tree)
    flat, _ = checked(problem, params, None)
    leaves = jax.tree.leaves(tree)
    placement = Placement.of(leaves, problem.n, mesh, batch_spec)
    point = MeshPoint.copied(flat, leaves, placement)
    products = MeshJacobianProducts.of(point, room=memory_limit)
    flat.warn_once()
    return MeshJacobian(products)
