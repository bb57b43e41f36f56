"""One interface for the closed forms of linear networks other than plain chains of layers.

A family is a frozen dataclass of widths, one module each (`residual`, `tied`, `convolutional`). Its
`ranks` holds a formula only for the parts for which there is one, and says beside each whether it
is proved or how often it was checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rankmon.theory.closed_forms import rank_functional, rank_loss, rank_outer


@dataclass(frozen=True)
class FormulaRank:
    """A rank from a closed form.

    Attributes:
      value: the rank.
      basis: "proved", or how often the formula was checked, such as "checked exactly on 130
        networks".
    """

    value: int
    basis: str


@runtime_checkable
class NetworkFamily(Protocol):
    """A linear network F(x) = A(theta) x, with closed forms at generic parameters."""

    @property
    def name(self) -> str:
        """The name in sentences, such as "residual blocks 6 (2, 3)"."""
        ...

    @property
    def inputs(self) -> int:
        """The number of entries of an input x, d."""
        ...

    @property
    def outputs(self) -> int:
        """The number of entries of an output F(x), K."""
        ...

    def number_of_parameters(self) -> int:
        """Return the number of parameters p; a tied weight counts once."""
        ...

    def ranks(
        self, *, r: int | None = None, s: int | None = None, loss: str = "mse"
    ) -> dict[str, FormulaRank]:
        """Return the ranks of "H_o", "H_f" and "H_L", without the parts that have no formula.

        Args:
          r: the rank of the inputs, 0 to d. Default d.
          s: the rank of Omega = E[delta x^T], 0 to min(K, r). Default its maximum.
          loss: "mse", "cosh" or "cross_entropy", as for `theory.rank_outer`.

        Raises:
          TypeError: for ranks that are not integers.
          ValueError: for ranks or a loss out of range.
        """
        ...


class SquareMap:
    """The sizes of a family whose outputs have as many entries as its inputs."""

    d: int

    @property
    def inputs(self) -> int:
        """The number of inputs, d."""
        return self.d

    @property
    def outputs(self) -> int:
        """The number of outputs, also d."""
        return self.d


def chain_ranks(
    dims: Sequence[int], *, r: int | None = None, s: int | None = None, loss: str = "mse"
) -> dict[str, FormulaRank]:
    """Return the ranks of the plain chain W^L ... W^1 x, for families that contain or equal it.

    Args:
      dims: the widths (d, M_1, ..., K).
      r: the rank of the inputs.
      s: the rank of Omega.
      loss: as for `NetworkFamily.ranks`.

    Raises:
      TypeError, ValueError: as for `theory.rank_outer`.
    """
    parts = {"H_o": rank_outer, "H_f": rank_functional, "H_L": rank_loss}
    basis = dict.fromkeys(parts, "proved")
    if loss != "mse":  # residuals and output Hessians are then not independent
        basis["H_L"] = "proved for mse, checked in float64"
    return {
        part: FormulaRank(rank(dims, r=r, s=s, loss=loss), basis[part])
        for part, rank in parts.items()
    }
