"""Ranks of weight matrices as traceable functions, for compiled train steps.

They compute in the dtype of the parameters (float32 for narrower ones), so that they add no float64
to the program. The cut allows for rounding errors of that arithmetic and of the dtype in which the
weights are stored.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from rankmon._util.arrays import in_machine_order
from rankmon.network.matrix_views import Views, tag_names
from rankmon.problem.precision import eps_of
from rankmon.problem.problem import Problem
from rankmon.problem.pytree import leaf_names
from rankmon.weights.matrices import matrices

Scalars = dict[str, Float[Array, ""]]


def weight_scalars(
    params: Any,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    views: Views | Problem | None = None,
) -> Scalars:
    """Return the scalars of the "weights" probe for every matrix among the parameters, by tag.

    Args:
      params: pytree of arrays.
      include: globs over parameter names.
      exclude: globs over parameter names to leave out.
      views: as for `weight_ranks`.

    Returns:
      Tag -> scalar, in float32 or wider; NaN throughout for a matrix that is not finite.

    Raises:
      TypeError: for complex leaves and leaves that are not arrays.
      ValueError: if no leaf is a matrix.
    """
    scalars: Scalars = {}
    with jax.numpy_dtype_promotion("standard"):
        found = matrices(params, include=include, exclude=exclude, views=views)
        leaves = leaf_names(views.unpack(params) if isinstance(views, Problem) else params)
        names = tag_names([view.name for _, view, _ in found], leaves)
        for name, (_, view, leaf) in zip(names, found, strict=True):
            scalars |= _scalars_of(name, jnp.asarray(view.of(in_machine_order(leaf))))
    return scalars


def _scalars_of(name: str, matrix: Real[Array, "m n"]) -> Scalars:
    """Return the scalars of one matrix; traceable, so every case is a `jnp.where`."""
    m, n = matrix.shape
    stored = eps_of(matrix.dtype)
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    finite = jnp.all(jnp.isfinite(matrix))
    # LAPACK's result for NaN differs between releases.
    values = jnp.linalg.svd(jnp.where(finite, matrix, 0), compute_uv=False)
    norm = values[0]
    scaled = values / jnp.where(norm > 0, norm, 1)  # squares of the values could over- or underflow
    share = scaled / jnp.sum(jnp.where(norm > 0, scaled, 1))
    stable = jnp.where(norm > 0, jnp.sum(scaled**2), jnp.nan)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
    # max(m, n) eps ||W||_2 for the arithmetic, and eps / 2 ||W||_F for storing rounded weights.
    arithmetic = float(jnp.finfo(matrix.dtype).eps)
    cut = max(m, n) * arithmetic + stored / 2 * jnp.sqrt(jnp.sum(scaled**2))

    def count(factor: float) -> Array:
        return jnp.sum(scaled > factor * cut).astype(matrix.dtype)

    rank = jnp.sum(scaled > cut)
    last = scaled[jnp.maximum(rank - 1, 0)]
    below = jnp.where(rank < scaled.size, scaled[jnp.minimum(rank, scaled.size - 1)], 0)
    gap = jnp.where(rank == 0, jnp.nan, last / below)
    scalars = {
        f"rank_weights/{name}": count(1.0),
        f"tolerance/{name}": cut * norm,
        f"rank_low/{name}": count(10.0),
        f"rank_high/{name}": count(0.1),
        f"gap/{name}": gap,
        f"stable_rank/{name}": stable,
        f"effective_rank/{name}": jnp.where(norm > 0, jnp.exp(entropy), jnp.nan),
        f"condition_number/{name}": jnp.where(norm > 0, 1 / scaled[-1], jnp.nan),
    }
    if m == n:
        sign, log_abs = jnp.linalg.slogdet(matrix)
        regular = scaled[-1] > n * arithmetic  # below the cut, both are rounding errors
        scalars |= {
            f"det_sign/{name}": jnp.where(regular, sign, 0),
            f"log_abs_det/{name}": jnp.where(regular, log_abs, -jnp.inf),
        }
    return {tag: jnp.where(finite, value, jnp.nan) for tag, value in scalars.items()}
