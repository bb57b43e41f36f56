"""Parameter pytrees: leaf names, differentiated leaves, and leaves that are weight matrices.

The whole package uses one parameter order: the differentiated leaves in `jax.tree_util` order, each
raveled in C order.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankmon._util.globs import as_patterns, matching
from rankmon._util.tags import made_unique
from rankmon._util.text import listed
from rankmon._util.warnings import warn_user


@dataclass(frozen=True)
class LeafSpec:
    """Name, shape and dtype of one parameter leaf, and whether it is differentiated.

    A `chosen` leaf passes the filters, but may be an integer array. `is_number` marks a Python
    number: a setting that is held fixed and that an optimizer may turn into an array. `is_extra`
    marks a variable beside the parameters, such as a running mean.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    differentiated: bool
    chosen: bool = True
    is_number: bool = False
    is_extra: bool = False

    @property
    def size(self) -> int:
        """The number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_trainable(self) -> bool:
        """Whether this is a parameter that gradients can train, differentiated here or not."""
        floating = bool(jnp.issubdtype(self.dtype, jnp.floating))
        return floating and not self.is_number and not self.is_extra


@partial(jax.tree_util.register_dataclass, data_fields=("params", "extra"), meta_fields=())
@dataclass(frozen=True)
class Bundle:
    """Parameters, and other variables that training changes but that are never differentiated."""

    params: Any
    extra: Any


def leaf_names(params: Any) -> tuple[str, ...]:
    """Return the leaves' paths joined by "/", without an outermost "params" or NNX's last "value".

    The names are unique: keys may contain "/", so a path equal to an earlier one is numbered.
    """
    if isinstance(params, Bundle):
        own = leaf_names(params.params)
        extra = [f"extra/{name}" for name in leaf_names(params.extra)]
        return (*own, *made_unique(extra, taken=own))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    if all(len(path) > 1 and _is_variable_value(path[-1]) for path in paths):
        paths = [path[:-1] for path in paths]
    parts = [tuple(_key_text(key) for key in path) for path in paths]
    if parts and all(len(part) > 1 and part[0] == "params" for part in parts):
        parts = [part[1:] for part in parts]
    return made_unique(["/".join(part) or "params" for part in parts])


def _is_variable_value(key: Any) -> bool:
    """Return whether this path entry leads from an NNX variable to its array."""
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def _key_text(key: Any) -> str:
    """Return an entry of a path as text: a dict's key, an attribute's name, or an index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def leaf_specs(
    params: Any, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[LeafSpec, ...]:
    """Describe each leaf; floating arrays whose name passes the filters are differentiated.

    Python numbers are settings, such as the rate of a dropout layer, and are held fixed.

    Args:
      params: any pytree of arrays.
      include: glob patterns over `leaf_names`; a leaf must match one.
      exclude: glob patterns; a leaf that matches one is held fixed.

    Raises:
      TypeError: for leaves that are not arrays of numbers, and for complex differentiated leaves.
      ValueError: if a pattern matches no leaf.
    """
    names = leaf_names(params)
    own = leaf_names(params.params) if isinstance(params, Bundle) else names
    passing = passing_names(own, include, exclude)

    def spec(place: int, name: str, leaf: Any) -> LeafSpec:
        dtype = _dtype_of(name, leaf)
        is_extra, is_number = place >= len(own), not hasattr(leaf, "dtype")
        chosen = not is_extra and name in passing
        if chosen and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"expected real parameters, got {dtype} at {name!r}; complex weights have no "
                "Hessian in rankmon's sense: hold them fixed with Problem(exclude=...), or store "
                "real and imaginary part as two leaves"
            )
        floating = bool(jnp.issubdtype(dtype, jnp.floating))
        moves = floating and chosen and not is_number
        return LeafSpec(name, tuple(np.shape(leaf)), dtype, moves, chosen, is_number, is_extra)

    leaves = jax.tree_util.tree_leaves(params)
    return tuple(spec(i, *pair) for i, pair in enumerate(zip(names, leaves, strict=True)))


