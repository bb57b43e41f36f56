"""Weight matrices that several devices share: certify a rank on them, or gather one matrix.

Symbols as in `certified_rank`: W [s, l] with s <= l. W W^T is a sum over the devices, each of which
multiplies its columns; only matrices of order s come to the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rankmon._util.distributed import gathered
from rankmon.linalg.certified_rank import certified_count_by, residual_rounding, spectral_norm
from rankmon.linalg.gram import Gram, sum_rounding
from rankmon.linalg.numerical_rank import NumericalRank, undefined_rank
from rankmon.network.matrix_views import MatrixView
from rankmon.problem.precision import DOUBLE
from rankmon.weights.rounding import power_of_two

# Platforms whose float64 rounds as IEEE 754 says, which the certificate relies on.
_EXACT = frozenset({"cpu", "gpu", "cuda", "rocm"})

Cut = Callable[[float, float], float]


def whole_matrix(view: MatrixView, leaf: Any) -> np.ndarray:
    """Return a matrix on the host; of a leaf that several devices share, only this matrix."""
    if not _is_shared(leaf):
        matrix: np.ndarray = view.of(np.asarray(leaf))
        return matrix
    # JAX would keep a copy of a leaf that is read as a whole.
    return np.asarray(gathered(jax.jit(view.of)(leaf)))


def count_on_devices(
    view: MatrixView, leaf: Any, cut_of: Cut, *, least: int
) -> NumericalRank | None:
    """Return the rank of a matrix, certified on its devices.

    Args:
      view: the matrix in the leaf.
      leaf: an array.
      cut_of: returns the cut of a matrix with this norm and stable rank.
      least: the least number of rows and columns that are not zero.

    Returns:
      The rank; None if the leaf is not shared by devices, or if nothing is certified.
    """
    if not _is_shared(leaf) or not isinstance(leaf.sharding, NamedSharding):
        return None
    mesh = leaf.sharding.mesh
    if max(view.shape) % mesh.size or {d.platform for d in mesh.devices.flat} - _EXACT:
        return None
    with DOUBLE.scope():
        return _certified(Columns.of(view, leaf), min(view.shape), cut_of, least)


def _is_shared(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_replicated


@dataclass(frozen=True)
class Columns:
    """W, scaled by a power of two, with its columns split over all devices of a mesh.

    Attributes:
      matrix: W in float64.
      scale: the power of two.
      rows: the rows that are not zero.
      live: the number of columns that are not zero.
      everywhere: the sharding of small matrices, each of them on every device.
    """

    matrix: Float[Array, "s l"]
    scale: float
    rows: np.ndarray
    live: int
    everywhere: NamedSharding

    @classmethod
    def of(cls, view: MatrixView, leaf: Any) -> "Columns":
        """Move the entries of a matrix to the devices that multiply them."""
        given = leaf.sharding.mesh
        axes = given.axis_names
        auto = Mesh(given.devices, axes, axis_types=(AxisType.Auto,) * len(axes))
        split, whole = (NamedSharding(auto, PartitionSpec(*to)) for to in ((None, axes), ()))

        def columns(leaf: Any) -> Any:
            W = view.of(leaf).astype(jnp.float64)
            W = W if view.shape[0] <= view.shape[1] else W.T
            largest = jnp.max(jnp.abs(W), initial=0.0)  # NaN if an entry is
            return W, largest, jnp.any(W, axis=1), jnp.any(W, axis=0)

        moved = jax.device_put(leaf, NamedSharding(auto, leaf.sharding.spec))
        W, largest, rows, live = jax.jit(columns, out_shardings=(split, whole, whole, whole))(moved)
        bound = float(largest)
        scale = power_of_two(np.array([bound])) if np.isfinite(bound) else bound
        nonzero = np.flatnonzero(np.asarray(rows))
        return cls(W / scale, scale, nonzero, int(np.sum(live)), whole)

    def gram(self) -> Gram:
        """Return W W^T without zero rows."""
        return self._without_zeros(self._multiplied(_gram, self.matrix))

    def residual(self, U: Float[np.ndarray, "s r"]) -> tuple[Gram, float]:
        """Return the Gram matrix of N = W - U (U^T W), and a bound on N's rounding errors."""
        padded = np.zeros((len(self.matrix), U.shape[1]))
        padded[self.rows] = U
        K, own, inner = self._multiplied(_residual, self.matrix, padded)
        sizes = float(own) + float(np.linalg.norm(U)) * float(inner)
        sizes *= 1 + sum_rounding(self.matrix.size)  # the norms round as well
        return self._without_zeros(K), residual_rounding(U.shape[1], sizes)

    def _multiplied(self, product: Callable[..., Any], *arrays: Any) -> Any:
        return jax.jit(product, out_shardings=self.everywhere)(*arrays)

    def _without_zeros(self, K: Any) -> Gram:
        matrix = np.asarray(K)[np.ix_(self.rows, self.rows)]
        matrix = (matrix + matrix.T) / 2
        # For any order in which the devices add up, and one more rounding for the mean.
        error = sum_rounding(self.matrix.shape[1] + 1) * float(np.trace(matrix))
        return Gram(matrix, error)


def _gram(W: Float[Array, "s l"]) -> Float[Array, "s s"]:
    return jnp.matmul(W, W.T, precision=jax.lax.Precision.HIGHEST)


def _residual(W: Float[Array, "s l"], U: Float[Array, "s r"]) -> tuple[Any, Any, Any]:
    """Return N N^T, ||W||_F and ||U^T W||_F."""
    B = jnp.matmul(U.T, W, precision=jax.lax.Precision.HIGHEST)
    N = W - jnp.matmul(U, B, precision=jax.lax.Precision.HIGHEST)
    return _gram(N), jnp.linalg.norm(W), jnp.linalg.norm(B)


def _certified(W: Columns, size: int, cut_of: Cut, least: int) -> NumericalRank | None:
    if not np.isfinite(W.scale):
        return undefined_rank(size)
    if W.live < len(W.rows) or len(W.rows) < least:
        return None
    gram = W.gram()
    norm = spectral_norm(gram.matrix)
    cut = cut_of(norm * W.scale, float(np.trace(gram.matrix)) / norm**2) / W.scale
    count = certified_count_by(gram, W.residual, above=10 * cut, below=cut / 10)
    return None if count is None else certified_rank(count, cut * W.scale, size, len(W.rows))


def certified_rank(count: int, cut: float, size: int, live: int) -> NumericalRank:
    """Return a rank with the margin and the gap that the certificate gives.

    Args:
      count: the rank.
      cut: the cut.
      size: the smaller number of rows and columns.
      live: the same without rows and columns of zeros.
    """
    # No singular value lies between a tenth of the cut and ten times it.
    gap = float("inf") if count == live else 100.0
    return NumericalRank(count, float(cut), size, count, count, gap)
