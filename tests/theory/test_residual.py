"""theory.ResidualChain and ResidualBlocks against exact ranks, and under softmax in float64."""

import numpy as np
import pytest

from linear_families import LinearNetwork, blocks, chain, check_exactly
from rankmon import theory
from rankmon.theory import NetworkFamily, ResidualBlocks, ResidualChain
from refusals import refused

MOST_PARAMETERS = 60
CHECKED = 1_000
CHECKED_BEYOND = 200  # for s > min_l m_l


def random_widths(rng: np.random.Generator, count: int, most: int) -> tuple[int, ...]:
    return tuple(int(m) for m in rng.integers(1, most + 1, count))


def random_chain(rng: np.random.Generator) -> LinearNetwork:
    while True:
        network = chain(random_widths(rng, int(rng.integers(2, 6)), 6))
        if network.p <= MOST_PARAMETERS:
            return network


def random_blocks(rng: np.random.Generator) -> LinearNetwork:
    while True:
        d, inner = int(rng.integers(1, 8)), random_widths(rng, int(rng.integers(1, 5)), 5)
        if 2 * d * sum(inner) <= MOST_PARAMETERS:
            return blocks(d, inner)


def test_a_residual_chain_has_the_ranks_of_the_plain_chain() -> None:
    assert check_exactly(random_chain, 1, 300, "proved") == 300


def two_blocks(rng: np.random.Generator) -> LinearNetwork:
    """Blocks of which the smaller one is narrow, so that s can exceed it but not d - t."""
    small = int(rng.integers(1, 3))
    d, large = int(rng.integers(2 * small + 1, 9)), int(rng.integers(small, 7))
    inner = (small, large) if rng.random() < 0.5 else (large, small)
    return blocks(d, inner) if 2 * d * sum(inner) <= MOST_PARAMETERS else two_blocks(rng)


def check_functional_beyond_the_narrowest(networks: int) -> None:
    """Check H_f of two blocks for min m_l < s <= d - min m_l."""
    rng, checked = np.random.default_rng(8), 0
    while checked < networks:
        network = two_blocks(rng)
        r, s, loss = network.draw_ranks(rng)
        small = min(network.family.inner)
        if small < s <= network.family.d - small:
            measured, _ = network.exact_ranks(rng, r, s, loss)
            assert set(network.family.ranks(r=r, s=s, loss=loss)) == {"H_o", "H_f"}
            assert not network.mismatches(measured, r, s, loss)
            checked += 1


def check_all_parameters(networks: int) -> None:
    """Check that H_f and H_L of several blocks are regular if Omega has full rank."""
    rng, checked = np.random.default_rng(9), 0
    while checked < networks:
        network = random_blocks(rng)
        d, inner = network.family.d, network.family.inner
        if len(inner) > 1 and d > min(inner):
            measured, _ = network.exact_ranks(rng, d, d)
            assert measured["H_f"] == measured["H_L"] == network.p
            assert not network.mismatches(measured, d, d, "mse")
            checked += 1


def test_residual_blocks_have_the_ranks_of_the_formulas() -> None:
    bases = {one.basis for one in ResidualBlocks(5, inner=(2, 3)).ranks(s=1).values()}
    assert bases == {f"checked exactly on {CHECKED:,} networks"}
    assert check_exactly(random_blocks, 2, CHECKED, bases.pop()) == CHECKED


def test_more_than_the_narrowest_block_passes() -> None:
    check_functional_beyond_the_narrowest(CHECKED_BEYOND)
    check_all_parameters(CHECKED_BEYOND)
    for s in (2, 5):
        basis = ResidualBlocks(5, inner=(1, 4)).ranks(s=s)["H_f"].basis
        assert basis == f"checked exactly on {CHECKED_BEYOND} networks"


def column_rank(d: int, m: int, others: int, s: int) -> int:
    """Return c(m, others) of the docstring of `ResidualBlocks`."""
    a = min(m, s)
    b = min(a, others)
    return b * d + (m - b) * s + (a - b) * (min(d, s + b) - s)


