"""H_o, H_f and dF/dtheta of a stack of dense layers, by contractions over examples; no spectra.

Symbols: z^l = W^l h^{l-1} (+ b^l), h^l = f_l(z^l), F = h^L, per example i; a bias is one more
column of W^l and one more entry 1 of h^{l-1}. With residuals delta_i, output Hessians B_i, weights
w_i,

  e^L = w delta,  g^l = f_l'(z^l) e^l,  e^{l-1} = W^l^T g^l     backward
  D_{kl} = dh^{k-1}/dz^l,  J_l = dF/dz^l                        middle
  A_{lk} = sum_{m >= k} (dz^m/dz^l)^T diag(f_m''(z^m) e^m) dz^m/dz^k

the entries of the blocks in the rows of W^l_{ce} and the columns of W^k_{ab}, l <= k, are

  H_o   sum_i h^{l-1}_e h^{k-1}_b (J_l^T w B J_k)_{ca}
  H_f   sum_i h^{l-1}_e (D_{kl})_{bc} g^k_a [l < k]  +  sum_i h^{l-1}_e h^{k-1}_b (A_{lk})_{ca}

about n p^2 operations, where p products with basis vectors take about 12 n p^2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int

from rankmon.activations import LayerStates, layer_states
from rankmon.flat import FlatProblem
from rankmon.output_hessians import EVALUATED_ALIVE, OutputHessians
from rankmon.parts import (
    HessianParts,
    bytes_text,
    dense_bytes,
    is_wide,
    refuse_oversize,
    root_values,
)
from rankmon.stack import DenseStack

_Matrix = Float[np.ndarray, "p p"]


class StackCurvature:
    """The parts of the Hessian of one recognized stack, assembled in chunks of examples.

    Rows and columns go layer by layer, in C order of [W^l b^l]: `order` says where each stands in
    the parameter order.

    Args:
      flat: the problem.
      stack: what `recognized_stack` found in it.
      memory_limit: bytes that the dense matrices and the workspace may take together.

    Raises:
      MemoryError: where the dense matrices do not fit, with p and the bytes they would need, or a
        single example does not.
    """

    def __init__(self, flat: FlatProblem, stack: DenseStack, *, memory_limit: int) -> None:
        refuse_oversize(flat.p, memory_limit)
        self.flat = flat
        self._stack = stack
        self._chunk = self._largest_chunk(memory_limit - dense_bytes(flat.p))
        self._states = layer_states(flat, stack)

    @cached_property
    def order(self) -> Int[np.ndarray, " p"]:
        """The place in theta of each row."""
        return _places(self.flat, self._stack)

    def compile(self, *, cotangents: int) -> None:
        """Compiles what is evaluated at every measurement; the contractions are NumPy's."""
        self.flat.compile()

    def parts(
        self,
        leaves: Sequence[np.ndarray],
        b: OutputHessians,
        deltas: Sequence[Float[np.ndarray, "n k"]],
    ) -> HessianParts:
        """H_o, and H_f for each of these residuals.

        Args:
          leaves: the parameters.
          b: the output Hessians there.
          deltas: residuals, held constant.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
            return self._parts(leaves, b, deltas)

    def _parts(
        self,
        leaves: Sequence[np.ndarray],
        b: OutputHessians,
        deltas: Sequence[Float[np.ndarray, "n k"]],
    ) -> HessianParts:
        flat, states = self.flat, self._states(leaves)
        kernels, constant = self._stack.weights(leaves), _has_bias(self._stack)
        sizes = [W.shape[0] * (W.shape[1] + one) for W, one in zip(kernels, constant, strict=True)]
        outer, *functional = (np.zeros((flat.p, flat.p)) for _ in range(1 + len(deltas)))
        roots = b.roots(flat.weights) if is_wide(flat) else None
        if roots is not None and roots.signs is not None:
            roots = None
        root = None if roots is None else np.empty((flat.positions, roots.count, flat.p))
        for start in flat.pace.over("H_o and H_f", range(0, flat.positions, self._chunk)):
            part = slice(start, start + self._chunk)
            batch = _Batch(kernels, constant, _cut(states, part))
            weights = flat.weights[part]
            batch.add_outer(
                _blocks(outer, kernels, constant),
                lambda J: weights[:, None, None] * b.products(J, part),  # noqa: B023
            )
            for H, delta in zip(functional, deltas, strict=True):
                batch.add_functional(_blocks(H, kernels, constant), weights[:, None] * delta[part])
            if root is not None and roots is not None:
                rooted = partial(roots.products, part=part)
                root[part] = batch.weighted_jacobian(rooted)
        for H in (outer, *functional):
            _mirror(H, sizes)
        values = None
        if root is not None and np.all(np.isfinite(root)):
            values = root_values(root.reshape(-1, flat.p))
        return HessianParts(outer, tuple(functional), values)

    def _largest_chunk(self, room: int) -> int:
        """How many examples at once fit the room."""
        widths = self._stack.dims
        middle = sum(m * after for i, m in enumerate(widths[1:]) for after in widths[i + 1 :])
        factors = 3 * (max(widths) + 1) ** 2
        dense = 0 if self.flat.problem.loss.root is not None else EVALUATED_ALIVE * widths[-1] ** 2
        example = 8 * (2 * middle + factors + dense)
        if example > room:
            raise MemoryError(
                f"expected the workspace to fit in {bytes_text(room)}, got {bytes_text(example)} "
                "for a single example; raise memory_limit"
            )
        return min(self.flat.positions, room // example)


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
        batch = _Batch(stack.weights(leaves), _has_bias(stack), self._states(leaves))
        J = np.empty((flat.positions, flat.k, flat.p))
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
            J[:, :, _places(flat, stack)] = batch.weighted_jacobian(lambda J: J)
        return J


def _places(flat: FlatProblem, stack: DenseStack) -> Int[np.ndarray, " p"]:
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


def _has_bias(stack: DenseStack) -> list[bool]:
    return [layer.bias is not None for layer in stack.layers]


@dataclass(frozen=True)
class _Batch:
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

    def add_outer(self, blocks: "_Blocks", curved: Callable[[np.ndarray], np.ndarray]) -> None:
        """Adds these examples' share of H_o, on and above the block diagonal; curved is w B."""
        J = self.jacobians
        for k in range(len(J)):
            right = curved(J[k])
            for at in range(k + 1):
                self._add_curved(blocks, at, k, J[at].transpose(0, 2, 1) @ right)

    def add_functional(self, blocks: "_Blocks", weighted: Float[np.ndarray, "n k"]) -> None:
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
        blocks: "_Blocks",
        at: int,
        k: int,
        D: Float[np.ndarray, "n b c"],
        g: Float[np.ndarray, "n a"],
    ) -> None:
        """sum_i h_e D_bc g_a."""
        h = self.received[at]
        eabc = _outer(h, g).T @ D.reshape(len(D), -1)
        eabc = eabc.reshape(h.shape[1], g.shape[1], *D.shape[1:])
        blocks[at, k][..., : D.shape[1]] += eabc.transpose(3, 0, 1, 2)

    def _add_curved(
        self, blocks: "_Blocks", at: int, k: int, A: Float[np.ndarray, "n c a"]
    ) -> None:
        """sum_i h_e h_b A_ca."""
        h, h_k = self.received[at], self.received[k]
        caeb = A.reshape(len(A), -1).T @ _outer(h, h_k)
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


