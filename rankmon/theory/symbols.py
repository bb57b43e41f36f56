"""The symbols in the formulas of `closed_forms`: widths, r, s and others, with their checks.

They follow arXiv 2106.16225; `closed_forms` declares them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rankmon._util.validate import as_flag, as_integer

_LOSSES = ("mse", "cosh", "cross_entropy")


@dataclass(frozen=True)
class Symbols:
    """The quantities in the formulas; layers are counted from 1, as in the paper.

    Attributes:
      M: the widths (M_0, ..., M_L) = (d, ..., K), with K - 1 for K under cross entropy.
      r: the rank of the inputs, or of the centered inputs if there are biases.
      s: the rank of Omega.
      o: 1 with biases, 0 without.
    """

    M: tuple[int, ...]
    r: int
    s: int
    o: int

    @property
    def L(self) -> int:
        """The number of layers."""
        return len(self.M) - 1

    @property
    def K(self) -> int:
        """The last width: the number of outputs, minus one under cross entropy."""
        return self.M[-1]

    @property
    def q(self) -> int:
        """min(r, M_1, ..., M_L)."""
        return min(self.r, *self.M[1:])

    @property
    def qh(self) -> int:
        """min(q, s)."""
        return min(self.q, self.s)

    def narrowest(self, first: int, last: int) -> int:
        """Return the smallest width, min(M_first, ..., M_last)."""
        return min(self.M[first : last + 1])

    def rho(self, layer: int) -> int:
        """Return the rank of W^{layer-1:1} on the data: rho_1 = r."""
        return min(self.r, *self.M[1:layer]) if layer > 1 else self.r

    def u(self, layer: int) -> int:
        """Return the rank of W^{L:layer+1}: u_L = K."""
        return self.narrowest(layer, self.L)

    def a(self, layer: int, j: int) -> int:
        """Return the rank that Omega transmits from an earlier layer j; 0 for j = layer."""
        return min(self.u(layer), self.s, self.rho(j) + self.o) if j < layer else 0

    def f(self, layer: int, k: int) -> int:
        """Return the rank that Omega transmits from a later layer k; 0 for k = layer."""
        return min(self.rho(layer) + self.o, self.s, self.u(k)) if k > layer else 0

    def left(self, layer: int) -> int:
        """Return the dimension that the earlier layers span in column block `layer` of H_f."""
        return sum(
            (self.a(layer, j) - self.a(layer, j + 1)) * self.narrowest(j, layer - 1)
            for j in range(1, layer)
        )

    def right(self, layer: int) -> int:
        """Return the dimension that the later layers span in column block `layer` of H_f."""
        return sum(
            (self.f(layer, k) - self.f(layer, k - 1)) * self.narrowest(layer, k - 1)
            for k in range(layer + 1, self.L + 1)
        )

    def overlap(self, layer: int) -> int:
        """Return the dimension of the intersection of `left` and `right`; 0 at both ends."""
        return self.a(layer, 1) * max(self.f(layer, self.L) - self.o, 0)


def symbols_of(dims: Sequence[int], r: int | None, s: int | None, bias: bool, loss: str) -> Symbols:
    """Return a network's symbols, given the arguments of `closed_forms` or their defaults.

    Raises:
      TypeError: for widths or ranks that are not integers.
      ValueError: for widths, ranks or a loss out of range.
    """
    widths = widths_of(dims)
    if loss not in _LOSSES:
        raise ValueError(
            f"expected loss to be one of {_LOSSES}, got {loss!r}; for a custom loss with a "
            'non-singular output Hessian pass "mse"'
        )
    if loss == "cross_entropy":
        if widths[-1] < 2:
            raise ValueError(
                "expected at least 2 outputs for cross entropy, got K = 1, with which the loss is "
                "constant; count one output for each class"
            )
        widths = (*widths[:-1], widths[-1] - 1)
    o = int(as_flag("bias", bias))
    rank = widths[0] if r is None else within("r", r, widths[0], "d")
    # The rows of Omega are combinations of the inputs: of x of rank r, or of (x, 1) of rank r + 1.
    most = min(widths[-1], rank + o)
    K = "K - 1" if loss == "cross_entropy" else "K"
    limit = f"min({K}, r + 1)" if bias else f"min({K}, r)"
    return Symbols(widths, rank, most if s is None else within("s", s, most, limit), o)


def widths_of(dims: Sequence[int]) -> tuple[int, ...]:
    """Return the widths as integers; refuse fewer than two, or a width below 1."""
    is_sequence = isinstance(dims, Sequence) or getattr(dims, "ndim", None) == 1
    if not is_sequence or isinstance(dims, (str, bytes)):
        raise TypeError(
            f"expected dims to be the widths (d, M_1, ..., K), got {dims!r} "
            f"({type(dims).__name__}); pass a tuple of integers"
        )
    widths = tuple(as_integer("a width in dims", width) for width in dims)
    if len(widths) < 2:
        raise ValueError(
            f"expected at least two widths in dims (d, M_1, ..., K), got {widths}; begin with the "
            "number of inputs and end with the number of outputs"
        )
    if min(widths) < 1:
        raise ValueError(
            f"expected widths of at least 1, got dims {widths}; leave out empty layers"
        )
    return widths


def within(name: str, value: int, most: int, limit: str) -> int:
    """Return the value as an integer from 0 to `most`; `limit` names that bound in the error."""
    number = as_integer(name, value)
    if not 0 <= number <= most:
        raise ValueError(
            f"expected {name} from 0 to {limit} = {most}, got {number}; pass an integer in this "
            "range"
        )
    return number