def test_columns_have_the_ranks_of_the_docstring_and_their_sum_is_a_bound() -> None:
    rng = np.random.default_rng(3)
    met = lower = beyond = 0
    while met + lower < CHECKED_BEYOND:
        network = random_blocks(rng)
        d, inner = network.family.d, network.family.inner
        r, s, loss = network.draw_ranks(rng)
        if len(inner) == 1 or (s <= min(inner) and met + lower - beyond >= CHECKED_BEYOND // 2):
            continue
        beyond += s > min(inner)
        measured, columns = network.exact_ranks(rng, r, s, loss)
        S, before, expected = sum(inner), 0, []
        for m in inner:
            expected += [column_rank(d, m, before, s), column_rank(d, m, S - before - m, s)]
            before += m
        assert columns == expected, (network.family.name, r, s, loss)
        assert not network.mismatches(measured, r, s, loss)
        met += measured["H_f"] == sum(expected)
        lower += measured["H_f"] < sum(expected)
    assert lower < 20
    assert beyond == CHECKED_BEYOND // 2


def test_column_ranks_do_not_always_add_up() -> None:
    measured, columns = blocks(5, (4, 1)).exact_ranks(np.random.default_rng(4), 5, 4)
    assert columns == [16, 20, 5, 4]
    assert measured["H_f"] == 44


@pytest.mark.parametrize(
    ("network", "r", "s"),
    [(blocks(4, (2, 1)), 4, 1), (blocks(4, (1, 1)), 3, 1), (blocks(4, (2,)), 4, 3)],
    ids=["two", "narrow", "one"],
)
def test_softmax_has_one_output_fewer(network: LinearNetwork, r: int, s: int) -> None:
    measured = network.softmax_ranks(np.random.default_rng(5), r, s)
    assert len(network.family.ranks(r=r, s=s, loss="cross_entropy")) == 3
    assert not network.mismatches(measured, r, s, "cross_entropy")


def test_numbers_quoted() -> None:
    def ranks(family: NetworkFamily, **given) -> dict[str, int]:
        return {part: one.value for part, one in family.ranks(**given).items()}

    assert ranks(ResidualChain((30, 25, 20, 15, 10))) == {"H_o": 300, "H_f": 1000, "H_L": 1200}
    assert ranks(ResidualBlocks(6, inner=(2, 3)), s=2) == {"H_o": 35, "H_f": 36, "H_L": 59}
    assert ranks(ResidualBlocks(4, inner=(1, 1)), s=1) == {"H_o": 12, "H_f": 10, "H_L": 16}
    assert ranks(ResidualBlocks(4, inner=(2, 2)), s=3) == {"H_o": 16}
    assert ranks(ResidualBlocks(4, inner=(2, 2))) == {"H_o": 16, "H_f": 32, "H_L": 32}
    assert ranks(ResidualBlocks(5, inner=(4, 1)), s=4) == {"H_o": 25, "H_f": 44}
    assert ranks(ResidualBlocks(4, inner=(2,)), s=3) == {"H_o": 12, "H_f": 12, "H_L": 16}
    assert ranks(ResidualBlocks(4, inner=(2, 2)), r=0) == {"H_o": 0, "H_f": 0, "H_L": 0}


def test_the_facts_of_a_family() -> None:
    for family, name, p in (
        (ResidualChain([4, 3, 5]), "residual chain 4-3-5", 27),
        (ResidualBlocks(4, inner=[2, 3]), "residual blocks 4 (2, 3)", 40),
    ):
        assert isinstance(family, NetworkFamily)
        assert family.name == name
        assert family.number_of_parameters() == p
        assert hash(family) == hash(family)
    assert (ResidualChain((4, 3, 5)).inputs, ResidualChain((4, 3, 5)).outputs) == (4, 5)
    assert theory.ResidualBlocks(4, inner=(2,)).outputs == 4
    one_block = ResidualBlocks(4, inner=(2,)).ranks(s=3)
    assert {one.basis for one in one_block.values()} == {"proved"}


def test_input_errors() -> None:
    with refused(ValueError, "two widths", "(5,)"):
        ResidualChain((5,))
    with refused(TypeError, "inner", "3"):
        ResidualBlocks(4, inner=3)
    with refused(TypeError, "inner", "'23'"):
        ResidualBlocks(4, inner="23")
    with refused(ValueError, "inner width", "none"):
        ResidualBlocks(4, inner=())
    with refused(ValueError, "at least 1", "got 0"):
        ResidualBlocks(4, inner=(2, 0))
    with refused(TypeError, "d to be an integer", "2.5"):
        ResidualBlocks(2.5, inner=(2,))
    for family in (ResidualChain((4, 3, 4)), ResidualBlocks(4, inner=(2, 2))):
        with refused(ValueError, "r from 0", "d = 4", "got 5"):
            family.ranks(r=5)
        with refused(ValueError, "s from 0", "min(K - 1, r) = 3", "got 4"):
            family.ranks(s=4, loss="cross_entropy")
        with refused(ValueError, "loss", "'hinge'"):
            family.ranks(loss="hinge")
