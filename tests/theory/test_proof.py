"""The lemmas of docs/theory.md: over a prime field, and the first in float64 for any network.

The weights are those of whitened inputs, x = the columns of the identity (Lemma 2), so that the
outputs are the matrix [W^L ... W^1, bias] itself and the residuals are Omega.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paths import ROOT
from prime_field import (
    PRIME,
    ExactHessians,
    Jet,
    exact_hessians,
    exact_rank,
    field,
    of_rank,
)
from rankmon import theory
from rankmon.theory.symbols import Symbols, symbols_of

NETWORKS = 240  # with biases, and as many without
BIASES = pytest.mark.parametrize("bias", [False, True], ids=["no-biases", "biases"])


@dataclass(frozen=True)
class Chain:
    """A deep linear network on r = d whitened inputs, with Omega of rank s."""

    dims: tuple[int, ...]
    s: int
    bias: bool
    seed: int

    @property
    def symbols(self) -> Symbols:
        return symbols_of(self.dims, None, self.s, self.bias, "mse")

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @property
    def ends(self) -> np.ndarray:
        """The first index of each layer among the parameters, weights before biases."""
        sizes = [m * (n + self.bias) for n, m in zip(self.dims[:-1], self.dims[1:], strict=True)]
        return np.cumsum(sizes)[:-1]

    def arrays(self, of_shape: Callable[[int, int], np.ndarray]) -> list[np.ndarray]:
        """Return [W^l b^l] of each layer; the last column of `of_shape` is the bias."""
        pairs = zip(self.dims[:-1], self.dims[1:], strict=True)
        return [of_shape(m, n + self.bias) for n, m in pairs]

    def generic_arrays(self) -> list[np.ndarray]:
        return self.arrays(lambda m, n: field(self.rng, m, n))

    def canonical_arrays(self) -> list[np.ndarray]:
        """Return W^l = E_l and b^l = 0."""

        def partial_identity(m: int, n: int) -> np.ndarray:
            E = np.eye(m, n, dtype=np.int64)
            return np.hstack([E[:, :-1], 0 * E[:, :1]]) if self.bias else E

        return self.arrays(partial_identity)

    def generic_omega(self) -> np.ndarray:
        return of_rank(np.random.default_rng(self.seed + 1), *self.shape, self.s)

    @property
    def shape(self) -> tuple[int, int]:
        return self.dims[-1], self.dims[0] + int(self.bias)

    def hessians(self, arrays: list[np.ndarray], Omega: np.ndarray) -> ExactHessians:
        return exact_hessians(self.matrix, arrays, Omega)

    def matrix(self, layers: list[Jet]) -> Jet:
        """Return [W^L ... W^1, bias], as K x (d + o)."""
        d, o = self.dims[0], int(self.bias)
        h, one = np.eye(d, d + o, dtype=np.int64), np.eye(d + 1, dtype=np.int64)[-1:, : d + o]
        for layer in layers:
            width = layer.shape[1] - o
            step = layer[:, :width] @ h
            h = step + layer[:, width:] @ one if o else step
        return h

    def layers_of(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the rows of each layer."""
        return np.split(rows, self.ends)


@cache
def chains(bias: bool, count: int = NETWORKS) -> list[Chain]:
    """Draw networks of 2 to 5 layers, with bottlenecks, and s from 0 to its maximum."""
    rng = np.random.default_rng([int(bias), count])
    drawn: list[Chain] = []
    while len(drawn) < count:
        L = 2 + len(drawn) % 4
        dims = tuple(int(m) for m in rng.integers(1, 6 if L < 4 else 5, L + 1))
        most = min(dims[-1], dims[0] + int(bias))
        s = most if rng.random() < 0.25 else int(rng.integers(0, most + 1))
        chain = Chain(dims, s, bias, seed=len(drawn))
        if theory.number_of_parameters(dims, bias=bias) <= 60:
            drawn.append(chain)
    return drawn


@cache
def generic(chain: Chain) -> ExactHessians:
    return chain.hessians(chain.generic_arrays(), chain.generic_omega())


