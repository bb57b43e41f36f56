"""Compile programs that fit in a given amount of memory, as measured by the compiler."""

from collections.abc import Callable
from typing import Any

import jax

from rankmon._util.expected_time import compiled
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
      The program, its chunk size, and the bytes of temporary memory that it needs.

    Raises:
      MemoryError: if not even a chunk of size one fits.
    """
    chunk = most
    while True:
        arguments = shapes(chunk) if callable(shapes) else shapes
        traced = jax.jit(make(chunk), donate_argnums=donate).trace(*arguments)
        program = compiled(part, traced, _COUNTED)
        need = _temporary_bytes(program)
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


def _temporary_bytes(program: Any) -> int:
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