def differentiated_text(specs: Sequence[LeafSpec]) -> str | None:
    """Return the differentiated leaves as globs, "Dense_1/*, head/bias"; None for all parameters.

    A folder of names of which all parameters are differentiated is one glob.
    """
    names = {spec.name: spec.differentiated for spec in specs if spec.is_trainable}
    if all(names.values()):
        return None
    globs: dict[str, None] = {}
    for name in (name for name, moves in names.items() if moves):
        parts = name.split("/")
        folders = ["/".join(parts[:i]) + "/" for i in range(1, len(parts))]
        whole = (
            f"{folder}*"
            for folder in folders
            if all(moves for other, moves in names.items() if other.startswith(folder))
        )
        globs[next(whole, name)] = None
    return listed([*globs])


def passing_names(
    names: Sequence[str], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> frozenset[str]:
    """Return the names that match a pattern of `include` and none of `exclude`; None is no filter.

    Raises:
      ValueError: if a pattern matches no name.
    """
    sides = ("*" if include is None else include, () if exclude is None else exclude)
    kept, left = ({p: matching(names, p) for p in as_patterns(side)} for side in sides)
    for pattern, matched in (*kept.items(), *left.items()):
        if names and not matched:
            raise ValueError(
                f"expected the path filter {pattern!r} to match a parameter, "
                f"got none among {list(names)}; {_how_to_name(names, pattern)}"
            )
    return frozenset().union(*kept.values()).difference(*left.values())


def _how_to_name(names: Sequence[str], pattern: str) -> str:
    """Return the remedy for a pattern that matches none of the names."""
    without_numbers = [re.sub(r"_\d+(?=/|$)", "", name) for name in names]
    if "keras" in sys.modules and matching(without_numbers, re.sub(r"_\d+(?=/|$)", "", pattern)):
        return (
            "Keras numbers unnamed layers through all models of a session: name the layers, "
            "keras.layers.Dense(10, name='head'), or call keras.backend.clear_session() before "
            "the model is made"
        )
    return "correct the pattern (globs over these names)"


def _dtype_of(name: str, leaf: Any) -> np.dtype:
    """Return a leaf's dtype in native byte order; refuse leaves that are not arrays of numbers."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"expected arrays of numbers, got a random key ({dtype}) at {name!r}; leave it out of "
            "the weights (for an NNX model, pass `nnx.state(model, nnx.Param)`), or pass "
            "jax.random.key_data(key) in extra= and let apply call jax.random.wrap_key_data"
        )
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        is_array = isinstance(leaf, np.ndarray) and dtype.hasobject
        cast = "cast the array, .astype(np.float32), or " if is_array else ""
        raise TypeError(
            f"expected parameters to be a pytree of arrays of numbers, got {type(leaf).__name__} "
            f"of dtype {dtype} at {name!r}; {cast}pass the weights only (for a flax TrainState, "
            "`state.params`; for an NNX model, `nnx.state(model, nnx.Param)`)"
        )
    return dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype


def is_matrix(spec: LeafSpec) -> bool:
    """Return whether the leaf is a weight matrix or a kernel that can be viewed as one.

    Biases of attention layers have two axes, (heads, head_dim), but are not matrices. Arrays of
    one-byte integers count as quantized weights.
    """
    is_bias = spec.name.split("/")[-1] == "bias"
    is_weight = spec.differentiated or (spec.chosen and _is_quantized(spec.dtype))
    return is_weight and len(spec.shape) >= 2 and spec.size > 0 and not is_bias


def _is_quantized(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer)) and dtype.itemsize == 1


def warn_of_left_out(specs: Sequence[LeafSpec]) -> None:
    """Warn if there are integer matrices, which do not count as weights."""
    wide = [
        f"{spec.name} {spec.dtype}{list(spec.shape)}"
        for spec in specs
        if spec.chosen
        and len(spec.shape) >= 2
        and jnp.issubdtype(spec.dtype, jnp.integer)
        and not _is_quantized(spec.dtype)
    ]
    if wide:
        warn_user(
            f"expected matrices of floats or of one-byte integers, got {', '.join(wide)}, which "
            "are left out; convert them to floats if they are weights"
        )
