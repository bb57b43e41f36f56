"""View parameter leaves as matrices: the axes of rows and columns, and axes that count matrices.

The axes come from the user, else from the operation that uses the leaf (`kernel_axes`), else from
its name and shape.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rankmon._util.globs import matching
from rankmon._util.tags import RESERVED_NAMES, made_unique
from rankmon.problem.pytree import LeafSpec, is_matrix

# The projections of Flax's attention layers have kernels of shape (in, heads, head_dim).
_SPLIT_OUTPUT_LAYERS = frozenset({"query", "key", "value"})

# The prefixes of a layer's name in the tags of its features and changes: "rank_low/features/W".
_KINDS = re.compile("features/|gradient/|since_start/|since_last/")


@dataclass(frozen=True)
class MatrixAxes:
    """The axes of a leaf that are rows and columns of a matrix; its other axes count matrices.

    Attributes:
      rows: the axes of the rows, slowest first.
      columns: the axes of the columns, slowest first.
      source: the origin of the axes: "product" or "convolution" for the operation that uses the
        leaf; "name" for a projection of an attention layer; "shape" for the only two axes, or the
        last axis as columns and all others as rows; "views" for the user's option.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    source: str


# A glob over the leaves' names -> the axes of rows and of columns.
Views = Mapping[str, tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class MatrixView:
    """One matrix in a leaf.

    Attributes:
      name: the name of the matrix, unique among all matrices.
      order: a permutation of the leaf's axes: first layers (and heads), then rows, then columns.
      place: the index of the matrix along the axes of layers and heads.
      shape: the numbers of rows and columns.
      axes: the leaf's axes of rows and columns.
    """

    name: str
    order: tuple[int, ...]
    place: tuple[int, ...]
    shape: tuple[int, int]
    axes: MatrixAxes

    def of(self, leaf: Any) -> Any:
        """Return the matrix in the leaf, a NumPy or JAX array."""
        return leaf.transpose(self.order)[self.place].reshape(self.shape)


def matrix_views(
    specs: Sequence[LeafSpec],
    *,
    known: Mapping[int, MatrixAxes] | None = None,
    views: Views | None = None,
    by_head: bool = False,
) -> list[tuple[int, MatrixView]]:
    """Return every matrix in these leaves with the index of its leaf; all names are unique.

    Args:
      specs: the specs of all leaves; leaves that are not matrices are skipped.
      known: the axes from the network's operations, by the leaf's index.
      views: the user's axes, which take precedence.
      by_head: whether to add a matrix for each head of an attention layer's projections.

    Raises:
      TypeError, ValueError: if a view matches no leaf, or does not match the leaf's axes.
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
    renamed = iter(made_unique(parts, taken=leaves))
    return [
        (index, view if view.name == specs[index].name else replace(view, name=next(renamed)))
        for index, view in found
    ]


def tag_names(names: Sequence[str], leaves: Collection[str]) -> tuple[str, ...]:
    """Return the matrices' names in tags, changed if tags of the Hessian or features collide.

    Args:
      names: the unique names of the matrices.
      leaves: the names of all leaves, because the features of "W" have tags with "features/W", its
        gradient tags with "gradient/W", and its changes tags with "since_start/W".
    """

    def is_taken(name: str) -> bool:
        layer = re.sub(r" \(\d+\)$", "", _KINDS.sub("", name, count=1))
        return name in RESERVED_NAMES or (_KINDS.match(name) is not None and layer in leaves)

    moved = iter(made_unique([f"params/{x}" for x in names if is_taken(x)], taken=names))
    return tuple(next(moved) if is_taken(name) else name for name in names)


def _views_of(spec: LeafSpec, axes: MatrixAxes, by_head: bool) -> Iterator[MatrixView]:
    """Yield the matrices of one leaf: one for each layer, and one for each head in it."""
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
    """Return the view of one matrix, given its index along the axes of layers and heads."""
    m, n = (int(np.prod([spec.shape[a] for a in side])) for side in (axes.rows, axes.columns))
    return MatrixView(name, (*layers, *axes.rows, *axes.columns), place, (m, n), axes)


def _without(axes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(other for other in axes if other != axis)


def _head_axis(spec: LeafSpec, axes: MatrixAxes) -> int | None:
    """Return the axis that counts the heads of an attention layer; None for any other kernel.

    In Flax the kernels of query, key and value are (in, heads, head_dim), that of the output
    (heads, head_dim, out); they are recognized by these names and by their numbers of axes.
    """
    if axes.source == "convolution":
        return None
    sides = len(axes.rows), len(axes.columns)
    if _layer(spec.name) in _SPLIT_OUTPUT_LAYERS and sides == (1, 2):
        return axes.columns[0]
    return axes.rows[0] if _layer(spec.name) == "out" and sides == (2, 1) else None


def _layer(name: str) -> str:
    """Return the name of the leaf's layer."""
    return name.split("/")[-2] if "/" in name else ""


def named_axes(name: str, shape: Sequence[int], *, layers: Sequence[int] = ()) -> MatrixAxes:
    """Return the axes by name and shape, for leaves whose use is unknown.

    A dense kernel is a matrix as it is. A convolution's kernel (kh, kw, in, out) is viewed as
    (kh kw in) x out. The query, key and value projections of attention, (in, heads, head_dim), are
    viewed as in x (heads head_dim), and the output projection (heads, head_dim, out) as
    (heads head_dim) x out.
    """
    axes = [axis for axis in range(len(shape)) if axis not in layers]
    is_split = len(axes) == 3 and _layer(name) in _SPLIT_OUTPUT_LAYERS
    rows = axes[:1] if is_split else axes[:-1]
    return MatrixAxes(tuple(rows), tuple(axes[len(rows) :]), "name" if is_split else "shape")


def matrix_shape(spec: LeafSpec) -> tuple[int, int]:
    """Return the numbers of rows and columns of a kernel, from its name and shape."""
    rows = named_axes(spec.name, spec.shape).rows
    m = int(np.prod([spec.shape[axis] for axis in rows]))
    return m, spec.size // m


def given_axes(specs: Sequence[LeafSpec], views: Views) -> dict[int, MatrixAxes]:
    """Return the user's axes by the leaf's index; the first matching pattern counts.

    Raises:
      TypeError: for views that are not a mapping to pairs of axes.
      ValueError: for a pattern that matches no matrix, or axes that the leaf does not have.
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
                f"{names}; correct the pattern (globs over these names)"
            )
        chosen = dict.fromkeys(matched, (pattern, axes)) | chosen  # the first pattern wins
    return {
        index: _given(spec, *chosen[spec.name])
        for index, spec in enumerate(specs)
        if spec.name in chosen
    }


def _given(spec: LeafSpec, pattern: str, axes: Any) -> MatrixAxes:
    """Return the axes that the user gives for a leaf, counted from 0."""
    count = len(spec.shape)
    try:
        # Indexing a range converts negative axes, and refuses axes that the leaf does not have.
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
