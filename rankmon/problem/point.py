"""A problem at parameters: a copy of them on the host, with values that are computed once."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from rankmon._util.tags import HESSIAN_PARTS
from rankmon.problem.diagnosis import check_uses_parameters
from rankmon.problem.flat import FlatProblem
from rankmon.problem.optimizer import Optimizer
from rankmon.problem.output_hessians import OutputHessians
from rankmon.problem.problem import Problem, check_problem


def checked(
    problem: Problem, params: Any, reference: Any
) -> tuple[FlatProblem, Float[np.ndarray, "n k"] | None]:
    """Check the problem, the parameters and the reference, and return problem and reference.

    Raises:
      TypeError, ValueError: for invalid input; the message says how to fix it.
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
    return flat, reference


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The parameters at one step, copied to the host.

    Attributes:
      flat: the problem of these parameters.
      step: the training step.
      leaves: all parameter leaves, in the precision of the measurement.
      optimizer: the optimizer with a copy of its state, if a probe wants it and the call passes it.
    """

    flat: FlatProblem
    step: int
    leaves: list[np.ndarray]
    optimizer: Optimizer | None = field(default=None, kw_only=True)

    @classmethod
    def take(
        cls, flat: FlatProblem, step: int, params: Any, optimizer: Optimizer | None = None
    ) -> "Snapshot":
        """Copy the parameters, so that the training loop may change them."""
        return cls(flat, step, flat.leaves(params), optimizer=optimizer)

    @classmethod
    def of_leaves(
        cls, flat: FlatProblem, step: int, leaves: Sequence[Any], optimizer: Optimizer | None = None
    ) -> "Snapshot":
        """Copy leaves that are known to match the problem, without checking them."""
        with flat.precision.scope():  # permits the transfer to the host
            lifted = [flat.precision.lift(leaf) for leaf in leaves]
        return cls(flat, step, lifted, optimizer=optimizer)

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

    @cached_property
    def _loss_and_residuals(self) -> tuple[float, Float[np.ndarray, "n k"]]:
        found = self.flat.loss_and_residuals(self.theta, self.fixed)
        self.flat.warn_of_outputs()
        return found

    @property
    def loss(self) -> float:
        """The mean loss over the probe batch."""
        return self._loss_and_residuals[0]

    @property
    def residuals(self) -> Float[np.ndarray, "n k"]:
        """The residuals dl/dz at each position, in float64."""
        return self._loss_and_residuals[1]

    @cached_property
    def is_finite(self) -> bool:
        """Whether the parameters and the residuals are finite."""
        return not self.nonfinite and bool(np.all(np.isfinite(self.residuals)))

    @cached_property
    def output_hessians(self) -> OutputHessians:
        """The output Hessians d2l/dz2 at each position, in float64."""
        return self.flat.output_hessians(self.theta, self.fixed)


@dataclass(frozen=True, eq=False)
class Point(Snapshot):
    """A problem at parameters, with the residuals to hold: the input of every engine.

    Attributes:
      reference: the residuals that H_f_fixed holds; None without H_f_fixed.
      wanted: the parts whose ranks or spectra are asked for.
      by_layer: whether the blocks of H_L, H_o and H_f by layer are asked for as well.
    """

    reference: Float[np.ndarray, "n k"] | None = None
    wanted: tuple[str, ...] = HESSIAN_PARTS
    by_layer: bool = False

    @classmethod
    def of(
        cls,
        problem: Problem,
        params: Any,
        reference: Any,
        wanted: tuple[str, ...] = HESSIAN_PARTS,
    ) -> "Point":
        """Check the problem, the parameters and the reference, and copy the parameters.

        Raises:
          TypeError, ValueError: for invalid input; the message says how to fix it.
        """
        flat, reference = checked(problem, params, reference)
        return cls(flat, 0, flat.leaves(params), reference, wanted).without_unwanted()

    def without_unwanted(self) -> "Point":
        """Return this point without residuals to hold if H_f_fixed is not wanted."""
        return self if "H_f_fixed" in self.wanted else self.holding(None)

    def holding(self, reference: Float[np.ndarray, "n k"] | None) -> "Point":
        """Return this point with other residuals to hold, keeping all values computed so far."""
        point = copy(self)  # with the values of cached properties
        vars(point)["reference"] = reference  # a frozen dataclass refuses assignment
        return point

    def moved_to(self, flat: FlatProblem, leaves: list[np.ndarray]) -> "Point":
        """Return this point of an equivalent problem, with the outputs that it has here.

        Args:
          flat: the problem in other parameters.
          leaves: those parameters at this point.
        """
        point = Point(flat, self.step, leaves, self.reference, self.wanted)
        vars(point).update(
            _loss_and_residuals=self._loss_and_residuals, output_hessians=self.output_hessians
        )
        return point

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the Hessian to measure: H_f_fixed only with a reference."""
        return HESSIAN_PARTS if self.reference is not None else HESSIAN_PARTS[:3]

    @property
    def asked(self) -> tuple[str, ...]:
        """The parts that are wanted and exist here."""
        return tuple(part for part in self.parts if part in self.wanted)

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts that are asked for, and H_L: its norm sets the common cut."""
        return tuple(part for part in self.parts if part == "H_L" or part in self.wanted)

    @property
    def functional_residuals(self) -> list[Float[np.ndarray, "n k"]]:
        """The residuals for which H_f is formed: those at this point, and any reference."""
        return [self.residuals] if self.reference is None else [self.residuals, self.reference]
