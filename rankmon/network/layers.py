"""The layers of a network: groups of parameter leaves, whose blocks of a Hessian are measured."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rankmon.network.matrix_views import tag_names
from rankmon.network.recognized_stack import recognized_stack
from rankmon.problem.flat import FlatProblem
from rankmon.problem.pytree import is_matrix


@dataclass(frozen=True)
class Layer:
    """The leaves of one layer.

    Attributes:
      name: the name in tags, which is that of its weight matrix.
      leaves: the indices of its leaves, all differentiated.
      size: the number of parameters.
    """

    name: str
    leaves: tuple[int, ...]
    size: int

    def places(self, flat: FlatProblem) -> Int[np.ndarray, " size"]:
        """Return the places of these leaves in theta, of this problem or in its coordinates."""
        differentiated = [i for i, spec in enumerate(flat.specs) if spec.differentiated]
        slices = dict(zip(differentiated, flat.leaf_slices, strict=True))
        return np.concatenate([np.r_[slices[leaf]] for leaf in self.leaves])


def layers_of(flat: FlatProblem) -> tuple[Layer, ...]:
    """Return the layers, which together have each differentiated parameter once.

    In a recognized stack a layer is [W^l b^l], first layer first. In other networks it is a weight
    matrix with the other leaves at its place in the tree of parameters, for instance a kernel and
    its bias, if it is the only matrix there; any other leaf is a layer of its own.
    """
    stack = recognized_stack(flat)
    if stack is None:
        groups = _by_place(flat)
    else:
        pairs = [(layer.kernel, layer.bias) for layer in stack.layers]
        groups = [tuple(leaf for leaf in pair if leaf is not None) for pair in pairs]
    leaves = [spec.name for spec in flat.specs]
    names = tag_names([leaves[group[0]] for group in groups], leaves)
    sizes = [sum(flat.specs[leaf].size for leaf in group) for group in groups]
    return tuple(Layer(*layer) for layer in zip(names, groups, sizes, strict=True))


def _by_place(flat: FlatProblem) -> list[tuple[int, ...]]:
    """Return the leaves that are next to one another in the tree, each weight matrix first."""
    places = defaultdict[str, list[int]](list)
    for leaf, spec in enumerate(flat.specs):
        if spec.differentiated and spec.size:
            places[spec.name.rpartition("/")[0]].append(leaf)
    groups = list[tuple[int, ...]]()
    for leaves in places.values():
        kernels = [leaf for leaf in leaves if is_matrix(flat.specs[leaf])]
        if len(kernels) == 1:
            groups.append((*kernels, *(leaf for leaf in leaves if leaf not in kernels)))
        else:
            groups += [(leaf,) for leaf in leaves]
    return sorted(groups)
