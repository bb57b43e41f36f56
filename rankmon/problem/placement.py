"""The place of a problem's arrays on a mesh: its parameters as they lie, its batch by examples.

Each mesh axis splits either parameters or examples. An axis that splits both would make the
compiler gather weights, and keep them all from the forward to the backward pass: on eight devices
more memory than on one. Without that, only activations move.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import Precision


@dataclass(frozen=True)
class Placement:
    """The shardings of a problem's arrays.

    Attributes:
      mesh: the devices; the compiler partitions programs over all of its axes.
      leaves: the sharding of each parameter leaf.
      batch: the sharding of arrays whose first axis counts examples or positions.
    """

    mesh: Mesh
    leaves: tuple[NamedSharding, ...]
    batch: NamedSharding

    @classmethod
    def of(
        cls, leaves: Sequence[Any], n: int, mesh: Mesh, batch_spec: PartitionSpec | None
    ) -> "Placement":
        """Return the placement of parameters that keep their shardings on this mesh.

        Args:
          leaves: the parameter leaves; those without a `NamedSharding` are replicated.
          n: the number of examples.
          mesh: the mesh on which they lie.
          batch_spec: the mesh axes over which the examples are split; by default those that split
            no parameter, as far as their sizes together divide n.

        Raises:
          TypeError, ValueError: if the mesh, a sharding or batch_spec does not fit.
        """
        if not isinstance(mesh, Mesh):
            raise TypeError(
                f"expected mesh to be a jax.sharding.Mesh, got {type(mesh).__name__}; pass the "
                "mesh of the parameters' NamedSharding"
            )
        if all(d.process_index != jax.process_index() for d in mesh.devices.flat):
            raise ValueError(
                "expected a mesh with devices of this process, got one of other processes; call "
                "this only in processes that hold a part of the parameters"
            )
        # Explicit axes would demand shardings of every operation in the network.
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
        placed = tuple(NamedSharding(mesh, _spec(leaf, mesh)) for leaf in leaves)
        taken = {axis for sharding in placed for part in sharding.spec for axis in _names(part)}
        axes = _free_axes(mesh, n, taken) if batch_spec is None else _axes_of(batch_spec, mesh, n)
        return cls(mesh, placed, NamedSharding(mesh, PartitionSpec(axes or None)))

    @contextmanager
    def scope(self, precision: Precision) -> Iterator[None]:
        """Enter the mesh, and JAX's settings for a precision."""
        with precision.scope(), jax.set_mesh(self.mesh):
            yield

    def moving(self, flat: FlatProblem) -> tuple[NamedSharding, ...]:
        """Return the shardings of the differentiated leaves."""
        pairs = zip(self.leaves, flat.specs, strict=True)
        return tuple(sharding for sharding, spec in pairs if spec.differentiated)

    def settled(self, arrays: Any) -> Any:
        """Return arrays; on host devices, wait until they are computed.

        Host devices share few threads, so that collectives of two programs at a time may wait for
        each other until XLA ends the process.
        """
        on_host = self.mesh.devices.flat[0].platform == "cpu"
        return jax.block_until_ready(arrays) if on_host else arrays

    def most_entries(self, flat: FlatProblem) -> int:
        """Return the entries of a vector on each device."""
        shapes = [spec.shape for spec in flat.specs if spec.differentiated]
        pairs = zip(self.moving(flat), shapes, strict=True)
        return sum(math.prod(sharding.shard_shape(shape)) for sharding, shape in pairs)


def _spec(leaf: Any, mesh: Mesh) -> PartitionSpec:
    """Return the partition of a leaf, which its own sharding names."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        if sharding is not None and len(sharding.device_set) > 1:
            raise ValueError(
                f"expected parameters with a NamedSharding, got a {type(sharding).__name__} over "
                f"{len(sharding.device_set)} devices; place them by jax.device_put"
            )
        return PartitionSpec()
    own = dict(sharding.mesh.shape)
    if own != dict(mesh.shape) or sharding.device_set != set(mesh.devices.flat):
        raise ValueError(
            f"expected parameters on the mesh {dict(mesh.shape)}, got a leaf on {own}; pass the "
            "mesh on which they lie, or move them by jax.device_put"
        )
    return sharding.spec


def _names(part: Any) -> tuple[str, ...]:
    """Return the mesh axes in one entry of a `PartitionSpec`."""
    return (part,) if isinstance(part, str) else tuple(part) if isinstance(part, tuple) else ()


def _free_axes(mesh: Mesh, n: int, taken: set[str]) -> tuple[str, ...]:
    """Return mesh axes that split no parameter and whose sizes together divide n."""
    sizes = dict(mesh.shape)
    axes: tuple[str, ...] = ()
    for name in mesh.axis_names:
        if name not in taken and n % math.prod(sizes[axis] for axis in (*axes, name)) == 0:
            axes = (*axes, name)
    return axes


def _axes_of(spec: PartitionSpec, mesh: Mesh, n: int) -> tuple[str, ...]:
    """Return the mesh axes that the user splits the examples over."""
    sizes = dict(mesh.shape)
    if not isinstance(spec, PartitionSpec) or len(spec) > 1:
        raise TypeError(
            f"expected batch_spec to be a PartitionSpec of the examples' axis, got {spec!r}; pass "
            f"PartitionSpec({mesh.axis_names[0]!r})"
        )
    axes = _names(spec[0]) if len(spec) else ()
    unknown = [axis for axis in axes if axis not in sizes]
    if unknown or n % math.prod(sizes[axis] for axis in axes):
        raise ValueError(
            f"expected batch_spec to name axes of the mesh {sizes} whose sizes divide the n = {n} "
            f"examples, got {spec}; choose other axes, or PartitionSpec() for the whole batch on "
            "every device"
        )
    return axes
