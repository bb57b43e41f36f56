"""H_o and H_f of a stack of dense layers, assembled by contractions over examples.

Symbols: z^l = W^l h^{l-1} (+ b^l), h^l = f_l(z^l), F = h^L, per example i; a bias is one more
column of W^l and one more entry 1 of h^{l-1}. With residuals delta_i, output Hessians B_i, weights
w_i,

  e^L = w delta,  g^l = f_l'(z^l) e^l,  e^{l-1} = W^l^T g^l     backward
  D_{kl} = dh^{k-1}/dz^l,  J_l = dF/dz^l                        middle
  A_{lk} = sum_{m >= k} (dz^m/dz^l)^T diag(f_m''(z^m) e^m) dz^m/dz^k

the entries of the blocks in the rows of W^l_{ce} and the columns of W^k_{ab}, l <= k, are

  H_o   sum_i h^{l-1}_e h^{k-1}_b (J_l^T w B J_k)_{ca}
  H_f   sum_i h^{l-1}_e (D_{kl})_{bc} g^k_a [l < k]  +  sum_i h^{l-1}_e h^{k-1}_b (A_{lk})_{ca}

about n p^2 operations; p products with basis vectors take about 12 n p^2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int

from rankmon._util.text import bytes_text
from rankmon.engines.dense_parts import HessianParts, is_wide
from rankmon.hessian.memory import dense_bytes, refuse_oversize
from rankmon.hessian.stack_jacobian import StackBatch, parameter_places
from rankmon.network.activations import layer_states
from rankmon.network.coordinates import Coordinates
from rankmon.network.leaf_maps import Rows, Span
from rankmon.network.recognized_stack import DenseStack
from rankmon.problem.output_hessians import EVALUATED_ALIVE
from rankmon.problem.point import Point

_Matrix = Float[np.ndarray, "p p"]
# By layers (l, k), l <= k, counted from 0.
_Blocks = dict[tuple[int, int], Float[np.ndarray, "_out _c _out _c"]]


class StackCurvature:
    """The parts of the Hessian of one recognized stack, assembled in chunks of examples.

    Rows and columns go layer by layer, in C order of [W^l b^l], W^1 in coordinates; `order` has
    the place of each among the coordinates.

    Args:
      coordinates: the directions of the parameters on which the outputs depend.
      stack: the network, as `recognized_stack` returns it for `coordinates.flat`.
      memory_limit: bytes that the dense matrices and the workspace may take together.

    Raises:
      MemoryError: if the dense matrices do not fit, with p and the bytes they would need, or a
        single example does not.
    """

    def __init__(self, coordinates: Coordinates, stack: DenseStack, *, memory_limit: int) -> None:
        self.flat = coordinates.reduced
        refuse_oversize(coordinates.flat.p, memory_limit, active=self.flat.p)
        self._coordinates, self._stack = coordinates, stack
        self._reduced_stack, self._project = _in_coordinates(stack, coordinates)
        self._chunk = self._largest_chunk(memory_limit - dense_bytes(self.flat.p))
        self._states = layer_states(coordinates.flat, stack)

    @property
    def layers(self) -> tuple[slice, ...]:
        """The rows of each layer's weights and biases."""
        stack = self._reduced_stack
        pairs = zip(stack.layers, stack.dims[:-1], stack.dims[1:], strict=True)
        return tuple(_spans([(M, c + (layer.bias is not None)) for layer, c, M in pairs]))

    @cached_property
    def order(self) -> Int[np.ndarray, " q"]:
        """The place of each row among the coordinates."""
        return parameter_places(self.flat, self._reduced_stack)

    def compile(self, *, cotangents: int) -> None:
        """Compile the loss and its derivatives in the outputs; the contractions use NumPy."""
        self._coordinates.flat.compile()

    def parts(self, point: Point) -> HessianParts:
        """Return H_o, and H_f for each of the point's residuals.

        Args:
          point: the parameters themselves, not their coordinates.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
            return self._parts(point)

    def _parts(self, point: Point) -> HessianParts:
        flat, b, deltas = self.flat, point.output_hessians, point.functional_residuals
        states = self._states(point.leaves)
        states = replace(states, received=(self._project(states.received[0]), *states.received[1:]))
        batch = StackBatch.at(self._reduced_stack, self._coordinates.inward(point.leaves), states)
        outer, *functional = (np.zeros((flat.p, flat.p)) for _ in range(1 + len(deltas)))
        roots = b.roots(flat.weights) if is_wide(flat) else None
        if roots is not None and roots.signs is not None:
            roots = None
        root = None if roots is None else np.empty((flat.positions, roots.count, flat.p))
        for start in flat.pace.over("H_o and H_f", range(0, flat.positions, self._chunk)):
            part = slice(start, start + self._chunk)
            chunk, weights = _Chunk(batch.part(part)), flat.weights[part]
            chunk.add_outer(
                _blocks(outer, batch),
                lambda J: weights[:, None, None] * b.products(J, part),  # noqa: B023
            )
            for H, delta in zip(functional, deltas, strict=True):
                chunk.add_functional(_blocks(H, batch), weights[:, None] * delta[part])
            if root is not None and roots is not None:
                rooted = partial(roots.products, part=part)
                root[part] = chunk.batch.weighted_jacobian(rooted)
        for H in (outer, *functional):
            _mirror(H, batch)
        if root is not None and not np.all(np.isfinite(root)):
            root = None
        rows = None if root is None else root.reshape(-1, flat.p)
        return HessianParts(outer, tuple(functional), rows, self.layers)

    def _largest_chunk(self, room: int) -> int:
        """Return how many examples at once fit."""
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


def _in_coordinates(
    stack: DenseStack, coordinates: Coordinates
) -> tuple[DenseStack, Callable[[np.ndarray], np.ndarray]]:
    """Return the stack with W^1 in coordinates, and the map of its inputs to that layer's."""
    first, *others = stack.layers
    found = coordinates.maps[first.kernel]
    if isinstance(found, Span):
        first = replace(first, transposed=True)
        dims = (found.shape[0], *stack.dims[1:])
        return DenseStack((first, *others), dims), lambda x: x @ found.basis
    if isinstance(found, Rows):
        dims = (found.shape[0], *stack.dims[1:])
        return DenseStack(stack.layers, dims), lambda x: x[:, found.rows]
    return stack, lambda x: x


