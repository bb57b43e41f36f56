"""Sums over chunks of the probe batch's examples, for products of a batch that does not fit.

They are right only if the examples do not interact (batch statistics), which is checked: the
gradient of the whole batch has to be the sum of the gradients of the chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rankmon._util.compile import Make, largest_program
from rankmon._util.expected_time import compiled
from rankmon.hessian.batching import is_of_whole_batch
from rankmon.hessian.jacobian import transposed_product, weighted_gradient
from rankmon.problem.flat import FlatProblem, gaussian_leaves
from rankmon.problem.precision import abstract_array

# Vectors at once if the batch does not fit: they share the network's evaluation.
_FEW_VECTORS = 4

_Point = tuple[np.ndarray, Sequence[np.ndarray]]


class Compiled(NamedTuple):
    """A compiled program of products.

    Attributes:
      call: the program.
      width: the number of vectors at once.
      bytes: its temporary memory.
      examples: the number of examples at once; their products are summed.
    """

    call: Callable[..., Any]
    width: int
    bytes: int
    examples: int


@dataclass(frozen=True)
class ExampleChunks:
    """The probe batch of a problem in chunks of equally many examples."""

    flat: FlatProblem

    @property
    def _positions(self) -> int:
        """The number of positions of each example."""
        return self.flat.positions // self.flat.problem.n

    def largest(
        self,
        part: str,
        make: Make,
        last: Callable[[int], Any],
        *,
        most: int,
        residuals: int,
        room: int,
    ) -> Compiled:
        """Compile a program for many vectors and all examples, or for as many as fit in `room`.

        There are fewer vectors first, and fewer examples only if one vector does not fit.

        Args:
          part: the name of the result, for the error message.
          make: maps a number of vectors to the function to compile.
          last: maps it to the shape of the function's last argument.
          most: the largest number of vectors.
          residuals: the number of residuals among its arguments.
          room: bytes of temporary memory.

        Raises:
          MemoryError: if not even one vector fits, with the whole batch if its examples interact.
        """
        n, (theta, fixed) = self.flat.problem.n, self.flat.shapes_of()

        def shapes(examples: int, width: int) -> tuple[Any, ...]:
            return theta, fixed, *self.shapes(examples, residuals), last(width)

        with self.flat.precision.scope():
            try:
                found = largest_program(part, make, lambda m: shapes(n, m), most=most, room=room)
                return Compiled(*found, n)
            except MemoryError as error:
                refusal = error
            for width in dict.fromkeys((min(most, _FEW_VECTORS), 1)) if n > 1 else ():
                try:
                    program, examples, need = largest_program(
                        part,
                        lambda _: make(width),  # noqa: B023  called at once
                        lambda c: shapes(c, width),  # noqa: B023
                        most=max(1, n // 2),
                        room=room,
                    )
                except MemoryError:
                    continue
                except Exception:  # noqa: BLE001  the network takes only the whole batch
                    break
                if self.are_apart(examples, self.random_point):
                    return Compiled(program, width, need, examples)
                break
        raise refusal

    def shapes(self, examples: int, residuals: int) -> tuple[Any, ...]:
        """Return the shapes of inputs, targets, weights and weighted residuals of a chunk."""
        flat, rows = self.flat, examples * self._positions

        def cut(tree: Any, length: int) -> Any:
            return jax.tree.map(lambda a: abstract_array((length, *a.shape[1:]), a.dtype), tree)

        return (
            cut(flat.inputs, examples),
            cut(flat.targets, rows),
            cut(flat.typed_weights, rows),
            abstract_array((residuals, rows, flat.k), flat.dtype),
        )

    def parts(
        self,
        examples: int,
        inputs: Any,
        targets: Any,
        weights: Float[np.ndarray, " n"],
        weighted: Float[np.ndarray, "r n k"],
    ) -> Iterator[tuple[Any, Any, np.ndarray, np.ndarray]]:
        """Yield these arguments for each chunk; every example counts in one of them."""
        n, per = self.flat.problem.n, self._positions
        for start in range(0, n, examples):
            # The last chunk starts early to keep its shape; repeated examples get weight 0.
            first = min(start, n - examples)
            rows = slice(first * per, (first + examples) * per)
            fresh = np.arange(rows.start, rows.stop) >= start * per
            yield (
                jax.tree.map(lambda a: a[first : first + examples], inputs),  # noqa: B023
                jax.tree.map(lambda a: a[rows], targets),  # noqa: B023
                weights[rows] * fresh,
                weighted[:, rows] * fresh[:, None],
            )

    @property
    def random_point(self) -> _Point:
        """Gaussian parameters, at which nothing is hidden by zeros."""
        return self.flat.split(gaussian_leaves(self.flat, np.random.default_rng(0)))

    def are_apart(self, examples: int, point: _Point) -> bool:
        """Return whether the chunks' gradients add up to that of the whole batch at this point."""
        flat = self.flat
        theta, fixed = point
        u = np.random.default_rng(0).standard_normal((1, flat.positions, flat.k)).astype(flat.dtype)
        known = (flat.inputs, flat.targets, flat.typed_weights, u)
        try:
            want = transposed_product(flat, theta, fixed, u[0])
            with flat.precision.scope():
                gradient = self._gradient(examples)
                found = sum(
                    np.asarray(gradient(theta, tuple(fixed), inputs, weighted[0]), np.float64)
                    for inputs, _, _, weighted in self.parts(examples, *known)
                )
        except Exception:  # noqa: BLE001  a check that cannot be made has not passed
            return False
        return is_of_whole_batch(np.asarray(found), want, flat)

    def _gradient(self, examples: int) -> Any:
        flat, key = self.flat, ("gradient of a chunk", examples)
        if key not in flat.memo:
            theta, fixed = flat.shapes_of()
            inputs, _, _, weighted = self.shapes(examples, 1)
            chunk = abstract_array(weighted.shape[1:], weighted.dtype)
            traced = jax.jit(partial(weighted_gradient, flat)).trace(theta, fixed, inputs, chunk)
            flat.memo[key] = compiled("a gradient", traced)
        return flat.memo[key]
