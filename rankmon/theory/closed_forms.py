"""Closed forms for the ranks of H_o, H_f and H_L of a deep linear network.

Symbols (arXiv 2106.16225): the network is F(x) = W^L ... W^1 x with the widths d = M_0, M_1, ...,
M_L = K, given as `dims`. r is the rank of the inputs; s is the rank of Omega = E[delta x^T], the
covariance of residuals and inputs; q = min(r, M_1, ..., M_{L-1}, K); qh = min(q, s);
M = M_1 + ... + M_{L-1}. o is 1 for a network with biases and 0 without. With biases x has an
additional coordinate 1, so that Omega is K x (d + 1), and r is the rank of the centered inputs
(Assumption A3: E[x] = 0), that is rank [X 1] - 1. Under cross entropy, K - 1 replaces K everywhere,
because softmax makes the outputs linearly dependent.

The formulas include those of the paper (Theorems 3, 5 and 12, Corollaries 4 and 6, section S7) and
extend them to any bottleneck and any s, also with biases. They are proved in docs/theory.md for
weights of full rank (A1), products of weights included, and residuals in general position: for mse,
and for cross entropy if the targets are arbitrary probabilities. For H_L under cosh, and under
cross entropy with labels, they are checked in float64. For other weights, or residuals in special
position (E[delta] = 0 at a stationary point of the last bias, or the walls of H_f in
docs/theory.md), the ranks can only be lower.
"""

from collections.abc import Sequence
from functools import lru_cache

from rankmon._util.validate import as_flag, as_integer
from rankmon.theory.symbols import Symbols, symbols_of, widths_of, within


