"""The ranks that theory predicts, as integers in closed form; no arrays, no measurement.

Symbols (arXiv 2106.16225): a deep linear network F(x) = W^L ... W^1 x has the widths d = M_0, M_1,
..., M_L = K, written `dims`. r is the rank of the inputs, s that of Omega = E[delta x^T], the
covariance of residuals and inputs, q = min(r, M_1, ..., M_{L-1}, K), qh = min(q, s),
M = M_1 + ... + M_{L-1}. o is 1 for a network with biases and 0 without; with biases x gains a
coordinate 1, so that Omega is K x (d + 1), and r is the rank of the centered inputs
(Assumption A3: E[x] = 0), that is rank [X 1] - 1. Under cross entropy K - 1 takes the place of K
everywhere: softmax makes the outputs dependent.

What these formulas are. They contain the paper's (Theorems 3, 5 and 12, Corollaries 4 and 6,
section S7) and extend them to every bottleneck, every s, and to biases with both. They are exact on
every generic network tried, in exact arithmetic. The ranks of H_f's columns follow from an
argument; that they add up to rank H_f, and above all the formula of H_L, is a conjecture found by
exact computation, not proved. They hold for weights of full rank (A1) and for residuals in general
position. At other weights, and with residuals in special position (at a stationary point of the
last bias E[delta] = 0), the ranks can only be lower.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

_LOSSES = ("mse", "cosh", "cross_entropy")


@dataclass(frozen=True)
class _Symbols:
    """The quantities that the formulas are written in, layers counted from 1 as in the paper.

    Attributes:
      M: (M_0, ..., M_L) = (d, ..., K), where K is already K - 1 under cross entropy.
      r: rank of the inputs; with biases, of the centered inputs.
      s: rank of Omega.
      o: 1 with biases, 0 without.
    """

    M: tuple[int, ...]
    r: int
    s: int
    o: int

    @property
    def L(self) -> int:
        return len(self.M) - 1

    @property
    def K(self) -> int:
        return self.M[-1]

    @property
    def q(self) -> int:
        return min(self.r, *self.M[1:])

    @property
    def qh(self) -> int:
        return min(self.q, self.s)

    def narrowest(self, first: int, last: int) -> int:
        """min(M_first, ..., M_last)."""
        return min(self.M[first : last + 1])

    def rho(self, layer: int) -> int:
        """Rank of W^{layer-1:1} on the data: rho_1 = r."""
        return min(self.r, *self.M[1:layer]) if layer > 1 else self.r

    def u(self, layer: int) -> int:
        """Rank of W^{L:layer+1}: u_L = K."""
        return self.narrowest(layer, self.L)

    def a(self, layer: int, j: int) -> int:
        """Rank that Omega passes to `layer` from the earlier layer j; 0 at j = layer."""
        return min(self.u(layer), self.s, self.rho(j) + self.o) if j < layer else 0

    def f(self, layer: int, k: int) -> int:
        """Rank that Omega passes to `layer` from the later layer k; 0 at k = layer."""
        return min(self.rho(layer) + self.o, self.s, self.u(k)) if k > layer else 0

    def left(self, layer: int) -> int:
        """Dimension of what the earlier layers span in column block `layer` of H_f."""
        return sum(
            (self.a(layer, j) - self.a(layer, j + 1)) * self.narrowest(j, layer - 1)
            for j in range(1, layer)
        )

    def right(self, layer: int) -> int:
        """Dimension of what the later layers span in column block `layer` of H_f."""
        return sum(
            (self.f(layer, k) - self.f(layer, k - 1)) * self.narrowest(layer, k - 1)
            for k in range(layer + 1, self.L + 1)
        )

    def overlap(self, layer: int) -> int:
        """Dimension in which the two meet; 0 for the first and the last layer."""
        return self.a(layer, 1) * max(self.f(layer, self.L) - self.o, 0)


def rank_outer(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> int:
    """The rank of the outer-product Hessian H_o: q (r + K - q) + o K.

    Exact on every generic network tried, for weights of full rank. Without biases it is proved;
    with biases Theorem 12 proves it as an upper bound. It does not depend on s.

    Args:
      dims: widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: rank of the inputs, 0 to d; with biases of the centered inputs, rank [X 1] - 1. Default d.
      s: rank of Omega, 0 to min(K, r + o); checked, not used. Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Corollary 4, Theorem 12, section S7.3.

    Example:
      >>> rank_outer((30, 25, 20, 15, 10))
      300
    """
    t = _symbols(dims, r, s, bias, loss)
    return t.q * (t.r + t.K - t.q) + t.o * t.K


def rank_functional_columns(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> tuple[int, ...]:
    """The ranks of the L column blocks of the functional Hessian H_f, one for each layer's weights.

    left_l + right_l - a_{l,1} max(f_{l,L} - o, 0), where
      left_l  = sum_{j=1}^{l-1} (a_{l,j} - a_{l,j+1}) min(M_j, ..., M_{l-1}),
      right_l = sum_{k=l+1}^{L} (f_{l,k} - f_{l,k-1}) min(M_l, ..., M_{k-1}),
      a_{l,j} = min(u_l, s, rho_j + o) for j < l, a_{l,l} = 0,
      f_{l,k} = min(rho_l + o, s, u_k) for k > l, f_{l,l} = 0,
      rho_l = min(r, M_1, ..., M_{l-1}), u_l = min(M_l, ..., M_{L-1}, K).
    Without biases and for L >= 2 that is qh M_{l-1} + qh M_l - qh^2, with s in place of M_0 and
    M_L. A layer's bias belongs to its block. The formula follows from an argument and is exact on
    every generic network tried, for weights of full rank.

    Args:
      dims: widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: rank of the inputs, 0 to d; with biases of the centered inputs, rank [X 1] - 1. Default d.
      s: rank of Omega, 0 to min(K, r + o). Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Returns:
      L ranks, first layer first; (0,) for L = 1.

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: without biases arXiv 2106.16225, Theorem 5; with biases not in the paper.
    """
    t = _symbols(dims, r, s, bias, loss)
    return tuple(t.left(i) + t.right(i) - t.overlap(i) for i in range(1, t.L + 1))


def rank_functional(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> int:
    """The rank of the functional Hessian H_f: the sum of `rank_functional_columns`.

    Exact on every generic network tried, for weights of full rank; without biases the paper proves
    it as an upper bound (`rank_functional_bound`). 0 for L = 1.

    Args:
      dims: widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: rank of the inputs, 0 to d; with biases of the centered inputs, rank [X 1] - 1. Default d.
      s: rank of Omega, 0 to min(K, r + o). Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Corollary 6, sections S7.2 and S7.3; bottlenecks with biases are not
    in the paper.

    Example:
      >>> rank_functional((30, 25, 20, 15, 10))
      1000
    """
    return sum(rank_functional_columns(dims, r=r, s=s, bias=bias, loss=loss))


def rank_loss(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> int:
    """The rank of the loss Hessian H_L: rank H_o + rank H_f - qh (2 s - qh - o); rank H_o if L = 1.

    A conjecture found by exact computation, not proved: exact on every generic network tried, for
    weights of full rank.

    Args:
      dims: widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: rank of the inputs, 0 to d; with biases of the centered inputs, rank [X 1] - 1. Default d.
      s: rank of Omega, 0 to min(K, r + o). Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: for s >= q without biases, and for two layers or no bottleneck with biases, the formulas
    of arXiv 2106.16225 (main text, sections S7.2 and S7.3); the rest is not in the paper.

    Example:
      >>> rank_loss((30, 25, 20, 15, 10)), rank_loss((30, 25, 20, 15, 10), s=7)
      (1200, 993)
    """
    t = _symbols(dims, r, s, bias, loss)
    outer = rank_outer(dims, r=r, s=s, bias=bias, loss=loss)
    if t.L == 1:
        return outer
    functional = rank_functional(dims, r=r, s=s, bias=bias, loss=loss)
    return outer + functional - t.qh * (2 * t.s - t.qh - t.o)


def rank_outer_bound(
    dims: Sequence[int], *, r: int | None = None, active: int | None = None, loss: str = "mse"
) -> int:
    """An upper bound on rank H_o with one hidden layer and no biases: Mt (r + K - 1).

    Proved for activations with sigma(z) = sigma'(z) z (ReLU, leaky ReLU, linear). Under cross
    entropy K - 1 takes the place of K, by the same proof applied to K - 1 independent
    combinations of the outputs.

    Args:
      dims: widths (d, M_1, K), positive integers.
      r: rank of the inputs, 0 to d. Default d.
      active: Mt, the number of hidden units active on at least one example, 0 to M_1. Default M_1.
      loss: as for `rank_outer`.

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Theorem 9.
    """
    t = _symbols(dims, r, None, False, loss)
    if t.L != 2:
        raise ValueError(
            f"expected the widths (d, M_1, K) of one hidden layer, got {tuple(dims)}; "
            "Theorem 9 says nothing of other depths"
        )
    Mt = t.M[1] if active is None else _within("active", active, t.M[1], "M_1")
    return Mt * (t.r + t.K - 1)


def rank_functional_bound(
    dims: Sequence[int], *, r: int | None = None, s: int | None = None, loss: str = "mse"
) -> int:
    """The proved upper bound on rank H_f without biases: 2 qh M + 2 qh s - L qh^2.

    For L >= 2 it equals `rank_functional` without biases, which is met on every generic network
    tried.

    Args:
      dims: widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: rank of the inputs, 0 to d. Default d.
      s: rank of Omega, 0 to min(K, r). Default its maximum.
      loss: as for `rank_outer`.

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Corollary 6.
    """
    t = _symbols(dims, r, s, False, loss)
    M = sum(t.M[1:-1])
    return 2 * t.qh * M + 2 * t.qh * t.s - t.L * t.qh**2


def number_of_parameters(dims: Sequence[int], *, bias: bool = False) -> int:
    """The number of parameters p = sum_l M_l (M_{l-1} + o).

    Args:
      dims: widths (d, M_1, ..., M_{L-1}, K), positive integers.
      bias: whether every layer has a bias.

    Raises:
      TypeError: for widths that are not integers.
      ValueError: for fewer than two widths, or widths below 1.
    """
    widths = _widths(dims)
    return sum(m * (before + int(bias)) for before, m in zip(widths[:-1], widths[1:], strict=True))


def _symbols(dims: Sequence[int], r: int | None, s: int | None, bias: bool, loss: str) -> _Symbols:
    widths = _widths(dims)
    if loss not in _LOSSES:
        raise ValueError(
            f"expected loss to be one of {_LOSSES}, got {loss!r}; for a custom loss with a "
            'non-singular output Hessian pass "mse"'
        )
    if loss == "cross_entropy":
        if widths[-1] < 2:
            raise ValueError(
                "expected at least 2 outputs for cross entropy, got K = 1; its loss is constant: "
                "add the second class's output"
            )
        widths = (*widths[:-1], widths[-1] - 1)
    o = int(bias)
    rank = widths[0] if r is None else _within("r", r, widths[0], "d")
    most = min(widths[-1], rank + o)
    K = "K - 1" if loss == "cross_entropy" else "K"
    limit = f"min({K}, r + 1)" if bias else f"min({K}, r)"
    return _Symbols(widths, rank, most if s is None else _within("s", s, most, limit), o)


def _widths(dims: Sequence[int]) -> tuple[int, ...]:
    widths = tuple(_integer("a width in dims", width) for width in dims)
    if len(widths) < 2:
        raise ValueError(
            f"expected dims (d, M_1, ..., K) with at least d and K, got {widths}; "
            "begin with the number of inputs and end with the number of outputs"
        )
    if min(widths) < 1:
        raise ValueError(
            f"expected widths of at least 1, got dims {widths}; leave out empty layers"
        )
    return widths


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"expected {name} to be an integer, got {value!r} ({type(value).__name__}); pass an int"
        ) from None


def _within(name: str, value: int, most: int, limit: str) -> int:
    number = _integer(name, value)
    if not 0 <= number <= most:
        raise ValueError(
            f"expected {name} within 0 and {limit} = {most}, got {number}; "
            "check it against dims, bias and loss"
        )
    return number
