"""The closed forms of a recognized family of linear networks, if their conditions hold."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rankmon import theory
from rankmon.measure.genericity import Genericity
from rankmon.measure.symbols import MeasuredSymbols
from rankmon.theory.families import FormulaRank
from rankmon.theory.residual import ResidualChain


def family_ranks_at(
    measured: MeasuredSymbols,
    leaves: Sequence[np.ndarray],
    omegas: Sequence[Float[np.ndarray, "k d"]],
    ranks: Sequence[int],
) -> dict[str, FormulaRank]:
    """Return the ranks that theory predicts for the parts whose conditions are measured to hold.

    As for stacks, H_o is predicted with the visible rank of the inputs, H_f with r, and H_L only if
    s does not exceed the visible rank.

    Args:
      measured: the symbols of a network with a family and a named loss.
      leaves: the parameters.
      omegas: Omega with the residuals, and with those held for H_f_fixed if they are known.
      ranks: s of each, 0 if H_f has vanished.
    """
    assert measured.family is not None
    assert measured.loss is not None
    family, loss = measured.family.family, measured.loss
    generic = Genericity(measured.family, leaves, measured.relative)
    if not generic.of_weights():
        return {}
    outputs = family.outputs - (loss == "cross_entropy")  # its residuals sum to zero
    r, visible = measured.r, measured.visible
    found = dict[str, FormulaRank]()
    with_outer = family.ranks(r=visible, s=0, loss=loss)
    if "H_o" in with_outer:
        found["H_o"] = with_outer["H_o"]
    for part, omega, s in zip(("H_f", "H_f_fixed"), omegas, ranks, strict=False):
        s = min(s, outputs, r)
        if not generic.of_residuals(omega, s):
            continue
        formulas = family.ranks(r=r, s=s, loss=loss)
        if "H_f" in formulas:
            found[part] = formulas["H_f"]
        if part == "H_f" and s <= min(outputs, visible):
            formulas = family.ranks(r=visible, s=s, loss=loss)
            found |= {name: formulas[name] for name in ("H_L",) if name in formulas}
    return found


def family_column_ranks_at(measured: MeasuredSymbols, s: int) -> dict[int, int]:
    """Return the ranks of H_f's column blocks by leaf, as far as theory has them: for chains."""
    assert measured.family is not None
    assert measured.loss is not None
    family, loss = measured.family.family, measured.loss
    if not isinstance(family, ResidualChain):
        return {}
    s = min(s, family.outputs - (loss == "cross_entropy"), measured.r)
    columns = theory.rank_functional_columns(family.dims, r=measured.r, s=s, loss=loss)
    return dict(zip(measured.family.leaves, columns, strict=True))
