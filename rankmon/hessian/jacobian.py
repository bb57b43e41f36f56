"""The Jacobian dF/dtheta of any network: the matrix, or blocks of its weighted rows or columns.

`stack_jacobian` computes it for a stack of dense layers, without differentiation in theta.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.expected_time import Pace
from rankmon.hessian.batching import OneByOne, is_of_whole_batch
from rankmon.hessian.jacobian_rows import JacobianRows
from rankmon.linalg.gram import Block
from rankmon.problem.flat import FlatProblem, Vector
from rankmon.problem.output_hessians import Roots

_Leaves = Sequence[Any]


def weighted_gradient(
    flat: FlatProblem,
    theta: Vector,
    fixed: Any,
    inputs: Any,
    weighted: Float[Array, "n k"],
) -> Vector:
    """Return grad_theta sum_i <weighted_i, F(x_i)>; traceable."""
    return jax.grad(lambda t: jnp.vdot(weighted, flat.outputs(t, fixed, inputs)))(theta)


def transposed_product(
    flat: FlatProblem, theta: np.ndarray, fixed: Sequence[np.ndarray], u: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " p"]:
    """Return (dF/dtheta)^T u of the whole batch, in float64."""
    with flat.precision.scope():
        *_, product = flat.evaluated(theta, fixed, u)
        return np.asarray(product, np.float64)


class JacobianOperator:
    """The rows C_i^T dF_i/dtheta of one problem; programs are compiled at their first use.

    Examples are evaluated one at a time if that is right, and the kernels of dense layers then come
    as `KhatriRao` blocks. If the examples interact (batch statistics), every row is computed from
    the whole batch, which takes n times the work.

    Args:
      flat: the problem.
      room: bytes for a block and for the programs' temporary memory together.
    """

    def __init__(self, flat: FlatProblem, *, room: int) -> None:
        self._flat, self._room = flat, room
        self._one_by_one = OneByOne()

    def compile(self) -> None:
        """Compile `as_matrix` for parameters on the host.

        Raises:
          MemoryError: if a single row does not fit.
        """
        self._one_by_one.prepare(lambda: self._per_example.compile(), lambda: self._whole.compile())

    def as_matrix(self, leaves: _Leaves) -> Float[np.ndarray, "nk p"]:
        """Return dF/dtheta at leaves on the host, in float64 and in the order of theta."""
        flat = self._flat
        u = np.random.default_rng(0).standard_normal((flat.positions, flat.k))

        def right(J: np.ndarray) -> bool:
            want = transposed_product(flat, *flat.split(list(leaves)), u)
            with np.errstate(over="ignore", invalid="ignore"):
                return is_of_whole_batch(u.ravel() @ J, want, flat)

        return self._one_by_one.result(
            lambda: self._per_example.matrix(leaves),
            lambda: self._whole.matrix(leaves),
            right=right,
        )

    @property
    def workspace_used(self) -> int:
        """The most bytes of temporary memory that a compiled program reports."""
        return max(rows.units.workspace_used for rows in (self._per_example, self._whole))

    def columns(self, leaves: _Leaves, roots: Roots, pace: Pace | None = None) -> Iterator[Block]:
        """Yield blocks of columns, each with all N k rows.

        Args:
          leaves: all parameter leaves, as they are stored or lifted, on whatever devices.
          roots: C_i at every position.
          pace: the time limit for all blocks together; by default that of the problem.

        Raises:
          OutOfTimeError: if they are expected to take longer.
        """
        return self._right_rows(leaves).columns(leaves, roots, pace or self._flat.pace)

    def rows(
        self, leaves: _Leaves, roots: Roots, pace: Pace | None = None
    ) -> Iterator[Float[np.ndarray, "p s"]]:
        """Yield blocks of rows, transposed, each with all p columns; arguments as for `columns`."""
        return self._right_rows(leaves).rows(leaves, roots, pace or self._flat.pace)

    def _right_rows(self, leaves: _Leaves) -> JacobianRows:
        """Return the rows from single examples if these are right, else from the whole batch."""
        return self._one_by_one.result(
            lambda: self._per_example, lambda: self._whole, right=lambda rows: rows.agree(leaves)
        )

    @cached_property
    def _per_example(self) -> JacobianRows:
        return JacobianRows(self._flat, per_example=True, room=self._room)

    @cached_property
    def _whole(self) -> JacobianRows:
        return JacobianRows(self._flat, per_example=False, room=self._room)
