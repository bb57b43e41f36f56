"""Parameter pytrees: leaf names, which leaves are differentiated or matrices; no mathematics.

The one parameter order of the package: leaves in `jax.tree_util` order, each raveled in C order,
one after the other, only the leaves that are differentiated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Projections of flax's attention keep their kernels as (in, heads, head_dim).
_SPLIT_OUTPUT_LAYERS = frozenset({"query", "key", "value"})


@dataclass(frozen=True)
class LeafSpec:
    """Name, shape and dtype of one parameter leaf, and whether it is differentiated."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    differentiated: bool

    @property
    def size(self) -> int:
        """The number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))


@partial(jax.tree_util.register_dataclass, data_fields=("params", "extra"), meta_fields=())
@dataclass(frozen=True)
class Bundle:
    """Parameters, and what else the network needs that training changes: never differentiated."""

    params: Any
    extra: Any


def leaf_names(params: Any) -> tuple[str, ...]:
    """The leaves' paths joined by "/", less a lone outermost "params" and NNX's last "value"."""
    if isinstance(params, Bundle):
        beside = (f"extra/{name}" for name in leaf_names(params.extra))
        return (*leaf_names(params.params), *beside)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    if all(len(path) > 1 and _is_variable_value(path[-1]) for path in paths):
        paths = [path[:-1] for path in paths]
    parts = [tuple(_key_text(key) for key in path) for path in paths]
    if parts and all(len(part) > 1 and part[0] == "params" for part in parts):
        parts = [part[1:] for part in parts]
    return tuple("/".join(part) or "params" for part in parts)


def _is_variable_value(key: Any) -> bool:
    """Whether this is the step from an NNX variable to its array."""
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def _key_text(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def leaf_specs(
    params: Any, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[LeafSpec, ...]:
    """What each leaf is; floating leaves whose name passes the filters are differentiated.

    Args:
      params: any pytree of arrays.
      include: glob patterns over `leaf_names`; a leaf must match one.
      exclude: glob patterns; a leaf that matches one is held fixed.

    Raises:
      TypeError: for leaves that are not arrays of numbers, and for complex ones to differentiate.
      ValueError: where a pattern matches no leaf.
    """
    names = leaf_names(params)
    own = leaf_names(params.params) if isinstance(params, Bundle) else names
    passing = passing_names(own, include, exclude)

    def spec(place: int, name: str, leaf: Any) -> LeafSpec:
        dtype = _dtype_of(name, leaf)
        chosen = place < len(own) and name in passing
        if chosen and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"expected real parameters, got {dtype} at {name!r}; complex weights have no "
                "Hessian in rankmon's sense: hold them fixed with Problem(exclude=...), or store "
                "real and imaginary part as two leaves"
            )
        floating = bool(jnp.issubdtype(dtype, jnp.floating))
        return LeafSpec(name, tuple(np.shape(leaf)), dtype, floating and chosen)

    leaves = jax.tree_util.tree_leaves(params)
    return tuple(spec(i, *pair) for i, pair in enumerate(zip(names, leaves, strict=True)))


def passing_names(
    names: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> frozenset[str]:
    """The names that match a pattern of `include` and none of `exclude`.

    Raises:
      ValueError: where a pattern matches none of the names.
    """
    include, exclude = as_patterns(include), as_patterns(exclude)
    for pattern in (*include, *exclude):
        if names and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"expected the path filter {pattern!r} to match a parameter, "
                f"got none among {list(names)}; mend the pattern (globs over these names)"
            )
    return frozenset(n for n in names if matches(n, include) and not matches(n, exclude))


def as_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """The glob patterns; one alone may come without a list around it."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name matches one of the glob patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _dtype_of(name: str, leaf: Any) -> np.dtype:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(
            f"expected parameters to be a pytree of arrays of numbers, got {type(leaf).__name__} "
            f"of dtype {dtype} at {name!r}; pass the weights only (for a flax TrainState, "
            "`state.params`; for an NNX model, `nnx.state(model, nnx.Param)`)"
        )
    return dtype


