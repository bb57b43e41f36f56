"""The NTK probe: ranks of the empirical neural tangent kernel, and its change since the start.

The kernel is K = J J^T with J = dF/dtheta, one row for each output of each example of the probe
batch; its eigenvalues are the squares of J's singular values.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rankmon._util.facts import Fact
from rankmon._util.validate import check_engine, check_time_limit
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    Tolerance,
    as_tolerance,
    numerical_rank,
    soft_ranks,
)
from rankmon.linalg.spectrum import singular_values
from rankmon.measure.ntk import ENGINES, Assembly, jacobian_program
from rankmon.probes.base import Description, Measurement, State, count_scalar
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem

_TAGS = ("rank", "rank_low", "rank_high", "tolerance", "gap", "effective_rank", "eigenvalue_max")
# A cautious guess of the floating-point operations per second of an SVD.
_OPERATIONS_PER_SECOND = 1e10
_LOST = (
    "expected a state with the neural tangent kernel of the first measurement, got one that was "
    "saved without it, so that ntk/alignment is NaN; to measure it from now on, begin a run "
    "without state="
)


@dataclass(frozen=True)
class NtkProbe:
    """Rank, effective rank and largest eigenvalue of the neural tangent kernel; its alignment.

    `ntk/alignment` is the kernel alignment <K, K_0>_F / (||K||_F ||K_0||_F), not centered, with the
    kernel K_0 of the first measurement with a finite Jacobian: 1 as long as training is that of a
    linear model, up to the scale of the kernel. `monitor.state` holds K_0: m (m + 1) / 2 numbers
    for the m = n k outputs of the probe batch.

    Args:
      tolerance: the cut, in the units of J's singular values; by default
        max(n k, p) * eps * ||J||_2, as for `ntk_rank`.
      memory_limit: bytes for the Jacobian and the matrices computed from it.
      engine: as for `ntk_rank`.
      time_limit: the limit in seconds on the expected time of the singular values, which several
        probe batches share.

    Source: arXiv 2106.16225, section S9.5, for the rank; Cristianini, Shawe-Taylor, Elisseeff and
    Kandola (2001), On kernel-target alignment, definition 1, for the alignment (that of Cortes,
    Mohri and Rostamizadeh (2012) is the same for centered kernels).
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    engine: str = "auto"
    time_limit: float = 10.0
    name: str = "ntk"

    # States of former versions, without this probe, are continued.
    optional_state = ("kernel", "started")

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)
        check_engine(self.engine, ENGINES)
        check_time_limit(self.time_limit)

    def placeholder_state(self, problem: Problem) -> State:
        """Return an empty kernel, and a flag; the number of outputs is not known yet."""
        return {"kernel": np.zeros(0), "started": np.zeros(())}

    def prepare(self, flat: FlatProblem) -> "PreparedNtk":
        """Check the memory and the time, and prepare the Jacobian.

        Raises:
          ValueError: if the engine does not apply, or the singular values take too long.
          MemoryError: if the Jacobian does not fit in `memory_limit`.
        """
        jacobian = jacobian_program(flat, self.engine, self.memory_limit)
        short, long = sorted((flat.positions * flat.k, flat.p))
        seconds = (2 * long * short**2 + 3 * short**3) / _OPERATIONS_PER_SECOND
        if seconds > self.time_limit:
            raise ValueError(
                f"expected singular values of a {short:,} x {long:,} Jacobian within time_limit = "
                f"{self.time_limit:g} s, got an expected {seconds:.0f} s; raise "
                "NtkProbe(time_limit=...), take a smaller probe batch, or omit the NTK probe"
            )
        return PreparedNtk(flat, jacobian, self.tolerance)


@dataclass(frozen=True)
class PreparedNtk:
    """`NtkProbe` for one problem.

    Attributes:
      flat: the problem.
      jacobian: computes J at given leaves.
      tolerance: the rule for the cut.
    """

    flat: FlatProblem
    jacobian: Assembly
    tolerance: Tolerance

    @property
    def _rows(self) -> int:
        return self.flat.positions * self.flat.k

    def initial_state(self) -> State:
        """Return a zero kernel, and a flag that it is not known yet."""
        size = self._rows * (self._rows + 1) // 2
        return {"kernel": np.zeros(size), "started": np.zeros(())}

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Return the numbers at the snapshot; all are NaN if the Jacobian is not finite."""
        lost = bool(np.isnan(state["started"]))
        warnings = ((self.flat.warning,) if self.flat.warning else ()) + ((_LOST,) if lost else ())
        undefined = {f"ntk/{name}": math.nan for name in (*_TAGS, "alignment")}
        if snapshot.nonfinite:
            return Measurement(undefined, warnings=warnings), state
        J = self.jacobian(snapshot.leaves).reshape(-1, self.flat.p)
        if not np.all(np.isfinite(J)):
            return Measurement(undefined, warnings=warnings), state
        values = singular_values(J)
        norm = float(values[0])
        rounding = max(J.shape) * self.flat.precision.eps
        rank = numerical_rank(values, self.tolerance.cut(norm, default=rounding))
        # Scaled, because the squares of tiny or huge values would leave the range of floats.
        kernel = _direction(J / norm if norm > 0 else J)
        if not (lost or state["started"]):
            state = {"kernel": kernel, "started": np.ones(())}
        known = not lost and bool(np.any(kernel)) and bool(np.any(state["kernel"]))
        numbers = {
            "rank": count_scalar(rank.known),
            "rank_low": count_scalar(rank.low),
            "rank_high": count_scalar(rank.high),
            "tolerance": rank.tolerance,
            "gap": rank.gap,
            "effective_rank": soft_ranks(
                (values / norm) ** 2 if norm > 0 else values
            ).effective_rank,
            "eigenvalue_max": norm * norm,
            "alignment": float(kernel @ state["kernel"]) if known else math.nan,
        }
        scalars = {f"ntk/{name}": number for name, number in numbers.items()}
        return Measurement(scalars, warnings=warnings), state

    def describe(self) -> Description:
        """Describe the kernel's size and the cut."""
        cut = self.tolerance.rule("max(n k, p) eps ‖J‖₂")
        return Description(
            [
                Fact("NTK", f"{self._rows:,} outputs of the probe batch, p = {self.flat.p:,}"),
                Fact("NTK cut", f"{cut}, for the singular values of J"),
            ]
        )


def _direction(J: Float[np.ndarray, "m p"]) -> Float[np.ndarray, " t"]:
    """Return J J^T / ||J J^T||_F as a vector whose dot products are those of the matrices.

    It has the entries of the lower triangle, those below the diagonal times the square root of two.
    Zero for J = 0.
    """
    K = J @ J.T
    rows, columns = np.tril_indices(len(K))
    vector = K[rows, columns] * np.where(rows == columns, 1.0, math.sqrt(2))
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector
