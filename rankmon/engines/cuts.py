"""The cuts of the Hessian's parts: one common rule, and the finest cuts above rounding."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rankmon.linalg.numerical_rank import Tolerance
from rankmon.problem.flat import FlatProblem


class Cut(NamedTuple):
    """A cut, and the finest one: below it eigenvalues cannot be distinguished from rounding."""

    value: float
    finest: float


@dataclass(frozen=True)
class HessianCuts:
    """The cuts of one Hessian, by default p * eps times a norm.

    Attributes:
      parts: of each part, relative to the larger of its norm and that of H_L.
      own_functional: of H_f, relative to its own norm.
    """

    parts: dict[str, Cut]
    own_functional: Cut

    @classmethod
    def of(
        cls, norms: Mapping[str, float], tolerance: Tolerance, flat: FlatProblem
    ) -> "HessianCuts":
        """Return the cuts for parts of these norms."""

        def cut(norm: float) -> Cut:
            value = tolerance.cut(norm, default=flat.p * flat.precision.eps)
            return Cut(value, min(flat.p, 10) * flat.precision.eps * norm)

        parts = {part: cut(max(norm, norms["H_L"])) for part, norm in norms.items()}
        return cls(parts, cut(norms.get("H_f", 0.0)))


def below_rounding(cuts: Iterable[Cut]) -> tuple[str, ...]:
    """Return a tuple of one warning if a cut is below its finest one, else an empty tuple.

    Its words are the same at every step, so that the user is warned once.
    """
    if all(cut.value >= cut.finest for cut in cuts):
        return ()
    return (
        "expected a tolerance above the rounding of the Hessian's products, 10 eps times its norm, "
        "got a smaller one: rank and low count what is above that rounding, high all that may be; "
        "raise the tolerance or leave it out",
    )
