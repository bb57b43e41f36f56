"""The learning coefficient: published cases, exact codimensions over a prime field, volumes."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from prime_field import exact_hessians, exact_rank
from rankmon import theory
from refusals import refused


def coefficient(dims: tuple[int, ...], rank: int) -> tuple[float, int]:
    found = theory.learning_coefficient(dims, rank=rank)
    return found.value, found.multiplicity


def reduced_rank_regression(d: int, M: int, K: int, r: int) -> tuple[float, int]:
    """The four cases of Aoyagi and Watanabe (2005)."""
    if K + r <= d + M and d + r <= K + M and M + r <= d + K:
        odd = (d + M + K + r) % 2
        eight = 2 * (M + r) * (d + K) + 2 * d * K - (M + r) ** 2 - d**2 - K**2 + odd
        return eight / 8, 1 + odd
    if d + M < K + r:
        return (M * d - M * r + K * r) / 2, 1
    if K + M < d + r:
        return (M * K - M * r + d * r) / 2, 1
    return d * K / 2, 1


def test_two_layers_are_reduced_rank_regression() -> None:
    cases = [
        (dims, r) for dims in itertools.product(range(1, 8), repeat=3) for r in range(min(dims) + 1)
    ]
    assert len(cases) == 1127
    for dims, r in cases:
        assert coefficient(dims, r) == reduced_rank_regression(*dims, r), (dims, r)


def test_one_layer_is_regular() -> None:
    for d, K in itertools.product(range(1, 6), repeat=2):
        for r in range(min(d, K) + 1):
            assert coefficient((d, K), r) == (d * K / 2, 1)


def test_a_chain_of_scalars_is_a_monomial() -> None:
    # (w_1 ... w_L)^2 has the coefficient 1/2 with multiplicity L; away from zero it is regular.
    for L in range(1, 9):
        assert coefficient((1,) * (L + 1), 0) == (0.5, L)
        assert coefficient((1,) * (L + 1), 1) == (0.5, 1)


def test_it_depends_on_the_hidden_widths_only_as_a_set_and_stays_bounded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        dims = tuple(int(m) for m in rng.integers(1, 8, rng.integers(3, 7)))
        r = int(rng.integers(0, min(dims) + 1))
        d, *hidden, K = dims
        shuffled = (d, *(int(m) for m in rng.permutation(hidden)), K)
        assert coefficient(shuffled, r) == coefficient(dims, r)
        wider = (d, *hidden, sum(dims), K)  # a layer this wide adds nothing
        assert coefficient(wider, r) == coefficient(dims, r)
        assert coefficient((*dims, K), r)[0] <= coefficient(dims, r)[0]
        assert coefficient(dims, r)[0] <= d * K / 2


# Exactly: the minima are the tuples of matrices with the product A. They form finitely many strata,
# one for each way to decompose the tuple into chains "basis vector of layer i -> ... -> of layer j
# -> 0", with r* chains from the inputs to the outputs. A stratum's codimension is a rank.

Chains = dict[tuple[int, int], int]  # the number of chains from layer i to layer j


def strata(dims: tuple[int, ...], r: int) -> Iterator[Chains]:
    L = len(dims) - 1
    spans = [(i, j) for i in range(L + 1) for j in range(i, L + 1) if (i, j) != (0, L)]

    def fill(spans: list[tuple[int, int]], left: list[int]) -> Iterator[Chains]:
        if not spans:
            if not any(left):
                yield {}
            return
        (i, j), *others = spans
        if any(left[:i]):  # no later span covers these layers
            return
        for count in range(min(left[i : j + 1]) + 1):
            rest = [m - count * (i <= layer <= j) for layer, m in enumerate(left)]
            for chains in fill(others, rest):
                yield {**chains, (i, j): count}

    for chains in fill(spans, [m - r for m in dims]):
        yield {**chains, (0, L): r}


def stack_of(dims: tuple[int, ...], chains: Chains) -> list[np.ndarray]:
    weights = [np.zeros((m, before), np.int64) for before, m in itertools.pairwise(dims)]
    used = [0] * len(dims)
    for (i, j), count in chains.items():
        for _ in range(count):
            for layer in range(i, j):
                weights[layer][used[layer + 1], used[layer]] = 1
            for layer in range(i, j + 1):
                used[layer] += 1
    return weights


def codimension(dims: tuple[int, ...], weights: list[np.ndarray], r: int) -> int:
    """Return p less the dimension of the stratum, the rank of the changes of basis."""
    p, orders = sum(W.size for W in weights), [m * m for m in dims]
    tangent = np.zeros((p, sum(orders)), np.int64)
    rows, columns = np.cumsum([0, *(W.size for W in weights)]), np.cumsum([0, *orders])
    for layer, W in enumerate(weights):  # dW = G_{l+1} W - W G_l, row-major
        m, before = W.shape
        at = slice(rows[layer], rows[layer + 1])
        tangent[at, columns[layer + 1] : columns[layer + 2]] = np.kron(np.eye(m), W.T)
        tangent[at, columns[layer] : columns[layer + 1]] -= np.kron(W, np.eye(before)).astype(int)
    maps_of_rank_r = r * (dims[0] + dims[-1] - r)  # the changes of basis move A too
    return p - exact_rank(tangent) + maps_of_rank_r


def rank_at(dims: tuple[int, ...], weights: list[np.ndarray]) -> int:
    """Return rank H_L at a minimum (H_f = 0), the inputs being the basis vectors."""

    def network(jets):
        output = jets[0] @ np.eye(dims[0], dtype=np.int64)
        for jet in jets[1:]:
            output = jet @ output
        return output

    no_residuals = np.zeros((dims[-1], dims[0]), np.int64)
    return exact_rank(exact_hessians(network, weights, no_residuals).outer)


GRID = [
    (dims, r)
    for L, most in ((1, 4), (2, 4), (3, 3), (4, 2))
    for dims in itertools.product(range(1, most + 1), repeat=L + 1)
    for r in range(min(dims) + 1)
]


def test_it_is_half_the_codimension_of_the_minima() -> None:
    assert len(GRID) == 454
    for dims, r in GRID:
        found = []
        for chains in strata(dims, r):
            weights = stack_of(dims, chains)
            found.append((codimension(dims, weights, r), rank_at(dims, weights)))
        twice = min(codim for codim, _ in found)
        assert theory.learning_coefficient(dims, rank=r).value == twice / 2, (dims, r)
        # rank H_L / 2 bounds the local coefficient, which is at most half of this codimension.
        assert all(rank <= codim for codim, rank in found)
        assert {rank for codim, rank in found if codim == twice} == {twice}


def test_the_rank_at_a_minimum_depends_on_the_minimum() -> None:
    dims = (2, 2, 2)
    found = {}
    for chains in strata(dims, 0):
        weights = stack_of(dims, chains)
        ranks = tuple(int(np.linalg.matrix_rank(W)) for W in weights)
        found[ranks] = (rank_at(dims, weights), codimension(dims, weights, 0))
    # Ranks of (W^1, W^2): rank H_L, and the codimension of the stratum.
    assert found == {
        (0, 0): (0, 8),
        (1, 0): (2, 5),
        (0, 1): (2, 5),
        (1, 1): (3, 3),
        (2, 0): (4, 4),
        (0, 2): (4, 4),
    }
    assert theory.learning_coefficient(dims, rank=0).value == 3 / 2


def volume(dims: tuple[int, int, int], eps: np.ndarray) -> np.ndarray:
    """Return P(||W^2 W^1||_F^2 < eps) for Gaussian weights and two outputs, by Monte Carlo.

    W^1 is drawn; given it, the loss is a sum of exponential variables, whose law is known.
    """
    d, M, _ = dims
    W = np.random.default_rng(0).normal(size=(200_000, M, d))
    squares = np.linalg.svd(W, compute_uv=False)[:, :, None] ** 2  # means of the exponentials, / 2
    small = squares * np.expm1(-eps / (2 * squares))
    if M == 1:
        return np.mean(-small[:, 0] / squares[:, 0], axis=0)
    return np.mean((small[:, 1] - small[:, 0]) / (squares[:, 0] - squares[:, 1]), axis=0)


@pytest.mark.parametrize("dims", [(1, 1, 2), (2, 1, 2), (2, 2, 2), (3, 2, 2), (4, 2, 2)], ids=str)
def test_volumes_shrink_as_it_says(dims) -> None:
    lam, m = coefficient(dims, 0)
    eps = np.geomspace(1e-6, 1e-3, 13)
    logs = np.log(1 / eps)
    shrunk = volume(dims, eps) / eps**lam  # c log(1 / eps)^(m - 1) + ...
    off = [
        np.max(np.abs(shrunk / np.polyval(np.polyfit(logs, shrunk, degree), logs) - 1))
        for degree in range(m)
    ]
    assert off[-1] < 0.1
    assert all(rough > 0.2 for rough in off[:-1])  # fewer powers of the logarithm do not do
    assert np.polyfit(logs, shrunk, m - 1)[0] > 0


BAD = {
    "above": ((3, 2, 4), 3, ValueError, ("rank from 0", "smallest width = 2", "got 3")),
    "negative": ((3, 2, 4), -1, ValueError, ("rank from 0", "got -1")),
    "float": ((3, 2, 4), 1.0, TypeError, ("rank to be an integer", "1.0")),
    "one_width": ((3,), 1, ValueError, ("two widths", "(3,)")),
    "none": (None, 1, TypeError, ("dims", "None")),
}


@pytest.mark.parametrize(("dims", "rank", "error", "keys"), BAD.values(), ids=BAD.keys())
def test_errors_of_input(dims, rank, error, keys) -> None:
    with refused(error, *keys):
        theory.learning_coefficient(dims, rank=rank)