def rank_outer(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> int:
    """Return the rank of the outer-product Hessian H_o: q (r + K - q) + o K.

    The formula is proved for weights of full rank, with and without biases; Theorem 12 has it as an
    upper bound with biases. It does not depend on s.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: the rank of the inputs (with biases, of the centered inputs), 0 to d. Default d.
      s: the rank of Omega, 0 to min(K, r + o). It is checked, but not used. Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Raises:
      TypeError: for widths or ranks that are not integers, or a bias that is not a bool.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Corollary 4, Theorem 12, section S7.3; docs/theory.md, Lemma 3.

    Example:
      >>> rank_outer((30, 25, 20, 15, 10))
      300
    """
    t = symbols_of(dims, r, s, bias, loss)
    return t.q * (t.r + t.K - t.q) + t.o * t.K


def rank_functional_columns(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> tuple[int, ...]:
    """Return the ranks of the L column blocks of the functional Hessian H_f, one per layer.

    left_l + right_l - a_{l,1} max(f_{l,L} - o, 0), where
      left_l  = sum_{j=1}^{l-1} (a_{l,j} - a_{l,j+1}) min(M_j, ..., M_{l-1}),
      right_l = sum_{k=l+1}^{L} (f_{l,k} - f_{l,k-1}) min(M_l, ..., M_{k-1}),
      a_{l,j} = min(u_l, s, rho_j + o) for j < l, a_{l,l} = 0,
      f_{l,k} = min(rho_l + o, s, u_k) for k > l, f_{l,l} = 0,
      rho_l = min(r, M_1, ..., M_{l-1}), u_l = min(M_l, ..., M_{L-1}, K).
    Without biases and for L >= 2 this is qh M_{l-1} + qh M_l - qh^2, with s in place of M_0 and
    M_L. A layer's block includes its bias. The formula is proved for weights of full rank and
    residuals in general position, with and without biases.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: the rank of the inputs (with biases, of the centered inputs), 0 to d. Default d.
      s: the rank of Omega, 0 to min(K, r + o). Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Returns:
      L ranks, first layer first; (0,) for L = 1.

    Raises:
      TypeError: for widths or ranks that are not integers, or a bias that is not a bool.
      ValueError: for widths, ranks or a loss out of range.

    Source: without biases arXiv 2106.16225, Theorem 5; docs/theory.md, Lemma 4.
    """
    return _functional_columns(symbols_of(dims, r, s, bias, loss))


@lru_cache(maxsize=1)  # H_f and H_L of one network are usually computed one after the other
def _functional_columns(t: Symbols) -> tuple[int, ...]:
    return tuple(t.left(i) + t.right(i) - t.overlap(i) for i in range(1, t.L + 1))


def rank_functional(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> int:
    """Return the rank of the functional Hessian H_f: the sum of `rank_functional_columns`.

    The formula is proved for weights of full rank and residuals in general position, with and
    without biases; without them the paper has it as an upper bound (`rank_functional_bound`). It is
    0 for L = 1.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: the rank of the inputs (with biases, of the centered inputs), 0 to d. Default d.
      s: the rank of Omega, 0 to min(K, r + o). Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Raises:
      TypeError: for widths or ranks that are not integers, or a bias that is not a bool.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Corollary 6, sections S7.2 and S7.3; docs/theory.md, Lemmas 5 and 6.
    Bottlenecks with biases are not in the paper.

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
    """Return the rank of the loss Hessian H_L: rank H_o + rank H_f - qh (2 s - qh - o).

    For L = 1 it is rank H_o. The formula is proved for weights of full rank and residuals in
    general position, with and without biases: for mse, and for cross entropy if the targets are
    arbitrary probabilities. With labels, and for cosh, it is checked in float64.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: the rank of the inputs (with biases, of the centered inputs), 0 to d. Default d.
      s: the rank of Omega, 0 to min(K, r + o). Default its maximum.
      bias: whether every layer has a bias.
      loss: "mse", "cosh" or "cross_entropy"; for a loss of your own with a non-singular output
        Hessian, "mse".

    Raises:
      TypeError: for widths or ranks that are not integers, or a bias that is not a bool.
      ValueError: for widths, ranks or a loss out of range.

    Source: for s >= q without biases, and for two layers or no bottleneck with biases, the formulas
    of arXiv 2106.16225 (main text, sections S7.2 and S7.3); docs/theory.md for all of it.

    Example:
      >>> rank_loss((30, 25, 20, 15, 10)), rank_loss((30, 25, 20, 15, 10), s=7)
      (1200, 993)
    """
    t = symbols_of(dims, r, s, bias, loss)
    outer = rank_outer(dims, r=r, s=s, bias=bias, loss=loss)
    if t.L == 1:  # one layer is linear in its parameters: H_f = 0
        return outer
    functional = rank_functional(dims, r=r, s=s, bias=bias, loss=loss)
    return outer + functional - t.qh * (2 * t.s - t.qh - t.o)


def rank_outer_bound(
    dims: Sequence[int], *, r: int | None = None, active: int | None = None, loss: str = "mse"
) -> int:
    """Return an upper bound on rank H_o with one hidden layer and no biases: Mt (r + K - 1).

    It is proved for activations with sigma(z) = sigma'(z) z (ReLU, leaky ReLU, linear). Under cross
    entropy K - 1 replaces K: the same proof applies to K - 1 independent combinations of the
    outputs.

    Args:
      dims: the widths (d, M_1, K), positive integers.
      r: the rank of the inputs, 0 to d. Default d.
      active: Mt, the number of hidden units active on at least one example, 0 to M_1. Default M_1.
      loss: as for `rank_outer`.

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Theorem 9.
    """
    t = symbols_of(dims, r, None, False, loss)
    if t.L != 2:
        raise ValueError(
            f"expected the widths (d, M_1, K) of one hidden layer, got {tuple(dims)}; "
            "Theorem 9 does not apply to other depths"
        )
    Mt = t.M[1] if active is None else within("active", active, t.M[1], "M_1")
    return Mt * (t.r + t.K - 1)


def rank_functional_bound(
    dims: Sequence[int], *, r: int | None = None, s: int | None = None, loss: str = "mse"
) -> int:
    """Return the proved upper bound on rank H_f without biases: 2 qh M + 2 qh s - L qh^2.

    For L >= 2 it equals `rank_functional` without biases: weights of full rank and residuals in
    general position attain the bound.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: the rank of the inputs, 0 to d. Default d.
      s: the rank of Omega, 0 to min(K, r). Default its maximum.
      loss: as for `rank_outer`.

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, Corollary 6.
    """
    t = symbols_of(dims, r, s, False, loss)
    M = sum(t.M[1:-1])
    return 2 * t.qh * M + 2 * t.qh * t.s - t.L * t.qh**2


def rank_loss_bound(dims: Sequence[int], *, n: int, loss: str = "mse") -> int:
    """Return an upper bound on rank H_L for any activations and a linear last layer: n (K + 2 M).

    Each example contributes at most K to rank H_o, because its term factors through the K outputs.
    It contributes at most 2 M to rank H_f: the gradient of <delta, F> in layer l is
    e^l (h^{l-1})^T, so its first-order change depends only on the M entries of h^1, ..., h^{L-1}
    and the M entries of e^1, ..., e^{L-1}. The bound holds with and without biases. Tanh networks
    with biases attained it for every single example tried. Above p the bound says nothing. Under
    cross entropy K - 1 replaces K.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      n: the number of examples, at least 1.
      loss: as for `rank_outer`.

    Raises:
      TypeError: for widths or a number of examples that are not integers.
      ValueError: for widths, a number of examples or a loss out of range.

    Source: the argument above. The coarse bounds of arXiv 2106.16225, section S9.3, grow with n in
    the same way.
    """
    t = symbols_of(dims, None, None, False, loss)
    as_integer("n", n, least=1, remedy="pass the size of the batch")
    return n * (t.K + 2 * sum(t.M[1:-1]))


def rank_per_parameter(
    dims: Sequence[int],
    *,
    r: int | None = None,
    s: int | None = None,
    bias: bool = False,
    loss: str = "mse",
) -> dict[str, float]:
    """Return rank/#params of "H_L", "H_o" and "H_f", from the closed forms.

    No matrix is formed, so widths of thousands take no longer than small ones.

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      r: the rank of the inputs (with biases, of the centered inputs), 0 to d. Default d.
      s: the rank of Omega, 0 to min(K, r + o). Default its maximum.
      bias: whether every layer has a bias.
      loss: as for `rank_outer`.

    Raises:
      TypeError: for widths or ranks that are not integers, or a bias that is not a bool.
      ValueError: for widths, ranks or a loss out of range.

    Source: arXiv 2106.16225, sections S7.4 and S9.2 (figures S3 and S20).

    Example:
      >>> round(rank_per_parameter((2352, 5000, 5000, 5000, 10))["H_f"], 6)
      0.00485
    """
    p = number_of_parameters(dims, bias=bias)
    ranks = {"H_L": rank_loss, "H_o": rank_outer, "H_f": rank_functional}
    return {part: rank(dims, r=r, s=s, bias=bias, loss=loss) / p for part, rank in ranks.items()}


def number_of_parameters(dims: Sequence[int], *, bias: bool = False) -> int:
    """Return the number of parameters p = sum_l M_l (M_{l-1} + o).

    Args:
      dims: the widths (d, M_1, ..., M_{L-1}, K), positive integers.
      bias: whether every layer has a bias.

    Raises:
      TypeError: for widths that are not integers, or a bias that is not a bool.
      ValueError: for fewer than two widths, or widths below 1.
    """
    widths, o = widths_of(dims), int(as_flag("bias", bias))
    return sum(m * (before + o) for before, m in zip(widths[:-1], widths[1:], strict=True))
