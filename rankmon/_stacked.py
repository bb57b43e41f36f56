"""Which parameter leaves hold one matrix for each layer, along their first axis; guesses nothing.

Scanned layers (`nn.scan`, `jax.lax.scan` over the parameters), kernels taken by `W[i]`, and layers
side by side under `vmap`, each with inputs of its own, show it in the network's jaxpr.
"""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from rankmon._jaxprs import (
    CALLS,
    COPIES,
    CUSTOM_CALLS,
    DOT,
    DYNAMIC_SLICE,
    SCAN,
    SLICE,
    dot_axes,
    interpreted,
    nested,
    scan_of,
    slice_sizes,
)
from rankmon.flat import FlatProblem


def stacked_leaves(flat: FlatProblem) -> frozenset[int]:
    """The indices of the leaves that are only ever taken apart along their first axis."""
    several = {index for index, spec in enumerate(flat.specs) if len(spec.shape) >= 3}
    apart: set[int] = set()
    whole: set[int] = set()
    count = len(flat.program.in_avals)
    _look(flat.program, [i if i in several else None for i in range(count)], apart, whole)
    return frozenset(apart - whole)


def _look(
    program: ClosedJaxpr, arguments: Sequence[int | None], apart: set[int], whole: set[int]
) -> list[int | None]:
    """Sorts the leaves by how they are used; which leaf each result is."""

    def use(_: Jaxpr, eqn: JaxprEqn, which: list[int | None]) -> list[int | None]:
        if eqn.primitive.name in CALLS | CUSTOM_CALLS:
            return _look(nested(eqn), which, apart, whole)
        if eqn.primitive.name in COPIES:
            return which
        for place, index in enumerate(which):
            if index is not None:
                (apart if _takes_apart(eqn, place) else whole).add(index)
        return [None] * len(eqn.outvars)

    return interpreted(program, arguments, constant=lambda *_: None, operation=use)


def _takes_apart(eqn: JaxprEqn, place: int) -> bool:
    """Whether the operation goes through this operand entry by entry of its first axis."""
    name = eqn.primitive.name
    shape = _shape(eqn.invars[place])
    if name == SCAN:
        scan = scan_of(eqn)
        return place >= scan.consts + scan.carry
    if name == DOT:
        return 0 in dot_axes(eqn)[1][place]
    if name == SLICE:
        return _one_entry(_shape(eqn.outvars[0]), shape)
    if name == DYNAMIC_SLICE:
        return place == 0 and _one_entry(slice_sizes(eqn), shape)
    return False


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _one_entry(sizes: Sequence[int], shape: tuple[int, ...]) -> bool:
    return tuple(sizes) == (1, *shape[1:])
