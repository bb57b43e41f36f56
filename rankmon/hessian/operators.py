"""H_f v of any network, and compiled products of H_o and H_f with one vector or with many.

The batch is kept together. With weights w_i that sum to 1 and residuals delta_i = dl/dF [k]:

  H_f v = d/de grad_theta sum_i w_i <delta_i, F(x_i)> at theta + e v, with delta held constant

H_o v is in `gauss_newton`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.compile import largest_program
from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import CUSTOM_VJP_CALLS, holds
from rankmon.hessian.gauss_newton import outer_product
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array

# More vectors at once take longer each: what lies between two layers leaves the cache.
_MOST_VECTORS = 16


def weighted_gradient(
    flat: FlatProblem,
    theta: Float[Array, " p"],
    fixed: Any,
    inputs: Any,
    weighted: Float[Array, "n k"],
) -> Float[Array, " p"]:
    """Return grad_theta sum_i <weighted_i, F(x_i)>; traceable."""
    return jax.grad(lambda t: jnp.vdot(weighted, flat.outputs(t, fixed, inputs)))(theta)


def functional_product(
    flat: FlatProblem,
    theta: Float[Array, " p"],
    fixed: Any,
    inputs: Any,
    weighted: Float[Array, "n k"],
    v: Float[Array, " p"],
) -> Float[Array, " p"]:
    """Return H_f v, with the residuals times the weights of the mean; traceable."""

    def gradient(t: Any) -> Any:
        return weighted_gradient(flat, t, fixed, inputs, weighted)

    if _takes_forward_mode(flat):
        return jax.jvp(gradient, (theta,), (v,))[1]
    return jax.vjp(gradient, theta)[1](v)[0]  # H_f is symmetric


def _takes_forward_mode(flat: FlatProblem) -> bool:
    """Return whether a gradient can be differentiated in forward mode, which is cheaper.

    It cannot if the forward rule of a `custom_vjp` calls the function itself, which has reverse
    mode only. JAX raises when such a program is lowered.
    """
    key = "forward mode"
    if key not in flat.memo:
        flat.memo[key] = not holds(flat.program.jaxpr, CUSTOM_VJP_CALLS) or _lowers(flat)
    return flat.memo[key]


def _lowers(flat: FlatProblem) -> bool:
    theta, *known = flat.shapes_of(flat.inputs)
    weighted = abstract_array((flat.positions, flat.k), flat.dtype)

    def product(theta: Any, fixed: Any, inputs: Any, weighted: Any, v: Any) -> Any:
        return jax.jvp(
            lambda t: weighted_gradient(flat, t, fixed, inputs, weighted), (theta,), (v,)
        )[1]

    try:
        with flat.precision.scope():
            jax.jit(product).lower(theta, *known, weighted, theta)
    except Exception:  # noqa: BLE001  of several kinds
        return False
    return True


def _weighted(flat: FlatProblem, delta: Float[np.ndarray, "*c n k"]) -> Float[np.ndarray, "*c n k"]:
    """Return the residuals times the weights of the mean, as compiled programs take them."""
    return (flat.weights[:, None] * delta).astype(flat.dtype)


class SingleProducts:
    """H_o v and H_f v for one vector, and gradients, each a program of its own.

    Args:
      flat: the problem.
    """

    def __init__(self, flat: FlatProblem) -> None:
        self._flat = flat
        weighted = abstract_array((flat.positions, flat.k), flat.dtype)
        theta, *known = flat.shapes_of(flat.inputs, flat.targets, flat.typed_weights)
        fixed, inputs, *_ = known
        with flat.precision.scope():
            outer, functional, gradient = (
                jax.jit(partial(function, flat))
                for function in (outer_product, functional_product, weighted_gradient)
            )
            self._outer = compiled("a product with H_o", outer.trace(theta, *known, theta))
            self._functional = compiled(
                "a product with H_f", functional.trace(theta, fixed, inputs, weighted, theta)
            )
            self._gradient = compiled("a gradient", gradient.trace(theta, fixed, inputs, weighted))

    def outer(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray]
    ) -> Callable[[Float[np.ndarray, " p"]], Float[np.ndarray, " p"]]:
        """Return the function v -> H_o v at these parameters."""
        flat = self._flat
        known = (theta, tuple(fixed), flat.inputs, flat.targets, flat.typed_weights)
        return partial(self._product, self._outer, known)

    def functional(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray], delta: Float[np.ndarray, "n k"]
    ) -> Callable[[Float[np.ndarray, " p"]], Float[np.ndarray, " p"]]:
        """Return the function v -> H_f v at these parameters and residuals."""
        flat = self._flat
        weighted = _weighted(flat, delta)
        return partial(
            self._product, self._functional, (theta, tuple(fixed), flat.inputs, weighted)
        )

    def gradient(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray], delta: Float[np.ndarray, "n k"]
    ) -> Float[np.ndarray, " p"]:
        """Return grad_theta sum_i w_i <delta_i, F(x_i)>, with delta held constant."""
        flat = self._flat
        weighted = _weighted(flat, delta)
        with flat.precision.scope():
            return np.asarray(
                self._gradient(theta, tuple(fixed), flat.inputs, weighted), np.float64
            )

    def _product(self, program: Callable[..., Any], known: Any, v: np.ndarray) -> np.ndarray:
        with self._flat.precision.scope():
            return np.asarray(program(*known, v.astype(self._flat.dtype)), np.float64)


class Block(NamedTuple):
    """H_o and H_f, for each of some residuals, times the same vectors."""

    outer: Float[np.ndarray, "m p"]
    functional: Float[np.ndarray, "c m p"]


class BlockProducts:
    """H_o V and H_f V for many vectors at once; compiled once, for as many as fit.

    Args:
      flat: the problem.
      cotangents: for how many residuals H_f is asked at once.
      batch: how many vectors will come; it is divided evenly.
      room: bytes of temporary memory.

    Raises:
      MemoryError: if a single vector does not fit.

    Attributes:
      vectors: m, the number of vectors multiplied at once.
    """

    def __init__(self, flat: FlatProblem, *, cotangents: int, batch: int, room: int) -> None:
        self._flat = flat
        p, dtype = flat.p, flat.dtype
        weighted = abstract_array((cotangents, flat.positions, flat.k), dtype)
        known = flat.shapes_of(flat.inputs, flat.targets, flat.typed_weights)

        def shapes(m: int) -> tuple[Any, ...]:
            return *known, weighted, abstract_array((m, p), dtype)

        most = max(1, min(_MOST_VECTORS, batch, room // (8 * p * (2 + cotangents))))
        most = math.ceil(batch / math.ceil(batch / most))
        with flat.precision.scope():
            self._program, self.vectors, _ = largest_program(
                "a product with the Hessian", lambda m: self._blocks, shapes, most=most, room=room
            )

    def _blocks(
        self,
        theta: Any,
        fixed: Any,
        inputs: Any,
        targets: Any,
        weights: Any,
        weighted: Any,
        vectors: Any,
    ) -> Any:
        flat = self._flat

        def one(v: Any) -> Any:
            outer = outer_product(flat, theta, fixed, inputs, targets, weights, v)
            functional = jax.vmap(lambda w: functional_product(flat, theta, fixed, inputs, w, v))(
                weighted
            )
            return outer, functional

        outer, functional = jax.vmap(one)(vectors)
        return outer, jnp.moveaxis(functional, 1, 0)

    def at(
        self,
        theta: np.ndarray,
        fixed: Sequence[np.ndarray],
        deltas: Sequence[Float[np.ndarray, "n k"]],
    ) -> Callable[[Float[np.ndarray, "m p"]], Block]:
        """Return the products at these parameters and residuals, a function of up to m vectors."""
        flat = self._flat
        weighted = _weighted(flat, np.stack(deltas))
        known = (theta, tuple(fixed), flat.inputs, flat.targets, flat.typed_weights, weighted)

        def products(vectors: Float[np.ndarray, "m p"]) -> Block:
            short = self.vectors - len(vectors)
            padded = np.pad(vectors, ((0, short), (0, 0))) if short else vectors
            with flat.precision.scope():
                outer, functional = self._program(*known, padded.astype(flat.dtype, copy=False))
            m = len(vectors)
            return Block(
                np.asarray(outer, np.float64)[:m], np.asarray(functional, np.float64)[:, :m]
            )

        return products
