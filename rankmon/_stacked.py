"""Which parameter leaves hold one matrix for each layer, along their first axis; guesses nothing.

Scanned layers (`nn.scan`, `jax.lax.scan` over the parameters), kernels taken by `W[i]`, and layers
side by side under `vmap`, each with inputs of its own, show it in the network's jaxpr.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from rankmon._jaxprs import CALLS, CUSTOM_CALLS, nested
from rankmon.flat import FlatProblem

_SAME = frozenset({"convert_element_type", "copy", "copy_p"})


def stacked_leaves(flat: FlatProblem) -> frozenset[int]:
    """The indices of the leaves that are only ever taken apart along their first axis."""
    several = {index for index, spec in enumerate(flat.specs) if len(spec.shape) >= 3}
    apart: set[int] = set()
    whole: set[int] = set()
    jaxpr = flat.program.jaxpr
    numbers = [index if index in several else None for index in range(len(jaxpr.invars))]
    _look(jaxpr, numbers, apart, whole)
    return frozenset(apart - whole)


def _look(
    jaxpr: Jaxpr, arguments: Sequence[int | None], apart: set[int], whole: set[int]
) -> list[int | None]:
    """Sorts the leaves by how they are used; which leaf each result is."""
    known: dict[Any, int | None] = dict(zip(jaxpr.invars, arguments, strict=True))

    def leaf(atom: Any) -> int | None:
        return None if isinstance(atom, Literal) else known.get(atom)

    for eqn in jaxpr.eqns:
        which = [leaf(atom) for atom in eqn.invars]
        results: list[int | None] = [None] * len(eqn.outvars)
        if eqn.primitive.name in CALLS | CUSTOM_CALLS:
            results = _look(nested(eqn).jaxpr, which, apart, whole)
        elif eqn.primitive.name in _SAME:
            results = which
        else:
            for place, index in enumerate(which):
                if index is not None:
                    (apart if _takes_apart(eqn, place) else whole).add(index)
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [leaf(atom) for atom in jaxpr.outvars]


def _takes_apart(eqn: JaxprEqn, place: int) -> bool:
    """Whether the operation goes through this operand entry by entry of its first axis."""
    name, params = eqn.primitive.name, eqn.params
    shape = _shape(eqn.invars[place])
    if name == "scan":
        return place >= params["num_consts"] + params["num_carry"]
    if name == "dot_general":
        return 0 in params["dimension_numbers"][1][place]
    if name == "slice":
        return _one_entry(_shape(eqn.outvars[0]), shape)
    if name == "dynamic_slice":
        return place == 0 and _one_entry(params["slice_sizes"], shape)
    return False


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _one_entry(sizes: Sequence[int], shape: tuple[int, ...]) -> bool:
    return tuple(sizes) == (1, *shape[1:])
