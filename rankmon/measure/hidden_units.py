"""Theory of stacks with activations, at the states of their hidden units on the probe batch.

Whether a formula applies is read from values and derivatives on the batch: sigma(z) = sigma'(z) z
and sigma''(z) = 0 at every example that counts, for whatever activation. Only tanh is recognized by
its function, and its values are compared too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from rankmon import theory
from rankmon._util.optional_readers import optionally
from rankmon.linalg.numerical_rank import numerical_rank
from rankmon.linalg.spectrum import singular_values
from rankmon.network.activations import LayerStates, UnsupportedActivationError, layer_states
from rankmon.network.elementwise import found_activations
from rankmon.network.known_activations import Activation
from rankmon.network.recognized_stack import DenseStack, recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point

_ROUNDING = 1e-12  # of z, relative to the norms of the inputs and weights that it comes from
_AGREEMENT = 1e-9  # of tanh, whose factors are determined from values of the program
# Operations of the exact group bound, and entries of output Hessians: both take about a second.
_MOST_WORK, _MOST_EDGES, _MOST_ENTRIES = 2e9, 2e6, 1e7


@dataclass(frozen=True)
class HiddenUnits:
    """A stack of dense layers with activations and a linear last layer.

    Attributes:
      flat: the problem.
      stack: its layers.
      states: the function from the parameter leaves to the states of the layers.
      tanh: the activation of the only hidden layer, if it is c tanh(a z).
    """

    flat: FlatProblem
    stack: DenseStack
    states: Callable[[Sequence[np.ndarray]], LayerStates]
    tanh: Activation | None

    @classmethod
    def of(cls, flat: FlatProblem) -> "HiddenUnits | None":
        """Return the hidden units of a recognized stack with activations; None for others."""
        return optionally(flat.problem, "hidden units", lambda: cls._of(flat), otherwise=None)

    @classmethod
    def _of(cls, flat: FlatProblem) -> "HiddenUnits | None":
        stack = recognized_stack(flat)
        if stack is None or stack.linear or stack.layers[-1].activated or len(stack.layers) < 2:
            return None
        try:
            states = layer_states(flat, stack)
        except UnsupportedActivationError:
            return None
        found = found_activations(flat) if len(stack.layers) == 2 else []
        functions = [one.function for one in found]
        is_tanh = [function.name for function in functions] == ["tanh"]
        return cls(flat, stack, states, functions[0] if is_tanh else None)

    @property
    def is_one_layer(self) -> bool:
        """Whether there is one hidden layer."""
        return len(self.stack.layers) == 2

    @property
    def loss(self) -> str:
        """The loss for `theory`; other losses than cross entropy may depend on all outputs."""
        name = self.flat.problem.loss.name
        return "cross_entropy" if name == "cross_entropy" else "mse"

    def at(self, point: Point) -> "UnitStates | None":
        """Return the states of the units at a point; None if they are not finite."""
        states = self.states(point.leaves)
        found = UnitStates(self, point, states)
        arrays = (*states.received, *states.slopes, *states.bends)
        return found if all(np.all(np.isfinite(array)) for array in arrays) else None


@dataclass(frozen=True)
class UnitStates:
    """The states of hidden units at one point, for the examples of positive weight.

    Attributes:
      units: the network.
      point: the parameters.
      states: of its layers.
    """

    units: HiddenUnits
    point: Point
    states: LayerStates

    @property
    def outer_bound(self) -> int:
        """An upper bound on rank H_o."""
        units, stack = self.units, self.units.stack
        if not units.is_one_layer:
            return self._rescaling_bound
        if not np.all(self._is_scaled(0)):
            return self._of_any_units
        X, S = self._inputs(0), self._counted(self.states.slopes[0])
        (n, d), M = X.shape, S.shape[1]
        exact = M * n * d * min(n, d) <= _MOST_WORK and M * n <= _MOST_EDGES
        return theory.rank_outer_group_bound(
            X,
            S,
            stack.dims[-1],
            features=self._counted(self.states.received[1]),
            output_bias=stack.layers[1].bias is not None,
            loss=units.loss,
            exact=exact,
        )

    @property
    def outer_rank(self) -> int | None:
        """The rank of H_o of one hidden layer of tanh; None if a condition does not hold."""
        tanh, (features, _) = self.units.tanh, self._features
        if tanh is None or not self._is_resolved:
            return None
        Z = self._inputs(0) @ self._rows(0).T
        h, expected = self._counted(self.states.received[1]), tanh(Z.ravel()).reshape(Z.shape)
        is_tanh = np.abs(h - expected).max() <= _AGREEMENT * np.abs(expected).max()
        full = min(len(h), h.shape[1] + (self.units.stack.layers[1].bias is not None))
        return self._of_any_units if is_tanh and features == full and self._is_positive else None

    def functional_values(
        self, residuals: Float[np.ndarray, "n k"]
    ) -> Float[np.ndarray, "units rank"] | None:
        """Return the singular values of each unit's block of H_f, for one piecewise linear layer.

        None for other networks, and if a product overflows.
        """
        if not self.units.is_one_layer or np.any(self._counted(self.states.bends[0])):
            return None
        slopes = self._counted(self.states.slopes[0])
        factors = (self._inputs(0), slopes, self._counted(residuals))
        if not np.isfinite(len(slopes) * np.prod([np.abs(factor).max() for factor in factors])):
            return None
        weights = self.units.flat.weights[self._live]
        return theory.unit_singular_values(*factors, weights=weights)

    @cached_property
    def _live(self) -> Bool[np.ndarray, " n"]:
        return self.units.flat.weights > 0

    def _counted(self, array: Float[np.ndarray, "n _m"]) -> Float[np.ndarray, "_n _m"]:
        return array[self._live]

    def _inputs(self, layer: int) -> Float[np.ndarray, "n d"]:
        """Return a layer's inputs, with a column of ones if it has a bias."""
        X = self._counted(self.states.received[layer])
        if self.units.stack.layers[layer].bias is None:
            return X
        return np.concatenate([X, np.ones((len(X), 1))], axis=1)

    def _rows(self, layer: int) -> Float[np.ndarray, "units d"]:
        """Return [W b] of a layer."""
        stack, leaves = self.units.stack, self.point.leaves
        W, b = stack.weights(leaves)[layer], stack.biases(leaves)[layer]
        W = np.asarray(W, np.float64)
        return W if b is None else np.concatenate([W, np.reshape(b, (-1, 1))], axis=1)

    def _is_scaled(self, layer: int) -> Bool[np.ndarray, " units"]:
        """Return which units have sigma(z) = sigma'(z) z at every example, up to rounding."""
        X, rows = self._inputs(layer), self._rows(layer)
        z, h = X @ rows.T, self._counted(self.states.received[layer + 1])
        off = np.abs(h - self._counted(self.states.slopes[layer]) * z)
        scale = np.linalg.norm(X, axis=1).max() * np.linalg.norm(rows, axis=1)
        return np.all(off <= _ROUNDING * scale, axis=0)

    @property
    def _rescaling_bound(self) -> int:
        stack = self.units.stack
        unseen = stack.dims[1] * (self._inputs(0).shape[1] - self._input_ranks[0])
        rescalings = 0
        for layer in range(len(stack.layers) - 1):
            rows = self._rows(layer)
            # Of the first layer only the part of the weights in the span of the inputs counts.
            moves = self._inputs(0) @ rows.T if layer == 0 else rows.T
            nonzero = np.linalg.norm(moves, axis=0) > _ROUNDING * np.linalg.norm(moves)
            rescalings += int(np.sum(self._is_scaled(layer) & nonzero))
        last = stack.layers[-1]
        return theory.rank_outer_rescaling_bound(
            self.units.flat.p - unseen,
            stack.dims[-1],
            n=int(self._live.sum()),
            features=stack.dims[-2] + (last.bias is not None),
            rescalings=rescalings,
            loss=self.units.loss,
        )

    @property
    def _of_any_units(self) -> int:
        stack = self.units.stack
        return theory.rank_outer_tanh(
            stack.dims[1],
            stack.dims[2],
            n=int(self._live.sum()),
            inputs_rank=self._input_ranks[0],
            features_rank=self._features[0],
            output_bias=stack.layers[1].bias is not None,
            loss=self.units.loss,
        )

    @cached_property
    def _input_ranks(self) -> tuple[int, int]:
        """The ranks of the first layer's inputs at their own cut, and as H_o can resolve it."""
        return self._ranks(self._inputs(0))

    @cached_property
    def _features(self) -> tuple[int, int]:
        """The ranks of the last layer's inputs at their own cut, and as H_o can resolve it."""
        return self._ranks(self._inputs(len(self.units.stack.layers) - 1))

    @property
    def _is_resolved(self) -> bool:
        """Whether H_o, which depends on squares, resolves inputs and features to their ranks."""
        return all(own == visible for own, visible in (self._input_ranks, self._features))

    def _ranks(self, X: Float[np.ndarray, "n d"]) -> tuple[int, int]:
        """Return the rank of a matrix at its own cut, and with p eps as the cut of its squares."""
        values, eps = singular_values(X), self.units.flat.precision.eps
        cuts = max(X.shape) * eps, np.sqrt(self.units.flat.p * eps)
        ranks = [numerical_rank(values, cut * float(values[0])).rank or 0 for cut in cuts]
        return ranks[0], min(ranks)

    @property
    def _is_positive(self) -> bool:
        """Whether each B_i is positive, but for the kernel that cross entropy's have."""
        flat, is_shifted = self.units.flat, self.units.loss == "cross_entropy"
        n, k = flat.positions, flat.k
        if n * k * k > _MOST_ENTRIES:
            return False
        B = self.point.output_hessians.products(np.broadcast_to(np.eye(k), (n, k, k)))
        if not np.all(np.isfinite(B)):
            return False
        values = np.linalg.eigvalsh(B[self._live])[:, is_shifted:]
        return bool(values.min() > flat.p * flat.precision.eps * values.max())
