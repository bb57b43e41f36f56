"""Find the activations in any network: elementwise functions of one array that are known.

The program is evaluated abstractly. An array is either computed elementwise from one other array,
the root, with constants only; then its values as a function of the root's are carried along on a
grid, in the precision of the grid. Or it is a root itself: a layer's product, a sum with a bias.
Activations are the arrays that another kind of operation uses, if `known_activations` recognizes
their function: x * sigmoid(x) is one activation, and the sigmoid in it does not count. Loops are
not searched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import (
    BROADCAST,
    CALLS,
    COPIES,
    CUSTOM_CALLS,
    ELEMENTWISE,
    RESHAPE,
    ROUNDINGS,
    SQUEEZE,
    SUMS,
    interpreted,
    nested,
)
from rankmon.network.known_activations import GRID, Activation, recognized
from rankmon.problem.flat import FlatProblem
from rankmon.problem.precision import abstract_array

_BY_ENTRY = ELEMENTWISE | SUMS | COPIES | ROUNDINGS
_SAME_ENTRIES = frozenset({BROADCAST, RESHAPE, SQUEEZE})


# The number of an operation and of one of its results; negative for values from outside.
Place = tuple[int, int]


class FoundActivation(NamedTuple):
    """An activation in a program.

    Operations are numbered from 0 as they are evaluated, where calls are replaced by the operations
    in them.

    Attributes:
      function: the recognized function of the root.
      root: the place of the root.
      at: the place of the output.
    """

    function: Activation
    root: Place
    at: Place


def found_activations(flat: FlatProblem) -> list[FoundActivation]:
    """Return the recognized activations of a problem's network, in the order of evaluation.

    Functions of one root that differ only by a factor (dropout, scaled residuals) count once.
    """
    candidates: list[tuple[Place, Place]] = []

    def on_grid(grid: Any) -> list[Any]:
        search = _Search(grid)
        search.whole(flat.program)
        used = sorted(search.used.items())
        candidates[:] = [(root, at) for at, (root, _) in used]
        return [values for _, (_, values) in used]

    with flat.precision.scope():
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        traced = jax.jit(on_grid).trace(abstract_array(GRID.shape, dtype))
        values = compiled("the activations", traced)(GRID.astype(dtype))
    found: dict[tuple[Any, ...], FoundActivation] = {}
    for (root, at), one in zip(candidates, values, strict=True):
        function = recognized(np.asarray(one))
        if function is not None:
            same = (root, function.name, f"{function.inner:.4g}", f"{function.negative:.4g}")
            found.setdefault(same, FoundActivation(function, root, at))
    return list(found.values())


@dataclass(frozen=True, eq=False)
class _Function:
    """An array that is an elementwise function of the root, or of nothing: a constant.

    Attributes:
      values: its values on the grid of the root's values; a scalar for a constant.
      root: the place of the root; None for a constant.
      at: the place of this array.
      shape: its shape.
    """

    values: Any
    root: Place | None
    at: Place
    shape: tuple[int, ...]


class _Search:
    """An abstract evaluation that collects the functions that leave the elementwise operations.

    Attributes:
      used: the functions that another kind of operation or the caller uses, except for roots: by
        the place of each, the place of its root and its values.
    """

    def __init__(self, grid: Any) -> None:
        self.used: dict[Place, tuple[Place, Any]] = {}
        self._grid = grid
        self._count = 0
        self._outside = count(-1, -1)  # each argument is a root of its own

    def whole(self, program: ClosedJaxpr) -> None:
        """Search a program and its results."""
        arguments = [self._from_outside(aval) for aval in program.in_avals]
        self._leave(self._through(program, arguments))

    def _through(
        self, program: ClosedJaxpr, arguments: Sequence[_Function | None]
    ) -> list[_Function | None]:
        return interpreted(program, arguments, constant=self._constant, operation=self._operation)

    def _constant(self, aval: Any, value: Any) -> _Function | None:
        if not _is_number(aval) or np.size(value) != 1:
            return self._from_outside(aval)
        scalar = jnp.reshape(jnp.asarray(value), ())
        if jnp.issubdtype(scalar.dtype, jnp.floating):
            scalar = scalar.astype(self._grid.dtype)
        return _Function(scalar, None, (-1, 0), np.shape(value))

    def _from_outside(self, aval: Any) -> _Function | None:
        return self._root(aval, (next(self._outside), 0))

    def _root(self, aval: Any, at: Place) -> _Function | None:
        """Return an array as a root: the identity on the grid; None if it holds no numbers."""
        if not _is_number(aval):  # a random key, for example
            return None
        floating = jnp.issubdtype(aval.dtype, jnp.floating)
        values = self._grid if floating else self._grid.astype(aval.dtype)
        return _Function(values, at, at, _shape(aval))

    def _operation(
        self, _: Jaxpr, eqn: JaxprEqn, operands: list[_Function | None]
    ) -> Sequence[_Function | None]:
        """Return the results of an operation; if it is not elementwise, each is a new root."""
        if eqn.primitive.name in CALLS | CUSTOM_CALLS:
            return self._through(nested(eqn), operands)
        at, self._count = self._count, self._count + 1
        function = self._elementwise(eqn, operands, (at, 0))
        if function is not None:
            return [function]
        self._leave(operands)
        return [self._root(atom.aval, (at, i)) for i, atom in enumerate(eqn.outvars)]

    def _elementwise(
        self, eqn: JaxprEqn, operands: list[_Function | None], at: Place
    ) -> _Function | None:
        """Return the result as a function of the operands' only root; None if there is none."""
        known = [one for one in operands if one is not None]
        roots = {one.root for one in known if one.root is not None}
        name = eqn.primitive.name
        if name not in _BY_ENTRY | _SAME_ENTRIES or len(known) < len(operands) or len(roots) > 1:
            return None
        shape = _shape(eqn.outvars[0].aval)
        if name in _SAME_ENTRIES and not roots:
            return _Function(known[0].values, None, at, shape)
        varying = [one.shape for one in known if one.root is not None]
        if name not in _BY_ENTRY or any(other != shape for other in varying):
            return None
        # Constants with the result's shape get the grid's; scalars may have to stay scalars.
        arguments = [
            jnp.broadcast_to(one.values, self._grid.shape)
            if roots and one.root is None and one.shape == shape
            else one.values
            for one in known
        ]
        values = self._precise(eqn, arguments)
        return _Function(values, next(iter(roots), None), at, shape)

    def _precise(self, eqn: JaxprEqn, arguments: Sequence[Any]) -> Any:
        """Evaluate an elementwise operation; conversions between floating types keep the value."""
        dtype: Any = getattr(eqn.outvars[0].aval, "dtype", None)
        if eqn.primitive.name in COPIES | ROUNDINGS and jnp.issubdtype(dtype, jnp.floating):
            return arguments[0].astype(self._grid.dtype)
        return eqn.primitive.bind(*arguments, **eqn.params)

    def _leave(self, functions: Sequence[_Function | None]) -> None:
        """Collect functions that another kind of operation uses."""
        for one in functions:
            if one is None or one.root is None or one.root < (0, 0) or one.root == one.at:
                continue
            if jnp.issubdtype(one.values.dtype, jnp.floating):
                self.used.setdefault(one.at, (one.root, one.values))


def _shape(aval: Any) -> tuple[int, ...]:
    return tuple(getattr(aval, "shape", ()))


def _is_number(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and isinstance(dtype, np.dtype) and dtype != jax.dtypes.float0
