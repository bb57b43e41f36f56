"""The Hessian's parts of any network as operators: products with vectors, and the matrices.

Each program is compiled once for its parts and its width. The batch is kept together, unless the
product of one vector does not fit in memory (`example_chunks`). With weights w_i that sum to 1,
residuals delta_i = dl/dF [k], output Hessians B_i and Jacobians J_i:

  g(theta, u) = grad_theta sum_i <u_i, F(x_i)>
  H_f v       = d/de g(theta + e v, w delta), with delta held constant
  H_L v       = d/de g(theta + e v, w delta + e w B J v), one pass for both parts

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

from rankmon._util.compile import Make, temporary_bytes
from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import CUSTOM_VJP_CALLS, holds
from rankmon.hessian.example_chunks import Compiled, ExampleChunks
from rankmon.hessian.gauss_newton import outer_product
from rankmon.hessian.jacobian import weighted_gradient
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.problem.flat import FlatProblem, Vector
from rankmon.problem.precision import abstract_array

# More vectors at once take longer each: the arrays between two layers no longer fit in the cache.
_MOST_VECTORS = 16

# More rows of a matrix at once cost memory and gain nothing: the products are already large.
_MOST_ROWS = 128


def functional_product(
    flat: FlatProblem,
    theta: Vector,
    fixed: Any,
    inputs: Any,
    weighted: Float[Array, "n k"],
    v: Vector,
) -> Vector:
    """Return H_f v, given the residuals times the weights of the mean; traceable."""

    def gradient(t: Any) -> Any:
        return weighted_gradient(flat, t, fixed, inputs, weighted)

    if _takes_forward_mode(flat):
        return jax.jvp(gradient, (theta,), (v,))[1]
    return jax.vjp(gradient, theta)[1](v)[0]  # H_f is symmetric


def loss_product(
    flat: FlatProblem,
    theta: Vector,
    fixed: Any,
    inputs: Any,
    targets: Any,
    weights: Float[Array, " n"],
    weighted: Float[Array, "n k"],
    v: Vector,
) -> Vector:
    """Return H_L v = H_o v + H_f v, if possible in one pass; arguments as for both; traceable.

    Ranks are never counted in these products: H_f is formed by itself.
    """
    known = (flat, theta, fixed, inputs)
    if holds(flat.program.jaxpr, CUSTOM_VJP_CALLS):  # such functions have no forward mode
        outer = outer_product(*known, targets, weights, v)
        return jax.tree.map(jnp.add, outer, functional_product(*known, weighted, v))
    z, jv = jax.jvp(lambda t: flat.outputs(t, fixed, inputs), (theta,), (v,))
    bjv = jax.vmap(flat.problem.loss.hessian_product)(z, targets, jv)
    moved = (weights[:, None] * bjv).astype(weighted.dtype)

    def gradient(t: Any, u: Any) -> Any:
        return weighted_gradient(flat, t, fixed, inputs, u)

    return jax.jvp(gradient, (theta, weighted), (v, moved))[1]


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
    """Trace the program of H_L v, H_o v or H_f v for one vector.

    Args:
      flat: the problem.
      part: "H_L", "H_o" or "H_f".
    """
    theta, fixed, inputs, *known = flat.shapes_of(flat.inputs, flat.targets, flat.typed_weights)
    weighted = abstract_array((flat.positions, flat.k), flat.dtype)
    with flat.precision.scope():
        if part == "H_o":
            product = jax.jit(partial(outer_product, flat))
            return product.trace(theta, fixed, inputs, *known, theta)
        if part == "H_L":
            product = jax.jit(partial(loss_product, flat))
            return product.trace(theta, fixed, inputs, *known, weighted, theta)
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
      loss: whether the only part is H_L, directly, with one residual.
      outer: whether H_o is one of the parts.
      residuals: the number of residuals for which H_f is computed.
      batch: the number of vectors to multiply; if they need several calls, these are of one size.
      room: bytes of temporary memory of a product.
    """

    def __init__(
        self,
        flat: FlatProblem,
        *,
        loss: bool = False,
        outer: bool = False,
        residuals: int = 0,
        batch: int = 1,
        room: int = DEFAULT_MEMORY_LIMIT,
    ) -> None:
        assert not (loss and (outer or residuals))
        self.flat, self.loss, self.outer, self.residuals = flat, loss, outer, residuals
        self._batch, self._room = batch, room

    @property
    def part(self) -> str:
        """The name of the parts in logs and errors."""
        if self.outer and self.residuals:
            return "a product with the Hessian"
        return "H_L" if self.loss else "H_o" if self.outer else "H_f"

    @property
    def _held(self) -> int:
        return self.loss + self.residuals

    def at(
        self,
        theta: np.ndarray,
        fixed: Sequence[np.ndarray],
        deltas: Sequence[Float[np.ndarray, "n k"]] = (),
    ) -> "HessianOperator":
        """Return the parts at these parameters, with these residuals held constant."""
        flat = self.flat
        held = np.reshape(deltas, (self._held, flat.positions, flat.k))
        weighted = (flat.weights[:, None] * held).astype(flat.dtype)
        known = (theta, tuple(fixed), flat.inputs, flat.targets, flat.typed_weights, weighted)
        return HessianOperator(self, known)

    @cached_property
    def one(self) -> Callable[..., Any] | None:
        """The product of the only part with one vector; None if it does not fit in memory."""
        program = compiled_product(self.flat, self.part)
        return program if temporary_bytes(program) <= self._room else None

    @cached_property
    def block(self) -> Compiled:
        """The products with several vectors.

        Raises:
          MemoryError: if a single vector does not fit.
        """
        arrays = 8 * self.flat.p * (1 + self.outer + self._held)  # a vector and its products
        most = max(1, min(_MOST_VECTORS, self._batch, self._room // arrays))
        most = math.ceil(self._batch / math.ceil(self._batch / most))
        return self._compiled(
            lambda m: self._products,
            lambda m: abstract_array((m, self.flat.p), self.flat.dtype),
            most,
        )

    @cached_property
    def rows(self) -> Compiled:
        """The products with basis vectors from a given one on, as for `block`.

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

    def _compiled(self, make: Make, last: Callable[[int], Any], most: int) -> Compiled:
        chunks = ExampleChunks(self.flat)
        return chunks.largest(
            self.part, make, last, most=most, residuals=self._held, room=self._room
        )

    def _products(self, *arguments: Any) -> list[Float[Array, "m ..."]]:
        """Return H_L V or H_o V [m, p], and H_f V [m, c, p], if these are parts; traceable."""
        theta, fixed, inputs, targets, weights, weighted, vectors = arguments
        flat = self.flat

        def one(v: Any) -> Any:
            found = []
            if self.loss:
                known = (theta, fixed, inputs, targets, weights, weighted[0])
                found.append(loss_product(flat, *known, v))
            if self.outer:
                found.append(outer_product(flat, theta, fixed, inputs, targets, weights, v))
            if self.residuals:
                held = partial(functional_product, flat, theta, fixed, inputs)
                found.append(jax.vmap(lambda w: held(w, v))(weighted))
            return found

        return jax.vmap(one)(vectors)


@dataclass(frozen=True)
class HessianOperator:
    """Some parts of the Hessian at a point: H_L, or H_o and then H_f for each of the residuals.

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
        programs, flat = self.programs, self.programs.flat
        if programs.one is None:
            return self.matmat(np.asarray(v)[None])[0][0]
        *point, targets, weights, weighted = self.known
        if programs.loss:
            known = (*point, targets, weights, weighted[0])
        elif programs.outer:
            known = (*point, targets, weights)
        else:
            known = (*point, weighted[0])
        with flat.precision.scope():
            product = programs.one(*known, np.asarray(v, flat.dtype))
            return np.asarray(product, np.float64)

    def vanishes_in(self, block: slice | np.ndarray, rng: np.random.Generator) -> bool:
        """Return whether the only part maps a random vector in these rows to exact zeros in them.

        Args:
          block: the rows of a diagonal block.
          rng: draws the vector.
        """
        v = np.zeros(self.size)
        v[block] = rng.standard_normal(len(v[block]))
        return not np.any(self.mv(v)[block])

    def matmat(self, vectors: Float[np.ndarray, "m p"]) -> list[Float[np.ndarray, "m p"]]:
        """Return each part's products with vectors, at most as many as `programs.block` takes.

        Raises:
          MemoryError: if the batch does not fit and its examples interact at this point.
        """
        block = self.programs.block
        m, flat = len(vectors), self.programs.flat
        padded = np.pad(vectors, ((0, block.width - m), (0, 0))) if m < block.width else vectors
        return [part[:m] for part in self._summed(block, padded.astype(flat.dtype, copy=False))]

    def as_matrix(self) -> list[Float[np.ndarray, "p p"]]:
        """Return each part's matrix, in float64 and in the order of theta; errors as `matmat`."""
        programs, p = self.programs, self.size
        chunk = programs.rows.width
        matrices = [np.empty((p, p)) for _ in range(programs.outer + programs._held)]
        for start in programs.flat.pace.over(programs.part, range(0, p, chunk)):
            start = min(start, p - chunk)  # the last block overlaps, to have the same size
            found = self._summed(programs.rows, np.asarray(start, np.int32))
            for matrix, block in zip(matrices, found, strict=True):
                matrix[start : start + chunk] = block
        return matrices

    def _summed(self, program: Compiled, last: np.ndarray) -> list[Float[np.ndarray, "m p"]]:
        """Return the program's products with each part, summed over chunks of examples."""
        flat = self.programs.flat
        chunks, total = ExampleChunks(flat), list[np.ndarray]()
        theta, fixed, *known = self.known
        if program.examples < flat.problem.n and not self._are_apart(program.examples):
            raise MemoryError(
                f"expected examples that do not interact, so that memory_limit holds products of "
                f"{program.examples} of {flat.problem.n} at once, got a network that couples them, "
                "as batch normalization does; raise memory_limit or take a smaller probe batch"
            )
        with flat.precision.scope():
            for part in chunks.parts(program.examples, *known):
                found = self._parts(program.call(theta, fixed, *part, last))
                if total:
                    for whole, product in zip(total, found, strict=True):
                        whole += product
                else:
                    total = [np.array(product, np.float64) for product in found]
        return total

    def _are_apart(self, examples: int) -> bool:
        if examples not in self._apart:
            theta, fixed = self.known[:2]
            chunks = ExampleChunks(self.programs.flat)
            self._apart[examples] = chunks.are_apart(examples, (theta, fixed))
        return self._apart[examples]

    @cached_property
    def _apart(self) -> dict[int, bool]:
        return {}

    def _parts(self, products: list[Any]) -> list[np.ndarray]:
        """Return the programs' results as one array for each part."""
        arrays = [np.asarray(product) for product in products]
        if self.programs.residuals:
            functional = arrays.pop()
            arrays += [functional[:, j] for j in range(functional.shape[1])]
        return arrays
