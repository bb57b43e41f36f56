"""The loss Hessian and its parts at given parameters as linear operators, and their eigenpairs."""

import time
from dataclasses import dataclass
from typing import Any, overload

import jax
import numpy as np
import scipy.sparse.linalg
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from rankmon._util.tags import HESSIAN_PARTS
from rankmon._util.text import bytes_text
from rankmon._util.validate import check_choice, check_time_limit
from rankmon.engines.base import differentiated_twice
from rankmon.engines.select import DEFAULT_TIME_LIMIT
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.hessian.operators import HessianOperator, HessianPrograms
from rankmon.linalg.eigenpairs import (
    ENDS,
    Eigenpairs,
    dense_eigenpairs,
    extreme_eigenpairs,
    krylov_size,
    undefined_eigenpairs,
)
from rankmon.measure.mesh_operator import MeshOperator, mesh_operator
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point
from rankmon.problem.problem import Problem

# Vectors at once in `matmat`.
_BLOCK = 16

# Below this order, and for many eigenpairs, the matrix is cheaper than its Krylov spaces.
_SMALL = 256


@dataclass(frozen=True, eq=False)
class PartOperator:
    """One part of the Hessian at fixed parameters, as a symmetric linear operator in float64.

    Entries of vectors are in the order of the parameters' leaves (`jax.tree.leaves`), as in
    `hessian_spectra`, without leaves held fixed.

    Attributes:
      part: "H_L", "H_o", "H_f" or "H_f_fixed".
      shape: (p, p).
      dtype: float64.
    """

    part: str
    _point: Point
    _one: HessianOperator
    _block: HessianOperator

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        return self._one.size, self._one.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of products: float64."""
        return np.dtype(np.float64)

    def matvec(self, v: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        """Return the product with a vector [p]."""
        return self._one.mv(self._fitting(v, "a vector [p]", 1))

    def matmat(self, V: Float[np.ndarray, "p m"]) -> Float[np.ndarray, "p m"]:
        """Return the product with a matrix [p, m], whose columns are the vectors, as in SciPy."""
        V = self._fitting(V, "a matrix [p, m]", 2)
        product = np.empty_like(V)
        m = V.shape[1]
        width = self._block.programs.block.width if m > 1 else 1
        for start in range(0, m, width):
            columns = slice(start, start + width)
            product[:, columns] = self._rows(np.ascontiguousarray(V[:, columns].T)).T
        return product

    def _rows(self, vectors: Float[np.ndarray, "m p"]) -> Float[np.ndarray, "m p"]:
        if len(vectors) == 1:
            return self._one.mv(vectors[0])[None]
        return self._block.matmat(vectors)[0]

    def __matmul__(self, other: Float[np.ndarray, "p ..."]) -> Float[np.ndarray, "p ..."]:
        return self.matvec(other) if np.ndim(other) == 1 else self.matmat(other)

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """Return the operator as a `scipy.sparse.linalg.LinearOperator`."""

        def matvec(v: np.ndarray) -> np.ndarray:
            return self.matvec(np.ravel(v))  # SciPy also passes [p, 1]

        return scipy.sparse.linalg.LinearOperator(
            self.shape,
            matvec=matvec,
            rmatvec=matvec,
            matmat=self.matmat,
            rmatmat=self.matmat,
            dtype=self.dtype,
        )

    def unravel(self, v: Float[np.ndarray, " p"]) -> Any:
        """Return a vector as a pytree like the parameters; zeros for leaves held fixed."""
        flat, v = self._point.flat, self._fitting(v, "a vector [p]", 1)
        leaves, offset = [], 0
        for spec in flat.specs:
            size = spec.size if spec.differentiated else 0
            entries = v[offset : offset + size] if size else np.zeros(spec.size)
            leaves.append(entries.reshape(spec.shape))
            offset += size
        return jax.tree.unflatten(flat.structure, leaves)

    def ravel(self, tree: Any) -> Float[np.ndarray, " p"]:
        """Return a pytree like the parameters as a vector; leaves held fixed are left out.

        Raises:
          ValueError: if its structure or a shape is not that of the parameters.
        """
        flat = self._point.flat
        theta, _ = flat.split(flat.leaves(tree))
        return np.asarray(theta, np.float64)

    def _fitting(self, array: Any, what: str, axes: int) -> Float[np.ndarray, "p ..."]:
        array = np.asarray(array)
        if array.ndim != axes or len(array) != self.shape[0] or np.iscomplexobj(array):
            raise ValueError(
                f"expected {what} of real numbers with p = {self.shape[0]:,}, got shape "
                f"{array.shape} of {array.dtype}; entries go in the order of the parameters' "
                "leaves, columns are vectors (ravel(tree) makes one)"
            )
        return array.astype(np.float64, copy=False)


@overload
def hessian_operator(
    problem: Problem,
    params: Any,
    part: str = ...,
    *,
    reference: Float[np.ndarray, "n k"] | None = ...,
    memory_limit: int = ...,
    mesh: None = ...,
    batch_spec: None = ...,
) -> PartOperator: ...


@overload
def hessian_operator(
    problem: Problem,
    params: Any,
    part: str = ...,
    *,
    reference: Float[np.ndarray, "n k"] | None = ...,
    memory_limit: int = ...,
    mesh: Mesh,
    batch_spec: PartitionSpec | None = ...,
) -> MeshOperator: ...


def hessian_operator(
    problem: Problem,
    params: Any,
    part: str = "H_L",
    *,
    reference: Float[np.ndarray, "n k"] | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    mesh: Mesh | None = None,
    batch_spec: PartitionSpec | None = None,
) -> PartOperator | MeshOperator:
    """Return the loss Hessian, or a part of it, at given parameters as a linear operator.

    H_L = H_o + H_f, the Hessian of the mean loss over the probe batch, in float64. A product takes
    a few evaluations of the network and no p x p matrix. If the batch does not fit in memory_limit,
    products are summed over chunks of examples.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      part: "H_L", "H_o", "H_f" or "H_f_fixed".
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      memory_limit: bytes of temporary memory of a product, on each device.
      mesh: the mesh of sharded parameters, to multiply on it; by default they are copied
        to one device.
      batch_spec: with mesh, the axes over which the examples are split; by default those that
        split no parameter, as far as they divide n. Axes that split both make devices gather
        weights.

    Returns:
      An operator with `shape`, `dtype`, `matvec`, `matmat` and `to_scipy()`; its products are NaN
      if the weights or the Hessian are not finite. With mesh, a `MeshOperator`, whose vectors are
      pytrees like the parameters; a batch that does not fit is then not summed over chunks.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if a product does not fit in memory_limit.

    Example:
      >>> import numpy as np, rankmon
      >>> x, y = np.eye(6, 4), np.ones((6, 2))
      >>> problem = rankmon.Problem(lambda W, x: x @ W, loss="mse", inputs=x, targets=y)
      >>> H = rankmon.hessian_operator(problem, np.ones((4, 2)))
      >>> H.matvec(np.arange(8.0))
      array([0.        , 0.16666667, 0.33333333, 0.5       , 0.66666667,
             0.83333333, 1.        , 1.16666667])

    Source: arXiv 2106.16225, section 3.
    """
    check_choice("part", part, HESSIAN_PARTS)
    if part == "H_f_fixed" and reference is None:
        raise ValueError(
            "expected reference residuals for H_f_fixed, got none; pass "
            "reference=problem.residuals(params) of the parameters whose residuals it holds"
        )
    if mesh is not None:
        return mesh_operator(problem, params, part, reference, memory_limit, mesh, batch_spec)
    if batch_spec is not None:
        raise ValueError(f"expected a mesh with batch_spec={batch_spec!r}, got none; pass mesh=")
    point = Point.of(problem, params, reference)
    one, block = (_programs(point.flat, part, batch, memory_limit) for batch in (1, _BLOCK))
    with differentiated_twice():
        if one.one is None:
            one.block  # noqa: B018  compiled here, so that errors come before the products
    point.flat.warn_once()
    deltas = {"H_o": [], "H_f_fixed": [point.reference]}.get(part, [point.residuals])
    at = (point.theta, point.fixed, deltas)
    return PartOperator(part, point, one.at(*at), block.at(*at))


def _programs(flat: FlatProblem, part: str, batch: int, memory_limit: int) -> HessianPrograms:
    """Return the programs of products, compiled once for each problem."""
    kind = {"H_L": "loss", "H_o": "outer"}.get(part, "residuals")
    key = ("operator", kind, batch, memory_limit)
    if key not in flat.memo:
        options: dict[str, Any] = {kind: True if kind != "residuals" else 1}
        flat.memo[key] = HessianPrograms(flat, **options, batch=batch, room=memory_limit)
    return flat.memo[key]


def hessian_eigenpairs(
    problem: Problem,
    params: Any,
    k: int,
    *,
    part: str = "H_L",
    which: str = "LM",
    reference: Float[np.ndarray, "n k"] | None = None,
    accuracy: float = 1e-12,
    seed: int = 0,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    time_limit: float = DEFAULT_TIME_LIMIT,
) -> Eigenpairs:
    """Return k eigenpairs of the loss Hessian, or of a part of it, at given parameters.

    By SciPy's eigsh (ARPACK) from products with vectors, at any p; for few parameters, or for more
    than a quarter of all eigenpairs, from the matrix.

    Args:
      problem: network, loss and probe batch.
      params: the parameters, any pytree of arrays.
      k: the number of eigenpairs.
      part: "H_L", "H_o", "H_f" or "H_f_fixed".
      which: "LM" for eigenvalues of the largest magnitude, "LA" for the largest, "SA" for the
        smallest (the most negative).
      reference: residuals [N, k] to hold, for H_f_fixed; N counts every position.
      accuracy: the residual at which to stop: relative to each eigenvalue for "LM", to the norm of
        the part for the others.
      seed: seed of the start vectors.
      memory_limit: bytes for the vectors that are kept, and for a product.
      time_limit: seconds, after compilation.

    Returns:
      `Eigenpairs`: values [k], vectors [p, k] in the order of `hessian_operator`, residuals [k];
      NaN throughout if the weights or the Hessian are not finite.

    Raises:
      TypeError, ValueError: for input that does not fit, before anything is computed.
      MemoryError: if the vectors or a product do not fit in memory_limit.
      TimeoutError: if there is no result within time_limit.

    Example:
      >>> import numpy as np, rankmon
      >>> x, y = np.diag([1.0, 2.0, 3.0, 4.0]), np.ones((4, 1))
      >>> problem = rankmon.Problem(lambda w, x: x @ w, loss="mse", inputs=x, targets=y)
      >>> rankmon.hessian_eigenpairs(problem, np.ones((4, 1)), k=2).values
      array([4.  , 2.25])

    Source: arXiv 2106.16225, section 3.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"expected k to be an integer, got {type(k).__name__}; give a number")
    check_choice("which", which, ENDS)
    check_time_limit(time_limit)
    if not 0 < accuracy < 1:
        raise ValueError(f"expected 0 < accuracy < 1, got {accuracy}; 1e-12 is close to rounding")
    operator = hessian_operator(
        problem, params, part, reference=reference, memory_limit=memory_limit
    )
    p, _ = operator.shape
    if not 1 <= k <= p:
        raise ValueError(f"expected 1 <= k <= p = {p:,}, got {k}; ask for fewer eigenpairs")
    dense = p <= _SMALL or 4 * k > p
    need = 8 * p * (4 * p if dense else krylov_size(p, k) + 4 * k)
    if need > memory_limit:
        raise MemoryError(
            f"expected the vectors for {k:,} eigenpairs of p = {p:,} parameters to fit in "
            f"memory_limit = {bytes_text(memory_limit)}, got {bytes_text(need)}; raise "
            "memory_limit or ask for fewer eigenpairs"
        )
    if not operator._point.is_finite:
        return undefined_eigenpairs(p, k)
    if dense:
        return dense_eigenpairs(operator.matmat(np.eye(p)), k, which)
    limited = _limited(operator, time_limit)
    try:
        return extreme_eigenpairs(limited, p, k, which, accuracy=accuracy, seed=seed)
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        raise TimeoutError(
            f"expected ARPACK to converge to {k} eigenpairs of {part}, got {error}; raise accuracy "
            "or ask for other eigenpairs"
        ) from error


def _limited(operator: PartOperator, time_limit: float) -> Any:
    """Return the operator's product with a vector, which raises once the time is over."""
    begun, count = time.monotonic(), 0

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        if time.monotonic() - begun > time_limit:
            raise TimeoutError(
                f"expected the eigenpairs of {operator.part} within time_limit = {time_limit:g} s, "
                f"got no convergence after {count:,} products; raise time_limit or accuracy, or "
                "ask for fewer eigenpairs"
            )
        count += 1
        return operator.matvec(v)

    return product
