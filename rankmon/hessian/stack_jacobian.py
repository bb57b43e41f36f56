"""dF/dtheta of a stack of dense layers, in closed form from the states of its layers.

Symbols, per example: z^l = W^l h^{l-1} (+ b^l), h^l = f_l(z^l), F = h^L; a bias is one more column
of W^l and one more entry 1 of h^{l-1}. With J_l = dF/dz^l,

  J_L = diag(f_L'(z^L)),   J_{l-1} = J_l W^l diag(f_{l-1}'(z^{l-1}))
  dF_c/dW^l_{ab} = (J_l)_{ca} h^{l-1}_b
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from rankmon.network.activations import LayerStates, layer_states
from rankmon.network.recognized_stack import DenseStack
from rankmon.problem.flat import FlatProblem


class StackJacobian:
    """Compute dF/dtheta of a recognized stack on its probe batch, in the parameter order.

    Args:
      flat: the problem.
      stack: its layers, from `recognized_stack`.

    Raises:
      ValueError: if an activation has a custom backward rule.
    """

    def __init__(self, flat: FlatProblem, stack: DenseStack) -> None:
        self._flat, self._stack = flat, stack
        self._states = layer_states(flat, stack)

    def __call__(self, leaves: Sequence[np.ndarray]) -> Float[np.ndarray, "n k p"]:
        """Return the Jacobian at these leaves, in float64."""
        flat, stack = self._flat, self._stack
        batch = StackBatch.at(stack, leaves, self._states(leaves))
        J = np.empty((flat.positions, flat.k, flat.p))
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
            J[:, :, parameter_places(flat, stack)] = batch.weighted_jacobian(lambda J: J)
        return J


def parameter_places(flat: FlatProblem, stack: DenseStack) -> Int[np.ndarray, " p"]:
    """Return the place in theta of each entry of [W^1 b^1], ..., [W^L b^L]."""
    starts = np.cumsum([0, *(spec.size for spec in flat.specs)])
    places = [
        np.arange(start, start + spec.size).reshape(spec.shape)
        for start, spec in zip(starts, flat.specs, strict=False)
    ]
    layers = [
        W if b is None else np.concatenate([W, b[:, None]], axis=1)
        for W, b in zip(stack.weights(places), stack.biases(places), strict=True)
    ]
    return np.concatenate([layer.ravel() for layer in layers])


@dataclass(frozen=True)
class StackBatch:
    """Some examples in a stack of dense layers.

    Attributes:
      kernels: W^1, ..., W^L.
      biased: whether each layer has a bias.
      states: the layers' inputs and their activations' derivatives, for these examples.
    """

    kernels: Sequence[Float[np.ndarray, "_out _in"]]
    biased: Sequence[bool]
    states: LayerStates

    @classmethod
    def at(
        cls, stack: DenseStack, leaves: Sequence[np.ndarray], states: LayerStates
    ) -> "StackBatch":
        """Return the batch with these states, which were computed at these parameters."""
        biased = [layer.bias is not None for layer in stack.layers]
        return cls(stack.weights(leaves), biased, states)

    def part(self, examples: slice) -> "StackBatch":
        """Return the batch of these examples alone."""

        def cut(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
            return tuple(array[examples] for array in arrays)

        states = self.states
        states = LayerStates(cut(states.received), cut(states.slopes), cut(states.bends))
        return StackBatch(self.kernels, self.biased, states)

    @cached_property
    def received(self) -> list[Float[np.ndarray, "n _c"]]:
        """h^{l-1}, with a last entry 1 if layer l has a bias."""
        return [
            np.concatenate([h, np.ones((len(h), 1))], axis=1) if one else h
            for h, one in zip(self.states.received, self.biased, strict=True)
        ]

    @cached_property
    def jacobians(self) -> list[Float[np.ndarray, "n k _out"]]:
        """J_1, ..., J_L."""
        slopes = self.states.slopes
        J = [slopes[-1][:, :, None] * np.eye(slopes[-1].shape[1])]
        for W, slope in zip(self.kernels[:0:-1], slopes[-2::-1], strict=True):
            J.append(J[-1] @ W * slope[:, None, :])
        return J[::-1]

    def weighted_jacobian(
        self, rooted: Callable[[np.ndarray], np.ndarray]
    ) -> Float[np.ndarray, "n r p"]:
        """Return C_i^T dF_i/dtheta, where w_i B_i = C_i C_i^T and `rooted` applies C_i^T."""
        rows = []
        for J, h in zip(self.jacobians, self.received, strict=True):
            block = rooted(J)[:, :, :, None] * h[:, None, None, :]
            rows.append(block.reshape(*block.shape[:2], -1))
        return np.concatenate(rows, axis=2)
