"""Ranks of the Hessians of linear networks with tied weights: W_out W^m W_in, W^L and W^T W.

Symbols as in `closed_forms`: d inputs, K outputs, r = rank of the inputs, s = rank of
Omega = E[delta x^T]. A tied weight counts once.

Under cross entropy K - 1 replaces K: checked exactly with output Hessians of rank K - 1 that are
equal for all examples, and in float64 with softmax. Under cosh the ranks are those of mse.
"""

from dataclasses import dataclass

from rankmon._util.validate import as_integer
from rankmon.theory.families import FormulaRank, SquareMap, chain_ranks
from rankmon.theory.symbols import symbols_of

_CHECKED = "checked exactly on 1,000 networks"


def _checked(outer: int, functional: int, loss: int) -> dict[str, FormulaRank]:
    values = {"H_o": outer, "H_f": functional, "H_L": loss}
    return {part: FormulaRank(value, _CHECKED) for part, value in values.items()}


@dataclass(frozen=True)
class TiedChain:
    """F(x) = W_out W^m W_in x, with W_in: M x d, one M x M matrix W used m times, W_out: K x M.

    With q = min(r, M, K) and qh = min(q, s), for m >= 2,

      rank H_o = q (r + K - q);
      rank H_f = 2 qh (M + s - qh) + M^2 - max(M - m qh, 0)^2;
      rank H_L = rank H_o + rank H_f - qh (2 s - qh).

    These were checked exactly on 1,000 networks. For m = 1 the network is the plain chain
    d, M, M, K, whose formulas are proved.

    Args:
      d: the number of inputs.
      hidden: M, the hidden width.
      outputs: K, the number of outputs.
      repeats: m, how often W is applied, at least 1.

    Raises:
      TypeError: for widths that are not integers.
      ValueError: for widths below 1.

    Example:
      >>> TiedChain(6, hidden=4, outputs=3, repeats=3).ranks(s=1)["H_f"].value
      23
    """

    d: int
    hidden: int
    outputs: int
    repeats: int

    def __post_init__(self) -> None:
        """Check the widths."""
        _check_sizes(self, "d", "hidden", "outputs", "repeats")

    @property
    def name(self) -> str:
        """The name in sentences."""
        return f"tied chain {self.d}-{self.hidden}-{self.outputs} ({self.repeats} repeats)"

    @property
    def inputs(self) -> int:
        """The number of inputs, d."""
        return self.d

    def number_of_parameters(self) -> int:
        """Return the number of parameters, M (d + M + K)."""
        return self.hidden * (self.d + self.hidden + self.outputs)

    def ranks(
        self, *, r: int | None = None, s: int | None = None, loss: str = "mse"
    ) -> dict[str, FormulaRank]:
        """Return the ranks of "H_o", "H_f" and "H_L".

        Args:
          r: the rank of the inputs, 0 to d. Default d.
          s: the rank of Omega, 0 to min(K, r). Default its maximum.
          loss: "mse", "cosh" or "cross_entropy".

        Raises:
          TypeError, ValueError: for ranks or a loss out of range.
        """
        M, m = self.hidden, self.repeats
        if m == 1:
            return chain_ranks((self.d, M, M, self.outputs), r=r, s=s, loss=loss)
        t = symbols_of((self.d, M, self.outputs), r, s, False, loss)
        outer = t.q * (t.r + t.K - t.q)
        functional = 2 * t.qh * (M + t.s - t.qh) + M**2 - max(M - m * t.qh, 0) ** 2
        return _checked(outer, functional, outer + functional - t.qh * (2 * t.s - t.qh))


