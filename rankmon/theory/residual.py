"""Ranks of the Hessians of residual linear networks: W_l + I in each layer, and blocks x + B A x.

Symbols as in `closed_forms`: d inputs, K outputs, r = rank of the inputs, s = rank of
Omega = E[delta x^T].

Under cross entropy K - 1 replaces K: checked exactly with output Hessians of rank K - 1 that are
equal for all examples, and in float64 with softmax. Under cosh the ranks are those of mse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rankmon._util.validate import as_integer
from rankmon.theory.closed_forms import number_of_parameters
from rankmon.theory.families import FormulaRank, SquareMap, chain_ranks
from rankmon.theory.symbols import symbols_of, widths_of

_CHECKED = "checked exactly on 1,000 networks"
_CHECKED_BEYOND = "checked exactly on 200 networks"  # for s > min_l m_l


@dataclass(frozen=True)
class ResidualChain:
    """F(x) = (W^L + I) ... (W^1 + I) x, with the identity cut to the shape of each W^l.

    The identities translate the parameters, and the formulas of the plain chain hold at generic
    parameters. Ranks of all parts are therefore those of `theory.rank_outer`, `rank_functional` and
    `rank_loss`, which are proved. The same holds for any constant matrices in place of I.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.

    Raises:
      TypeError: for widths that are not integers.
      ValueError: for fewer than two widths, or widths below 1.

    Example:
      >>> ResidualChain((6, 6, 6)).ranks(s=2)["H_f"].value
      24
    """

    dims: Sequence[int]

    def __post_init__(self) -> None:
        """Check the widths."""
        object.__setattr__(self, "dims", widths_of(self.dims))

    @property
    def name(self) -> str:
        """The name in sentences."""
        return f"residual chain {'-'.join(map(str, self.dims))}"

    @property
    def inputs(self) -> int:
        """The number of inputs, d."""
        return self.dims[0]

    @property
    def outputs(self) -> int:
        """The number of outputs, K."""
        return self.dims[-1]

    def number_of_parameters(self) -> int:
        """Return the number of parameters, sum_l M_l M_{l-1}."""
        return number_of_parameters(self.dims)

    def ranks(
        self, *, r: int | None = None, s: int | None = None, loss: str = "mse"
    ) -> dict[str, FormulaRank]:
        """Return the ranks of "H_o", "H_f" and "H_L", those of the plain chain.

        Args:
          r: the rank of the inputs, 0 to d. Default d.
          s: the rank of Omega, 0 to min(K, r). Default its maximum.
          loss: "mse", "cosh" or "cross_entropy".

        Raises:
          TypeError, ValueError: for ranks or a loss out of range.
        """
        return chain_ranks(self.dims, r=r, s=s, loss=loss)


@dataclass(frozen=True)
class ResidualBlocks(SquareMap):
    """F(x) = (I + B_L A_L) ... (I + B_1 A_1) x, with A_l: m_l x d and B_l: d x m_l.

    With K = d, S = m_1 + ... + m_L and q = min(r, K, S),

      rank H_o = q (r + K - q);
      rank H_f = 2 s (S + (L - 1) (d - s)) if s <= min_l m_l, that of the plain chain
        d, m_1, d, m_2, ..., d;
      rank H_L = rank H_o + rank H_f - s^2 - e(K) e(r) + (K - q) (r - q) if s <= min_l m_l, where
        e(n) = max(n - s - sum_l (m_l - s), 0).

    For several blocks and s > min_l m_l,

      rank H_f = rank H_L = p, all parameters, if s = d;
      rank H_f = 2 (M s + t d) + t min(min(M, s) - t, 2 t) for two blocks and s <= d - t, where
        t = min(m_1, m_2) and M = max(m_1, m_2);

    otherwise H_f and H_L have no formula. The formulas for s <= min_l m_l were checked exactly on
    1,000 networks, each of the last two on 200. One block is the plain chain d, m_1, d, translated;
    its formulas are proved, for every s.

    For several blocks and any s, the columns of H_f that belong to one weight of block l have rank
    c(m_l, m_1 + ... + m_{l-1}) for A_l and c(m_l, m_{l+1} + ... + m_L) for B_l, where c(m, t) =
    b d + (m - b) s + (a - b) (min(d, s + b) - s), a = min(m, s), b = min(a, t); this was checked
    exactly on 200 networks. Their sum bounds rank H_f, which can be lower: 44, not 45, for d = 5,
    inner = (4, 1), s = 4.

    Args:
      d: the number of inputs and of outputs.
      inner: the inner widths (m_1, ..., m_L), positive integers.

    Raises:
      TypeError: for widths that are not integers.
      ValueError: for no block, or widths below 1.

    Example:
      >>> ResidualBlocks(6, inner=(2, 3)).ranks(s=2)["H_o"].value
      35
    """

    d: int
    inner: Sequence[int]

    def __post_init__(self) -> None:
        """Check the widths."""
        d = as_integer("d", self.d, least=1)
        if not isinstance(self.inner, Sequence) or isinstance(self.inner, str):
            raise TypeError(
                f"expected inner to be the inner widths (m_1, ..., m_L), got {self.inner!r}; pass "
                "a tuple of integers"
            )
        if not self.inner:
            raise ValueError("expected at least one inner width, got none; pass one for each block")
        inner = tuple(as_integer("an inner width", m, least=1) for m in self.inner)
        object.__setattr__(self, "d", d)
        object.__setattr__(self, "inner", inner)

    @property
    def name(self) -> str:
        """The name in sentences."""
        return f"residual blocks {self.d} ({', '.join(map(str, self.inner))})"

    def number_of_parameters(self) -> int:
        """Return the number of parameters, 2 d (m_1 + ... + m_L)."""
        return 2 * self.d * sum(self.inner)

    def ranks(
        self, *, r: int | None = None, s: int | None = None, loss: str = "mse"
    ) -> dict[str, FormulaRank]:
        """Return the ranks of "H_o", and of "H_f" and "H_L" if they have a formula.

        Args:
          r: the rank of the inputs, 0 to d. Default d.
          s: the rank of Omega, 0 to min(K, r), K = d. Default its maximum.
          loss: "mse", "cosh" or "cross_entropy".

        Raises:
          TypeError, ValueError: for ranks or a loss out of range.
        """
        if len(self.inner) == 1:
            return chain_ranks((self.d, *self.inner, self.d), r=r, s=s, loss=loss)
        t = symbols_of((self.d, self.d), r, s, False, loss)
        s, S = t.s, sum(self.inner)
        q = min(t.r, t.K, S)
        values = {"H_o": q * (t.r + t.K - q)}
        basis = _CHECKED if s <= min(self.inner) else _CHECKED_BEYOND
        if s <= min(self.inner):
            L = len(self.inner)
            values["H_f"] = 2 * s * (S + (L - 1) * (self.d - s))
            rest = S - L * s
            common = s**2 + max(t.K - s - rest, 0) * max(t.r - s - rest, 0)
            values["H_L"] = sum(values.values()) - common + (t.K - q) * (t.r - q)
        elif s == self.d:
            values["H_f"] = values["H_L"] = self.number_of_parameters()
        elif len(self.inner) == 2 and s <= self.d - min(self.inner):
            small, large = sorted(self.inner)
            inside = small * min(min(large, s) - small, 2 * small)
            values["H_f"] = 2 * (large * s + small * self.d) + inside
        return {
            part: FormulaRank(value, _CHECKED if part == "H_o" else basis)
            for part, value in values.items()
        }
