"""theory.Convolutional: its closed forms against exact ranks over a prime field."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest

from prime_field import PRIME, ExactHessians, Jet, exact_hessians, exact_rank, field, of_rank
from rankmon.theory import Convolutional, NetworkFamily
from refusals import refused

MOST_PARAMETERS = 36
PARTS = ("H_o", "H_f", "H_L")


def exact(
    family: Convolutional, rng: np.random.Generator, r: int, s: int, softmax: bool = False
) -> ExactHessians:
    """The Hessians at random weights, r random inputs and residuals with Omega of rank s.

    With `softmax`, output Hessians and residuals vanish on the vector of ones.
    """
    (C_0, *outs), n = family.channels, max(r, 1)
    shapes = [(C, k * a) for C, k, a in zip(outs, family.kernels, family.channels, strict=False)]
    X = of_rank(rng, C_0 * family.length, n, r)

    def network(weights: list[Jet]) -> Jet:
        hidden, N = X.reshape(-1), family.length
        for W, k, C in zip(weights, family.kernels, family.channels, strict=False):
            positions = N - k + 1 if family.padding == "valid" else N
            # Row (channel, tap), column (position, example) of the windows.
            at = (np.arange(k)[:, None] + np.arange(positions)) % N
            entries = np.arange(C * N * n).reshape(C, N, n)[:, at].reshape(C * k, positions * n)
            hidden, N = (W @ hidden[entries]).reshape(-1), positions
        outputs = hidden.reshape(family.outputs, n)
        return contrasts @ outputs if softmax else outputs

    contrasts = field(rng, family.outputs - softmax, family.outputs)
    contrasts[:, -1] = -contrasts[:, :-1].sum(axis=1) % PRIME
    residuals = of_rank(rng, family.outputs - softmax, n, s)
    return exact_hessians(network, [field(rng, *shape) for shape in shapes], residuals)


def rank_of(hessians: ExactHessians, part: str) -> int:
    by_part = {"H_o": hessians.outer, "H_f": hessians.functional, "H_L": hessians.loss}
    return exact_rank(by_part[part])


def any_network(rng: np.random.Generator) -> Convolutional:
    L = int(rng.integers(1, 5))
    channels, kernels = rng.integers(1, 4, L + 1), rng.choice([1, 1, 2, 2, 3], L)
    D, padding = int(kernels.sum()) - L + 1, str(rng.choice(["valid", "valid", "circular"]))
    return Convolutional(channels.tolist(), kernels.tolist(), D + int(rng.integers(3)), padding)


def one_kernel(rng: np.random.Generator) -> Convolutional:
    L, k = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    kernels, padding = (k, *[1] * (L - 1)), str(rng.choice(["valid", "circular"]))
    channels = rng.integers(1, 5, L + 1).tolist()
    return Convolutional(channels, kernels[:: rng.choice([-1, 1])], k + rng.integers(2), padding)


def two_layers(rng: np.random.Generator) -> Convolutional:
    channels, kernels = rng.integers(1, 4, 3), rng.integers(1, 5, 2)
    padding = str(rng.choice(["valid", "valid", "circular"]))
    N = int(kernels.sum()) - 1 + int(rng.integers(3))
    return Convolutional(channels.tolist(), kernels.tolist(), N, padding)


def one_channel(rng: np.random.Generator) -> Convolutional:
    L = int(rng.integers(1, 6))
    kernels, padding = rng.integers(1, 5, L), str(rng.choice(["valid", "circular"]))
    D = int(kernels.sum()) - L + 1
    shortest = D if padding == "valid" else int(kernels.max())
    return Convolutional((1,) * (L + 1), kernels.tolist(), shortest + int(rng.integers(3)), padding)


def wrapping_pair(rng: np.random.Generator) -> Convolutional:
    N = int(rng.integers(2, 6))
    first = int(rng.integers(2, N + 1))
    kernels = (first, int(rng.integers(N - first + 2, N + 1)))
    return Convolutional(rng.integers(1, 4, 3).tolist(), kernels, N, "circular")


def largest_kernels(rng: np.random.Generator) -> Convolutional:
    L, N = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    return Convolutional(rng.integers(1, 4, L + 1).tolist(), (N,) * L, N, "circular")


def draw(
    new: Callable[[np.random.Generator], Convolutional], rng: np.random.Generator
) -> Iterator[Convolutional]:
    for _ in count():
        family = new(rng)
        if family.number_of_parameters() <= MOST_PARAMETERS and family.inputs <= 20:
            yield family


def ranks_of_data(
    family: Convolutional, rng: np.random.Generator, softmax: bool = False
) -> tuple[int, int]:
    """Ranks r and s among those for which there is a formula for all parts, often the least."""
    most = max(family.length - family.receptive_field - (softmax and family.positions > 1), 0)
    r = max(family.inputs - int(rng.choice([0, 0, most])), 1)
    window = min(family.receptive_field, family.length) * family.channels[0]
    limit = min(r, family.outputs - softmax)
    least = min(family.channels[-1], window, limit) if r == family.inputs else limit
    return r, int(rng.choice([0, least, least, limit]))


# For each kind of network: the parts that its docstrings state a basis for, and that basis.
KINDS = {
    "one_kernel": (one_kernel, PARTS, "proved"),
    "any": (any_network, ("H_o",), "checked exactly on 1,000 networks"),
    "two_layers": (two_layers, PARTS[1:], "checked exactly on 500 networks"),
    "one_channel": (one_channel, PARTS[1:], "checked exactly on 500 networks"),
    "wrapping_pair": (wrapping_pair, ("H_f",), "checked exactly on 500 networks"),
    "largest_kernels": (largest_kernels, PARTS[1:], "checked exactly on 300 networks"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_exact_ranks(kind: str) -> None:
    new, parts, basis = KINDS[kind]
    number = 300 if basis == "proved" else int(basis.split()[3].replace(",", ""))
    rng = np.random.default_rng([7, len(kind)])
    checked, wrong = 0, []
    for family in draw(new, rng):
        r, s = ranks_of_data(family, rng)
        ranks = family.ranks(r=r, s=s)
        assert set(parts) <= set(ranks)
        if ranks[parts[0]].basis != basis:
            continue
        hessians = exact(family, rng, r, s)
        for part, rank in ranks.items():
            if rank.value != (measured := rank_of(hessians, part)):
                wrong.append((family, r, s, part, rank, measured))
        checked += 1
        if checked == number:
            break
    assert not wrong


@pytest.mark.parametrize("kind", ["one_kernel", "any", "two_layers", "one_channel"])
def test_ranks_equal_exact_ranks_under_cross_entropy(kind: str) -> None:
    rng = np.random.default_rng([8, len(kind)])
    compared, wrong = dict.fromkeys(PARTS, 0), []
    for family in draw(KINDS[kind][0], rng):
        if family.outputs == 1:
            continue
        r, s = ranks_of_data(family, rng, softmax=True)
        ranks = family.ranks(r=r, s=s, loss="cross_entropy")
        if not ranks:
            assert family.padding == "circular"
            assert family.receptive_field >= family.length
            continue
        hessians = exact(family, rng, r, s, softmax=True)
        for part, rank in ranks.items():
            compared[part] += 1
            if rank.value != (measured := rank_of(hessians, part)):
                wrong.append((family, r, s, part, rank, measured))
        if min(compared.values()) >= 200:
            break
    assert not wrong


def test_parts_without_a_formula_are_left_out() -> None:
    deep = Convolutional((2, 2, 2, 2), (2, 2, 2), 6)
    assert list(deep.ranks()) == ["H_o"]
    assert list(deep.ranks(r=9)) == []  # some sets of 9 inputs have windows of lower rank
    wide = Convolutional((3, 2, 2), (3, 2), 8)
    assert list(wide.ranks(s=2)) == ["H_o", "H_f", "H_L"]
    assert list(wide.ranks(s=1)) == ["H_o"]
    wrapped = Convolutional((2, 2, 2), (2, 3), 3, "circular")
    assert list(wrapped.ranks()) == list(wrapped.ranks(s=0)) == ["H_f"]
    assert list(wrapped.ranks(s=1)) == []
    zero = Convolutional((3, 2, 2), (3, 2), 8).ranks(r=0)
    assert {part: rank.value for part, rank in zero.items()} == {"H_o": 0, "H_f": 0, "H_L": 0}


@pytest.mark.parametrize(
    ("channels", "kernels", "rank", "count"),
    [((2, 3, 5), (5, 2), 49, 50), ((1, 2, 2, 2, 6), (1, 5, 1, 2), 28, 30)],
    ids=["filters", "rank"],
)
def test_wrapping_networks_can_have_a_lower_rank_than_any_count(
    channels: tuple[int, ...], kernels: tuple[int, ...], rank: int, count: int
) -> None:
    family = Convolutional(channels, kernels, 5, "circular")
    hessians = exact(family, np.random.default_rng(11), family.inputs, 0)
    assert rank_of(hessians, "H_o") == rank
    # All entries of filters with 5 taps, no more than the parameters without the changes of basis.
    bases = sum(C**2 for C in channels[1:-1])
    assert count == 5 * channels[0] * channels[-1] <= family.number_of_parameters() - bases
    assert "H_o" not in family.ranks()


def test_columns_of_the_functional_hessian_are_not_independent() -> None:
    rng = np.random.default_rng(10)
    family = Convolutional((3, 5, 5, 5), (1, 2, 1), 2)
    hessians = exact(family, rng, family.inputs, family.outputs)
    assert [exact_rank(block) for block in hessians.columns] == [15, 36, 25]
    assert rank_of(hessians, "H_f") == 75


def test_a_stride_of_the_first_layer_is_a_change_of_channels() -> None:
    rng = np.random.default_rng(9)
    stride, N, C, outs = 2, 8, 2, (3, 2)
    X = field(rng, C * N, C * N)

    def network(weights: list[Jet]) -> Jet:
        starts = stride * np.arange(3)  # windows of four taps, two apart
        at = (np.arange(C)[:, None] * N + np.arange(4)).reshape(-1, 1) + starts
        entries = np.arange(X.size).reshape(X.shape)[at].reshape(4 * C, -1)
        hidden = (weights[0] @ X.reshape(-1)[entries]).reshape(outs[0], 3, -1)
        windows = [hidden[:, tap : tap + 2].reshape(outs[0], -1) for tap in range(2)]
        taps = [weights[1][:, tap::2] for tap in range(2)]
        return taps[0] @ windows[0] + taps[1] @ windows[1]

    arrays = [field(rng, outs[0], 4 * C), field(rng, outs[1], 2 * outs[0])]
    hessians = exact_hessians(network, arrays, field(rng, outs[1], 2 * C * N))
    family = Convolutional((stride * C, *outs), (2, 2), N // stride)
    values = {part: rank.value for part, rank in family.ranks().items()}
    assert values == {part: rank_of(hessians, part) for part in PARTS}


def test_it_satisfies_the_protocol() -> None:
    family = Convolutional([3, 2, 2], [3, 2], 8, "valid")
    assert isinstance(family, NetworkFamily)
    assert family == Convolutional((3, 2, 2), (3, 2), 8)
    assert family.name == "valid convolutions 3x2x2, kernels 3,2"
    assert (family.inputs, family.outputs, family.number_of_parameters()) == (24, 10, 26)
    assert Convolutional((3, 2, 2), (3, 2), 8, "circular").outputs == 16


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (((3, 2), (3,), 2), ValueError, ("at least 3", "got 2", "longer inputs")),
        (((3, 2), (3,), 2, "circular"), ValueError, ("at least 3", "got 2", "smaller kernels")),
        (((3, 2, 2), (3,), 9), ValueError, ("one more number", "(3,)", "each layer")),
        (((3,), (), 9), ValueError, ("one more number", "(3,)", "each layer")),
        (((3, 0), (3,), 9), ValueError, ("at least 1", "got 0")),
        (((3, 2), (3,), 9, "same"), ValueError, ("padding", "'same'", "choose")),
        (((3, 2), 3, 9), TypeError, ("kernels", "got 3", "tuple")),
        (((3, 2), (3,), 9.5), TypeError, ("length", "9.5", "int")),
    ],
    ids=["short", "short_circular", "layers", "none", "zero", "padding", "number", "float"],
)
def test_impossible_networks_are_refused(arguments, error, words) -> None:
    with refused(error, *words):
        Convolutional(*arguments)
