"""The matrices that a parameter leaf stands for: rows, columns, layers and heads.

Which axes are which comes from the user, from the operation that uses the leaf (`_kernels`), or
from names and shapes, in this order.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rankmon._util.globs import matching
from rankmon._util.tags import RESERVED_NAMES, told_apart
from rankmon.problem.pytree import LeafSpec, is_matrix

# Projections of flax's attention keep their kernels as (in, heads, head_dim).
_SPLIT_OUTPUT_LAYERS = frozenset({"query", "key", "value"})


@dataclass(frozen=True)
class MatrixAxes:
    """Which axes of a leaf are the rows and which the columns of a matrix; others count matrices.

    Attributes:
      rows: axes, slowest first.
      columns: axes, slowest first.
      source: what says so: "product" or "convolution", the operation that uses the leaf; "name", a
        projection of attention; "shape", the two axes, or the last one against the others; or
        "views", the option.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    source: str


# By globs over the leaves' names, the axes of rows and of columns.
Views = Mapping[str, tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class MatrixView:
    """One matrix in a leaf: its name, how it is taken out, rows and columns."""

    name: str
    order: tuple[int, ...]
    place: tuple[int, ...]
    shape: tuple[int, int]
    axes: MatrixAxes

    def of(self, leaf: Any) -> Any:
        """The matrix, taken from the leaf, an array of NumPy or JAX."""
        return leaf.transpose(self.order)[self.place].reshape(self.shape)


def matrix_views(
    specs: Sequence[LeafSpec],
    *,
    known: Mapping[int, MatrixAxes] | None = None,
    views: Views | None = None,
    by_head: bool = False,
) -> list[tuple[int, MatrixView]]:
    """Every matrix in these leaves with the index of its leaf; no two have the same name.

    Args:
      specs: of all leaves; those that are no matrices are passed over.
      known: the axes that the network's operations tell, by index.
      views: the user's, which come first.
      by_head: whether the heads of attention's projections are matrices as well.

    Raises:
      TypeError, ValueError: for views that fit no leaf, or not its axes.
    """
    given = given_axes(specs, views or {})
    found = []
    for index, spec in enumerate(specs):
        if is_matrix(spec):
            named = named_axes(spec.name, spec.shape)
            axes = given.get(index) or (known or {}).get(index) or named
            found += [(index, view) for view in _views_of(spec, axes, by_head)]
    leaves = {spec.name for spec in specs}
    parts = [view.name for index, view in found if view.name != specs[index].name]
    renamed = iter(told_apart(parts, taken=leaves))
    return [
        (index, view if view.name == specs[index].name else replace(view, name=next(renamed)))
        for index, view in found
    ]


def tag_names(names: Sequence[str], leaves: Collection[str]) -> tuple[str, ...]:
    """Return the names that matrices have in tags, where a Hessian and features have some too.

    Args:
      names: of the matrices, all different.
      leaves: the names of all leaves: the features of "W" are at "features/W".
    """

    def is_taken(name: str) -> bool:
        layer = re.sub(r" \(\d+\)$", "", name.removeprefix("features/"))
        return name in RESERVED_NAMES or (name.startswith("features/") and layer in leaves)

    moved = iter(told_apart([f"params/{x}" for x in names if is_taken(x)], taken=names))
    return tuple(next(moved) if is_taken(name) else name for name in names)


def _views_of(spec: LeafSpec, axes: MatrixAxes, by_head: bool) -> Iterator[MatrixView]:
    """The matrices of one leaf: of each layer, and of each head in it."""
    layers = [axis for axis in range(len(spec.shape)) if axis not in axes.rows + axes.columns]
    head = _head_axis(spec, axes) if by_head else None
    for place in np.ndindex(*(spec.shape[axis] for axis in layers)):
        name = "/".join([spec.name, *map(str, place)])
        yield _view(name, spec, axes, layers, place)
        if head is not None:
            inner = MatrixAxes(_without(axes.rows, head), _without(axes.columns, head), axes.source)
            for h in range(spec.shape[head]):
                yield _view(f"{name}/head_{h}", spec, inner, [*layers, head], (*place, h))


def _view(
    name: str, spec: LeafSpec, axes: MatrixAxes, layers: Sequence[int], place: tuple[int, ...]
) -> MatrixView:
    m, n = (int(np.prod([spec.shape[a] for a in side])) for side in (axes.rows, axes.columns))
    return MatrixView(name, (*layers, *axes.rows, *axes.columns), place, (m, n), axes)


def _without(axes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(other for other in axes if other != axis)


def _head_axis(spec: LeafSpec, axes: MatrixAxes) -> int | None:
    """The axis of heads in a projection of flax's attention; None in other kernels."""
    if axes.source == "convolution":
        return None
    sides = len(axes.rows), len(axes.columns)
    if _layer(spec.name) in _SPLIT_OUTPUT_LAYERS and sides == (1, 2):
        return axes.columns[0]
    return axes.rows[0] if _layer(spec.name) == "out" and sides == (2, 1) else None


def _layer(name: str) -> str:
    """The name of the layer that the leaf belongs to."""
    return name.split("/")[-2] if "/" in name else ""


def named_axes(name: str, shape: Sequence[int], *, layers: Sequence[int] = ()) -> MatrixAxes:
    """The axes by name and shape, where no operation tells more.

    A dense kernel is itself; a convolution's (kh, kw, in, out) is (kh kw in) x out; the query, key
    and value projections of attention, (in, heads, head_dim), are in x (heads head_dim), and the
    output projection (heads, head_dim, out) is (heads head_dim) x out.
    """
    axes = [axis for axis in range(len(shape)) if axis not in layers]
    is_split = len(axes) == 3 and _layer(name) in _SPLIT_OUTPUT_LAYERS
    rows = axes[:1] if is_split else axes[:-1]
    return MatrixAxes(tuple(rows), tuple(axes[len(rows) :]), "name" if is_split else "shape")


def matrix_shape(spec: LeafSpec) -> tuple[int, int]:
    """Rows and columns of the matrix that a kernel stands for by its name and shape."""
    rows = named_axes(spec.name, spec.shape).rows
    m = int(np.prod([spec.shape[axis] for axis in rows]))
    return m, spec.size // m


def given_axes(specs: Sequence[LeafSpec], views: Views) -> dict[int, MatrixAxes]:
    """The axes that the user gives, by the leaf's index; the first pattern that matches counts.

    Raises:
      TypeError: for views that are no mapping to pairs of axes.
      ValueError: for a pattern without a matrix, or axes that the leaf does not have.
    """
    if not isinstance(views, Mapping):
        raise TypeError(
            f"expected views to be a dict or a Problem, got {type(views).__name__}; write "
            "{'conv/weight': ((1, 2, 3), (0,))}, a glob and the axes of rows and of columns"
        )
    names = [spec.name for spec in specs if is_matrix(spec)]
    chosen: dict[str, tuple[str, Any]] = {}
    for pattern, axes in views.items():
        matched = matching(names, pattern)
        if not matched:
            raise ValueError(
                f"expected the pattern {pattern!r} in views to match a matrix, got none among "
                f"{names}; mend the pattern (globs over these names)"
            )
        chosen = dict.fromkeys(matched, (pattern, axes)) | chosen
    return {
        index: _given(spec, *chosen[spec.name])
        for index, spec in enumerate(specs)
        if spec.name in chosen
    }


def _given(spec: LeafSpec, pattern: str, axes: Any) -> MatrixAxes:
    count = len(spec.shape)
    try:
        rows, columns = (tuple(range(count)[axis] for axis in side) for side in axes)
        if not rows or not columns or len({*rows, *columns}) < len(rows + columns):
            raise IndexError
    except (TypeError, ValueError):
        raise TypeError(
            f"expected views[{pattern!r}] to be the axes of rows and of columns, got {axes!r}; "
            "write ((1, 2, 3), (0,))"
        ) from None
    except IndexError:
        raise ValueError(
            f"expected views[{pattern!r}] to name rows and columns among the {count} axes of "
            f"{spec.name!r} {list(spec.shape)}, each axis once, got {axes!r}; axes that it leaves "
            "out count layers"
        ) from None
    return MatrixAxes(rows, columns, "views")
