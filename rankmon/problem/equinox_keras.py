"""Equinox models and Keras variables as pytrees of arrays.

Neither library is imported here: if the user's program has not imported it, the model cannot come
from it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Static:
    """A leaf of a model that is not an array, made part of the tree structure."""

    value: Any

    def __eq__(self, other: object) -> bool:
        """Return whether both hold the same value."""
        return isinstance(other, Static) and (
            self.value is other.value
            or (type(self.value) is type(other.value) and bool(self.value == other.value))
        )

    def __hash__(self) -> int:
        """Return the hash of the type, because some values in models are not hashable."""
        return hash(type(self.value))


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Named:
    """A sequence of Keras variables as arrays, each named by its variable's path."""

    arrays: tuple[Any, ...]
    paths: tuple[str, ...]
    kind: type

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Return the arrays with their names, and the static data."""
        keys = map(jax.tree_util.DictKey, self.paths)
        return tuple(zip(keys, self.arrays, strict=True)), (self.paths, self.kind)

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Any) -> "Named":
        """Return the sequence with other arrays."""
        return cls(tuple(arrays), *rest)


def as_arrays(params: Any) -> Any:
    """Convert Equinox models and Keras variables in the tree, so that all leaves are arrays.

    `as_given` is the inverse.

    Raises:
      TypeError: for a model of Keras, which is not a pytree.
    """
    modules = kinds("equinox", "Module")
    if modules:
        params = _mapped(_static_but_arrays, params, lambda node: isinstance(node, modules))
    if kinds("keras", "Variable"):
        params = _mapped(_named, params, _are_keras_variables)
    return params


def kinds(library: str, *names: str) -> tuple[type, ...]:
    """Return the library's classes with these names, or none if it has not been imported."""
    found = (getattr(sys.modules.get(library), name, None) for name in names)
    return tuple(kind for kind in found if isinstance(kind, type))


def as_given(tree: Any) -> Any:
    """Undo `as_arrays`: return the tree in the form that the user's function expects."""
    back = _mapped(lambda node: node.kind(node.arrays), tree, lambda node: isinstance(node, Named))
    return _mapped(lambda node: node.value, back, lambda node: isinstance(node, Static))


def _mapped(change: Callable[[Any], Any], tree: Any, at: Callable[[Any], bool]) -> Any:
    return jax.tree.map(lambda node: change(node) if at(node) else node, tree, is_leaf=at)


def _static_but_arrays(model: Any) -> Any:
    """Wrap each leaf of a model that is not an array as `Static`."""

    def is_array(leaf: Any) -> bool:
        return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))

    return jax.tree.map(lambda leaf: leaf if is_array(leaf) else Static(leaf), model)


def _is_keras_variable(value: Any) -> bool:
    return isinstance(value, kinds("keras", "Variable"))


def _are_keras_variables(node: Any) -> bool:
    """Return whether this is a Keras variable, or a list or tuple of them; refuse a Keras layer."""
    if isinstance(node, kinds("keras", "Layer")):
        raise TypeError(
            f"expected parameters to be a pytree of arrays, got a Keras {type(node).__name__}; "
            "pass model.trainable_variables"
        )
    several = type(node) in (list, tuple) and bool(node) and all(map(_is_keras_variable, node))
    return several or _is_keras_variable(node)


def _named(variables: Any) -> Any:
    """Return the array of a Keras variable, or several variables as `Named` arrays."""
    if _is_keras_variable(variables):
        return _array_of(variables)
    paths = [variable.path for variable in variables]
    return Named(tuple(map(_array_of, variables)), _without_model(paths), type(variables))


def _array_of(variable: Any) -> Any:
    value = variable.value
    return value if isinstance(value, jax.Array) else np.asarray(variable.numpy())


def _without_model(paths: list[str]) -> tuple[str, ...]:
    """Return the paths without the model's name, because Keras numbers it anew in each process."""
    parts = [path.split("/") for path in paths]
    if len({part[0] for part in parts}) == 1 and all(len(part) > 2 for part in parts):
        return tuple("/".join(part[1:]) for part in parts)
    return tuple(paths)


def is_live(params: Any) -> bool:
    """Return whether training changes the tree in place: it has NNX objects or Keras variables."""
    live = (*kinds("flax.nnx", "Module", "Optimizer", "Variable"), *kinds("keras", "Variable"))

    def is_one(node: Any) -> bool:
        return isinstance(node, live)

    return any(map(is_one, jax.tree.leaves(params, is_leaf=is_one)))