@cache
def generic_ranks(chain: Chain) -> dict[str, int]:
    return ranks(generic(chain))


def ranks(hessians: ExactHessians) -> dict[str, int]:
    """The ranks of H_o, H_f, of H_o + t H_f at one t, and of [H_o H_f]: of the sum of ranges."""
    both = np.hstack([hessians.outer, hessians.functional])
    parts = {"H_o": hessians.outer, "H_f": hessians.functional, "H_L": hessians.loss, "sum": both}
    return {part: exact_rank(matrix) for part, matrix in parts.items()}


def column_ranks(chain: Chain, hessians: ExactHessians) -> tuple[int, ...]:
    return tuple(map(exact_rank, hessians.columns))


def test_the_networks_cover_the_cases() -> None:
    for bias in (False, True):
        symbols = [chain.symbols for chain in chains(bias)]
        assert {t.L for t in symbols} == {2, 3, 4, 5}
        assert {0, 1} <= {t.s for t in symbols}
        hidden = [min(t.M[1:-1]) for t in symbols]
        assert sum(t.s > t.q for t in symbols) >= 15
        assert sum(0 < t.s <= t.q for t in symbols) >= 30
        pairs = list(zip(hidden, symbols, strict=True))
        assert sum(narrow < min(t.r, t.K) for narrow, t in pairs) >= 20
        assert sum(t.q == t.r < t.s for t in symbols) >= (3 if bias else 0)


# Lemma 1: the pencil H_o + t H_f.


@pytest.fixture(scope="module")
def hessians_of_a_network():
    """One compiled program: H_o, H_f of a network 3-4-3-2 with ReLU or tanh, and any B_i."""
    shapes = [(4, 3), (4,), (3, 4), (3,), (2, 3), (2,)]
    sizes = np.cumsum([np.prod(shape) for shape in shapes])

    def outputs(theta, x, tanh):
        w = [a.reshape(s) for a, s in zip(jnp.split(theta, sizes[:-1]), shapes, strict=True)]
        h = x
        for layer in (0, 2):
            z = h @ w[layer].T + w[layer + 1]
            h = jnp.where(tanh, jnp.tanh(z), jnp.maximum(z, 0))
        return h @ w[4].T + w[5]

    @jax.jit
    def parts(theta, x, residuals, roots, tanh):
        J = jnp.einsum("nab,nbp->nap", roots, jax.jacobian(outputs)(theta, x, tanh))
        functional = jax.hessian(lambda t: jnp.sum(residuals * outputs(t, x, tanh)))(theta)
        return jnp.einsum("nap,naq->pq", J, J), functional

    def in_float64(*arrays):
        with jax.enable_x64(True):
            return [np.asarray(part) for part in parts(*arrays)]

    return in_float64, int(sizes[-1])


def rank_with_a_gap(matrix: np.ndarray) -> int | None:
    """The rank in float64; None if a singular value is neither clearly zero nor clearly not."""
    singular = np.linalg.svd(matrix, compute_uv=False)
    relative = singular / max(singular[0], 1e-300)
    return None if np.any((relative > 1e-12) & (relative < 1e-8)) else int(np.sum(relative > 1e-8))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_pencil_has_the_rank_of_the_sum_of_the_ranges(
    activation: str, hessians_of_a_network
) -> None:
    parts, p = hessians_of_a_network
    rng = np.random.default_rng(0)
    sure, proper, meet = 0, 0, 0
    for case in range(120):
        examples = np.zeros((6, 3))
        examples[: 1 + case % 4] = rng.normal(size=(1 + case % 4, 3))
        used = (np.arange(6) <= case % 4)[:, None]
        roots = rng.normal(size=(6, 2, 2)) * used[..., None]  # B_i = roots^T roots
        roots[:, 1] *= case % 3 > 0  # of rank 1 in a third of the cases
        residuals = rng.normal(size=(6, 2)) * used * (rng.random((6, 2)) < 0.8)
        theta = rng.normal(size=p)
        outer, functional = parts(theta, examples, residuals, roots, activation == "tanh")
        scale = np.linalg.norm(outer), max(np.linalg.norm(functional), 1e-300)
        outer, functional = outer / scale[0], functional / scale[1]
        pencil = [outer + t * functional for t in (1.0, -0.7, 2.3)]
        matrices = [np.hstack([outer, functional]), outer, functional, *pencil]
        both, *found = [rank_with_a_gap(matrix) for matrix in matrices]
        if None in (both, *found):
            continue
        sure += 1
        assert found[2:] == [both] * 3
        proper += both < p
        meet += both < found[0] + found[1]
    assert sure >= 90  # of 120, with gaps
    assert proper >= 25  # the ranges are not always everything
    assert meet >= 50


