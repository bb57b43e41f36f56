"""The optimizer of a training loop: its state at one step, and the update that it would make.

The update is computed from copies (`device_copy`) by a program of its own that donates nothing, so
that training does not change.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rankmon._util.arrays import in_machine_order
from rankmon.problem.equinox_keras import Static, kinds
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import NATIVE
from rankmon.problem.pytree import Bundle

_UPDATE = "optimizer"  # a key of `FlatProblem.memo`


@dataclass(frozen=True, eq=False)
class Optimizer:
    """The optimizer at one step.

    Attributes:
      state: its state, for Optax the `opt_state`.
      transformation: the Optax transformation, if the call passes it in a TrainState.
      unreadable: the reason why there is no state although the call passes one; else empty.
    """

    state: Any
    transformation: Any = None
    unreadable: str = ""

    @classmethod
    def of_call(cls, params: Any, opt_state: Any = None) -> "Optimizer | None":
        """Return the optimizer in the arguments of a call; None if there is none.

        Args:
          params: the parameters, or a TrainState, whose optimizer is used if `opt_state` is None.
          opt_state: the state, or an `nnx.Optimizer`.
        """
        given = opt_state if isinstance(opt_state, kinds("flax.nnx", "Optimizer")) else params
        if opt_state is None or given is opt_state:
            opt_state = getattr(given, "opt_state", None)
        if opt_state is None:
            return None
        return cls(opt_state, getattr(given, "tx", None))


def optimizer_update(
    flat: FlatProblem,
    transformation: Any,
    optimizer: Optimizer | None,
    leaves: Sequence[np.ndarray],
    gradient: Float[np.ndarray, " p"],
) -> list[np.ndarray]:
    """Return the update of each leaf by the optimizer, computed in the dtypes of training.

    Args:
      flat: the problem; the gradient of leaves that it holds fixed counts as zero.
      transformation: the Optax transformation.
      optimizer: a copy of its state at these parameters; None if the call passed none.
      leaves: all leaves, in any precision.
      gradient: the gradient with respect to theta, in any precision.

    Raises:
      Exception: any error of the optimizer, for instance if its state belongs to other parameters.
    """
    if optimizer is None or optimizer.unreadable:
        raise ValueError("no state" if optimizer is None else optimizer.unreadable)
    held = [np.zeros(spec.shape) for spec in flat.specs if not spec.differentiated]
    with np.errstate(over="ignore"):  # the gradient may overflow in training too
        stored, gradients = (
            [np.asarray(x).astype(spec.dtype) for x, spec in zip(side, flat.specs, strict=True)]
            for side in (leaves, flat.joined(gradient, held))
        )
    with NATIVE.scope():
        # On the host, so that the program runs on one device: collective operations of two threads
        # may wait for each other.
        state = jax.tree.map(_on_host, optimizer.state)
        update = _program(flat, transformation)
        arguments = _arguments(flat, update, gradients, state, stored)
        if update.trace(*arguments).jaxpr.effects:
            raise ValueError(
                "it calls back into Python, which must not happen twice at the same step"
            )
        return [np.asarray(leaf) for leaf in jax.tree.leaves(update(*arguments))]


def _on_host(leaf: Any) -> Any:
    """Return a leaf of a state on the host, with its meaning for JAX."""
    if not isinstance(leaf, jax.Array):
        return in_machine_order(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Weakly typed numbers do not determine the dtype of an update.
    return leaf.item() if leaf.weak_type and leaf.ndim == 0 else np.asarray(leaf)


def _program(flat: FlatProblem, transformation: Any) -> Any:
    """Return the update as a jitted function that donates nothing, the same at every step."""
    # The function holds the transformation, so that its id is not used again.
    key = (_UPDATE, id(transformation))
    if key not in flat.memo:

        def update(gradient: Any, state: Any, params: Any) -> Any:
            return transformation.update(gradient, state, params)[0]

        flat.memo[key] = jax.jit(update)
    return flat.memo[key]


def _arguments(
    flat: FlatProblem,
    update: Any,
    gradients: list[np.ndarray],
    state: Any,
    stored: list[np.ndarray],
) -> tuple[Any, Any, Any]:
    """Return the arguments of the update in the form of the trees for which the state was made.

    Raises:
      Exception: the first error of the optimizer, if it accepts none of them.
    """
    errors = []
    for tree_of in _forms(flat):
        arguments = (tree_of(gradients), state, tree_of(stored))
        try:
            made = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(update, *arguments))]
            if made != [spec.shape for spec in flat.specs[: len(jax.tree.leaves(arguments[2]))]]:
                raise ValueError("its update does not have the parameters' shapes")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  an optimizer may raise any error
            errors.append(error)
        else:
            return arguments
    raise errors[0]


def _forms(flat: FlatProblem) -> Iterator[Callable[[Sequence[Any]], Any]]:
    """Yield the ways in which training loops pass these leaves to an optimizer, as functions."""

    def plain(leaves: Sequence[Any]) -> Any:
        tree = jax.tree.unflatten(flat.structure, leaves)
        tree = without_variables(tree.params if isinstance(tree, Bundle) else tree)
        # As `equinox.filter(model, equinox.is_array)`.
        return jax.tree.map(
            lambda node: None if isinstance(node, Static) else node,
            tree,
            is_leaf=lambda node: isinstance(node, Static),
        )

    yield plain
    yield lambda leaves: {"params": plain(leaves)}  # variables of Linen


def without_variables(tree: Any) -> Any:
    """Return the tree with the arrays of NNX variables in their places."""
    variables = kinds("flax.nnx", "Variable")

    def is_one(node: Any) -> bool:
        return isinstance(node, variables)

    def array_of(node: Any) -> Any:
        return jax.tree.leaves(node)[0] if is_one(node) and jax.tree.leaves(node) else node

    return jax.tree.map(array_of, tree, is_leaf=is_one) if variables else tree
