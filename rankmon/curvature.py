"""H_o and H_f of any network at theta: dense in bounded memory, and as products; no spectra.

With the mean over the probe batch, weights w_i that sum to 1, residuals delta_i = dl/dF [k], output
Hessians B_i = d2l/dF2 [k, k] and Jacobians J_i = dF(x_i)/dtheta [k, p]:

  H_o = sum_i w_i J_i^T B_i J_i                        the outer-product (Gauss-Newton) term
  H_f = sum_i w_i sum_c delta_i[c] d2F_c(x_i)/dtheta2   the functional term
  H_L = H_o + H_f                                       the Hessian of the loss

H_f is the Hessian of sum_i w_i <delta_i, F(x_i)> with delta held constant; it is never H_L - H_o,
which is rounding noise once the residual is small. Any delta may be held: that of step 0 gives
H_f^fixed. Rows and columns follow the parameter order of `_tree`.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rankmon.problem import FlatProblem

DEFAULT_MEMORY_LIMIT = 4 * 2**30
# H_o, H_f, their sum, and the copy that LAPACK overwrites.
DENSE_MATRICES_ALIVE = 4
# More columns at once cost memory and gain nothing: the products are already large.
_MOST_COLUMNS = 128
_Make = Callable[[int], Callable[..., Any]]


class Curvature:
    """The parts of the Hessian of one `FlatProblem`, compiled once and assembled in chunks.

    Args:
      flat: the problem at parameters of a known structure.
      memory_limit: bytes that the dense matrices and the workspace may take together.

    Raises:
      MemoryError: where the dense matrices do not fit, with p and the bytes they would need.
    """

    def __init__(self, flat: FlatProblem, *, memory_limit: int = DEFAULT_MEMORY_LIMIT) -> None:
        self.flat = flat
        self.memory_limit = memory_limit
        dense = dense_bytes(flat.p)
        if dense >= memory_limit:
            raise MemoryError(
                f"expected the dense Hessian's {DENSE_MATRICES_ALIVE} matrices to fit in "
                f"memory_limit = {_bytes_text(memory_limit)}, got p = {flat.p:,} parameters, which "
                f"need {_bytes_text(dense)}; raise memory_limit, choose fewer parameters with "
                "Problem(include=...), or watch the weights alone (RankMonitor: "
                "oversize='weights')"
            )
        self._workspace = memory_limit - dense
        #: Bytes of temporary memory that the compiled programs report, by the matrix assembled.
        self.workspace_used: dict[str, int] = {}
        self._one_by_one = True

    @classmethod
    def of(cls, flat: FlatProblem, *, memory_limit: int) -> "Curvature":
        """The one curvature of this problem and limit; its programs are compiled once."""
        key = ("curvature", memory_limit)
        if key not in flat.memo:
            flat.memo[key] = cls(flat, memory_limit=memory_limit)
        return flat.memo[key]

    def compile(self) -> None:
        """Compiles the assembly now, so that what does not fit is known before training starts.

        Raises:
          MemoryError: where a single row or example takes more than the workspace.
        """
        with self.flat.precision.scope():
            self._functional_rows  # noqa: B018  cached
            if self._one_by_one:
                try:
                    self._outer_chunk  # noqa: B018
                except Exception:  # noqa: BLE001
                    # Too large an example, or an apply that needs the whole batch: the slow way.
                    self._one_by_one = False
            if not self._one_by_one:
                self._outer_rows  # noqa: B018

    def functional(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray], delta: Float[np.ndarray, "n k"]
    ) -> Float[np.ndarray, "p p"]:
        """H_f at theta with these residuals, in float64."""
        p = self.flat.p
        matrix = np.empty((p, p))
        with self.flat.precision.scope():
            rows, chunk = self._functional_rows
            for start in range(0, p, chunk):
                start = min(start, p - chunk)
                block = rows(*self._arguments(theta, fixed, delta), np.asarray(start, np.int32))
                matrix[start : start + chunk] = block
        return matrix

    def outer(self, theta: np.ndarray, fixed: Sequence[np.ndarray]) -> Float[np.ndarray, "p p"]:
        """H_o at theta, in float64."""
        self.compile()
        with self.flat.precision.scope():
            if self._one_by_one:
                matrix = self._outer_from_examples(theta, fixed)
                if self._agrees_with_products(matrix, theta, fixed):
                    return matrix
                self._one_by_one = False
            return self._outer_from_batch(theta, fixed)

    def functional_product(
        self,
        theta: np.ndarray,
        fixed: Sequence[np.ndarray],
        delta: Float[np.ndarray, "n k"],
        v: Float[np.ndarray, " p"],
    ) -> Float[np.ndarray, " p"]:
        """H_f v with these residuals."""
        with self.flat.precision.scope():
            product = self._functional_product(*self._arguments(theta, fixed, delta), v)
            return np.asarray(product, np.float64)

    def outer_product(
        self, theta: np.ndarray, fixed: Sequence[np.ndarray], v: Float[np.ndarray, " p"]
    ) -> Float[np.ndarray, " p"]:
        """H_o v."""
        with self.flat.precision.scope():
            flat = self.flat
            product = self._outer_product(theta, fixed, flat.inputs, flat.targets, self._weights, v)
            return np.asarray(product, np.float64)

    # H_f

    def _arguments(self, theta: np.ndarray, fixed: Sequence[np.ndarray], delta: Any) -> tuple:
        dtype = theta.dtype
        weighted = (self.flat.weights[:, None] * delta).astype(dtype)
        return theta, tuple(fixed), self.flat.inputs, weighted

    @cached_property
    def _weights(self) -> np.ndarray:
        return self.flat.weights.astype(self._dtype)

    @cached_property
    def _dtype(self) -> np.dtype:
        moving = [spec.dtype for spec in self.flat.specs if spec.differentiated]
        native = jax.dtypes.canonicalize_dtype(np.result_type(*moving))
        return self.flat.precision.dtype or native

    def _functional_hvp(self, theta: Any, fixed: Any, inputs: Any, weighted: Any, v: Any) -> Any:
        def gradient(theta: Any) -> Any:
            return jax.grad(lambda t: jnp.vdot(weighted, self.flat.outputs(t, fixed, inputs)))(
                theta
            )

        return jax.jvp(gradient, (theta,), (v,))[1]

    @cached_property
    def _functional_product(self) -> Callable[..., Any]:
        return jax.jit(self._functional_hvp)

    @cached_property
    def _functional_rows(self) -> tuple[Callable[..., Any], int]:
        flat, p = self.flat, self.flat.p

        def make(chunk: int) -> Callable[..., Any]:
            def rows(theta: Any, fixed: Any, inputs: Any, weighted: Any, start: Any) -> Any:
                basis = jax.nn.one_hot(start + jnp.arange(chunk), p, dtype=theta.dtype)
                product = lambda v: self._functional_hvp(theta, fixed, inputs, weighted, v)  # noqa: E731
                return jax.vmap(product)(basis)

            return rows

        arguments = (
            *self._shapes_of(flat.inputs, np.empty((flat.positions, flat.k), self._dtype)),
            jax.ShapeDtypeStruct((), np.int32),
        )
        return self._compile("H_f", make, arguments, most=min(p, _MOST_COLUMNS))

    # H_o

    def _output_hessians(self, z: Any, targets: Any) -> Any:
        return jax.vmap(self.flat.problem.loss.output_hessian)(z, targets)

    def _outer_product_of(
        self, theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any, v: Any
    ) -> Any:
        def outputs(theta: Any) -> Any:
            return self.flat.outputs(theta, fixed, inputs)

        z, pull_back = jax.vjp(outputs, theta)
        # J v as the transpose of u -> J^T u: a function with a backward rule alone has no jvp.
        jv = jax.vjp(lambda u: pull_back(u)[0], jnp.zeros_like(z))[1](v)[0]
        bjv = jnp.einsum("nkl,nl->nk", self._output_hessians(z, targets), jv)
        cotangent = (weights[:, None] * bjv).astype(z.dtype)  # a module may end in float32
        return pull_back(cotangent)[0]

    @cached_property
    def _outer_product(self) -> Callable[..., Any]:
        return jax.jit(self._outer_product_of)

    def _one_example(self, theta: Any, fixed: Any, x: Any) -> Float[Array, "positions k"]:
        return self.flat.outputs(theta, fixed, jax.tree.map(lambda leaf: leaf[None], x))

    def _agrees_with_products(
        self, outer: Float[np.ndarray, "p p"], theta: np.ndarray, fixed: Sequence[np.ndarray]
    ) -> bool:
        """Whether the matrix multiplies a vector as H_o does when the batch stays together.

        Where the examples interact (batch statistics), Jacobians taken one at a time are those of
        another network, and H_o assembled from them is wrong. The product knows nothing of that.
        """
        v = np.random.default_rng(0).standard_normal(self.flat.p).astype(self._dtype)
        got, want = outer @ v, self.outer_product(theta, fixed, v)
        if not (np.all(np.isfinite(got)) and np.all(np.isfinite(want))):
            return True  # overflow is logged as such; it says nothing of the examples
        scale = max(np.max(np.abs(got)), np.max(np.abs(want)))
        return bool(
            np.max(np.abs(got - want)) <= 1e3 * self.flat.p * self.flat.precision.eps * scale
        )

    def _outer_from_examples(self, theta: np.ndarray, fixed: Sequence[np.ndarray]) -> np.ndarray:
        flat, n = self.flat, self.flat.problem.n
        add, chunk = self._outer_chunk
        per = flat.positions // n
        targets = jax.tree.map(lambda t: t.reshape(n, per, *t.shape[1:]), flat.targets)
        weights = self._weights.reshape(n, per)
        total = jnp.zeros((flat.p, flat.p), self._dtype)
        for start in range(0, n, chunk):
            # The last chunk starts early to keep its shape; what it repeats gets weight 0.
            first = min(start, n - chunk)
            part = slice(first, first + chunk)
            live = (np.arange(first, first + chunk) >= start)[:, None]
            inputs, chosen = jax.tree.map(lambda a: a[part], (flat.inputs, targets))  # noqa: B023
            total = add(total, theta, tuple(fixed), inputs, chosen, weights[part] * live)
        return np.asarray(total, np.float64)

    @cached_property
    def _outer_chunk(self) -> tuple[Callable[..., Any], int]:
        flat, n, k, p = self.flat, self.flat.problem.n, self.flat.k, self.flat.p
        per = flat.positions // n
        jacobian_of = jax.jacrev if per * k <= p else jax.jacfwd

        def make(chunk: int) -> Callable[..., Any]:
            def add(total: Any, theta: Any, fixed: Any, inputs: Any, targets: Any, w: Any) -> Any:
                def example(x: Any) -> Any:
                    return self._one_example(theta, fixed, x)

                z = jax.vmap(example)(inputs).reshape(chunk * per, k)
                flat_targets = jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:]), targets)
                b = w.reshape(-1, 1, 1) * self._output_hessians(z, flat_targets)
                jacobian = jax.vmap(
                    lambda x: jacobian_of(lambda t: self._one_example(t, fixed, x))(theta)
                )(inputs).reshape(chunk * per, k, p)
                bj = jnp.einsum("nkl,nlp->nkp", b, jacobian)
                return total + jacobian.reshape(-1, p).T @ bj.reshape(-1, p)

            return add

        def chunk_shapes(chunk: int) -> tuple[Any, ...]:
            def cut(leaf: Any, shape: tuple[int, ...]) -> Any:
                return jax.ShapeDtypeStruct((chunk, *shape), leaf.dtype)

            theta, fixed = self._shapes_of()
            return (
                jax.ShapeDtypeStruct((p, p), self._dtype),
                theta,
                fixed,
                jax.tree.map(lambda a: cut(a, a.shape[1:]), flat.inputs),
                jax.tree.map(lambda t: cut(t, (per, *t.shape[1:])), flat.targets),
                jax.ShapeDtypeStruct((chunk, per), self._dtype),
            )

        guess = max(1, self._workspace // (4 * 8 * per * k * p))
        return self._compile("H_o", make, chunk_shapes, most=min(n, int(guess)), donate=(0,))

    def _outer_from_batch(self, theta: np.ndarray, fixed: Sequence[np.ndarray]) -> np.ndarray:
        """H_o from whole-batch products with basis vectors, for batches whose examples interact."""
        flat, p = self.flat, self.flat.p
        matrix = np.empty((p, p))
        rows, chunk = self._outer_rows
        for start in range(0, p, chunk):
            start = min(start, p - chunk)
            matrix[start : start + chunk] = rows(
                theta,
                tuple(fixed),
                flat.inputs,
                flat.targets,
                self._weights,
                np.asarray(start, np.int32),
            )
        return matrix

    @cached_property
    def _outer_rows(self) -> tuple[Callable[..., Any], int]:
        flat, p = self.flat, self.flat.p

        def make(chunk: int) -> Callable[..., Any]:
            def rows(
                theta: Any, fixed: Any, inputs: Any, targets: Any, weights: Any, start: Any
            ) -> Any:
                basis = jax.nn.one_hot(start + jnp.arange(chunk), p, dtype=self._dtype)
                return jax.vmap(
                    lambda v: self._outer_product_of(theta, fixed, inputs, targets, weights, v)
                )(basis)

            return rows

        arguments = (
            *self._shapes_of(flat.inputs, flat.targets, self._weights),
            jax.ShapeDtypeStruct((), np.int32),
        )
        return self._compile("H_o", make, arguments, most=min(p, _MOST_COLUMNS))

    # Compilation

    def _shapes_of(self, *trees: Any) -> tuple[Any, ...]:
        theta = jax.ShapeDtypeStruct((self.flat.p,), self._dtype)
        fixed = tuple(
            jax.ShapeDtypeStruct(
                spec.shape, self.flat.precision.lift(np.empty(0, spec.dtype)).dtype
            )
            for spec in self.flat.specs
            if not spec.differentiated
        )
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), trees)
        return theta, fixed, *shapes

    def _compile(
        self,
        part: str,
        make: _Make,
        shapes: Any,
        *,
        most: int,
        donate: tuple[int, ...] = (),
    ) -> tuple[Callable[..., Any], int]:
        """The program for the largest chunk that fits the workspace, measured by the compiler."""
        chunk = most
        while True:
            arguments = shapes(chunk) if callable(shapes) else shapes
            compiled = jax.jit(make(chunk), donate_argnums=donate).lower(*arguments).compile()
            need = _temporary_bytes(compiled)
            self.workspace_used[part] = need
            if need <= self._workspace:
                return compiled, chunk
            if chunk == 1:
                raise MemoryError(
                    f"expected {part}'s workspace to fit in {_bytes_text(self._workspace)}, got "
                    f"{_bytes_text(need)} for a single row or example; raise memory_limit or "
                    "take a smaller probe batch"
                )
            chunk = max(1, min(chunk // 2, int(chunk * self._workspace / need)))


def dense_bytes(p: int) -> int:
    """Bytes that the dense p x p float64 matrices of one measurement take together."""
    return DENSE_MATRICES_ALIVE * 8 * p * p


def _temporary_bytes(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def _bytes_text(size: int) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log2(max(size, 1))) // 10, len(units) - 1)
    return f"{size / 1024**power:.3g} {units[power]}"
