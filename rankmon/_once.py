"""One measurement without a monitor: what it needs, checked and copied; measures nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._diagnosis import check_uses_parameters
from rankmon.flat import FlatProblem
from rankmon.measurement import Snapshot
from rankmon.parts import HESSIAN_PARTS
from rankmon.problem import Problem, check_problem


@dataclass(frozen=True)
class Once:
    """A problem at some parameters.

    Attributes:
      flat: the problem.
      snapshot: the parameters.
      reference: the residuals that H_f_fixed holds, if it is asked for.
    """

    flat: FlatProblem
    snapshot: Snapshot
    reference: Float[np.ndarray, "n k"] | None

    @classmethod
    def of(cls, problem: Problem, params: Any, reference: Any) -> "Once":
        """Copies the parameters.

        Raises:
          TypeError, ValueError: for input that does not fit.
        """
        check_problem(problem, params)
        flat = problem.flat(params)
        check_uses_parameters(flat)
        if reference is not None:
            reference = np.array(reference, np.float64)
            if reference.shape != (flat.positions, flat.k):
                raise ValueError(
                    f"expected reference residuals of shape {(flat.positions, flat.k)}, got "
                    f"{reference.shape}; pass one row for each position of the outputs"
                )
        return cls(flat, Snapshot.take(flat, 0, params), reference)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the Hessian that are asked for."""
        return HESSIAN_PARTS if self.reference is not None else HESSIAN_PARTS[:3]

    def residuals(self) -> Float[np.ndarray, "n k"] | None:
        """The residuals; None where the weights or they are not finite."""
        self.flat.warn_once()
        if self.snapshot.nonfinite:
            return None
        _, delta = self.flat.loss_and_residuals(self.snapshot.theta, self.snapshot.fixed)
        return delta if np.all(np.isfinite(delta)) else None
