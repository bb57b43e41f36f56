"""The memory limit, and the bytes that dense p x p matrices of the Hessian take."""

from rankmon._util.text import bytes_text

DEFAULT_MEMORY_LIMIT = 4 * 2**30

# H_o, H_f, H_f^fixed, one without rows of zeros (or a block, or the Jacobian), and LAPACK's copy.
DENSE_MATRICES_ALIVE = 5


def dense_bytes(p: int) -> int:
    """Return the bytes of the dense p x p float64 matrices of one measurement together."""
    return DENSE_MATRICES_ALIVE * 8 * p * p


def refuse_oversize(p: int, memory_limit: int, *, active: int | None = None) -> None:
    """Raise MemoryError if the dense matrices do not fit; the message gives their size.

    Args:
      p: the number of parameters.
      memory_limit: the bytes that there are.
      active: the number of directions on which the outputs depend, the rows of the matrices; p if
        it is not known.
    """
    rows = p if active is None else active
    if dense_bytes(rows) >= memory_limit:
        depending = "," if rows == p else f" of which the outputs depend on {rows:,} directions,"
        raise MemoryError(
            f"expected the dense Hessian's {DENSE_MATRICES_ALIVE} matrices to fit in "
            f"memory_limit = {bytes_text(memory_limit)}, got p = {p:,} "
            f"parameters{depending} which need {bytes_text(dense_bytes(rows))}; raise "
            "memory_limit, choose fewer parameters with Problem(include=...), or watch the weights "
            "alone (RankMonitor: oversize='weights')"
        )
