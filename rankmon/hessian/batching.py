"""Split the probe batch into units, and run compiled programs on a few rows of them at a time.

A unit is one example, or the whole batch if its examples interact. A row of a unit belongs to one
output at one position: it is a row of C_i^T, the vector that J_i^T is applied to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float

from rankmon._util.compile import largest_program
from rankmon._util.distributed import gathered
from rankmon._util.expected_time import Pace
from rankmon.problem.flat import FlatProblem
from rankmon.problem.output_hessians import Roots
from rankmon.problem.precision import abstract_array

# More rows at once cost memory and gain nothing: the products are already large.
_MOST_ROWS = 512

# Arrays of the size of the cotangents that exist at once: copies on the host and on the device, and
# intermediate results.
_COTANGENTS_ALIVE = 8

# A function of the leaves, the inputs of some units, cotangents [units, rows, positions, k] and an
# integer. It returns arrays with one entry per unit, and arrays with one entry per unit and row.
RowFunction = Callable[[Any, Any, Any, Any], tuple[list[Array], list[Array]]]


_Result = TypeVar("_Result")


class OneByOne:
    """Decide whether a computation evaluates one example at a time or the whole batch at once.

    One at a time is cheaper. It is impossible if the network accepts only the whole batch or if one
    example needs too much memory, and it is wrong if the examples interact (batch statistics). Once
    it has failed, this object always chooses the whole batch.
    """

    def __init__(self) -> None:
        self._possible = True

    def rule_out(self) -> None:
        """Use the whole batch from now on."""
        self._possible = False

    def prepare(self, one: Callable[[], Any], whole: Callable[[], Any]) -> None:
        """Call `one`, or `whole` if `one` is ruled out or raises, which rules it out."""
        if self._possible:
            try:
                one()
                return
            except Exception:  # noqa: BLE001  whatever the error, the whole batch may work
                self._possible = False
        whole()

    def result(
        self,
        one: Callable[[], _Result],
        whole: Callable[[], _Result],
        *,
        right: Callable[[_Result], bool],
    ) -> _Result:
        """Return `one()` if it is not ruled out and `right` accepts it, else `whole()`."""
        if self._possible:
            found = one()
            try:
                self._possible = right(found)
            except Exception:  # noqa: BLE001  a check that raises has not passed
                self._possible = False
            if self._possible:
                return found
        return whole()


def is_of_whole_batch(
    got: Float[np.ndarray, "..."], want: Float[np.ndarray, "..."], flat: FlatProblem
) -> bool:
    """Return whether a product made one example at a time equals that of the whole batch."""
    if not (np.all(np.isfinite(got)) and np.all(np.isfinite(want))):
        return True  # overflow is reported elsewhere and does not show that examples interact
    scale = max(np.max(np.abs(got)), np.max(np.abs(want)))
    return is_rounding(np.max(np.abs(got - want)), scale, flat)


def is_rounding(difference: float, scale: float, flat: FlatProblem) -> bool:
    """Return whether a difference between arrays of this scale can be rounding."""
    # 0.1, because 1e3 p eps exceeds 1 in low precision and would accept any difference.
    return bool(difference <= min(1e3 * flat.p * flat.precision.eps, 0.1) * scale)


@dataclass(frozen=True)
class Piece:
    """All rows of some units, or some rows of one unit.

    Attributes:
      units: the units.
      rows: the rows of each of these units.
      place: the indices of these rows among the rows of all units.
      fresh: the number of rows at the end that no earlier piece contains.
    """

    units: slice
    rows: slice
    place: slice
    fresh: int


class Units:
    """The probe batch as units: each example is one, or the whole batch is the only one.

    Args:
      flat: the problem.
      per_example: whether each example is a unit.
      room: bytes of temporary memory for a program.

    Attributes:
      count: the number of units.
      positions: the number of positions of each unit.
      inputs: the inputs, with a first axis for the units and a second for the examples in a unit.
      workspace_used: the most bytes of temporary memory that a compiled program reports.
    """

    def __init__(self, flat: FlatProblem, *, per_example: bool, room: int) -> None:
        self._flat, self._room = flat, room
        self.inputs = jax.tree.map(lambda a: a[:, None] if per_example else a[None], flat.inputs)
        self.count = flat.problem.n if per_example else 1
        self.positions = flat.positions // self.count
        self.workspace_used = 0
        self._programs: dict[Any, tuple[Callable[..., Any], int]] = {}

    @property
    def shape(self) -> Any:
        """Shapes and dtypes of one unit's inputs."""
        return jax.tree.map(lambda a: abstract_array(a.shape[1:], a.dtype), self.inputs)

    def each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function mapped over the units; without vmap if there is only one unit."""
        if self.count > 1:
            return jax.vmap(function)
        return lambda *trees: jax.tree.map(
            lambda a: a[None], function(*jax.tree.map(lambda a: a[0], trees))
        )

    def _plan(self, chunk: int, unit_rows: int) -> Iterator[Piece]:
        """Yield pieces of one size, at most `chunk` rows each, that together contain all rows."""
        units, rows = max(1, chunk // unit_rows), min(chunk, unit_rows)
        for unit in range(0, self.count, units):
            first = min(unit, self.count - units)  # the last piece overlaps, to have the same size
            for row in range(0, unit_rows, rows):
                top = min(row, unit_rows - rows)
                fresh = (first + units - unit) * rows if units > 1 else top + rows - row
                yield Piece(
                    units=slice(first, first + units),
                    rows=slice(top, top + rows),
                    place=slice(
                        first * unit_rows + top, (first + units - 1) * unit_rows + top + rows
                    ),
                    fresh=fresh,
                )

    def pieces(
        self,
        key: Any,
        function: RowFunction,
        leaves: Sequence[Any],
        roots: Roots,
        first: int,
        pace: Pace,
        most: int | None = None,
    ) -> Iterator[tuple[Piece, list[np.ndarray], list[np.ndarray]]]:
        """Yield the function's results piece by piece, units and rows in one axis.

        Args:
          key: the key of the compiled function in the cache.
          function: the function, traceable.
          leaves: all parameter leaves, on whatever devices.
          roots: C_i at every position.
          first: the function's last argument, such as the first column of a block.
          pace: the time limit for these pieces.
          most: the most rows at a time.
        """
        unit_rows = self.positions * roots.count
        with self._flat.precision.scope():
            program, chunk = self.program(key, function, leaves, unit_rows, most)
        column = np.asarray(first, np.int32)
        for piece in pace.over("the Jacobian", list(self._plan(chunk, unit_rows))):
            inputs = jax.tree.map(lambda a: a[piece.units], self.inputs)  # noqa: B023
            cotangents = self._cotangents(roots, piece)
            with self._flat.precision.scope():
                results = gathered(program(leaves, inputs, cotangents, column))
                by_unit, by_row = jax.tree.map(lambda a: np.asarray(a, np.float64), results)
            yield piece, by_unit, [rows.reshape(-1, rows.shape[-1]) for rows in by_row]

    def program(
        self,
        key: Any,
        function: RowFunction,
        leaves: Sequence[Any],
        unit_rows: int,
        most: int | None = None,
    ) -> tuple[Callable[..., Any], int]:
        """Compile a function for the devices of these leaves; also return its rows per call.

        Raises:
          MemoryError: if a single row does not fit.
        """
        placed = [_placed(leaf) for leaf in leaves]
        key = (key, tuple((leaf.dtype, leaf.sharding) for leaf in placed))
        if key not in self._programs:

            def shapes(chunk: int) -> tuple[Any, ...]:
                # All pieces have the shape of the first one.
                piece = next(self._plan(chunk, unit_rows))
                units = piece.units.stop
                inputs = jax.tree.map(
                    lambda a: abstract_array((units, *a.shape[1:]), a.dtype), self.inputs
                )
                cotangents = (units, piece.rows.stop, self.positions, self._flat.k)
                return (
                    placed,
                    inputs,
                    abstract_array(cotangents, self._flat.dtype),
                    abstract_array((), np.int32),
                )

            program, chunk, need = largest_program(
                "the Jacobian",
                lambda _: function,
                shapes,
                most=min(self.count * unit_rows, self._most_rows, max(1, most or _MOST_ROWS)),
                room=self._room,
            )
            self._programs[key] = program, chunk
            self.workspace_used = max(self.workspace_used, need)
        return self._programs[key]

    @property
    def _most_rows(self) -> int:
        """The most rows whose cotangents, with all copies, fit in the memory."""
        one = 8 * self.positions * self._flat.k
        return max(1, min(_MOST_ROWS, self._room // (_COTANGENTS_ALIVE * one)))

    def _cotangents(
        self, roots: Roots, piece: Piece
    ) -> Float[np.ndarray, "units rows positions k"]:
        """Return each row's vector for J_i^T: a column of C_i at its position, zero elsewhere."""
        units = np.arange(self.count)[piece.units]
        place, column = np.divmod(np.arange(piece.rows.start, piece.rows.stop), roots.count)
        u = np.zeros((len(units), len(place), self.positions, self._flat.k), self._flat.dtype)
        example = units[:, None] * self.positions + place
        u[:, np.arange(len(place)), place] = roots.columns(example, column[None, :])
        return u


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return a leaf's shape and dtype, with its sharding if it is on devices."""
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
    return abstract_array(np.shape(leaf), leaf.dtype, sharding=sharding)