def test_the_pencil_lemma_needs_a_positive_semidefinite_outer_hessian() -> None:
    outer = np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    functional = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert exact_rank(np.hstack([outer, functional])) == 3
    assert {exact_rank(outer + t * functional) for t in range(1, 30)} == {2}


@BIASES
def test_rank_of_the_loss_is_the_dimension_of_the_sum_of_the_ranges(bias: bool) -> None:
    for chain in chains(bias):
        found = generic_ranks(chain)
        assert found["H_L"] == found["sum"], chain


# Lemma 2: whitened inputs and canonical weights.


@BIASES
def test_only_the_span_of_the_inputs_counts(bias: bool) -> None:
    for chain in chains(bias):
        rng, o = chain.rng, int(bias)
        (r, *_), K = chain.dims, chain.dims[-1]
        d, n = r + 1, r + 2
        wide = Chain((d, *chain.dims[1:]), chain.s, bias, chain.seed)
        x = (of_rank(rng, d, n, r) + o * field(rng, d, 1)) % PRIME  # centered, of rank r
        X = np.vstack([x, np.ones((o, n), np.int64)])
        delta = of_rank(rng, K, n, chain.s)
        hessians = exact_hessians(
            lambda w, wide=wide, X=X: wide.matrix(w) @ X, wide.generic_arrays(), delta
        )
        assert exact_rank(X) == r + o
        assert ranks(hessians) == generic_ranks(chain), chain
        assert column_ranks(wide, hessians) == column_ranks(chain, generic(chain)), chain


@BIASES
def test_canonical_weights_have_the_ranks_of_generic_ones(bias: bool) -> None:
    for chain in chains(bias):
        canonical = chain.hessians(chain.canonical_arrays(), chain.generic_omega())
        assert ranks(canonical) == generic_ranks(chain), chain
        assert column_ranks(chain, canonical) == column_ranks(chain, generic(chain)), chain


# Lemma 3: H_o.


def passed_back(chain: Chain, arrays: list[np.ndarray]) -> np.ndarray:
    """Return A(Z), a column for each entry of Z, for weights with hidden biases 0."""
    o, (K, entries) = int(chain.bias), chain.shape
    weights = [array[:, : array.shape[1] - o] for array in arrays]
    before = [np.eye(entries, dtype=np.int64)]
    for W in weights[:-1]:
        with_one = np.pad(W, ((0, o), (0, o)))
        with_one[W.shape[0] :, W.shape[1] :] = 1
        before.append(with_one @ before[-1] % PRIME)
    after = [np.eye(K, dtype=np.int64)]
    for W in weights[:0:-1]:
        after.insert(0, after[0] @ W % PRIME)
    of_layer = [np.kron(B.T, C) % PRIME for B, C in zip(after, before, strict=True)]
    return np.vstack(of_layer)


@BIASES
def test_the_range_of_the_outer_hessian_is_that_of_the_transpose(bias: bool) -> None:
    for chain in chains(bias):
        rng = np.random.default_rng(chain.seed)
        arrays = chain.generic_arrays()
        for array in arrays:
            array[:, array.shape[1] - int(bias) :] = 0
        n = sum(chain.shape)
        x = np.vstack([field(rng, chain.dims[0], n), np.ones((int(bias), n), np.int64)])
        root = field(rng, chain.dims[-1], chain.dims[-1])  # B_i = root^T root
        hessians = exact_hessians(
            lambda w, chain=chain, x=x, root=root: root @ (chain.matrix(w) @ x),
            arrays,
            np.zeros((chain.dims[-1], n), np.int64),
        )
        A = passed_back(chain, arrays)
        both = np.hstack([hessians.outer, A])
        assert exact_rank(both) == exact_rank(A) == exact_rank(hessians.outer), chain


