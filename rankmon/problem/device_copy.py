"""Copies on the devices of parameters and optimizers, valid when the originals are donated.

Copies are dispatched without waiting for them and without compiling anything. They keep dtype and
sharding.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from rankmon._util.distributed import gathered
from rankmon.problem.flat import FlatProblem
from rankmon.problem.optimizer import Optimizer, without_variables
from rankmon.problem.point import Snapshot


def copies(leaves: Sequence[Any]) -> list[Any]:
    """Return copies of jax.Arrays on their devices, and of anything else on the host."""
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    with jax.transfer_guard("allow"):
        shardings = [array.sharding for array in arrays]
        # An alias would share the buffer, which a donation of the original deletes.
        copied = iter(jax.device_put(arrays, shardings, may_alias=False))
    return [next(copied) if isinstance(leaf, jax.Array) else np.array(leaf) for leaf in leaves]


def copied_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer with a copy of its state; the reason, if it cannot be copied."""
    try:
        leaves, structure = jax.tree.flatten(gathered(without_variables(optimizer.state)))
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]
        for place, copy in zip(places, copies([leaves[i] for i in places]), strict=True):
            leaves[place] = copy
        return replace(optimizer, state=jax.tree.unflatten(structure, leaves))
    except Exception as error:  # noqa: BLE001  other measurements do not depend on the optimizer
        text = (str(error).strip().splitlines() or [""])[0][:200]
        return replace(optimizer, state=None, unreadable=f"{type(error).__name__}: {text}")


@dataclass(frozen=True, eq=False)
class DeviceCopy:
    """The parameters at one step, which any thread can later copy to the host.

    Attributes:
      flat: the problem of these parameters.
      step: the training step.
      leaves: copies of all parameter leaves.
      optimizer: the optimizer with a copy of its state, if a probe wants it.
    """

    flat: FlatProblem
    step: int
    leaves: list[Any]
    optimizer: Optimizer | None = None

    @classmethod
    def take(
        cls, flat: FlatProblem, step: int, params: Any, optimizer: Optimizer | None = None
    ) -> "DeviceCopy":
        """Copy the parameters, so that the training loop may change them.

        Args:
          flat: the problem of these parameters.
          step: the training step.
          params: the parameters.
          optimizer: the optimizer with a copy of its state, if a probe wants it.

        Raises:
          ValueError: if the structure, a shape or a dtype has changed.
        """
        leaves, structure = jax.tree.flatten(params)
        if structure != flat.structure or not _fit(leaves, flat):
            flat.leaves(params)  # raises an error that names the differences
        return cls(flat, step, copies(leaves), optimizer)

    def wait(self) -> None:
        """Wait until the devices have finished the copies or failed."""
        with suppress(Exception):  # `snapshot` raises it again
            jax.block_until_ready((self.leaves, self.optimizer and self.optimizer.state))

    def snapshot(self) -> Snapshot:
        """Return the parameters on the host."""
        return Snapshot.of_leaves(self.flat, self.step, self.leaves, self.optimizer)


def _fit(leaves: Sequence[Any], flat: FlatProblem) -> bool:
    return all(
        np.shape(leaf) == spec.shape and getattr(leaf, "dtype", None) == spec.dtype
        for leaf, spec in zip(leaves, flat.specs, strict=True)
    )
