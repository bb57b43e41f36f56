"""Upper bounds on the ranks of a Hessian's parts, from a few products and gradients."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from rankmon.hessian.jacobian import transposed_product
from rankmon.hessian.operators import HessianPrograms
from rankmon.linalg.rank_bound import Seen, SeenOnHost, most_rank
from rankmon.network.matrix_views import matrix_shape
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Point
from rankmon.problem.pytree import is_matrix

# Gradients that show the directions of a weight matrix with a non-zero derivative.
GRADIENTS = 8
_SEED = 0


def most_ranks(point: Point, cut: float) -> dict[str, int]:
    """Return for each part a bound on the number of its singular values above the cut.

    The bounds are those of the structure: N k rows for H_o, `linalg.rank_bound` for H_f, and their
    sum for H_L. They hold except with probability 1/1000 each.

    Args:
      point: the parameters, or their coordinates.
      cut: the absolute cut.
    """
    flat, at = point.flat, (point.theta, point.fixed)
    weights, sizes = flat.weights[:, None], [a * b for a, b in _shapes(flat)]

    def seen(delta: Float[np.ndarray, "n k"], rng: np.random.Generator) -> SeenOnHost:
        product = HessianPrograms(flat, residuals=1).at(*at, [delta]).mv
        us = (weights * (o * delta) for o in combinations(flat))
        gradients = np.stack([transposed_product(flat, *at, u) for u in us])
        return SeenOnHost(product, gradients, sizes, rng)

    return most_ranks_of(point, cut, seen)


def combinations(flat: FlatProblem) -> Float[np.ndarray, "m n 1"]:
    """Return the random numbers o by which residuals are multiplied for gradients."""
    return np.random.default_rng(_SEED).standard_normal((GRADIENTS, flat.positions, 1))


def most_ranks_of(
    point: Point,
    cut: float,
    seen: Callable[[Float[np.ndarray, "n k"], np.random.Generator], Seen],
) -> dict[str, int]:
    """Return `most_ranks` from images under H_f for some residuals."""
    flat = point.flat
    rows = min(flat.positions * flat.k, flat.p)  # of H_o
    most = []
    for delta in point.functional_residuals:
        rng = np.random.default_rng([_SEED, 2])
        bound = most_rank(seen(delta, rng), _shapes(flat), cut, eps=flat.precision.eps, rng=rng)
        most.append(bound)
    counts = (min(rows + most[0], flat.p), rows, *most)
    return dict(zip(point.parts, counts, strict=True))


def _shapes(flat: FlatProblem) -> list[tuple[int, int]]:
    """Return the shapes as matrices of the differentiated leaves that have entries."""
    moving = [spec for spec in flat.specs if spec.differentiated and spec.size]
    return [matrix_shape(spec) if is_matrix(spec) else (spec.size, 1) for spec in moving]
