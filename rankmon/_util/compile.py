"""Compile programs that fit in a given amount of memory, as measured by the compiler."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax

from rankmon._util.expected_time import compiled
from rankmon._util.jaxpr import CONVOLUTION, holds, operations_of
from rankmon._util.text import bytes_text

# Fusion into library calls (YNNPACK) is off, because the compiler does not count their memory.
_COUNTED = {"xla_cpu_experimental_ynn_fusion_type": ""}
Make = Callable[[int], Callable[..., Any]]


def largest_program(
    part: str,
    make: Make,
    shapes: Any,
    *,
    most: int,
    room: int,
    donate: tuple[int, ...] = (),
) -> tuple[Callable[..., Any], int, int]:
    """Compile the program for the largest chunk whose temporary memory fits in `room` bytes.

    Args:
      part: the name of the matrix that the program assembles, for the error message.
      make: maps a chunk size to the function to compile.
      shapes: the shapes of the function's arguments, or a function from the chunk size to them.
      most: the largest chunk to try.
      room: the bytes of temporary memory that the program may take.
      donate: indices of the arguments whose memory the program may reuse.

    Returns:
      The program, its chunk size, and the bytes of temporary memory that the compiler reports.

    Raises:
      MemoryError: if not even a chunk of size one fits.
    """

    def arguments(chunk: int) -> Any:
        return shapes(chunk) if callable(shapes) else shapes

    def traced_for(chunk: int) -> Any:
        return jax.jit(make(chunk), donate_argnums=donate).trace(*arguments(chunk))

    placed = tuple(leaf.sharding for leaf in jax.tree.leaves(arguments(most)))
    chunk, traced = most, traced_for(most)
    if holds(traced.jaxpr, {CONVOLUTION}) and jax.default_backend() == "cpu":
        fast = _with_library_calls(part, traced_for, traced, placed, most=most, room=room)
        if fast is not None:
            return fast
    while True:
        program = compiled(part, traced, _COUNTED, placed)
        need = temporary_bytes(program)
        if need <= room:
            return program, chunk, need
        if chunk == 1:
            raise MemoryError(
                f"expected {part}'s workspace to fit in {bytes_text(room)}, got "
                f"{bytes_text(need)} for a single row or example; raise memory_limit or take a "
                "smaller probe batch"
            )
        # A part of the memory does not depend on the chunk, so shrink by at least a half.
        chunk = max(1, min(chunk // 2, int(chunk * room / need)))
        traced = traced_for(chunk)


def _with_library_calls(
    part: str,
    traced_for: Callable[[int], Any],
    traced: Any,
    placed: Hashable,
    *,
    most: int,
    room: int,
) -> tuple[Callable[..., Any], int, int] | None:
    """Return `largest_program` with fused library calls, by a bound; None if it never fits.

    Without these calls, convolutions of several vectors at once take two to eight times longer. The
    bound is far above the memory of the programs on which it was tried: seven times or more.
    """
    chunk = most
    while (need := _value_bytes(traced)) > room:
        if chunk == 1:
            return None
        chunk = max(1, min(chunk // 2, int(chunk * room / need)))
        traced = traced_for(chunk)
    program = compiled(part, traced, placed=placed)
    return program, chunk, temporary_bytes(program)


def _value_bytes(traced: Any) -> int:
    """Return the bytes of the results of all operations together."""
    arrays: list[Any] = [v.aval for eqn in operations_of(traced.jaxpr) for v in eqn.outvars]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays if hasattr(a, "dtype"))


def temporary_bytes(program: Any) -> int:
    """Return the bytes of temporary memory, as the compiler counts them; 0 if it does not."""
    analysis = program.memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def operations(program: Any) -> float:
    """Return the compiler's count of operations in one call, or 0 if it has none.

    Args:
      program: a lowered or compiled program.
    """
    counted = program.cost_analysis()
    return float(counted.get("flops", 0.0)) if isinstance(counted, dict) else 0.0
