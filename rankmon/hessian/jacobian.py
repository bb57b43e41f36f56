"""dF/dtheta of any network on its probe batch, by automatic differentiation.

J_i = dF(x_i)/dtheta [k, p] is taken one example at a time, which is cheap, or with the batch kept
together, which is right even if the examples interact (batch statistics). `stack_jacobian` has J_i
of a stack of dense layers without differentiation in theta.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.compile import Make, largest_program
from rankmon._util.expected_time import compiled
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array

# More rows at once cost memory and gain nothing: the products are already large.
_MOST_ROWS = 128


def one_example(
    flat: FlatProblem, theta: Any, fixed: Sequence[Any], x: Any
) -> Float[Array, "positions k"]:
    """Return the outputs of a single example, a row for each of its positions; traceable."""
    return flat.outputs(theta, fixed, jax.tree.map(lambda leaf: leaf[None], x))


def chunk_shapes(tree: Any, chunk: int) -> Any:
    """Return shapes and dtypes of so many rows of every leaf."""
    return jax.tree.map(lambda a: abstract_array((chunk, *a.shape[1:]), a.dtype), tree)


def pushed_forward(pull_back: Callable[[Any], Any], z: Any, v: Any) -> Any:
    """Return J v as the transpose of u -> J^T u; traceable.

    A function with a backward rule alone has no forward one.

    Args:
      pull_back: the function u -> (J^T u,), from `jax.vjp` at theta.
      z: the outputs at theta.
      v: a vector like theta.
    """
    return jax.vjp(lambda u: pull_back(u)[0], jnp.zeros_like(z))[1](v)[0]


def is_of_whole_batch(
    got: Float[np.ndarray, "..."], want: Float[np.ndarray, "..."], flat: FlatProblem
) -> bool:
    """Return whether a product made one example at a time equals that of the whole batch.

    If the examples interact (batch statistics), Jacobians taken one at a time are those of another
    network, and what is assembled from them is wrong.
    """
    if not (np.all(np.isfinite(got)) and np.all(np.isfinite(want))):
        return True  # overflow is logged as such; it says nothing of the examples
    scale = max(np.max(np.abs(got)), np.max(np.abs(want)))
    return is_rounding(np.max(np.abs(got - want)), scale, flat)


def is_rounding(difference: float, scale: float, flat: FlatProblem) -> bool:
    """Return whether two sums over the parameters that differ by this much may be the same."""
    return bool(difference <= min(1e3 * flat.p * flat.precision.eps, 0.1) * scale)


class ExampleJacobians:
    """J_i of each example by itself; compiled once, evaluated in chunks that fit.

    Args:
      flat: the problem.
      room: bytes of temporary memory.

    Raises:
      MemoryError: if a single example does not fit.
    """

    def __init__(self, flat: FlatProblem, *, room: int) -> None:
        self._flat = flat
        per = flat.positions // flat.problem.n

        def make(chunk: int) -> Callable[..., Any]:
            def rows(theta: Any, fixed: Any, inputs: Any) -> Any:
                def one(x: Any) -> Any:
                    return jax.jacrev(lambda t: one_example(flat, t, fixed, x))(theta)

                return jax.vmap(one)(inputs).reshape(chunk * per, flat.k, flat.p)

            return rows

        def shapes(chunk: int) -> tuple[Any, ...]:
            theta, fixed = flat.shapes_of()
            return theta, fixed, chunk_shapes(flat.inputs, chunk)

        guess = max(1, int(room // (4 * 8 * per * flat.k * flat.p)))
        self._rows, self._chunk, self.workspace_used = _compiled(
            flat, make, shapes, most=min(flat.problem.n, guess), room=room
        )

    def __call__(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray]
    ) -> Float[np.ndarray, "n k p"]:
        """Return the Jacobians at theta, in float64."""
        flat, n, chunk = self._flat, self._flat.problem.n, self._chunk
        per = flat.positions // n
        J = np.empty((flat.positions, flat.k, flat.p))
        with flat.precision.scope():
            for start in flat.pace.over("the Jacobian", range(0, n, chunk)):
                start = min(start, n - chunk)
                inputs = jax.tree.map(lambda a: a[start : start + chunk], flat.inputs)  # noqa: B023
                J[start * per : (start + chunk) * per] = self._rows(theta, tuple(fixed), inputs)
        return J


class BatchJacobian:
    """dF/dtheta of the whole batch, row by row: n times the cost of `ExampleJacobians`.

    Args:
      flat: the problem.
      room: bytes of temporary memory.

    Raises:
      MemoryError: if a single row does not fit.
    """

    def __init__(self, flat: FlatProblem, *, room: int) -> None:
        self._flat, self._room = flat, room

    @cached_property
    def _program(self) -> tuple[Callable[..., Any], int]:
        flat, count = self._flat, self._flat.positions * self._flat.k

        def make(chunk: int) -> Callable[..., Any]:
            def rows(theta: Any, fixed: Any, inputs: Any, start: Any) -> Any:
                z, pull_back = jax.vjp(lambda t: flat.outputs(t, fixed, inputs), theta)
                basis = jax.nn.one_hot(start + jnp.arange(chunk), count, dtype=z.dtype)
                return jax.vmap(lambda u: pull_back(u.reshape(z.shape))[0])(basis)

            return rows

        shapes = (*flat.shapes_of(flat.inputs), abstract_array((), np.int32))
        rows, chunk, _ = _compiled(flat, make, shapes, most=min(count, _MOST_ROWS), room=self._room)
        return rows, chunk

    def __call__(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray]
    ) -> Float[np.ndarray, "n k p"]:
        """Return the Jacobian at theta, in float64."""
        flat, (rows, chunk) = self._flat, self._program
        J = np.empty((flat.positions * flat.k, flat.p))
        with flat.precision.scope():
            for start in flat.pace.over("the Jacobian", range(0, len(J), chunk)):
                start = min(start, len(J) - chunk)
                first = np.asarray(start, np.int32)
                J[start : start + chunk] = rows(theta, tuple(fixed), flat.inputs, first)
        return J.reshape(flat.positions, flat.k, flat.p)

    @cached_property
    def _push(self) -> Callable[..., Any]:
        flat = self._flat

        def push(theta: Any, fixed: Any, inputs: Any, v: Any) -> Any:
            z, pull_back = jax.vjp(lambda t: flat.outputs(t, fixed, inputs), theta)
            return pushed_forward(pull_back, z, v)

        theta, *others = flat.shapes_of(flat.inputs)
        return compiled("a product with the Jacobian", jax.jit(push).trace(theta, *others, theta))

    def product(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray], v: Float[np.ndarray, " p"]
    ) -> Float[np.ndarray, "n k"]:
        """Return the Jacobian times a vector, in float64; no matrix is formed."""
        flat = self._flat
        with flat.precision.scope():
            v = np.asarray(v, flat.dtype)
            return np.asarray(self._push(theta, tuple(fixed), flat.inputs, v), np.float64)


def _compiled(
    flat: FlatProblem, make: Make, shapes: Any, *, most: int, room: int
) -> tuple[Callable[..., Any], int, int]:
    with flat.precision.scope():
        return largest_program("the Jacobian", make, shapes, most=most, room=room)