def _shapes(batch: StackBatch) -> list[tuple[int, int]]:
    """Return (M_l, c_l) of each layer."""
    return [
        (W.shape[0], W.shape[1] + one) for W, one in zip(batch.kernels, batch.biased, strict=True)
    ]


def _spans(shapes: Sequence[tuple[int, int]]) -> list[slice]:
    """Return the rows and columns that belong to each layer."""
    ends = np.cumsum([rows * columns for rows, columns in shapes]).tolist()
    return [
        slice(end - rows * columns, end) for end, (rows, columns) in zip(ends, shapes, strict=True)
    ]


def _blocks(matrix: _Matrix, batch: StackBatch) -> _Blocks:
    """Return views of the blocks on and above the diagonal, each axis split into M_l and c_l."""
    shapes = _shapes(batch)
    spans = _spans(shapes)
    return {
        (at, k): matrix[spans[at], spans[k]].reshape(*shapes[at], *shapes[k])
        for k in range(len(spans))
        for at in range(k + 1)
    }


def _mirror(matrix: _Matrix, batch: StackBatch) -> None:
    """Copy the blocks above the diagonal to below it."""
    spans = _spans(_shapes(batch))
    for k, columns in enumerate(spans):
        for rows in spans[:k]:
            matrix[columns, rows] = matrix[rows, columns].T