@dataclass(frozen=True)
class MatrixPower(SquareMap):
    """F(x) = W^L x, with one d x d matrix W used L times; K = d.

    With e = max(d - s (L - 1), 0) and a = min(s, e), for L >= 2,

      rank H_o = r K;
      rank H_f = d^2 - e^2;
      rank H_L = d^2 - max(e^2 - c, o, 0), where
        c = a min(K - s, e) + a min(r - s, e) + (K - s) (r - s),
        o = (d - K) (d - r) if L = 2, else 0.

    For r = d under mse, rank H_L = d^2. These were checked exactly on 1,000 networks. For L = 1 the
    network is one layer: H_f = 0 and rank H_L = rank H_o = r K.

    Args:
      d: the number of inputs and of outputs.
      repeats: L, how often W is applied, at least 1.

    Raises:
      TypeError: for widths that are not integers.
      ValueError: for widths below 1.

    Example:
      >>> MatrixPower(5, repeats=3).ranks(s=1)["H_f"].value
      16
    """

    d: int
    repeats: int

    def __post_init__(self) -> None:
        """Check the widths."""
        _check_sizes(self, "d", "repeats")

    @property
    def name(self) -> str:
        """The name in sentences."""
        return f"matrix power {self.d} x {self.d} ({self.repeats} repeats)"

    def number_of_parameters(self) -> int:
        """Return the number of parameters, d^2."""
        return self.d**2

    def ranks(
        self, *, r: int | None = None, s: int | None = None, loss: str = "mse"
    ) -> dict[str, FormulaRank]:
        """Return the ranks of "H_o", "H_f" and "H_L".

        Args:
          r: the rank of the inputs, 0 to d. Default d.
          s: the rank of Omega, 0 to min(K, r), K = d. Default its maximum.
          loss: "mse", "cosh" or "cross_entropy".

        Raises:
          TypeError, ValueError: for ranks or a loss out of range.
        """
        if self.repeats == 1:
            return chain_ranks((self.d, self.d), r=r, s=s, loss=loss)
        t = symbols_of((self.d, self.d), r, s, False, loss)
        d, s = self.d, t.s
        e = max(d - s * (self.repeats - 1), 0)
        a = min(s, e)
        seen = a * min(t.K - s, e) + a * min(t.r - s, e) + (t.K - s) * (t.r - s)
        rest = max(e**2 - seen, (d - t.K) * (d - t.r) if self.repeats == 2 else 0, 0)
        return _checked(t.r * t.K, d**2 - e**2, d**2 - rest)


@dataclass(frozen=True)
class TiedAutoencoder(SquareMap):
    """F(x) = W^T W x, with W: M x d; K = d.

    Let T(n) = n (n + 1) / 2, m = min(M, d), k = min(d, 2 s), the rank of Omega + Omega^T for
    Omega in general position, v = d - r, and t = min(s, v). For mse and cosh,

      rank H_o = T(d) - T(d - m) - T(v) + T(min(d - m, v));
      rank H_f = M k;
      rank H_L = rank H_o + rank H_f
                 - [T(k) - T(max(k - m, 0)) - T(t) + T(max(t + min(d - m, v) - v, 0))].

    For r = d these are T(d) - T(d - m) and an intersection of T(k) - T(max(k - m, 0)). Under cross
    entropy, if 1 <= r <= m, rank H_o is lower by 1, and rank H_L is if also s = 0. All were checked
    exactly on 1,000 networks. If Omega is symmetric, as at inputs with covariance I and the targets
    y = x, then rank (Omega + Omega^T) is s, and these formulas for H_f and H_L do not apply.

    Args:
      d: the number of inputs and of outputs.
      hidden: M, the number of rows of W.

    Raises:
      TypeError: for widths that are not integers.
      ValueError: for widths below 1.

    Example:
      >>> TiedAutoencoder(5, hidden=3).ranks()["H_o"].value
      12
    """

    d: int
    hidden: int

    def __post_init__(self) -> None:
        """Check the widths."""
        _check_sizes(self, "d", "hidden")

    @property
    def name(self) -> str:
        """The name in sentences."""
        return f"tied autoencoder {self.d}-{self.hidden}-{self.d}"

    def number_of_parameters(self) -> int:
        """Return the number of parameters, M d."""
        return self.hidden * self.d

    def ranks(
        self, *, r: int | None = None, s: int | None = None, loss: str = "mse"
    ) -> dict[str, FormulaRank]:
        """Return the ranks of "H_o", "H_f" and "H_L".

        Args:
          r: the rank of the inputs, 0 to d. Default d.
          s: the rank of Omega, 0 to min(K, r), K = d. Default its maximum.
          loss: "mse", "cosh" or "cross_entropy".

        Raises:
          TypeError, ValueError: for ranks or a loss out of range.
        """
        d, M = self.d, self.hidden
        t = symbols_of((d, d), r, s, False, loss)
        m, k, v = min(M, d), min(d, 2 * t.s), d - t.r
        seen = min(t.s, v)  # of Omega's columns, modulo the inputs
        kernel = min(d - m, v)  # of W's kernel, modulo the inputs
        outer = _triangle(d) - _triangle(d - m) - _triangle(v) + _triangle(kernel)
        common = _triangle(k) - _triangle(k - m) - _triangle(seen) + _triangle(seen + kernel - v)
        total = outer + M * k - common
        if loss == "cross_entropy" and 1 <= t.r <= m:
            outer -= 1
            total -= int(t.s == 0)
        return _checked(outer, M * k, total)


def _triangle(n: int) -> int:
    """Return the dimension of the symmetric n x n matrices; 0 for n <= 0."""
    return max(n, 0) * (n + 1) // 2


def _check_sizes(family: object, *names: str) -> None:
    """Check that these fields of a frozen dataclass are integers of at least 1."""
    for name in names:
        object.__setattr__(family, name, as_integer(name, getattr(family, name), least=1))
