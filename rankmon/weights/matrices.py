"""The weight matrices among a model's parameters, each with the leaf that contains it."""

from collections.abc import Sequence
from typing import Any

import jax

from rankmon.network.kernel_axes import kernel_axes
from rankmon.network.matrix_views import MatrixView, Views, matrix_views
from rankmon.problem.equinox_keras import as_arrays
from rankmon.problem.problem import Problem
from rankmon.problem.pytree import LeafSpec, leaf_specs, warn_of_left_out


def matrices(
    params: Any,
    *,
    views: Views | Problem | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> list[tuple[LeafSpec, MatrixView, Any]]:
    """Return the matrices among the parameters, each with its leaf; all names are unique.

    Args:
      params: any pytree of arrays; with a problem as `views`, parameters of that problem.
      views: the axes of rows and of columns by globs over the leaves' names, or the problem whose
        network determines them.
      include: globs over parameter names.
      exclude: globs over parameter names to leave out.

    Raises:
      TypeError: for complex leaves, leaves that are not arrays, and views of another type.
      ValueError: if no leaf is a matrix, or if a view matches no matrix.
    """
    known = None
    if isinstance(views, Problem):
        known = kernel_axes(views.flat(params))
        params, views = views.unpack(params), None
    params = as_arrays(params)
    specs = leaf_specs(params, include=include, exclude=exclude)
    found = matrix_views(specs, known=known, views=views)
    warn_of_left_out(specs)
    if not found:
        raise ValueError(
            "expected parameters with at least one matrix, got shapes "
            f"{ {spec.name: spec.shape for spec in specs} }; "
            "pass the weights, not only biases or scalars"
        )
    leaves = jax.tree.leaves(params)
    return [(specs[index], view, leaves[index]) for index, view in found]