@dataclass(frozen=True)
class _Chunk:
    """Some of the examples, and their share of H_o and H_f."""

    batch: StackBatch

    @cached_property
    def passed(self) -> dict[tuple[int, int], Float[np.ndarray, "n _to _from"]]:
        """dz^m/dz^l by (m, l), l < m."""
        found, kernels, slopes = {}, self.batch.kernels, self.batch.states.slopes
        for at, slope in enumerate(slopes[:-1]):
            found[at + 1, at] = kernels[at + 1] * slope[:, None, :]
            for m in range(at + 1, len(kernels) - 1):
                scaled = slopes[m][:, :, None] * found[m, at]
                found[m + 1, at] = kernels[m + 1] @ scaled
        return found

    def activated(self, m: int, at: int) -> Float[np.ndarray, "n to from"]:
        """Return dh^m/dz^l, l <= m."""
        slope = self.batch.states.slopes[m]
        if m == at:
            return slope[:, :, None] * np.eye(slope.shape[1])
        return slope[:, :, None] * self.passed[m, at]

    def backward(
        self, weighted: Float[np.ndarray, "n k"]
    ) -> tuple[list[Float[np.ndarray, "n _out"]], list[Float[np.ndarray, "n _out"]]]:
        """Return e^1, ..., e^L and g^1, ..., g^L."""
        kernels, slopes = self.batch.kernels, self.batch.states.slopes
        e, g = [weighted], [weighted * slopes[-1]]
        for W, slope in zip(kernels[:0:-1], slopes[-2::-1], strict=True):
            e.append(g[-1] @ W)
            g.append(e[-1] * slope)
        return e[::-1], g[::-1]

    def add_outer(self, blocks: _Blocks, curved: Callable[[np.ndarray], np.ndarray]) -> None:
        """Add these examples' share of H_o, on and above the block diagonal; curved is w B."""
        J = self.batch.jacobians
        for k in range(len(J)):
            right = curved(J[k])
            for at in range(k + 1):
                self._add_curved(blocks, at, k, J[at].transpose(0, 2, 1) @ right)

    def add_functional(self, blocks: _Blocks, weighted: Float[np.ndarray, "n k"]) -> None:
        """Add these examples' share of H_f, on and above the block diagonal."""
        e, g = self.backward(weighted)
        for k in range(len(g)):
            for at in range(k):
                D = self.activated(k - 1, at)
                self._add_straight(blocks, at, k, D, g[k])
        bent = [bend * e_m for bend, e_m in zip(self.batch.states.bends, e, strict=True)]
        if not any(np.any(c) for c in bent):
            return
        for k in range(len(g)):
            for at in range(k + 1):
                self._add_curved(blocks, at, k, self._bent(at, k, bent))

    def _bent(
        self, at: int, k: int, bent: Sequence[Float[np.ndarray, "n _out"]]
    ) -> Float[np.ndarray, "n _out _in"]:
        """Return A_{lk}."""
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
        blocks: _Blocks,
        at: int,
        k: int,
        D: Float[np.ndarray, "n b c"],
        g: Float[np.ndarray, "n a"],
    ) -> None:
        """Add sum_i h_e D_bc g_a."""
        h = self.batch.received[at]
        eabc = _outer_products(h, g).T @ D.reshape(len(D), -1)
        eabc = eabc.reshape(h.shape[1], g.shape[1], *D.shape[1:])
        blocks[at, k][..., : D.shape[1]] += eabc.transpose(3, 0, 1, 2)

    def _add_curved(self, blocks: _Blocks, at: int, k: int, A: Float[np.ndarray, "n c a"]) -> None:
        """Add sum_i h_e h_b A_ca."""
        h, h_k = self.batch.received[at], self.batch.received[k]
        caeb = A.reshape(len(A), -1).T @ _outer_products(h, h_k)
        caeb = caeb.reshape(*A.shape[1:], h.shape[1], h_k.shape[1])
        blocks[at, k][...] += caeb.transpose(0, 2, 1, 3)


def _outer_products(left: Float[np.ndarray, "n a"], right: Float[np.ndarray, "n b"]) -> np.ndarray:
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)
