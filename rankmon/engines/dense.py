"""H_o and H_f of any network, assembled by automatic differentiation in bounded memory.

With the mean over the probe batch, weights w_i that sum to 1, residuals delta_i = dl/dF [k], output
Hessians B_i = d2l/dF2 [k, k] and Jacobians J_i = dF(x_i)/dtheta [k, p]:

  H_o = sum_i w_i J_i^T B_i J_i                        the outer-product (Gauss-Newton) term
  H_f = sum_i w_i sum_c delta_i[c] d2F_c(x_i)/dtheta2   the functional term
  H_L = H_o + H_f                                       the Hessian of the loss

H_f is the Hessian of sum_i w_i <delta_i, F(x_i)> with delta held constant; it is never H_L - H_o,
which is rounding noise once the residual is small. Any delta may be held: that of step 0 gives
H_f^fixed. Rows and columns go in the order of theta.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rankmon._util.compile import Make, largest_program, operations
from rankmon._util.jaxpr import CUSTOM_VJP_CALLS, holds
from rankmon.engines.dense_parts import HessianParts, is_wide
from rankmon.hessian.batching import OneByOne, is_of_whole_batch
from rankmon.hessian.jacobian import JacobianOperator
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT, dense_bytes, refuse_oversize
from rankmon.hessian.operators import HessianPrograms, compiled_product
from rankmon.problem.flat import FlatProblem
from rankmon.problem.output_hessians import OutputHessians
from rankmon.problem.point import Point
from rankmon.problem.precision import abstract_array

# Times that an operation of a product takes longer than one of J^T B J, a product of matrices.
_PRODUCTS_SLOWNESS = 8


class Curvature:
    """The parts of the Hessian of one problem, compiled once and assembled in chunks.

    Args:
      flat: the problem at parameters of a known structure.
      memory_limit: bytes that the dense matrices and the workspace may take together.

    Raises:
      MemoryError: if the dense matrices do not fit, with p and the bytes they would need.
    """

    def __init__(self, flat: FlatProblem, *, memory_limit: int = DEFAULT_MEMORY_LIMIT) -> None:
        refuse_oversize(flat.p, memory_limit)
        self.flat = flat
        self.memory_limit = memory_limit
        self._workspace = memory_limit - dense_bytes(flat.p)
        self._functional_programs: dict[int, HessianPrograms] = {}
        #: Bytes of temporary memory that the compiled programs report, by the matrix assembled.
        self.workspace_used: dict[str, int] = {}
        self._one_by_one = OneByOne()  # for `_outer_chunk`

    def compile(self, *, cotangents: int) -> None:
        """Compile the assembly now, so that a lack of memory shows before training starts.

        Args:
          cotangents: for how many residuals H_f will be asked at once.

        Raises:
          MemoryError: if a single row or example takes more than the workspace.
        """
        self.flat.compile(gradient=is_wide(self.flat))  # to check the Jacobian
        with self.flat.precision.scope():
            self._functional(cotangents)
            if is_wide(self.flat):
                self._jacobian.compile()
            else:
                if self._products_are_cheap():
                    self._one_by_one.rule_out()
                self._one_by_one.prepare(lambda: self._outer_chunk, lambda: self._outer)

    @property
    def layers(self) -> tuple[slice, ...]:
        """The rows of each differentiated leaf."""
        return self.flat.leaf_slices

    @property
    def order(self) -> Int[np.ndarray, " p"]:
        """The place of each row in theta."""
        return np.arange(self.flat.p)

    def parts(self, point: Point) -> HessianParts:
        """Return H_o, and H_f for each of the point's residuals, in the parameter order."""
        deltas = point.functional_residuals
        self.compile(cotangents=len(deltas))
        theta, fixed = point.theta, point.fixed
        outer, root = self.outer(theta, fixed, point.output_hessians)
        functional = tuple(self.functional(theta, fixed, deltas))
        return HessianParts(outer, functional, root, self.layers)

    def functional(
        self,
        theta: np.ndarray,
        fixed: Sequence[np.ndarray],
        deltas: Sequence[Float[np.ndarray, "n k"]],
    ) -> list[Float[np.ndarray, "p p"]]:
        """Compute the matrix H_f at theta for each of these residuals, in float64."""
        programs = self._functional(len(deltas))
        held = [*deltas, *[deltas[-1]] * (programs.residuals - len(deltas))]
        return programs.at(theta, fixed, held).as_matrix()[: len(deltas)]

    def outer(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray], b: OutputHessians
    ) -> tuple[Float[np.ndarray, "p p"], Float[np.ndarray, "m p"] | None]:
        """Return H_o = A^T A at theta, in float64, and A if the Jacobian gives it."""
        with self.flat.precision.scope():
            if is_wide(self.flat):
                return self._outer_from_jacobian(theta, fixed, b)
            matrix = self._one_by_one.result(
                lambda: self._outer_from_examples(theta, fixed),
                lambda: self._outer.at(theta, fixed).as_matrix()[0],
                right=lambda matrix: self._agrees_with_products(matrix, theta, fixed),
            )
            return matrix, None

    # H_f

    def _functional(self, residuals: int) -> HessianPrograms:
        enough = [count for count in self._functional_programs if count >= residuals]
        if (
            enough
        ):  # at the first probe the reference is the residual: compile nothing for one alone
            return self._functional_programs[min(enough)]
        programs = HessianPrograms(self.flat, residuals=residuals, room=self._workspace)
        self.workspace_used["H_f"] = programs.rows[2]
        self._functional_programs[residuals] = programs
        return programs

    # H_o

    @cached_property
    def _outer(self) -> HessianPrograms:
        programs = HessianPrograms(self.flat, outer=True, room=self._workspace)
        self.workspace_used["H_o"] = programs.rows[2]
        return programs

    def _products_are_cheap(self) -> bool:
        """Return whether p products take far fewer operations than J^T B J: many outputs."""
        flat = self.flat
        product = operations(compiled_product(flat, "H_o"))
        return 0 < _PRODUCTS_SLOWNESS * product < 2 * flat.positions * flat.k * flat.p

    def _agrees_with_products(
        self, outer: Float[np.ndarray, "p p"], theta: np.ndarray, fixed: Sequence[np.ndarray]
    ) -> bool:
        """Return whether the matrix multiplies a vector as H_o of the whole batch does."""
        v = np.random.default_rng(0).standard_normal(self.flat.p).astype(self.flat.dtype)
        want = HessianPrograms(self.flat, outer=True).at(theta, fixed).mv(v)
        return is_of_whole_batch(outer @ v, want, self.flat)

    def _outer_from_examples(self, theta: np.ndarray, fixed: Sequence[np.ndarray]) -> np.ndarray:
        flat, n = self.flat, self.flat.problem.n
        add, chunk = self._outer_chunk
        per = flat.positions // n
        targets = jax.tree.map(lambda t: t.reshape(n, per, *t.shape[1:]), flat.targets)
        weights = self.flat.typed_weights.reshape(n, per)
        total = jnp.zeros((flat.p, flat.p), self.flat.dtype)
        for start in flat.pace.over("H_o", range(0, n, chunk)):
            # The last chunk starts early to keep its shape; repeated examples get weight 0.
            first = min(start, n - chunk)
            part = slice(first, first + chunk)
            live = (np.arange(first, first + chunk) >= start)[:, None]
            inputs, chosen = jax.tree.map(lambda a: a[part], (flat.inputs, targets))  # noqa: B023
            total = add(total, theta, tuple(fixed), inputs, chosen, weights[part] * live)
        return np.asarray(total, np.float64)

    # Not of rows from `JacobianOperator`: summed on the device, none of them comes to the host.
    @cached_property
    def _outer_chunk(self) -> tuple[Callable[..., Any], int]:
        flat, n, k, p = self.flat, self.flat.problem.n, self.flat.k, self.flat.p
        per = flat.positions // n
        by_columns = per * k > p and not holds(flat.program.jaxpr, CUSTOM_VJP_CALLS)
        jacobian_of = jax.jacfwd if by_columns else jax.jacrev
        loss = flat.problem.loss

        def curved(z: Any, target: Any, jacobian: Any) -> Any:
            if loss.root is None and k <= p:  # no larger than the Jacobian
                return loss.output_hessian(z, target) @ jacobian
            product = jax.vmap(partial(loss.hessian_product, z, target), in_axes=1, out_axes=1)
            return product(jacobian)

        def make(chunk: int) -> Callable[..., Any]:
            def add(total: Any, theta: Any, fixed: Any, inputs: Any, targets: Any, w: Any) -> Any:
                def outputs(t: Any, x: Any) -> Any:
                    return flat.outputs(t, fixed, jax.tree.map(lambda leaf: leaf[None], x))

                z = jax.vmap(partial(outputs, theta))(inputs).reshape(chunk * per, k)
                flat_targets = jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:]), targets)
                jacobian = jax.vmap(lambda x: jacobian_of(lambda t: outputs(t, x))(theta))(
                    inputs
                ).reshape(chunk * per, k, p)
                bj = jax.vmap(curved)(z, flat_targets, jacobian)
                weighted = w.reshape(-1, 1, 1) * bj
                return total + jacobian.reshape(-1, p).T @ weighted.reshape(-1, p)

            return add

        def shapes(chunk: int) -> tuple[Any, ...]:
            def cut(leaf: Any, shape: tuple[int, ...]) -> Any:
                return abstract_array((chunk, *shape), leaf.dtype)

            theta, fixed = self.flat.shapes_of()
            return (
                abstract_array((p, p), self.flat.dtype),
                theta,
                fixed,
                jax.tree.map(lambda a: cut(a, a.shape[1:]), flat.inputs),
                jax.tree.map(lambda t: cut(t, (per, *t.shape[1:])), flat.targets),
                abstract_array((chunk, per), self.flat.dtype),
            )

        guess = max(1, self._workspace // (4 * 8 * per * k * p))
        return self._compile("H_o", make, shapes, most=min(n, int(guess)), donate=(0,))

    def _outer_from_jacobian(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray], b: OutputHessians
    ) -> tuple[Float[np.ndarray, "p p"], Float[np.ndarray, "m p"] | None]:
        flat = self.flat
        J = self._jacobian.as_matrix(flat.joined(theta, fixed))
        self.workspace_used["H_o"] = self._jacobian.workspace_used
        J = J.reshape(flat.positions, flat.k, flat.p)
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is found in the result
            weighted = flat.weights[:, None, None] * b.products(J)
            outer = J.reshape(-1, flat.p).T @ weighted.reshape(-1, flat.p)
            del weighted
            roots = b.roots(flat.weights)
            if roots is None or roots.signs is not None or not np.all(np.isfinite(J)):
                return outer, None
            return outer, roots.products(J).reshape(-1, flat.p)

    @cached_property
    def _jacobian(self) -> JacobianOperator:
        return JacobianOperator(self.flat, room=self._workspace)

    # Compilation

    def _compile(
        self, part: str, make: Make, shapes: Any, *, most: int, donate: tuple[int, ...] = ()
    ) -> tuple[Callable[..., Any], int]:
        program, chunk, need = largest_program(
            part, make, shapes, most=most, room=self._workspace, donate=donate
        )
        self.workspace_used[part] = need
        return program, chunk
