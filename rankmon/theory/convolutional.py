"""Closed forms for linear networks of one-dimensional convolutions with channels.

Layer l maps C_{l-1} channels to C_l with a kernel of k_l taps and stride 1. The composition is one
convolution by a filter G [C_L, D, C_0] with D = k_1 + ... + k_L - L + 1 taps, whose entries are
polynomials in the weights. Both H_o and H_f depend on the data only through G: H_o through the
covariance of the windows, the D C_0 input entries that one output position depends on; H_f through
Omega_G [C_L, D, C_0], the sums of the blocks of Omega along its diagonals. The length N therefore
appears in no formula, unless a circular convolution wraps around (D > N).

Other layouts that reduce to this one: a first layer of stride t that divides k_1 and N is a layer
of t C_0 channels with k_1/t taps and stride 1; kernels in two dimensions of which only the first
(or only the last) has more than one tap give a plain chain on the windows.

Tried by exact computation, without a general formula:
- More than two layers with several channels. The block of H_f for layers l and l + 1 has rank C_l
  times the least of the numbers of taps times channels on both sides, but the ranges that the
  layers before and after l span in column block l intersect in more than one dimension in a way
  that depends on Omega_G. Nor is rank H_f the sum of its columns' ranks, as for other linear
  networks: channels 3, 5, 5, 5 with kernels 1, 2, 1 have H_f 75 and columns 15 + 36 + 25.
- Strides that do not divide k_1, and kernels in two dimensions. For two layers rank H_f is still
  2 C_1 min(taps_1 C_0, taps_2 C_2). The minimum over cuts is sometimes too large for H_o (about
  one network in 400 for strides, in 80 for two dimensions): with stride 3 and kernels 4, 4 the
  channels 3, 3, 1 have 36 (formula: 39); with 3 x 3 kernels the channels 2, 2, 1 have 48
  (formula: 50, without the syzygies of polynomials in two variables).
- Several channels that wrap around (D > N), unless all kernels have N taps. The minimum over cuts,
  with matrices of rank at most min C_i at each of the N frequencies, is too large for H_o in about
  one network in 400: channels 2, 3, 5 with kernels 5, 2 on 5 positions have 49 (formula: 50). For
  two layers rank H_f is known, rank H_L is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rankmon._util.validate import as_integer, check_choice
from rankmon.theory.families import FormulaRank, chain_ranks
from rankmon.theory.symbols import symbols_of

PADDINGS = ("valid", "circular")
_PROVED = "proved"
_OUTER = "checked exactly on 1,000 networks"
_TWO_LAYERS = "checked exactly on 500 networks"
_ONE = "checked exactly on 500 networks"
_FOURIER = "checked exactly on 300 networks"


@dataclass(frozen=True)
class Convolutional:
    """A linear network of 1-D convolutions without biases, at generic weights.

    An input of `length` positions and C_0 channels counts as one vector x of d = length C_0
    entries, and an output as one vector of K = positions C_L, so that r is the rank of whole
    inputs and s that of Omega = E[delta x^T], K x d. The order of the entries does not matter.

    Attributes:
      channels: (C_0, ..., C_L), from the inputs' to the outputs'.
      kernels: (k_1, ..., k_L), the taps of each layer.
      length: N, the number of positions of an input.
      padding: "valid" (a layer shortens its input by k_l - 1) or "circular" (it keeps the length).

    Raises:
      TypeError: for channels, kernels or a length that are not integers.
      ValueError: for an unknown padding, numbers of layers that differ, numbers below 1, or a
        length too short for the kernels.

    Example:
      >>> network = Convolutional(channels=(3, 2, 2), kernels=(3, 2), length=8)
      >>> {part: rank.value for part, rank in network.ranks().items()}
      {'H_o': 22, 'H_f': 16, 'H_L': 26}
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    length: int
    padding: str = "valid"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", _counts("channels", self.channels))
        object.__setattr__(self, "kernels", _counts("kernels", self.kernels))
        object.__setattr__(self, "length", as_integer("length", self.length, least=1))
        check_choice("padding", self.padding, PADDINGS)
        if not self.kernels or len(self.channels) != len(self.kernels) + 1:
            raise ValueError(
                f"expected channels (C_0, ..., C_L) with one more number than kernels, got "
                f"{self.channels} and kernels {self.kernels}; give a kernel for each layer"
            )
        needed, why = self.receptive_field, "k_1 + ... + k_L - L + 1, for one output position"
        if self.padding == "circular":
            needed, why = max(self.kernels), "the largest kernel"
        if self.length < needed:
            raise ValueError(
                f"expected a length of at least {needed} ({why}), got {self.length}; "
                "pass longer inputs or smaller kernels"
            )

    @property
    def name(self) -> str:
        """The name in sentences, such as "valid convolutions 3x2x2, kernels 3,2"."""
        channels, kernels = "x".join(map(str, self.channels)), ",".join(map(str, self.kernels))
        return f"{self.padding} convolutions {channels}, kernels {kernels}"

    @property
    def receptive_field(self) -> int:
        """D = k_1 + ... + k_L - L + 1, the number of taps of the composed filter."""
        return self._taps(0, len(self.kernels))

    @property
    def positions(self) -> int:
        """The number of positions of an output: N - D + 1 if valid, N if circular."""
        return self.length - self.receptive_field + 1 if self.padding == "valid" else self.length

    @property
    def inputs(self) -> int:
        """The number of entries of an input, d = N C_0."""
        return self.length * self.channels[0]

    @property
    def outputs(self) -> int:
        """The number of entries of an output, K = positions C_L."""
        return self.positions * self.channels[-1]

    def number_of_parameters(self) -> int:
        """Return the number of parameters p = sum_l k_l C_l C_{l-1}."""
        return sum(
            k * a * b for k, (a, b) in zip(self.kernels, pairwise(self.channels), strict=True)
        )

    def ranks(
        self, *, r: int | None = None, s: int | None = None, loss: str = "mse"
    ) -> dict[str, FormulaRank]:
        """Return the ranks of "H_o", "H_f" and "H_L", without the parts that have no formula.

        At generic weights:
        - H_o, unless D > N: the minimum over sets of hidden layers (cuts) of the number of entries
          of the segments' filters, D_j C_a C_b, minus C_i^2 for each cut i; a cut counts if C_i is
          at most D_j C_a and D_j C_b of the segments on its sides.
        - One kernel with more than one tap, the first or the last, or none: the plain chain on the
          windows (k_1 C_0, C_1, ..., C_L) or (C_0, ..., C_{L-1}, k_L C_L), which is proved.
        - Two layers: rank H_f = 2 C_1 min(k_1 C_0, k_2 C_2); rank H_L, unless D > N, from the
          degrees of the filters that Omega_G annihilates (`_two_layers`).
        - One channel: rank H_o = min(D, N), rank H_f = sum_l min(k_l, D - k_l + 1) and
          rank H_L = p, for L >= 2.
        - Circular with N taps in each kernel: N times the ranks of the plain chain (C_0, ..., C_L).

        They need windows of rank D C_0 and, for H_f and H_L, a generic Omega_G. All sets of inputs
        with d - r < N - D + 1 have such windows (if D > N, those with r = d). A generic Omega of
        rank s gives a generic Omega_G if s >= min(C_L, D C_0) and r = d, or if s is maximal; for
        s = 0 H_f vanishes. Other parts are left out.

        Under cross entropy (softmax over all K outputs) nothing changes if there are at least two
        output positions and D < N, because no convolution adds one number to all outputs; but
        d - r < N - D is needed. With one position C_L - 1 replaces C_L. Circular convolutions with
        D >= N are left out.

        Args:
          r: the rank of the inputs, 0 to d. Default d.
          s: the rank of Omega, 0 to min(K, r), or min(K - 1, r) under cross entropy. Default its
            maximum.
          loss: "mse", "cosh" or "cross_entropy", as for `theory.rank_outer`.

        Raises:
          TypeError: for ranks that are not integers.
          ValueError: for ranks or a loss out of range.
        """
        t = symbols_of((self.inputs, self.outputs), r, s, False, loss)
        if t.r == 0:
            return dict.fromkeys(("H_o", "H_f", "H_L"), FormulaRank(0, _PROVED))
        channels, spare = self.channels, self.length - self.receptive_field
        if loss == "cross_entropy" and self.positions == 1:
            channels = (*channels[:-1], channels[-1] - 1)
        elif loss == "cross_entropy":
            spare -= 1
            if spare < 0:
                return {}
        if t.r < self.inputs and self.inputs - t.r > spare:
            return {}
        window = min(self.receptive_field, self.length) * channels[0]
        enough = min(channels[-1], window) if t.r == self.inputs else min(t.K, t.r)
        plain = self._plain(channels)
        if plain and (t.s == 0 or t.s >= enough):
            return chain_ranks(plain, s=0 if t.s == 0 else None)
        outer = self._outer(channels)
        if t.s == 0:
            of_loss = {"H_L": outer["H_o"]} if outer else {}
            return {**outer, "H_f": FormulaRank(0, _PROVED), **of_loss}
        if t.s < enough:
            return outer
        return {**outer, **self._functional_and_loss(channels)}

    def _taps(self, first: int, last: int) -> int:
        """Return the taps of the filter that the layers first + 1 to last compose."""
        return sum(self.kernels[first:last]) - (last - first) + 1

    def _wraps(self) -> bool:
        return self.padding == "circular" and self.receptive_field > self.length

    def _plain(self, channels: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the widths of the plain network that acts on the windows, if there is one."""
        if all(k == 1 for k in self.kernels[1:]):
            return (self.kernels[0] * channels[0], *channels[1:])
        if all(k == 1 for k in self.kernels[:-1]):
            return (*channels[:-1], self.kernels[-1] * channels[-1])
        return None

    def _outer(self, channels: tuple[int, ...]) -> dict[str, FormulaRank]:
        """Return the rank of H_o, if there is a formula, for windows of full rank."""
        if self._has_largest_kernels():
            value, basis = self.length * chain_ranks(channels)["H_o"].value, _FOURIER
        elif set(channels) == {1}:
            value, basis = min(self.receptive_field, self.length), _ONE
        elif self._wraps():
            return {}
        else:
            value, basis = self._filters(channels), _OUTER
        return {"H_o": FormulaRank(value, basis)}

    def _has_largest_kernels(self) -> bool:
        return self.padding == "circular" and set(self.kernels) == {self.length}

    def _filters(self, channels: tuple[int, ...]) -> int:
        """Return the dimension of the set of composed filters: the least count of parameters.

        Cut the network at some hidden layers, and let the filter of each segment be arbitrary: the
        filters have D_j C_a C_b entries each, and at each cut i a change of basis, C_i^2, does not
        change their composition. The dimension is the minimum over the sets of cuts (none included)
        whose C_i is at most what the segments on both sides can tell apart. The minimum is a
        shortest path over pairs of cuts: `best` holds the least count up to the later one.
        """
        L = len(self.kernels)
        best = {(0, i): self._segment(channels, 0, i)[0] for i in range(1, L + 1)}
        for cut in range(1, L):
            C = channels[cut]
            for after in range(cut + 1, L + 1):
                entries, _, right = self._segment(channels, cut, after)
                counts = [
                    best[before, cut] + entries - C**2
                    for before in range(cut)
                    if (before, cut) in best
                    and min(self._segment(channels, before, cut)[1], right) >= C
                ]
                if counts:
                    best[cut, after] = min(counts)
        return min(count for (_, end), count in best.items() if end == L)

    def _segment(self, channels: tuple[int, ...], i: int, j: int) -> tuple[int, int, int]:
        """Return the dimension of a segment's filters, and the ranks seen at its end and start."""
        taps = self._taps(i, j)
        return taps * channels[i] * channels[j], taps * channels[i], taps * channels[j]

    def _functional_and_loss(self, channels: tuple[int, ...]) -> dict[str, FormulaRank]:
        """Return the ranks of H_f and H_L, if there are formulas, for a generic Omega_G."""
        if self._has_largest_kernels():
            plain, N = chain_ranks(channels), self.length
            return {part: FormulaRank(N * plain[part].value, _FOURIER) for part in ("H_f", "H_L")}
        if set(channels) == {1}:
            others = (self.receptive_field - k + 1 for k in self.kernels)
            functional, loss, basis = sum(map(min, self.kernels, others)), sum(self.kernels), _ONE
        elif len(self.kernels) == 2:
            functional, loss = _two_layers(channels, self.kernels)
            basis = _TWO_LAYERS
            if self._wraps():
                return {"H_f": FormulaRank(functional, basis)}
        else:
            return {}
        return {"H_f": FormulaRank(functional, basis), "H_L": FormulaRank(loss, basis)}


def _two_layers(channels: tuple[int, ...], kernels: tuple[int, ...]) -> tuple[int, int]:
    """Return the ranks of H_f and H_L of two layers.

    H_f: its only block is I_{C_1} (x) T, with the block Hankel matrix T of Omega_G, whose rank is
    m = min(k_1 C_0, k_2 C_2). So rank H_f = 2 C_1 m.

    H_L: let k_1 C_0 <= k_2 C_2 (else exchange the ends). Modulo R_f, R_o has the dimension of
    {V W_1}, where each of V's C_1 columns, polynomials of degree below k_2, is in the left kernel
    of T. For all numbers of taps together these kernels are a module with C_0 + C_2 generators, g
    of t_0 taps and the others of t_0 + 1. A generator of t taps has tau = k_2 - t + 1 multiples,
    and the polynomial matrix W_1, C_1 x C_0, maps tau C_1 coefficients to (tau + k_1 - 1) C_0,
    with the largest rank possible. The sum of these ranks is rank H_L - rank H_f.
    """
    (first, hidden, last), (k, k_last) = channels, kernels
    if k * first > k_last * last:
        first, last, k, k_last = last, first, k_last, k
    D = k + k_last - 1
    t_0 = (D + 1) * first // (first + last) + 1
    g = last * t_0 - (D - t_0 + 1) * first
    functional = 2 * hidden * k * first
    generators = {k_last - t_0 + 1: g, k_last - t_0: first + last - g}
    return functional, functional + sum(
        count * min(tau * hidden, (tau + k - 1) * first)
        for tau, count in generators.items()
        if tau > 0
    )


def _counts(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(
            f"expected {name} to be integers, one a layer, got {values!r} "
            f"({type(values).__name__}); pass a tuple of integers"
        )
    what = f"a number in {name}"
    return tuple(as_integer(what, value, least=1) for value in values)
