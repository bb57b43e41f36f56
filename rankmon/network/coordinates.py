"""Orthonormal coordinates of the directions on which the outputs depend, in place of parameters.

With theta = theta_0 + U c, U [p, q] with orthonormal columns, the loss does not depend on the
directions orthogonal to U, so that U^T H U, [q, q], has exactly the non-zero eigenvalues of every
part H. Each leaf has its own columns of U:

  kernel of data   W = U_x C,  U_x an orthonormal basis of the span of its inputs x_i
  table            the rows that are looked up
  any other        the entries that are used

`dependence` finds the directions, and the network confirms that it does not depend on the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from rankmon._util.optional_readers import optionally
from rankmon.network.dependence import Dependence, KernelOfData, dependences
from rankmon.network.leaf_maps import Entries, LeafMap, Rows, Span, Whole
from rankmon.network.reduced_network import reduced_network
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.problem.point import Point
from rankmon.problem.precision import DOUBLE

# Coordinates are used if they leave out at least this share of the parameters.
_WORTHWHILE = 0.05

# Singular values of the inputs below so many eps of the largest one are rounding.
_MOST_ROUNDING = 64

# Relative differences of outputs up to this are rounding.
_SAME = 1e-10


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A problem in the coordinates c in R^q.

    Attributes:
      flat: the problem at theta in R^p.
      maps: the coordinates of each leaf.
      reduced: the problem at c; `flat` itself if nothing is left out.
    """

    flat: FlatProblem
    maps: tuple[LeafMap, ...]
    reduced: FlatProblem

    @classmethod
    def whole(cls, flat: FlatProblem) -> "Coordinates":
        """Return the parameters themselves as coordinates."""
        return cls(flat, tuple(Whole(spec.shape) for spec in flat.specs), flat)

    @property
    def is_whole(self) -> bool:
        """Whether c is theta."""
        return self.reduced is self.flat

    def at(self, point: Point) -> Point:
        """Return the point in these coordinates, with the values that were computed at it."""
        return point if self.is_whole else point.moved_to(self.reduced, self.inward(point.leaves))

    def inward(self, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the coordinates of all leaves."""
        return [one.inward(leaf) for one, leaf in zip(self.maps, leaves, strict=True)]


def coordinates_of(flat: FlatProblem) -> Coordinates:
    """Return the coordinates of a problem, which are found once."""
    if "coordinates" not in flat.memo:
        whole = Coordinates.whole(flat)
        flat.memo["coordinates"] = optionally(
            flat.problem,
            "the directions of the parameters on which the outputs depend",
            lambda: _found(flat) or whole,
            otherwise=whole,
        )
    return flat.memo["coordinates"]


def _found(flat: FlatProblem) -> Coordinates | None:
    """Return the coordinates; None if they leave out too little.

    Raises:
      ValueError: if the network depends on the directions that they leave out.
    """
    # Below float64 a change of basis would change the rounding inside the network.
    exact = flat.precision.dtype is not None and flat.precision.eps <= DOUBLE.eps
    if not exact:
        return None
    maps = tuple(
        Whole(spec.shape) if found is None else _map_of(spec.shape, found, flat.p)
        for spec, found in zip(flat.specs, dependences(flat), strict=True)
    )
    specs = tuple(
        replace(spec, shape=one.shape) for spec, one in zip(flat.specs, maps, strict=True)
    )
    reduced = replace(flat, network=reduced_network(flat, maps), specs=specs, memo={})
    if reduced.p > (1 - _WORTHWHILE) * flat.p:
        return None
    found = Coordinates(flat, maps, reduced)
    _check(found)
    return found


def _check(coordinates: Coordinates) -> None:
    """Check at Gaussian parameters that the network does not depend on the other directions."""
    flat, rng = coordinates.flat, np.random.default_rng(0)
    leaves = gaussian_leaves(flat, rng)
    _, want = flat.loss_and_residuals(*flat.split(leaves))
    reduced = coordinates.reduced
    _, found = reduced.loss_and_residuals(*reduced.split(coordinates.inward(leaves)))
    with np.errstate(invalid="ignore"):
        off = float(np.max(np.abs(found - want), initial=0.0))
    if not off <= _SAME * np.max(np.abs(want), initial=0.0):
        raise ValueError(f"the outputs change by {off:.1e} with directions that were left out")


def _map_of(shape: tuple[int, ...], found: Dependence, p: int) -> LeafMap:
    """Return the coordinates of one leaf."""
    if found.kernel is not None and found.entries.size:
        return _map_of_kernel(shape, found.kernel, p)
    size = math.prod(shape)
    if len(found.entries) == size:
        return Whole(shape)
    if shape and found.entries.size:
        width = size // shape[0]
        rows = np.unique(found.entries // width)
        if len(rows) * width == found.entries.size:
            return Rows(rows, shape)
    return Entries(found.entries, shape)


def _map_of_kernel(shape: tuple[int, ...], kernel: KernelOfData, p: int) -> LeafMap:
    """Return the coordinates of the span of a kernel's inputs."""
    used = np.any(kernel.inputs != 0, axis=0)
    basis = _basis(kernel.inputs[:, used], p)
    if basis is None and np.all(used):
        return Whole(shape)
    if basis is None and kernel.summed == 1 and kernel.axes[0] == 0:
        return Rows(np.flatnonzero(used), shape)
    if basis is None:
        basis = np.eye(int(np.sum(used)))
    whole = np.zeros((len(used), basis.shape[1]))
    whole[used] = basis
    return Span(whole, kernel.axes, shape, kernel.summed)


def _basis(inputs: Float[np.ndarray, "rows a"], p: int) -> Float[np.ndarray, "a r"] | None:
    """Return an orthonormal basis of the rows' span; None if that is everything.

    A direction is left out only if the singular value is rounding, far below a tenth of the cut
    p eps.
    """
    rows, a = inputs.shape
    negligible = min(max(p / 200, 1), _MOST_ROUNDING) * DOUBLE.eps
    some = inputs[: a + 8] if rows > 2 * a else inputs
    if len(some) >= a and _is_full(some, negligible):
        return None
    if rows > a:
        inputs = np.asarray(np.linalg.qr(inputs, mode="r"))
    _, values, directions = np.linalg.svd(inputs, full_matrices=False)
    rank = int(np.sum(values > negligible * values[0])) if a else 0
    return None if rank == a else directions[:rank].T


def _is_full(inputs: Float[np.ndarray, "rows a"], negligible: float) -> bool:
    values = np.linalg.svd(inputs, compute_uv=False)
    return bool(values.size) and bool(values[-1] > negligible * values[0])
