"""The predicted ranks of residual, tied and convolutional linear networks: curves and texts.

The symbols are those of `theory`: d inputs, K outputs, r the rank of the inputs, s that of
Omega = E[delta x^T]. The networks are recognized by `network.recognized_family`.
"""

from collections.abc import Sequence

from rankmon._util.facts import Fact
from rankmon._util.text import listed
from rankmon.engines.base import Ranks
from rankmon.linalg.numerical_rank import NumericalRank
from rankmon.measure.family_ranks import family_column_ranks_at, family_ranks_at
from rankmon.measure.symbols import MeasuredSymbols
from rankmon.network.layers import Layer
from rankmon.probes.base import Prediction
from rankmon.problem.point import Point
from rankmon.theory.convolutional import Convolutional
from rankmon.theory.families import FormulaRank, NetworkFamily
from rankmon.theory.residual import ResidualBlocks, ResidualChain
from rankmon.theory.tied import MatrixPower, TiedAutoencoder, TiedChain

_PARTS = ("H_L", "H_o", "H_f")
_PLAIN = {
    "H_o": "q (r + K - q)",
    "H_f": "2 qh M + 2 qh s - L qh^2",
    "H_L": "rank H_o + rank H_f - qh (2 s - qh)",
}
_FORMULAS: dict[type, dict[str, str]] = {
    ResidualChain: _PLAIN,
    ResidualBlocks: {
        "H_o": "q (r + d - q), q = min(r, d, m_1 + ... + m_L)",
        "H_f": "2 s (S + (L - 1) (d - s)), S = m_1 + ... + m_L, if s <= min m_l; p if s = d",
        "H_L": "rank H_o + rank H_f - s^2 and lower terms, if s <= min m_l; p if s = d",
    },
    TiedChain: {
        "H_o": "q (r + K - q), q = min(r, M, K)",
        "H_f": "2 qh (M + s - qh) + M^2 - max(M - m qh, 0)^2, qh = min(q, s)",
        "H_L": "rank H_o + rank H_f - qh (2 s - qh)",
    },
    MatrixPower: {
        "H_o": "r d",
        "H_f": "d^2 - max(d - s (L - 1), 0)^2",
        "H_L": "d^2 for r = d; lower for fewer inputs",
    },
    TiedAutoencoder: {
        "H_o": "T(d) - T(d - min(M, d)) for r = d, T(n) = n (n + 1) / 2",
        "H_f": "M k, k = min(d, 2 s) = rank(Omega + Omega^T)",
        "H_L": "rank H_o + rank H_f - T(k) + T(max(k - M, 0)) for r = d",
    },
    Convolutional: {
        "H_o": "the dimension of the set of composed filters",
        "H_f": "the sum over the layers of the ranks of block Hankel matrices of Omega",
        "H_L": "by the kinds of layers: see theory.Convolutional",
    },
}


def family_scalars(
    measured: MeasuredSymbols,
    point: Point,
    found: Ranks,
    omegas: Sequence[NumericalRank],
    layers: Sequence[Layer],
) -> dict[str, float]:
    """Return rank_theory/* of a recognized family, and by layer, as far as its formulas apply.

    Args:
      measured: the network and its symbols.
      point: the parameters.
      found: the ranks as measured.
      omegas: the ranks of Omega with the residuals, and with those held.
      layers: the layers whose blocks are measured.
    """
    if measured.family is None or measured.loss is None:
        return {}
    if any(omega.rank is None for omega in omegas):
        return {}
    ranks = [omega.rank or 0 for omega in omegas]
    ranks[0] = 0 if found.parts["H_f"].high == 0 else ranks[0]
    of = [measured.omega(delta) for delta in point.functional_residuals]
    predicted = family_ranks_at(measured, point.leaves, of, ranks)
    high = found.parts["H_f"].high or 0
    if "H_f" in predicted and 0 < high < predicted["H_f"].value:
        # H_f is vanishing: a part of it is below the cut, and s says nothing of how much of H_L is.
        predicted.pop("H_L", None)
    asked = {part: rank for part, rank in predicted.items() if part in point.asked}
    scalars: dict[str, float] = {f"rank_theory/{part}": r.value for part, r in asked.items()}
    if found.blocks is None or "H_f" not in predicted:
        return scalars
    columns = family_column_ranks_at(measured, ranks[0])
    for layer in layers:
        rank = found.blocks.columns.get(layer.name)
        if rank is not None and layer.leaves[0] in columns:
            tag = f"rank_columns_theory/H_f/{layer.name}"
            scalars[tag] = 0 if rank.high == 0 else columns[layer.leaves[0]]
    return scalars


def family_facts(measured: MeasuredSymbols) -> list[Fact]:
    """Return the fact that names the family."""
    if measured.family is None:
        return []
    family = measured.family.family
    return [Fact("linear network", f"{family.name}, as the network's program shows")]


def family_predictions(measured: MeasuredSymbols) -> list[Prediction]:
    """Return formula and basis of each part that has a formula at some s."""
    if measured.family is None or measured.loss is None:
        return []
    family = measured.family.family
    omega = Prediction("Omega (s)", "rank/Omega", "E[delta x^T]", "measured")
    shown = list[Prediction]()
    for part, rank in _formulas(measured, family).items():
        text = _FORMULAS[type(family)][part]
        source = f"theory.{type(family).__name__}: {rank.basis}"
        shown.append(Prediction(part, f"rank_theory/{part}", text, source))
        if part == "H_f":
            shown.append(Prediction("H_f_fixed", "rank_theory/H_f_fixed", text, source))
    return [omega, *shown] if shown else []


def family_reservation(measured: MeasuredSymbols) -> str:
    """Return the conditions of the predictions, and the parts without a formula."""
    assert measured.family is not None
    family = measured.family.family
    if measured.loss is None:
        return "No closed form applies: the loss is a user-defined function."
    formulas = _formulas(measured, family)
    missing = [part for part in _PARTS if part not in formulas]
    without = f" There is no formula for {listed(missing)}." if missing else ""
    plain = (
        " The network has the formulas of the plain chain: identities only translate parameters. "
        "q = min(r, M_1, ..., K), qh = min(q, s), M = M_1 + ... + M_{L-1}."
    ) * isinstance(family, ResidualChain)
    outputs = " Under cross entropy, K - 1 replaces K." * (
        measured.loss == "cross_entropy" and not isinstance(family, Convolutional)
    )
    return (
        f"This network is one of theory.{type(family).__name__}. Its closed forms hold for weights "
        f"and residuals in general position, and are logged only while this is measured to be so."
        f"{without}{plain} s is the rank of Omega at this step (0 once all eigenvalues of H_f are "
        f"below a tenth of the cut); for H_f_fixed, it is the rank with the residuals of the first "
        f"probe.{outputs}"
    )


def _formulas(measured: MeasuredSymbols, family: NetworkFamily) -> dict[str, FormulaRank]:
    """Return the parts that have a formula at the measured r, at the least or the largest s."""
    assert measured.loss is not None
    most = min(family.outputs - (measured.loss == "cross_entropy"), measured.r)
    formulas = dict[str, FormulaRank]()
    for s in (min(1, most), most):
        formulas |= family.ranks(r=measured.r, s=s, loss=measured.loss)
    return {part: formulas[part] for part in _PARTS if part in formulas}
