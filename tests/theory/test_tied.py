"""theory.TiedChain, MatrixPower and TiedAutoencoder against exact ranks, and under softmax."""

from collections.abc import Callable

import numpy as np
import pytest

from linear_families import LinearNetwork, check_exactly, matrix_power, tied_autoencoder, tied_chain
from prime_field import PRIME, exact_hessians, exact_rank, field
from rankmon.theory import MatrixPower, NetworkFamily, TiedAutoencoder, TiedChain
from refusals import refused

CHECKED = 1_000


def random_chain(rng: np.random.Generator) -> LinearNetwork:
    d, hidden, outputs, repeats = (int(m) for m in rng.integers(1, 5, 4))
    return tied_chain(d, hidden, outputs, repeats)


def random_power(rng: np.random.Generator) -> LinearNetwork:
    return matrix_power(int(rng.integers(1, 8)), int(rng.integers(1, 6)))


def random_autoencoder(rng: np.random.Generator) -> LinearNetwork:
    return tied_autoencoder(int(rng.integers(1, 8)), int(rng.integers(1, 8)))


FAMILIES = {
    "chain": (random_chain, TiedChain(4, 3, 4, 2)),
    "power": (random_power, MatrixPower(4, 3)),
    "autoencoder": (random_autoencoder, TiedAutoencoder(4, 3)),
}


@pytest.mark.parametrize(("draw", "family"), FAMILIES.values(), ids=FAMILIES.keys())
def test_ranks_are_those_of_the_formulas(
    draw: Callable[[np.random.Generator], LinearNetwork], family: NetworkFamily
) -> None:
    bases = {one.basis for one in family.ranks().values()}
    assert bases == {f"checked exactly on {CHECKED:,} networks"}
    assert check_exactly(draw, 1, CHECKED, bases.pop()) == CHECKED


@pytest.mark.parametrize(
    ("network", "r", "s"),
    [
        (tied_chain(4, 3, 4, 2), 3, 1),
        (matrix_power(4, 2), 3, 2),
        (matrix_power(4, 3), 2, 1),
        (tied_autoencoder(4, 5), 4, 0),
        (tied_autoencoder(5, 2), 4, 2),
    ],
    ids=["chain", "square", "cube", "wide", "narrow"],
)
def test_softmax_by_automatic_differentiation(network: LinearNetwork, r: int, s: int) -> None:
    measured = network.softmax_ranks(np.random.default_rng(2), r, s)
    assert not network.mismatches(measured, r, s, "cross_entropy")


def test_a_symmetric_omega_is_not_in_general_position() -> None:
    d, M, s, rng = 5, 2, 2, np.random.default_rng(3)
    W, root = field(rng, M, d), field(rng, d, s)
    omega = root @ root.T % PRIME
    H_f = exact_hessians(tied_autoencoder(d, M).matrix, [W], omega).functional
    assert exact_rank(H_f) == M * s
    assert TiedAutoencoder(d, M).ranks(s=s)["H_f"].value == M * 2 * s


def test_numbers_quoted() -> None:
    def ranks(family: NetworkFamily, **given) -> tuple[int, ...]:
        return tuple(one.value for one in family.ranks(**given).values())

    assert ranks(TiedChain(6, 4, 3, 3), s=1) == (18, 23, 40)
    assert ranks(TiedChain(5, 4, 3, 1)) == ranks(TiedChain(5, 4, 3, 1), s=3)
    assert ranks(MatrixPower(5, 3), s=1) == (25, 16, 25)
    assert ranks(MatrixPower(5, 1), s=2) == (25, 0, 25)
    assert ranks(MatrixPower(5, 2), r=1, s=1) == (5, 9, 13)
    assert ranks(TiedAutoencoder(5, 3)) == (12, 15, 15)
    assert ranks(TiedAutoencoder(7, 7), r=3, s=2) == (18, 28, 39)
    assert ranks(TiedAutoencoder(5, 3), r=0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("family", "name", "p", "outputs", "proved"),
    [
        (TiedChain(4, 3, 5, 2), "tied chain 4-3-5 (2 repeats)", 36, 5, TiedChain(4, 3, 5, 1)),
        (MatrixPower(4, 3), "matrix power 4 x 4 (3 repeats)", 16, 4, MatrixPower(4, 1)),
        (TiedAutoencoder(4, 3), "tied autoencoder 4-3-4", 12, 4, None),
    ],
    ids=["chain", "power", "autoencoder"],
)
def test_the_facts_of_a_family(
    family: NetworkFamily, name: str, p: int, outputs: int, proved: NetworkFamily | None
) -> None:
    assert isinstance(family, NetworkFamily)
    assert (family.name, family.number_of_parameters()) == (name, p)
    assert (family.inputs, family.outputs) == (4, outputs)
    if proved is not None:
        assert {one.basis for one in proved.ranks().values()} == {"proved"}


def test_input_errors() -> None:
    with refused(ValueError, "repeats", "at least 1", "got 0"):
        MatrixPower(4, 0)
    with refused(TypeError, "hidden to be an integer", "2.5"):
        TiedAutoencoder(4, 2.5)
    with refused(ValueError, "outputs", "at least 1", "got -1"):
        TiedChain(4, 3, -1, 2)
    for family in (TiedChain(4, 3, 4, 2), MatrixPower(4, 2), TiedAutoencoder(4, 3)):
        with refused(ValueError, "r from 0", "d = 4", "got 5"):
            family.ranks(r=5)
        with refused(ValueError, "s from 0", "min(K - 1, r) = 3", "got 4"):
            family.ranks(s=4, loss="cross_entropy")
        with refused(ValueError, "loss", "'hinge'"):
            family.ranks(loss="hinge")
    with refused(ValueError, "2 outputs", "K = 1"):
        MatrixPower(1, 2).ranks(loss="cross_entropy")
