"""dF/dtheta of a stack of dense layers, and the arrays of a batch that it is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from rankmon.network.dense_stack import DenseStack
from rankmon.network.layer_states import LayerStates, layer_states
from rankmon.problem.flat import FlatProblem


class StackJacobian:
    """dF/dtheta of one recognized stack on its probe batch, in the parameter order; compiled once.

    Args:
      flat: the problem.
      stack: what `recognized_stack` found in it.

    Raises:
      ValueError: where an activation has a backward rule of its own.
    """

    def __init__(self, flat: FlatProblem, stack: DenseStack) -> None:
        self._flat, self._stack = flat, stack
        self._states = layer_states(flat, stack)

    def __call__(self, leaves: Sequence[np.ndarray]) -> Float[np.ndarray, "n k p"]:
        """The Jacobian at these leaves, in float64."""
        flat, stack = self._flat, self._stack
        batch = Batch(stack.weights(leaves), has_bias(stack), self._states(leaves))
        J = np.empty((flat.positions, flat.k, flat.p))
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
            J[:, :, parameter_places(flat, stack)] = batch.weighted_jacobian(lambda J: J)
        return J


def parameter_places(flat: FlatProblem, stack: DenseStack) -> Int[np.ndarray, " p"]:
    """The place in theta of each entry of [W^1 b^1], ..., [W^L b^L]."""
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


def has_bias(stack: DenseStack) -> list[bool]:
    return [layer.bias is not None for layer in stack.layers]


@dataclass(frozen=True)
class Batch:
    """A chunk of the examples: kernels W^l, whether each has a bias, and the layers' states."""

    kernels: Sequence[Float[np.ndarray, "_out _in"]]
    constant: Sequence[bool]
    states: LayerStates

    @cached_property
    def received(self) -> list[Float[np.ndarray, "n _c"]]:
        """h^{l-1}, with a last entry 1 where layer l has a bias."""
        return [
            np.concatenate([h, np.ones((len(h), 1))], axis=1) if one else h
            for h, one in zip(self.states.received, self.constant, strict=True)
        ]

    @cached_property
    def passed(self) -> dict[tuple[int, int], Float[np.ndarray, "n _to _from"]]:
        """dz^m/dz^l by (m, l), l < m."""
        found = {}
        for at, slope in enumerate(self.states.slopes[:-1]):
            found[at + 1, at] = self.kernels[at + 1] * slope[:, None, :]
            for m in range(at + 1, len(self.kernels) - 1):
                scaled = self.states.slopes[m][:, :, None] * found[m, at]
                found[m + 1, at] = self.kernels[m + 1] @ scaled
        return found

    def activated(self, m: int, at: int) -> Float[np.ndarray, "n to from"]:
        """dh^m/dz^l, l <= m."""
        slope = self.states.slopes[m]
        if m == at:
            return slope[:, :, None] * np.eye(slope.shape[1])
        return slope[:, :, None] * self.passed[m, at]

    @cached_property
    def jacobians(self) -> list[Float[np.ndarray, "n k _out"]]:
        """J_l."""
        slopes = self.states.slopes
        J = [slopes[-1][:, :, None] * np.eye(slopes[-1].shape[1])]
        for W, slope in zip(self.kernels[:0:-1], slopes[-2::-1], strict=True):
            J.append(J[-1] @ W * slope[:, None, :])
        return J[::-1]

    def backward(
        self, weighted: Float[np.ndarray, "n k"]
    ) -> tuple[list[Float[np.ndarray, "n _out"]], list[Float[np.ndarray, "n _out"]]]:
        """e^1, ..., e^L and g^1, ..., g^L."""
        e, g = [weighted], [weighted * self.states.slopes[-1]]
        for W, slope in zip(self.kernels[:0:-1], self.states.slopes[-2::-1], strict=True):
            e.append(g[-1] @ W)
            g.append(e[-1] * slope)
        return e[::-1], g[::-1]

    def add_outer(self, blocks: "Blocks", curved: Callable[[np.ndarray], np.ndarray]) -> None:
        """Adds these examples' share of H_o, on and above the block diagonal; curved is w B."""
        J = self.jacobians
        for k in range(len(J)):
            right = curved(J[k])
            for at in range(k + 1):
                self._add_curved(blocks, at, k, J[at].transpose(0, 2, 1) @ right)

    def add_functional(self, blocks: "Blocks", weighted: Float[np.ndarray, "n k"]) -> None:
        """Adds these examples' share of H_f, on and above the block diagonal."""
        e, g = self.backward(weighted)
        for k in range(len(g)):
            for at in range(k):
                D = self.activated(k - 1, at)
                self._add_straight(blocks, at, k, D, g[k])
        bent = [bend * e_m for bend, e_m in zip(self.states.bends, e, strict=True)]
        if not any(np.any(c) for c in bent):
            return
        for k in range(len(g)):
            for at in range(k + 1):
                self._add_curved(blocks, at, k, self._bent(at, k, bent))

    def _bent(
        self, at: int, k: int, bent: Sequence[Float[np.ndarray, "n _out"]]
    ) -> Float[np.ndarray, "n _out _in"]:
        """A_{lk}."""
        own = bent[k]
        if at == k:
            A = own[:, :, None] * np.eye(own.shape[1])
        else:
            A = self.passed[k, at].transpose(0, 2, 1) * own[:, None, :]
        for m in range(k + 1, len(bent)):
            left = self.passed[m, at].transpose(0, 2, 1) * bent[m][:, None, :]
            A += left @ self.passed[m, k]
        return A

    def _add_straight(
        self,
        blocks: "Blocks",
        at: int,
        k: int,
        D: Float[np.ndarray, "n b c"],
        g: Float[np.ndarray, "n a"],
    ) -> None:
        """sum_i h_e D_bc g_a."""
        h = self.received[at]
        eabc = outer_products(h, g).T @ D.reshape(len(D), -1)
        eabc = eabc.reshape(h.shape[1], g.shape[1], *D.shape[1:])
        blocks[at, k][..., : D.shape[1]] += eabc.transpose(3, 0, 1, 2)

    def _add_curved(self, blocks: "Blocks", at: int, k: int, A: Float[np.ndarray, "n c a"]) -> None:
        """sum_i h_e h_b A_ca."""
        h, h_k = self.received[at], self.received[k]
        caeb = A.reshape(len(A), -1).T @ outer_products(h, h_k)
        caeb = caeb.reshape(*A.shape[1:], h.shape[1], h_k.shape[1])
        blocks[at, k][...] += caeb.transpose(0, 2, 1, 3)

    def weighted_jacobian(
        self, rooted: Callable[[np.ndarray], np.ndarray]
    ) -> Float[np.ndarray, "n r p"]:
        """C_i^T dF_i/dtheta, where w_i B_i = C_i C_i^T and rooted is C^T."""
        rows = []
        for J, h in zip(self.jacobians, self.received, strict=True):
            block = rooted(J)[:, :, :, None] * h[:, None, None, :]
            rows.append(block.reshape(*block.shape[:2], -1))
        return np.concatenate(rows, axis=2)


Blocks = dict[tuple[int, int], Float[np.ndarray, "_out _c _out _c"]]


def layer_spans(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def outer_products(left: Float[np.ndarray, "n a"], right: Float[np.ndarray, "n b"]) -> np.ndarray:
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


def cut_states(states: LayerStates, part: slice) -> LayerStates:
    def cut(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(array[part] for array in arrays)

    return LayerStates(cut(states.received), cut(states.slopes), cut(states.bends))