def is_matrix(spec: LeafSpec) -> bool:
    """Whether the leaf is a weight matrix or a kernel that can be viewed as one.

    Attention's biases have two axes, (heads, head_dim), and are none.
    """
    is_bias = spec.name.split("/")[-1] == "bias"
    return spec.differentiated and len(spec.shape) >= 2 and spec.size > 0 and not is_bias


def matrix_leaves(
    params: Any, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> list[tuple[LeafSpec, Any]]:
    """The leaves that are matrices, each with its spec.

    Raises:
      TypeError: for complex leaves and leaves that are not arrays.
      ValueError: where no leaf is a matrix.
    """
    specs = leaf_specs(params, include=include, exclude=exclude)
    leaves = zip(specs, jax.tree.leaves(params), strict=True)
    matrices = [(spec, leaf) for spec, leaf in leaves if is_matrix(spec)]
    if not matrices:
        raise ValueError(
            "expected parameters with at least one matrix, got shapes "
            f"{ {spec.name: spec.shape for spec in specs} }; "
            "pass the weights, not only biases or scalars"
        )
    return matrices


@dataclass(frozen=True)
class MatrixView:
    """One matrix in a leaf: its name, where it lies, rows and columns."""

    name: str
    place: tuple[int | slice, ...]
    shape: tuple[int, int]

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """The matrix, taken from the leaf."""
        return leaf[self.place].reshape(self.shape)


def matrix_views(spec: LeafSpec, *, by_layer: bool, by_head: bool) -> list[MatrixView]:
    """The matrices that a leaf stands for.

    Args:
      spec: of a leaf that `is_matrix`.
      by_layer: whether the first axis counts layers, each with a matrix of its own.
      by_head: whether the heads of attention's projections are matrices as well.
    """
    layers: list[tuple[str, tuple[int | slice, ...]]] = [(spec.name, ())]
    inner = spec
    if by_layer:
        inner = replace(spec, shape=spec.shape[1:])
        layers = [(f"{spec.name}/{i}", (i,)) for i in range(spec.shape[0])]
    views = []
    for name, place in layers:
        if len(inner.shape) >= 2:
            views.append(MatrixView(name, place, matrix_shape(inner)))
        if by_head:
            views += [
                MatrixView(f"{name}/head_{h}", (*place, *head), shape)
                for h, (head, shape) in enumerate(_heads(inner))
            ]
    return views


def _heads(spec: LeafSpec) -> list[tuple[tuple[int | slice, ...], tuple[int, int]]]:
    """Place and shape of each head in a projection of flax's attention; none in other kernels."""
    if len(spec.shape) != 3:
        return []
    first, second, third = spec.shape
    if _layer(spec) in _SPLIT_OUTPUT_LAYERS:
        return [((slice(None), h), (first, third)) for h in range(second)]
    if _layer(spec) == "out":
        return [((h,), (second, third)) for h in range(first)]
    return []


def _layer(spec: LeafSpec) -> str:
    """The name of the layer that the leaf belongs to."""
    return spec.name.split("/")[-2] if "/" in spec.name else ""


def matrix_shape(spec: LeafSpec) -> tuple[int, int]:
    """Rows and columns of the matrix that a kernel stands for.

    A dense kernel is itself; a convolution's (kh, kw, in, out) is (kh kw in) x out; the query, key
    and value projections of attention, (in, heads, head_dim), are in x (heads head_dim), and the
    output projection (heads, head_dim, out) is (heads head_dim) x out.
    """
    if len(spec.shape) == 3 and _layer(spec) in _SPLIT_OUTPUT_LAYERS:
        return spec.shape[0], spec.shape[1] * spec.shape[2]
    return spec.size // spec.shape[-1], spec.shape[-1]
