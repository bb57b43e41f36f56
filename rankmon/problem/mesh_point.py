"""A problem at sharded parameters, which stay on their devices; residuals come to the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rankmon.problem.flat import FlatProblem
from rankmon.problem.output_hessians import OutputHessians
from rankmon.problem.placement import Placement
from rankmon.problem.point import Point


@dataclass(frozen=True, eq=False)
class MeshPoint(Point):
    """A `Point` whose leaves are on the devices of a mesh.

    Attributes:
      leaves: all parameter leaves on their devices, in the precision of the measurement.
      placement: the shardings.
    """

    leaves: list[Any]
    placement: Placement = field(kw_only=True)

    @classmethod
    def copied(
        cls, flat: FlatProblem, leaves: Sequence[Any], placement: Placement, **given: Any
    ) -> "MeshPoint":
        """Return the point with copies of these leaves, in the precision of the measurement.

        Args:
          flat: the problem.
          leaves: all parameter leaves, on their devices.
          placement: the shardings.
          given: other fields of a `Point`.
        """
        key = ("lifted", placement)
        with placement.scope(flat.precision):
            if key not in flat.memo:
                flat.memo[key] = jax.jit(flat.lifted, out_shardings=list(placement.leaves))
            # Copies, because training may donate the originals.
            stored = jax.device_put(list(leaves), list(placement.leaves), may_alias=False)
            lifted = flat.memo[key](stored)
        return cls(flat, given.pop("step", 0), lifted, placement=placement, **given)

    @classmethod
    def gaussian(cls, flat: FlatProblem, placement: Placement) -> "MeshPoint":
        """Return the point at random parameters, as those of `flat.gaussian_leaves`."""

        def drawn() -> list[Array]:
            key = jax.random.key(1, impl="threefry2x32")
            return [
                jax.random.normal(jax.random.fold_in(key, i), spec.shape, flat.dtype)
                / np.sqrt(max(spec.shape[:-1], default=1) or 1)
                if jnp.issubdtype(spec.dtype, jnp.floating)
                else jnp.zeros(spec.shape, spec.dtype)
                for i, spec in enumerate(flat.specs)
            ]

        with placement.scope(flat.precision), jax.threefry_partitionable(True):
            leaves = jax.jit(drawn, out_shardings=list(placement.leaves))()
        return cls.copied(flat, leaves, placement)

    @cached_property
    def theta(self) -> tuple[Array, ...]:  # type: ignore[override]
        """The differentiated leaves."""
        pairs = zip(self.leaves, self.flat.specs, strict=True)
        return tuple(leaf for leaf, spec in pairs if spec.differentiated)

    @cached_property
    def fixed(self) -> tuple[Array, ...]:  # type: ignore[override]
        """The leaves held fixed."""
        pairs = zip(self.leaves, self.flat.specs, strict=True)
        return tuple(leaf for leaf, spec in pairs if not spec.differentiated)

    @property
    def data(self) -> tuple[Any, Any, Array]:
        """Inputs, targets and weights, split over the examples."""
        flat, key = self.flat, ("data", self.placement)
        if key not in flat.memo:
            with self.placement.scope(flat.precision):
                arrays = flat.inputs, flat.targets, flat.typed_weights
                flat.memo[key] = jax.device_put(arrays, self.placement.batch)
        return flat.memo[key]

    def weighted(self, delta: Float[np.ndarray, "n k"]) -> Float[Array, "n k"]:
        """Return residuals times the weights of the mean, split over the examples."""
        flat = self.flat
        with self.placement.scope(flat.precision):
            weighted = (flat.weights[:, None] * delta).astype(flat.dtype)
            return jax.device_put(weighted, self.placement.batch)

    @cached_property
    def _evaluated(self) -> tuple[Any, ...]:
        """Loss, residuals, data of the output Hessians, and the number of entries not finite."""
        flat = self.flat
        with self.placement.scope(flat.precision):
            return jax.device_get(self._evaluation(self.theta, self.fixed, *self.data))

    @property
    def _evaluation(self) -> Callable[..., Any]:
        flat, key = self.flat, ("mesh evaluation", self.placement)

        def evaluate(theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any) -> Any:
            z, loss = flat.outputs(theta, fixed, inputs), flat.problem.loss
            values = jnp.where(weights > 0, jax.vmap(loss.value)(z, targets), 0.0)
            delta = jax.vmap(loss.residual)(z, targets)
            delta = jnp.where(weights[:, None] > 0, delta, 0.0)
            bad = sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in theta)
            return jnp.sum(weights * values), delta, flat.hessian_data(z, targets), bad

        if key not in flat.memo:
            # On every device: with several processes none has the shards of the others.
            whole = NamedSharding(self.placement.mesh, PartitionSpec())
            flat.memo[key] = jax.jit(evaluate, out_shardings=whole)
        return flat.memo[key]

    @property
    def nonfinite(self) -> int:
        """The number of NaN and infinite entries of the differentiated leaves."""
        return int(self._evaluated[3])

    @property
    def _loss_and_residuals(self) -> tuple[float, Float[np.ndarray, "n k"]]:
        loss, delta, *_ = self._evaluated
        return float(loss), np.array(delta, np.float64)

    @cached_property
    def output_hessians(self) -> OutputHessians:
        """The output Hessians d2l/dz2 at each position, in float64."""
        with self.flat.precision.scope():
            return self.flat.hessians_from(self._evaluated[2])