@BIASES
def test_the_corners_count_the_rank_of_the_outer_hessian(bias: bool) -> None:
    for chain in chains(bias):
        t = chain.symbols
        in_a_corner = np.zeros((t.K, t.r), bool)
        for layer in range(1, t.L + 1):
            in_a_corner[: t.u(layer), : t.rho(layer)] = True
        strips = np.zeros_like(in_a_corner)
        strips[: t.q] = strips[:, : t.q] = True
        assert np.array_equal(in_a_corner, strips), chain
        rank = int(in_a_corner.sum()) + t.o * t.K
        assert rank == theory.rank_outer(chain.dims, bias=bias) == generic_ranks(chain)["H_o"]


# Lemma 4: the column blocks C_l.


@BIASES
def test_column_blocks_have_the_dimensions_of_theorem_5(bias: bool) -> None:
    for chain in chains(bias):
        t, found = chain.symbols, column_ranks(chain, generic(chain))
        assert found == theory.rank_functional_columns(chain.dims, s=t.s, bias=bias), chain
        if not bias:
            widths = [t.s, *t.M[1:-1], t.s]
            pairs = zip(widths[:-1], widths[1:], strict=True)
            assert found == tuple(t.qh * (n + m - t.qh) for n, m in pairs), chain


@BIASES
def test_earlier_and_later_layers_span_staircases_that_meet_in_a_product(bias: bool) -> None:
    for chain in chains(bias):
        t = chain.symbols
        starts = [0, *chain.ends, len(generic(chain).functional)]
        for layer, rows in enumerate(chain.layers_of(generic(chain).functional), 1):
            left, right = rows[:, : starts[layer - 1]], rows[:, starts[layer] :]
            dims = exact_rank(left), exact_rank(right)
            assert dims == (t.left(layer), t.right(layer)), chain
            assert sum(dims) - exact_rank(rows) == t.overlap(layer), chain


# Lemmas 5 and 6: the blocks are independent.


@BIASES
def test_the_range_of_the_functional_hessian_is_the_sum_of_its_column_blocks(bias: bool) -> None:
    for chain in chains(bias):
        found = generic(chain)
        assert ranks(found)["H_f"] == sum(column_ranks(chain, found)), chain


def test_systems_of_entries_without_biases() -> None:
    for chain in chains(False):
        t, s = chain.symbols, chain.s
        Omega = np.eye(*chain.shape, dtype=np.int64) * (np.arange(t.r) < s)
        H = chain.hessians(chain.canonical_arrays(), Omega).functional
        shapes = list(zip(chain.dims[1:], chain.dims[:-1], strict=True))
        places = [place for m, n in shapes for place in np.ndindex(m, n)]
        total = 0
        for b, c in np.ndindex(max(chain.dims), max(chain.dims)):
            rows = [i for i, place in enumerate(places) if place == (b, c)]
            columns = [i for i, place in enumerate(places) if place == (c, b)]
            others = np.delete(H[rows], columns, axis=1)
            assert not others.any(), chain  # the entry (b, c) sees the entries (c, b) only
            rank = exact_rank(H[np.ix_(rows, columns)])
            if max(b, c) < t.qh:
                assert rank == t.L, chain
            elif min(b, c) < t.qh:
                wide = max(b, c) + 1
                assert rank == sum(m >= wide for m in t.M[1:-1]) + (wide <= s), chain
            else:
                assert rank == 0, chain
            total += rank
        assert total == theory.rank_functional(chain.dims, s=s), chain


def shifted(chain: Chain) -> np.ndarray:
    Omega = np.zeros(chain.shape, np.int64)
    for i in range(chain.s):  # row i + 1 with input i, row 1 with the constant
        Omega[i, i - 1] = 1
    return Omega


def diagonal(chain: Chain) -> np.ndarray:
    return np.eye(*chain.shape, dtype=np.int64) * (np.arange(chain.shape[1]) < chain.s)


