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

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int

from rankmon._util.text import bytes_text
from rankmon.hessian.memory import HessianParts, dense_bytes, is_wide, refuse_oversize, root_values
from rankmon.hessian.stack_jacobian import (
    Batch,
    Blocks,
    cut_states,
    has_bias,
    layer_spans,
    parameter_places,
)
from rankmon.network.dense_stack import DenseStack
from rankmon.network.layer_states import layer_states
from rankmon.problem.flat import FlatProblem
from rankmon.problem.output_hessians import EVALUATED_ALIVE, OutputHessians

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
        return parameter_places(self.flat, self._stack)

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
        kernels, constant = self._stack.weights(leaves), has_bias(self._stack)
        sizes = [W.shape[0] * (W.shape[1] + one) for W, one in zip(kernels, constant, strict=True)]
        outer, *functional = (np.zeros((flat.p, flat.p)) for _ in range(1 + len(deltas)))
        roots = b.roots(flat.weights) if is_wide(flat) else None
        if roots is not None and roots.signs is not None:
            roots = None
        root = None if roots is None else np.empty((flat.positions, roots.count, flat.p))
        for start in flat.pace.over("H_o and H_f", range(0, flat.positions, self._chunk)):
            part = slice(start, start + self._chunk)
            batch = Batch(kernels, constant, cut_states(states, part))
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


def _blocks(
    matrix: _Matrix, kernels: Sequence[Float[np.ndarray, "_out _in"]], constant: Sequence[bool]
) -> Blocks:
    """Views of the blocks on and above the diagonal, each axis split into M_l and c_l."""
    shapes = [(W.shape[0], W.shape[1] + one) for W, one in zip(kernels, constant, strict=True)]
    spans = layer_spans([rows * columns for rows, columns in shapes])
    return {
        (at, k): matrix[spans[at], spans[k]].reshape(*shapes[at], *shapes[k])
        for k in range(len(spans))
        for at in range(k + 1)
    }


def _mirror(matrix: _Matrix, sizes: Sequence[int]) -> None:
    spans = layer_spans(sizes)
    for k, columns in enumerate(spans):
        for rows in spans[:k]:
            matrix[columns, rows] = matrix[rows, columns].T
