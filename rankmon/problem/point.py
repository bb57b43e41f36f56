"""A problem at parameters: a copy of them on the host, checked, with the residuals to hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.tags import HESSIAN_PARTS
from rankmon.problem.diagnosis import check_uses_parameters
from rankmon.problem.flat import FlatProblem
from rankmon.problem.problem import Problem, check_problem


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The parameters at one step, copied to the host.

    Attributes:
      flat: the problem that they belong to.
      step: the step of training.
      leaves: all parameter leaves, in the precision of the measurement.
    """

    flat: FlatProblem
    step: int
    leaves: list[np.ndarray]

    @classmethod
    def take(cls, flat: FlatProblem, step: int, params: Any) -> "Snapshot":
        """Copy the parameters, so that later changes by the training loop are not seen."""
        return cls(flat, step, flat.leaves(params))

    @classmethod
    def of_leaves(cls, flat: FlatProblem, step: int, leaves: Sequence[Any]) -> "Snapshot":
        """Copy leaves that are known to be those of the problem."""
        with flat.precision.scope():  # it allows the transfer to the host
            return cls(flat, step, [flat.precision.lift(leaf) for leaf in leaves])

    @cached_property
    def theta(self) -> Float[np.ndarray, " p"]:
        """The differentiated leaves as one vector."""
        return self.flat.split(self.leaves)[0]

    @cached_property
    def fixed(self) -> tuple[np.ndarray, ...]:
        """The leaves held fixed."""
        return self.flat.split(self.leaves)[1]

    @cached_property
    def nonfinite(self) -> int:
        """The number of NaN and infinite entries of the differentiated leaves."""
        return sum(
            int(np.sum(~np.isfinite(leaf)))
            for leaf, spec in zip(self.leaves, self.flat.specs, strict=True)
            if spec.differentiated
        )


@dataclass(frozen=True)
class Once:
    """A problem at the parameters of a single measurement.

    Attributes:
      flat: the problem.
      snapshot: the parameters.
      reference: the residuals that H_f_fixed holds; None without H_f_fixed.
    """

    flat: FlatProblem
    snapshot: Snapshot
    reference: Float[np.ndarray, "n k"] | None

    @classmethod
    def of(cls, problem: Problem, params: Any, reference: Any) -> "Once":
        """Check the problem, the parameters and the reference, and copy the parameters.

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
        """The parts of the Hessian to measure: H_f_fixed only with a reference."""
        return HESSIAN_PARTS if self.reference is not None else HESSIAN_PARTS[:3]

    def residuals(self) -> Float[np.ndarray, "n k"] | None:
        """Return the residuals; None if they or the weights are not finite."""
        self.flat.warn_once()
        if self.snapshot.nonfinite:
            return None
        _, delta = self.flat.loss_and_residuals(self.snapshot.theta, self.snapshot.fixed)
        return delta if np.all(np.isfinite(delta)) else None