def with_ones(chain: Chain) -> np.ndarray:
    Omega = diagonal(chain)
    Omega[: chain.s, -1] = 1
    return Omega


def with_a_unit_vector(chain: Chain) -> np.ndarray:
    Omega = diagonal(chain)
    Omega[:, -1] = np.arange(len(Omega)) == 0
    return Omega


def test_the_shifted_residual_leaves_no_dependent_rows_with_biases() -> None:
    lower = dict.fromkeys((diagonal, with_ones, with_a_unit_vector), 0)
    for chain in chains(True):
        H = chain.hessians(chain.canonical_arrays(), shifted(chain)).functional
        rows = tuple(int(block.any(axis=1).sum()) for block in chain.layers_of(H))
        assert rows == theory.rank_functional_columns(chain.dims, s=chain.s, bias=True), chain
        assert exact_rank(H) == sum(rows), chain
        for instance in lower:
            Omega = instance(chain)
            if exact_rank(Omega) == chain.s:
                H = chain.hessians(chain.canonical_arrays(), Omega).functional
                lower[instance] += exact_rank(H) < sum(rows)
    assert min(lower.values()) > 0  # simpler instances do not do


# Lemma 7 and the theorem.


@BIASES
def test_the_ranges_meet_in_as_many_dimensions_as_the_lemma_says(bias: bool) -> None:
    for chain in chains(bias):
        t, found = chain.symbols, generic_ranks(chain)
        meet = found["H_o"] + found["H_f"] - found["sum"]
        assert meet == t.qh * (2 * t.s - t.qh - t.o), chain


@BIASES
def test_the_theorem(bias: bool) -> None:
    for chain in chains(bias):
        formulas = {
            "H_o": theory.rank_outer,
            "H_f": theory.rank_functional,
            "H_L": theory.rank_loss,
        }
        expected = {part: rank(chain.dims, s=chain.s, bias=bias) for part, rank in formulas.items()}
        found = generic_ranks(chain)
        assert {part: found[part] for part in expected} == expected, chain


# The walls of H_f.

ROTATION = [[1, -1, 0], [1, 0, 0], [0, 0, 5]]  # eigenvalues exp(+-i pi / 3) and 5
OPPOSITE = np.diag([1, -1, 5])


@pytest.mark.parametrize(
    ("L", "matrix", "functional", "loss"),
    [
        pytest.param(2, OPPOSITE, 18, 18, id="2-opposite"),
        pytest.param(3, OPPOSITE, 25, 27, id="3-opposite"),
        pytest.param(4, OPPOSITE, 36, 36, id="4-opposite"),
        pytest.param(5, OPPOSITE, 43, 45, id="5-opposite"),
        pytest.param(3, ROTATION, 27, 27, id="3-cube-roots"),
        pytest.param(4, ROTATION, 34, 36, id="4-cube-roots"),
        pytest.param(5, ROTATION, 45, 45, id="5-cube-roots"),
    ],
)
def test_the_functional_hessian_falls_at_a_wall_and_the_loss_does_not(
    L: int, matrix: np.ndarray, functional: int, loss: int
) -> None:
    chain = Chain((3,) * (L + 1), 3, False, seed=0)
    found = ranks(chain.hessians(chain.canonical_arrays(), np.asarray(matrix)))
    assert (found["H_f"], found["H_L"]) == (functional, loss)


# The page.


def test_every_lemma_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "theory.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.M), (path, name)
    sections = re.split(r"^#+ ", page, flags=re.M)
    lemmas = [text for text in sections if re.match(r"Lemma \d", text)]
    assert len(lemmas) == 7
    for lemma in (*lemmas, *(text for text in sections if text.startswith("Walls"))):
        assert re.search(r"`tests/[\w/]+\.py::\w+`", lemma), lemma.splitlines()[0]
    here = re.findall(r"^def (test_\w+)", (ROOT / "tests/theory/test_proof.py").read_text(), re.M)
    unnamed = {"test_the_networks_cover_the_cases", "test_every_lemma_names_tests_that_exist"}
    assert set(here) - {name for _, name in named} == unnamed
