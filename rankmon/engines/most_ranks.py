"""Upper bounds on the ranks of a Hessian's parts, from a few products and gradients."""

import numpy as np
from jaxtyping import Float

from rankmon.hessian.jacobian import transposed_product
from rankmon.hessian.operators import HessianPrograms
from rankmon.linalg.rank_bound import most_rank
from rankmon.network.matrix_views import matrix_shape
from rankmon.problem.point import Point
from rankmon.problem.pytree import is_matrix

# Gradients that show the directions of a weight matrix with a non-zero derivative.
_GRADIENTS = 8
_SEED = 0


def most_ranks(point: Point, cut: float) -> dict[str, int]:
    """Return for each part a bound on the number of its singular values above the cut.

    The bounds are those of the structure: N k rows for H_o, `linalg.rank_bound` for H_f, and their
    sum for H_L. They hold except with probability 1/1000 each.

    Args:
      point: the parameters, or their coordinates.
      cut: the absolute cut.
    """
    flat = point.flat
    rows = min(flat.positions * flat.k, flat.p)  # of H_o
    most = [_most_functional(point, delta, cut) for delta in point.functional_residuals]
    counts = (min(rows + most[0], flat.p), rows, *most)
    return dict(zip(point.parts, counts, strict=True))


def _most_functional(point: Point, delta: Float[np.ndarray, "n k"], cut: float) -> int:
    at, flat = (point.theta, point.fixed), point.flat
    moving = [spec for spec in flat.specs if spec.differentiated and spec.size]
    weights = flat.weights[:, None]
    draws = np.random.default_rng(_SEED).standard_normal((_GRADIENTS, flat.positions, 1))
    return most_rank(
        HessianPrograms(flat, residuals=1).at(*at, [delta]).mv,
        np.stack([transposed_product(flat, *at, weights * (o * delta)) for o in draws]),
        [matrix_shape(spec) if is_matrix(spec) else (spec.size, 1) for spec in moving],
        cut,
        eps=flat.precision.eps,
        seed=_SEED,
    )