_Blocks = dict[tuple[int, int], Float[np.ndarray, "_out _c _out _c"]]


def _blocks(
    matrix: _Matrix, kernels: Sequence[Float[np.ndarray, "_out _in"]], constant: Sequence[bool]
) -> _Blocks:
    """Views of the blocks on and above the diagonal, each axis split into M_l and c_l."""
    shapes = [(W.shape[0], W.shape[1] + one) for W, one in zip(kernels, constant, strict=True)]
    spans = _spans([rows * columns for rows, columns in shapes])
    return {
        (at, k): matrix[spans[at], spans[k]].reshape(*shapes[at], *shapes[k])
        for k in range(len(spans))
        for at in range(k + 1)
    }


def _spans(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _mirror(matrix: _Matrix, sizes: Sequence[int]) -> None:
    spans = _spans(sizes)
    for k, columns in enumerate(spans):
        for rows in spans[:k]:
            matrix[columns, rows] = matrix[rows, columns].T


def _outer(left: Float[np.ndarray, "n a"], right: Float[np.ndarray, "n b"]) -> np.ndarray:
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


def _cut(states: LayerStates, part: slice) -> LayerStates:
    def cut(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(array[part] for array in arrays)

    return LayerStates(cut(states.received), cut(states.slopes), cut(states.bends))
