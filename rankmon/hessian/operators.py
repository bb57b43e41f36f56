"""H_o and H_f of any network as operators: products with one vector or many, and the matrices.

A product evaluates the whole batch at once. Each program is compiled once for its parts and its
number of vectors. With weights w_i that sum to 1 and residuals delta_i = dl/dF [k]:

  H_f v = d/de grad_theta sum_i w_i <delta_i, F(x_i)> at theta + e v, with delta held constant

H_o v is in `gauss_newton`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.compile import Make, largest_program
from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import CUSTOM_VJP_CALLS, holds
from rankmon.hessian.gauss_newton import outer_product
from rankmon.hessian.jacobian import weighted_gradient
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array

# More vectors at once take longer each: the arrays between two layers no longer fit in the cache.
_MOST_VECTORS = 16

# More rows of a matrix at once cost memory and gain nothing: the products are already large.
_MOST_ROWS = 128


def functional_product(
    flat: FlatProblem,
    theta: Float[Array, " p"],
    fixed: Any,
    inputs: Any,
    weighted: Float[Array, "n k"],
    v: Float[Array, " p"],
) -> Float[Array, " p"]:
    """Return H_f v, given the residuals times the weights of the mean; traceable."""

    def gradient(t: Any) -> Any:
        return weighted_gradient(flat, t, fixed, inputs, weighted)

    if _takes_forward_mode(flat):
        return jax.jvp(gradient, (theta,), (v,))[1]
    return jax.vjp(gradient, theta)[1](v)[0]  # H_f is symmetric


def _takes_forward_mode(flat: FlatProblem) -> bool:
    """Return whether a gradient can be differentiated in forward mode, which is cheaper.

    It cannot if the forward rule of a `custom_vjp` calls the function itself, which leaves reverse
    mode only. JAX does not raise until it lowers such a program.
    """
    key = "forward mode"
    if key not in flat.memo:
        flat.memo[key] = not holds(flat.program.jaxpr, CUSTOM_VJP_CALLS) or _lowers(flat)
    return flat.memo[key]


def _lowers(flat: FlatProblem) -> bool:
    """Return whether JAX can lower the forward derivative of a gradient."""
    theta, *known = flat.shapes_of(flat.inputs)
    weighted = abstract_array((flat.positions, flat.k), flat.dtype)

    def product(theta: Any, fixed: Any, inputs: Any, weighted: Any, v: Any) -> Any:
        return jax.jvp(
            lambda t: weighted_gradient(flat, t, fixed, inputs, weighted), (theta,), (v,)
        )[1]

    try:
        with flat.precision.scope():
            jax.jit(product).lower(theta, *known, weighted, theta)
    except Exception:  # noqa: BLE001  JAX raises several kinds
        return False
    return True


def traced_product(flat: FlatProblem, part: str) -> Any:
    """Trace the program of H_o v or H_f v for one vector.

    Args:
      flat: the problem.
      part: "H_o" or "H_f".
    """
    theta, fixed, inputs, *known = flat.shapes_of(flat.inputs, flat.targets, flat.typed_weights)
    with flat.precision.scope():
        if part == "H_o":
            product = jax.jit(partial(outer_product, flat))
            return product.trace(theta, fixed, inputs, *known, theta)
        weighted = abstract_array((flat.positions, flat.k), flat.dtype)
        product = jax.jit(partial(functional_product, flat))
        return product.trace(theta, fixed, inputs, weighted, theta)


def compiled_product(flat: FlatProblem, part: str) -> Callable[..., Any]:
    """Return the program of `traced_product`, compiled once for each problem."""
    key = ("product", part)
    if key not in flat.memo:
        with flat.precision.scope():
            flat.memo[key] = compiled(f"a product with {part}", traced_product(flat, part))
    return flat.memo[key]


class HessianPrograms:
    """Compiled products with some parts of one problem's Hessian, for any parameters.

    The parts share one program, and with it the evaluation of the network.

    Args:
      flat: the problem.
      outer: whether H_o is one of the parts.
      residuals: the number of residuals for which H_f is computed.
      batch: the number of vectors to multiply; if they need several calls, these are of one size.
      room: bytes of temporary memory of a product with several vectors.
    """

    def __init__(
        self,
        flat: FlatProblem,
        *,
        outer: bool = False,
        residuals: int = 0,
        batch: int = 1,
        room: int = DEFAULT_MEMORY_LIMIT,
    ) -> None:
        self.flat, self.outer, self.residuals = flat, outer, residuals
        self._batch, self._room = batch, room

    @property
    def part(self) -> str:
        """The name of the parts in logs and errors."""
        if self.outer and self.residuals:
            return "a product with the Hessian"
        return "H_o" if self.outer else "H_f"

    def at(
        self,
        theta: np.ndarray,
        fixed: Sequence[np.ndarray],
        deltas: Sequence[Float[np.ndarray, "n k"]] = (),
    ) -> "HessianOperator":
        """Return the parts at these parameters, with these residuals held constant."""
        flat = self.flat
        held = np.reshape(deltas, (self.residuals, flat.positions, flat.k))
        weighted = (flat.weights[:, None] * held).astype(flat.dtype)
        known = (theta, tuple(fixed), flat.inputs, flat.targets, flat.typed_weights, weighted)
        return HessianOperator(self, known)

    @cached_property
    def block(self) -> tuple[Callable[..., Any], int, int]:
        """The program for several vectors, their number, and the bytes of its temporary memory.

        Raises:
          MemoryError: if a single vector does not fit.
        """
        arrays = 8 * self.flat.p * (1 + self.outer + self.residuals)  # a vector and its products
        most = max(1, min(_MOST_VECTORS, self._batch, self._room // arrays))
        most = math.ceil(self._batch / math.ceil(self._batch / most))
        return self._compiled(
            lambda m: self._products,
            lambda m: abstract_array((m, self.flat.p), self.flat.dtype),
            most,
        )

    @cached_property
    def rows(self) -> tuple[Callable[..., Any], int, int]:
        """The program for basis vectors, beginning with a given one; also its rows and its bytes.

        The program makes these vectors itself, so that the compiler counts their memory.

        Raises:
          MemoryError: if a single row does not fit.
        """
        flat = self.flat

        def make(chunk: int) -> Callable[..., Any]:
            def rows(*arguments: Any) -> Any:
                *known, start = arguments
                basis = jax.nn.one_hot(start + jnp.arange(chunk), flat.p, dtype=flat.dtype)
                return self._products(*known, basis)

            return rows

        return self._compiled(
            make, lambda chunk: abstract_array((), np.int32), min(flat.p, _MOST_ROWS)
        )

    def _compiled(
        self, make: Make, last: Callable[[int], Any], most: int
    ) -> tuple[Callable[..., Any], int, int]:
        flat = self.flat
        known = flat.shapes_of(flat.inputs, flat.targets, flat.typed_weights)
        weighted = abstract_array((self.residuals, flat.positions, flat.k), flat.dtype)
        with flat.precision.scope():
            return largest_program(
                self.part, make, lambda m: (*known, weighted, last(m)), most=most, room=self._room
            )

    def _products(self, *arguments: Any) -> list[Float[Array, "m ..."]]:
        """Return H_o V [m, p] and H_f V [m, residuals, p], if these are parts; traceable."""
        theta, fixed, inputs, targets, weights, weighted, vectors = arguments
        flat = self.flat

        def one(v: Any) -> Any:
            found = []
            if self.outer:
                found.append(outer_product(flat, theta, fixed, inputs, targets, weights, v))
            if self.residuals:
                held = partial(functional_product, flat, theta, fixed, inputs)
                found.append(jax.vmap(lambda w: held(w, v))(weighted))
            return found

        return jax.vmap(one)(vectors)


@dataclass(frozen=True)
class HessianOperator:
    """Some parts of the Hessian at a point: H_o, then H_f for each of the residuals.

    Attributes:
      programs: the compiled products, shared by all points.
      known: all arguments of the programs but the vectors.
    """

    programs: HessianPrograms
    known: tuple[Any, ...]

    @property
    def size(self) -> int:
        """The number of rows and columns, p."""
        return self.programs.flat.p

    def mv(self, v: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        """Return the product of the only part with a vector, in float64."""
        # The program for one vector is that of the problem, whatever these programs' block is.
        flat = self.programs.flat
        *point, targets, weights, weighted = self.known
        if self.programs.outer:
            part, known = "H_o", (*point, targets, weights)
        else:
            part, known = "H_f", (*point, weighted[0])
        with flat.precision.scope():
            product = compiled_product(flat, part)(*known, np.asarray(v, flat.dtype))
            return np.asarray(product, np.float64)

    def matmat(self, vectors: Float[np.ndarray, "m p"]) -> list[Float[np.ndarray, "m p"]]:
        """Return each part's products with vectors, at most as many as `programs.block` takes."""
        program, width, _ = self.programs.block
        m, flat = len(vectors), self.programs.flat
        padded = np.pad(vectors, ((0, width - m), (0, 0))) if m < width else vectors
        with flat.precision.scope():
            found = self._parts(program(*self.known, padded.astype(flat.dtype, copy=False)))
            return [np.asarray(product, np.float64)[:m] for product in found]

    def as_matrix(self) -> list[Float[np.ndarray, "p p"]]:
        """Return each part's matrix, in float64 and in the order of theta."""
        programs, p = self.programs, self.size
        program, chunk, _ = programs.rows
        matrices = [np.empty((p, p)) for _ in range(programs.outer + programs.residuals)]
        with programs.flat.precision.scope():
            for start in programs.flat.pace.over(programs.part, range(0, p, chunk)):
                start = min(start, p - chunk)  # the last block overlaps, to have the same size
                found = self._parts(program(*self.known, np.asarray(start, np.int32)))
                for matrix, block in zip(matrices, found, strict=True):
                    matrix[start : start + chunk] = block
        return matrices

    def _parts(self, products: list[Any]) -> list[np.ndarray]:
        """Return the programs' results as one array for each part."""
        arrays = [np.asarray(product) for product in products]
        if self.programs.residuals:
            functional = arrays.pop()
            arrays += [functional[:, j] for j in range(functional.shape[1])]
        return arrays
