"""All closed forms and bounds for one network's widths, as shown by `rankmon predict`.

Symbols as in `closed_forms`: widths (d, M_1, ..., K), p parameters, r the rank of the inputs, s the
rank of Omega, q the smallest of r and the widths after d.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rankmon._util.validate import as_flag, as_integer
from rankmon.theory.closed_forms import (
    number_of_parameters,
    rank_functional,
    rank_functional_bound,
    rank_functional_columns,
    rank_loss,
    rank_loss_bound,
    rank_outer,
    rank_outer_bound,
    rank_per_parameter,
)
from rankmon.theory.families import NetworkFamily
from rankmon.theory.learning_coefficient import LearningCoefficient, learning_coefficient
from rankmon.theory.symbols import Symbols, symbols_of, widths_of


@dataclass(frozen=True)
class Bound:
    """An upper bound on a rank.

    Attributes:
      part: "H_L", "H_o" or "H_f".
      value: the bound.
      source: the theorem that proves it, and the networks that it applies to.
    """

    part: str
    value: int
    source: str


@dataclass(frozen=True)
class ClosedForms:
    """The predicted ranks of a deep linear network.

    Attributes:
      dims: the widths (d, M_1, ..., K).
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy".
      p: the number of parameters.
      r: the rank of the inputs.
      s: the rank of Omega.
      q: min(r, M_1, ..., K), with K - 1 for K under cross entropy.
      ranks: the rank of each of "H_L", "H_o", "H_f".
      per_parameter: the ranks divided by p.
      columns: the ranks of H_f's column blocks, one per layer.
      bounds: the upper bounds that apply to this network.
      coefficient: the learning coefficient, if the rank of the true map was given.
    """

    dims: tuple[int, ...]
    bias: bool
    loss: str
    p: int
    r: int
    s: int
    q: int
    ranks: dict[str, int]
    per_parameter: dict[str, float]
    columns: tuple[int, ...]
    bounds: tuple[Bound, ...]
    coefficient: LearningCoefficient | None = None


@dataclass(frozen=True)
class FamilyForms:
    """The predicted ranks of a linear network of another family than the plain chain.

    Attributes:
      network: the family's name and widths.
      inputs: d, the number of inputs.
      outputs: K, the number of outputs.
      loss: "mse", "cosh" or "cross_entropy".
      p: the number of parameters.
      r: the rank of the inputs.
      s: the rank of Omega.
      ranks: the rank of each of "H_L", "H_o", "H_f" that has a formula.
      bases: for each of them, "proved" or how often the formula was checked.
      per_parameter: the ranks divided by p.
    """

    network: str
    inputs: int
    outputs: int
    loss: str
    p: int
    r: int
    s: int
    ranks: dict[str, int]
    bases: dict[str, str]
    per_parameter: dict[str, float]


def family_forms(
    family: NetworkFamily, *, r: int | None = None, s: int | None = None, loss: str = "mse"
) -> FamilyForms:
    """Return the closed forms of a family's member, without the parts that have no formula.

    Args:
      family: for instance `theory.ResidualBlocks(6, inner=(2, 3))`.
      r: the rank of the inputs; by default d.
      s: the rank of Omega; by default its maximum.
      loss: "mse", "cosh" or "cross_entropy".

    Raises:
      TypeError, ValueError: as the family's `ranks` does.
    """
    t = symbols_of((family.inputs, family.outputs), r, s, False, loss)
    found, p = family.ranks(r=t.r, s=t.s, loss=loss), family.number_of_parameters()
    ordered = {part: found[part] for part in ("H_L", "H_o", "H_f") if part in found}
    return FamilyForms(
        network=family.name,
        inputs=family.inputs,
        outputs=family.outputs,
        loss=loss,
        p=p,
        r=t.r,
        s=t.s,
        ranks={part: one.value for part, one in ordered.items()},
        bases={part: one.basis for part, one in ordered.items()},
        per_parameter={part: one.value / p for part, one in ordered.items()},
    )


def closed_forms(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
    n: int | None = None,
    rank_true: int | None = None,
) -> ClosedForms:
    """Return the closed forms and bounds for these widths.

    Args:
      dims: the widths (d, M_1, ..., K), as for `theory.rank_loss`.
      r: the rank of the inputs; by default d, or the largest rank of n examples.
      s: the rank of Omega; by default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy".
      n: the number of examples, for the bound that grows with n; None to leave that bound out.
      rank_true: the rank of the true map, for `theory.learning_coefficient`; None to leave it out.

    Raises:
      TypeError, ValueError: as the functions of `theory` do, and ValueError for a `rank_true` with
        biases, another loss than "mse", or inputs whose rank is below d.
    """
    dims, bias = widths_of(dims), as_flag("bias", bias)
    if r is None and n is not None:
        # With biases r is the rank of the centered inputs.
        r = min(dims[0], max(as_integer("n", n) - int(bias), 0))
    t = symbols_of(dims, r, s, bias, loss)
    columns = rank_functional_columns(dims, r=r, s=s, bias=bias, loss=loss)
    return ClosedForms(
        dims=dims,
        bias=bias,
        loss=loss,
        p=number_of_parameters(dims, bias=bias),
        r=t.r,
        s=t.s,
        q=t.q,
        ranks={
            "H_L": rank_loss(dims, r=r, s=s, bias=bias, loss=loss),
            "H_o": rank_outer(dims, r=r, s=s, bias=bias, loss=loss),
            "H_f": rank_functional(dims, r=r, s=s, bias=bias, loss=loss),
        },
        per_parameter=rank_per_parameter(dims, r=r, s=s, bias=bias, loss=loss),
        columns=columns,
        bounds=tuple(_bounds(dims, r=r, s=s, bias=bias, loss=loss, n=n)),
        coefficient=None if rank_true is None else _coefficient(t, loss, rank_true),
    )


def _coefficient(t: Symbols, loss: str, rank_true: int) -> LearningCoefficient:
    """Return the learning coefficient; refuse what its formula does not cover."""
    if t.o or loss != "mse" or t.r < t.M[0]:
        raise ValueError(
            "expected no biases, mse and inputs of full rank for the learning coefficient, got "
            f"{'biases' if t.o else 'no biases'}, {loss} and rank {t.r} of d = {t.M[0]}; leave out "
            "rank_true (--rank-true)"
        )
    return learning_coefficient(t.M, rank=rank_true)


def _bounds(
    dims: Sequence[int], *, r: int | None, s: int | None, bias: bool, loss: str, n: int | None
) -> list[Bound]:
    """Return the proved bounds that apply to a network with these widths and biases."""
    bounds = []
    if not bias and len(dims) == 3:
        value = rank_outer_bound(dims, r=r, loss=loss)
        bounds.append(Bound("H_o", value, "Theorem 9, for ReLU, leaky ReLU and linear units"))
    if not bias and len(dims) > 2:
        value = rank_functional_bound(dims, r=r, s=s, loss=loss)
        bounds.append(Bound("H_f", value, "Corollary 6, for linear networks"))
    if n is not None:
        value = rank_loss_bound(dims, n=n, loss=loss)
        bounds.append(Bound("H_L", value, f"n (K + 2 M) at n = {n}, for any activations"))
    return bounds
