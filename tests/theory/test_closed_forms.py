"""theory: the closed forms against exact ranks over a prime field, the paper's tables, autodiff."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import theory
from rankmon.theory.tables import closed_forms
from refusals import refused

PRIME = 2**31 - 1
NETWORKS_PER_DEPTH = 60
DEPTHS = (1, 2, 3, 4, 5)


# The oracle: Hessians of deep linear networks over the integers modulo PRIME. Layer l has the
# parameters Theta_l = W^l, or [W^l b^l] acting on its input with a 1 appended.


@dataclass(frozen=True)
class Hessians:
    outer: np.ndarray
    functional: np.ndarray
    columns: list[np.ndarray]

    @property
    def loss(self) -> np.ndarray:
        return (self.outer + self.functional) % PRIME


def times(*factors: np.ndarray) -> np.ndarray:
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, :, None] * factor[None] % PRIME).sum(axis=1) % PRIME
    return product


def exact_rank(matrix: np.ndarray) -> int:
    rows, columns = matrix.shape
    return flint.nmod_mat(rows, columns, (matrix % PRIME).ravel().tolist(), PRIME).rank()


def with_constant(inputs: np.ndarray, bias: bool) -> np.ndarray:
    return np.hstack([inputs, np.ones((len(inputs), int(bias)), np.int64)])


def exact_hessians(
    stack: list[np.ndarray], inputs: np.ndarray, residuals: np.ndarray, bias: bool
) -> Hessians:
    """The parts of the Hessian of sum 1/2 ||F - y||^2; parameters layer by layer, row-major."""
    X = with_constant(inputs, bias)
    L, K = len(stack), stack[-1].shape[0]
    weights = [theta[:, : theta.shape[1] - int(bias)] for theta in stack]
    before = [np.eye(X.shape[1], dtype=np.int64)]  # layer l's input is before[l] (x, 1)
    for theta in stack[:-1]:
        keep_one = np.eye(theta.shape[1], dtype=np.int64)[-1:] if bias else theta[:0]
        before.append(times(np.vstack([theta, keep_one]), before[-1]))
    after = [np.eye(K, dtype=np.int64)]  # after[l] = W^L ... W^{l+1}
    for W in reversed(weights[1:]):
        after.insert(0, times(after[0], W))

    of_layer = [np.kron(B, times(X, G.T)) % PRIME for B, G in zip(after, before, strict=True)]
    jacobian = np.hstack(of_layer)
    Omega = times(residuals.T, X)
    sizes = [theta.size for theta in stack]
    blocks = [[np.zeros((m, n), np.int64) for n in sizes] for m in sizes]
    for low in range(L):
        between = np.eye(stack[low].shape[0], dtype=np.int64)
        for high in range(low + 1, L):
            # d2 tr(Omega^T F) = tr(Omega^T after[high] dW_high between dTheta_low before[low])
            padded = np.vstack([between, np.zeros((int(bias), between.shape[1]), np.int64)])
            T = times(before[low], Omega.T, after[high])
            block = np.einsum("be,fa->abef", padded, T) % PRIME
            blocks[high][low] = block.reshape(sizes[high], sizes[low])
            blocks[low][high] = blocks[high][low].T
            between = times(weights[high], between)
    columns = [np.vstack([row[layer] for row in blocks]) for layer in range(L)]
    return Hessians(times(jacobian.T, jacobian), np.hstack(columns), columns)


@dataclass(frozen=True)
class Network:
    """A deep linear network of random integers with inputs of rank r and Omega of rank s."""

    dims: tuple[int, ...]
    r: int
    s: int
    bias: bool
    seed: int

    @property
    def q(self) -> int:
        return min(self.r, *self.dims[1:])

    @property
    def most(self) -> int:
        return min(self.dims[-1], self.r + int(self.bias))

    def hessians(self, rank_deficient: bool = False) -> Hessians:
        rng = np.random.default_rng(self.seed)
        o, d, K, n = int(self.bias), self.dims[0], self.dims[-1], self.r + 2
        stack = [
            random_matrix(rng, m, before + o)
            for before, m in zip(self.dims[:-1], self.dims[1:], strict=True)
        ]
        if rank_deficient:
            stack = [theta * (np.arange(len(theta)) > 0)[:, None] for theta in stack]
        center = random_matrix(rng, 1, d) * o
        low_rank = times(random_matrix(rng, n, self.r), random_matrix(rng, self.r, d))
        inputs = (low_rank + center) % PRIME
        residuals = times(random_matrix(rng, n, self.s), random_matrix(rng, self.s, K))
        X = with_constant(inputs, self.bias)
        assert exact_rank(X) == self.r + o
        assert exact_rank(times(residuals.T, X)) == self.s
        return exact_hessians(stack, inputs, residuals, self.bias)

    def predicted(self, function: Callable[..., int]) -> int:
        return function(self.dims, r=self.r, s=self.s, bias=self.bias)


def random_matrix(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return rng.integers(0, PRIME, (m, n))


def networks(L: int, bias: bool, count: int = NETWORKS_PER_DEPTH, offset: int = 0) -> list[Network]:
    rng = np.random.default_rng([L, int(bias), offset])
    drawn: list[Network] = []
    while len(drawn) < count:
        dims = tuple(int(m) for m in rng.integers(1, 8, L + 1))
        if sum(m * (b + bias) for b, m in itertools.pairwise(dims)) > 170:
            continue
        r = dims[0] if rng.random() < 0.3 else int(rng.integers(0, dims[0] + 1))
        most = min(dims[-1], r + int(bias))
        s = most if rng.random() < 0.4 else int(rng.integers(0, most + 1))
        drawn.append(Network(dims, r, s, bias, seed=int(rng.integers(2**31))))
    return drawn


ALL_BIASES = pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
ALL_DEPTHS = pytest.mark.parametrize("L", DEPTHS, ids=lambda L: f"L{L}")


# Automatic differentiation, in float64. Every network is part of a larger one, whose other
# parameters are 0 and whose further layers are the identity: one compiled program for all of them.

LARGE = (12, 6, 6, 6, 6)
EXAMPLES = 40
LOSSES = ("mse", "cosh", "cross_entropy")


@cache
def compiled_parts() -> Callable[..., Any]:
    """H_o, H_f with these residuals and H_L of the larger network, sums over the examples."""

    def outputs(theta: jax.Array, x: jax.Array, curved: jax.Array) -> jax.Array:
        start = 0
        for layer, (before, m) in enumerate(itertools.pairwise(LARGE)):
            W = theta[start : start + m * (before + 1)].reshape(m, before + 1)
            start += W.size
            x = x @ W[:, :-1].T + W[:, -1]
            x = jnp.where(curved[layer], jnp.tanh(x), x)
        return x

    def value(z: jax.Array, y: jax.Array, loss: jax.Array, used: jax.Array) -> jax.Array:
        logits = jnp.where(used, z, -1e30)
        values = [
            0.5 * jnp.sum((z - y) ** 2),
            jnp.sum(jnp.log(jnp.cosh(z - y))),
            -jnp.sum(y * jax.nn.log_softmax(logits)),
        ]
        return loss @ jnp.stack(values)

    def parts(
        theta: jax.Array,
        x: jax.Array,
        y: jax.Array,
        delta: jax.Array,
        weights: jax.Array,
        loss: jax.Array,
        used: jax.Array,
        curved: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def network(theta: jax.Array) -> jax.Array:
            return outputs(theta, x, curved)

        def scalars(theta: jax.Array) -> jax.Array:
            z = network(theta)
            values = jax.vmap(value, (0, 0, None, None))(z, y, loss, used)
            return jnp.stack([jnp.sum(delta * z), weights @ values])

        J = jax.jacfwd(network)(theta)
        B = jax.vmap(jax.hessian(value), (0, 0, None, None))(network(theta), y, loss, used)
        H_o = jnp.einsum("n,nkp,nkj,njq->pq", weights, J, B, J)
        H_f, H_L = jax.hessian(scalars)(theta)
        return H_o, H_f, H_L

    return jax.jit(parts)


def autodiff_hessians(
    stack: Sequence[np.ndarray],
    inputs: np.ndarray,
    targets: np.ndarray,
    residuals: np.ndarray,
    *,
    bias: bool,
    loss: str,
    activated: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """H_o, H_f, H_L of a stack of W^l or [W^l b^l]; parameters layer by layer, row-major."""
    thetas, kept = [], []
    for layer, (before, m) in enumerate(itertools.pairwise(LARGE)):
        theta, own = np.eye(m, before + 1), np.zeros((m, before + 1), bool)
        if layer < len(stack):
            rows, columns = stack[layer].shape
            to = [*range(columns - int(bias)), *([before] if bias else [])]
            theta[:], own[:rows, to] = 0.0, True
            theta[:rows, to] = stack[layer]
        thetas.append(theta.ravel())
        kept.append(own.ravel())
    moving = np.flatnonzero(np.concatenate(kept))
    K = stack[-1].shape[0]
    arguments = (
        np.concatenate(thetas),
        padded(inputs, LARGE[0]),
        padded(targets, LARGE[-1]),
        padded(residuals, LARGE[-1]),
        (np.arange(EXAMPLES) < len(inputs)).astype(float),
        np.array([float(loss == name) for name in LOSSES]),
        np.arange(LARGE[-1]) < K,
        np.arange(len(LARGE) - 1) < (len(stack) - 1 if activated else 0),
    )
    with jax.enable_x64(True):
        parts = [np.asarray(part) for part in compiled_parts()(*arguments)]
    return tuple(part[np.ix_(moving, moving)] for part in parts)


def padded(rows: np.ndarray, columns: int) -> np.ndarray:
    return np.pad(
        np.asarray(rows, float), ((0, EXAMPLES - len(rows)), (0, columns - rows.shape[1]))
    )


@ALL_BIASES
def test_oracle_equals_automatic_differentiation(bias: bool) -> None:
    rng = np.random.default_rng(5)
    dims, n = (2, 3, 2, 3), 4
    shapes = [(m, b + int(bias)) for b, m in itertools.pairwise(dims)]
    stack = [rng.integers(-3, 4, shape) for shape in shapes]
    inputs, residuals = rng.integers(-3, 4, (n, 2)), rng.integers(-3, 4, (n, 3))
    exact = exact_hessians(stack, inputs, residuals, bias)
    outer, functional, _ = autodiff_hessians(
        stack, inputs, np.zeros((n, 3)), residuals, bias=bias, loss="mse"
    )
    assert np.array_equal(np.rint(outer).astype(np.int64) % PRIME, exact.outer)
    assert np.array_equal(np.rint(functional).astype(np.int64) % PRIME, exact.functional)


def test_random_networks_cover_the_cases() -> None:
    drawn = {bias: [n for L in DEPTHS for n in networks(L, bias)] for bias in (False, True)}
    assert len(drawn[False]) + len(drawn[True]) >= 300
    for some in drawn.values():
        narrow = [n for n in some if min(n.dims[1:-1], default=9) < min(n.r, n.dims[-1])]
        assert sum(len(n.dims) > 3 for n in narrow) >= 10
        assert sum(n.r < n.dims[0] for n in some) >= 10
        assert sum(n.r == 0 for n in some) >= 5
        assert sum(n.s == 0 < n.most for n in some) >= 5
        assert sum(0 < n.s < n.q for n in some) >= 10
        assert sum(n.q < n.s < n.most for n in some) >= 5
        assert sum(n.s == n.most for n in some) >= 10


@ALL_BIASES
@ALL_DEPTHS
def test_closed_forms_are_exact_on_random_networks(L: int, bias: bool) -> None:
    for network in networks(L, bias):
        hessians = network.hessians()
        assert theory.number_of_parameters(network.dims, bias=bias) == len(hessians.outer)
        counted = (
            exact_rank(hessians.outer),
            exact_rank(hessians.functional),
            exact_rank(hessians.loss),
            tuple(exact_rank(column) for column in hessians.columns),
        )
        expected = (
            network.predicted(theory.rank_outer),
            network.predicted(theory.rank_functional),
            network.predicted(theory.rank_loss),
            network.predicted(theory.rank_functional_columns),
        )
        assert expected == counted, network


@ALL_BIASES
def test_weights_of_lower_rank_give_lower_ranks_at_most(bias: bool) -> None:
    strictly_lower = 0
    for network in networks(3, bias, count=25, offset=1):
        hessians = network.hessians(rank_deficient=True)
        outer, functional = exact_rank(hessians.outer), exact_rank(hessians.functional)
        assert outer <= network.predicted(theory.rank_outer)
        assert functional <= network.predicted(theory.rank_functional)
        assert exact_rank(hessians.loss) <= network.predicted(theory.rank_loss)
        if not bias:
            assert functional <= theory.rank_functional_bound(
                network.dims, r=network.r, s=network.s
            )
        strictly_lower += outer < network.predicted(theory.rank_outer)
    assert strictly_lower >= 5


# The paper's formulas, one for each row of its tables.


def shapes(depths: tuple[int, ...], widths: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [dims for L in depths for dims in itertools.product(widths, repeat=L + 1)]


GRID = shapes((2, 3), (1, 2, 4, 7)) + shapes((4,), (1, 3, 5)) + shapes((5,), (2, 3))


GRID_R = [(dims, r) for dims in GRID for r in range(dims[0] + 1)]
GRID_RS = [(dims, r, s) for dims, r in GRID_R for s in range(min(r, dims[-1]) + 1)]


def test_paper_outer_corollary_4() -> None:
    for dims, r in GRID_R:
        q, K = min(r, *dims[1:]), dims[-1]
        assert theory.rank_outer(dims, r=r) == q * (r + K - q)


def test_paper_functional_columns_theorem_5() -> None:
    for dims, r, s in GRID_RS:
        qh = min(r, s, *dims[1:])
        middle = [qh * a + qh * b - qh**2 for a, b in itertools.pairwise(dims[1:-1])]
        first, last = qh * dims[1] + qh * s - qh**2, qh * dims[-2] + qh * s - qh**2
        assert theory.rank_functional_columns(dims, r=r, s=s) == (first, *middle, last)


def test_paper_functional_corollary_6() -> None:
    for dims, r, s in GRID_RS:
        qh, L = min(r, s, *dims[1:]), len(dims) - 1
        corollary = 2 * qh * sum(dims[1:-1]) + 2 * qh * s - L * qh**2
        assert theory.rank_functional(dims, r=r, s=s) == corollary
        assert theory.rank_functional_bound(dims, r=r, s=s) == corollary


def test_paper_loss_where_s_reaches_q() -> None:
    for dims, r, s in GRID_RS:
        q, L = min(r, *dims[1:]), len(dims) - 1
        if s >= q:
            paper = 2 * q * sum(dims[1:-1]) - L * q**2 + q * (r + dims[-1])
            assert theory.rank_loss(dims, r=r, s=s) == paper


def test_loss_without_bias_at_any_s() -> None:
    for dims, r, s in GRID_RS:
        q, L, K = min(r, *dims[1:]), len(dims) - 1, dims[-1]
        qh = min(q, s)
        expected = q * (r + K - q) + 2 * qh * sum(dims[1:-1]) - (L - 1) * qh**2
        assert theory.rank_loss(dims, r=r, s=s) == expected


def test_paper_two_layers_with_bias() -> None:
    for d, M_1, K in itertools.product((1, 2, 3, 5, 8), repeat=3):
        for r in range(d + 1):
            q, s_prime = min(r, M_1, K), min(r + 1, K)
            given = {"r": r, "bias": True}
            assert theory.rank_outer((d, M_1, K), **given) == q * (r + K - q) + K
            assert theory.rank_functional((d, M_1, K), **given) == 2 * s_prime * M_1
            loss = 2 * s_prime * (M_1 - q) + q * (K + r + 1) + K
            assert theory.rank_loss((d, M_1, K), **given) == loss


def test_paper_deep_with_bias_without_bottleneck() -> None:
    compared = 0
    for dims, r in GRID_R:
        L, K, M, q = len(dims) - 1, dims[-1], sum(dims[1:-1]), min(r, *dims[1:])
        assert theory.rank_outer(dims, r=r, bias=True) == q * (r + K - q) + K
        q_prime = min(r + 1, K)
        if min(dims[1:-1]) < q_prime:
            continue
        compared += 1
        functional = 2 * q_prime * M + 2 * q_prime**2 - L * q_prime**2 + (L - 2) * q_prime
        loss = 2 * q_prime * M + q_prime * (r + K) - L * q_prime**2 + L * q_prime
        assert theory.rank_functional(dims, r=r, bias=True) == functional
        assert theory.rank_loss(dims, r=r, bias=True) == loss
    assert compared > 300


@pytest.mark.parametrize(
    ("dims", "given", "outer", "functional", "loss"),
    [
        ((30, 25, 20, 15, 10), {}, 300, 1000, 1200),
        ((30, 25, 20, 15, 10), {"s": 7}, 300, 742, 993),
        ((30, 25, 20, 15, 10), {"s": 0}, 300, 0, 300),
        ((8, 3, 6, 4), {"bias": True}, 31, 60, 79),
        ((8, 6, 3, 4), {"bias": True}, 31, 54, 73),
        ((6, 4), {"bias": True}, 28, 0, 28),
        ((6, 4), {"r": 3}, 12, 0, 12),
        ((5, 3, 4), {"r": 0}, 0, 0, 0),
        ((5, 3, 4), {"r": 0, "bias": True}, 4, 6, 10),
        ((5, 3, 4), {"r": 0, "s": 0, "bias": True}, 4, 0, 4),
    ],
    ids=["S1", "S1_s7", "S1_s0", "8364", "8634", "one_bias", "one", "r0", "r0_bias", "r0_s0_bias"],
)
def test_numbers_quoted(
    dims: tuple[int, ...], given: dict[str, int], outer: int, functional: int, loss: int
) -> None:
    assert theory.rank_outer(dims, **given) == outer
    assert theory.rank_functional(dims, **given) == functional
    assert theory.rank_loss(dims, **given) == loss


def test_one_layer_has_one_empty_column_block() -> None:
    assert theory.rank_functional_columns((6, 4), bias=True) == (0,)


# Other losses, against automatic differentiation in float64.


def linear_outputs(stack: Sequence[np.ndarray], inputs: np.ndarray, bias: bool) -> np.ndarray:
    for theta in stack:
        inputs = with_constant(inputs, bias) @ theta.T
    return inputs


def rank_s_residuals(rng: np.random.Generator, n: int, K: int, s: int, loss: str) -> np.ndarray:
    columns = rng.standard_normal((s, K))
    if loss == "cross_entropy":  # the residuals sum to 0 over the classes
        columns -= columns.mean(axis=1, keepdims=True)
    return 0.1 * rng.standard_normal((n, s)) @ columns


def certain_rank(matrix: np.ndarray, cut: float) -> int:
    values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
    assert not np.any((values > cut / 10) & (values < cut * 10)), "a singular value at the cut"
    return int(np.sum(values > cut))


def counted_ranks(
    dims: tuple[int, ...], r: int, s: int, bias: bool, loss: str
) -> tuple[int, int, int]:
    """Ranks of H_o, H_f and H_L at the cut 1e-11 ||H_L||; H_L is the loss's own Hessian."""
    rng = np.random.default_rng([*dims, r, s])
    n, d, K = EXAMPLES, dims[0], dims[-1]
    sizes = [(m, before + int(bias)) for before, m in itertools.pairwise(dims)]
    X = rng.standard_normal((n, r)) @ rng.standard_normal((r, d))
    flat = 0.7 * rng.standard_normal(sum(a * b for a, b in sizes))
    ends = np.cumsum([a * b for a, b in sizes])
    stack = [theta.reshape(size) for theta, size in zip(np.split(flat, ends), sizes, strict=False)]
    residuals = rank_s_residuals(rng, n, K, s, loss)
    outputs = linear_outputs(stack, X, bias)
    if loss == "cross_entropy":
        odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        targets = odds / odds.sum(axis=1, keepdims=True) - residuals  # sums to 1, as a label does
    else:
        targets = outputs - np.arctanh(residuals)
    H_o, H_f, H_L = autodiff_hessians(stack, X, targets, residuals, bias=bias, loss=loss)
    scale = float(np.linalg.norm(H_L, 2))
    np.testing.assert_allclose(H_o + H_f, H_L, atol=1e-12 * scale)
    return tuple(certain_rank(H, 1e-11 * scale) for H in (H_o, H_f, H_L))


OTHER_LOSSES = [
    # dims, r, s (None: its maximum), bias, loss
    ((5, 4, 3), 5, None, False, "cross_entropy"),
    ((5, 3, 4, 4), 4, None, False, "cross_entropy"),
    ((4, 5, 2, 5), 4, None, False, "cross_entropy"),
    ((6, 4, 5, 5), 6, 2, False, "cross_entropy"),
    ((4, 3, 4), 4, 0, False, "cross_entropy"),
    ((5, 3), 4, None, False, "cross_entropy"),
    ((5, 4, 2), 5, None, False, "cross_entropy"),
    ((5, 4, 3), 5, None, True, "cross_entropy"),
    ((3, 5, 6), 2, None, True, "cross_entropy"),
    ((6, 2, 4, 4), 6, None, True, "cross_entropy"),
    ((6, 4, 2, 5), 6, 3, True, "cross_entropy"),
    ((4, 2, 3, 2, 4), 4, None, True, "cross_entropy"),
    ((5, 3), 5, None, True, "cross_entropy"),
    ((5, 3, 4, 3), 4, None, False, "cosh"),
    ((6, 2, 4, 4), 6, 2, True, "cosh"),
]


@pytest.mark.parametrize(
    ("dims", "r", "s", "bias", "loss"),
    OTHER_LOSSES,
    ids=[f"{loss}-{dims}-r{r}-s{s}-bias{bias}" for dims, r, s, bias, loss in OTHER_LOSSES],
)
def test_other_losses_by_automatic_differentiation(
    dims: tuple[int, ...], r: int, s: int | None, bias: bool, loss: str
) -> None:
    K = dims[-1] - 1 if loss == "cross_entropy" else dims[-1]
    drawn_s = min(K, r + int(bias)) if s is None else s
    given = {"r": r, "s": s, "bias": bias, "loss": loss}
    assert counted_ranks(dims, r, drawn_s, bias, loss) == (
        theory.rank_outer(dims, **given),
        theory.rank_functional(dims, **given),
        theory.rank_loss(dims, **given),
    )


@ALL_BIASES
@pytest.mark.parametrize("loss", ["cosh", "cross_entropy"])
def test_labels_and_cosh_by_automatic_differentiation(loss: str, bias: bool) -> None:
    """The targets are labels or random, and no rank of the residuals is imposed."""
    rng = np.random.default_rng([int(bias), len(loss)])
    clear = narrow = 0
    while clear < 10:
        L, K = int(rng.integers(2, 5)), int(rng.integers(2, 6))
        dims = (*(int(m) for m in rng.integers(1, 6, L)), K)
        shapes = [(m, before + int(bias)) for before, m in itertools.pairwise(dims)]
        stack = [rng.standard_normal(shape) / shape[1] ** 0.5 for shape in shapes]
        X = rng.standard_normal((EXAMPLES, dims[0]))
        labels = np.eye(K)[rng.integers(0, K, EXAMPLES)]
        targets = labels if loss == "cross_entropy" else rng.standard_normal((EXAMPLES, K))
        parts = autodiff_hessians(stack, X, targets, 0 * targets, bias=bias, loss=loss)
        H_o, H_L = parts[0], parts[2]
        values = [np.linalg.svd(H, compute_uv=False) for H in (H_o, H_L - H_o, H_L)]
        relative = [one / max(one[0], 1e-300) for one in values]
        if not any(np.any((one > 1e-12) & (one < 1e-8)) for one in relative):
            clear += 1
            narrow += min(dims[1:-1]) < min(dims[0], K)
            assert [int(np.sum(one > 1e-8)) for one in relative] == [
                function(dims, bias=bias, loss=loss)
                for function in (theory.rank_outer, theory.rank_functional, theory.rank_loss)
            ], dims
    assert narrow >= 2


# Bounds and the rest.


def relu_outer_rank(
    rng: np.random.Generator, dims: tuple[int, int, int], r: int, dead: int, loss: str
) -> tuple[int, int]:
    """Rank of H_o of W^2 relu(W^1 x) on 60 examples, and the number of active hidden units."""
    (d, M_1, K), n = dims, 60
    X = np.abs(rng.standard_normal((n, r))) @ np.abs(rng.standard_normal((r, d)))
    W_1, W_2 = rng.standard_normal((M_1, d)), rng.standard_normal((K, M_1))
    W_1[M_1 - dead :] = -np.abs(W_1[M_1 - dead :])
    hidden = X @ W_1.T
    slope = (hidden > 0).astype(float)
    by_first = np.einsum("km,nm,nd->nkmd", W_2, slope, X).reshape(n, K, M_1 * d)
    by_second = np.einsum("kj,nm->nkjm", np.eye(K), slope * hidden).reshape(n, K, K * M_1)
    jacobian = np.concatenate([by_first, by_second], axis=2)
    if loss == "cross_entropy":  # the kernel of every output Hessian is the vector of ones
        jacobian = jacobian - jacobian.mean(axis=1, keepdims=True)
    rows = jacobian.reshape(n * K, -1)
    rank = certain_rank(rows, 1e-10 * max(float(np.linalg.norm(rows, 2)), 1e-300))
    return rank, int(slope.any(axis=0).sum())


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_outer_bound_holds_for_relu_and_is_met(loss: str) -> None:
    rng = np.random.default_rng(9)
    met = below = 0
    for _ in range(60):
        d, M_1, K = (int(m) for m in rng.integers(2, 7, 3))
        r, dead = int(rng.integers(0, d + 1)), int(rng.integers(0, M_1 + 1))
        rank, active = relu_outer_rank(rng, (d, M_1, K), r, dead, loss)
        bound = theory.rank_outer_bound((d, M_1, K), r=r, active=active, loss=loss)
        assert rank <= bound
        met += rank == bound > 0
        below += rank < bound
    assert met >= 5
    assert below >= 5


def test_outer_bound_is_above_the_linear_formula() -> None:
    for dims, r in GRID_R:
        if len(dims) == 3:
            assert theory.rank_outer_bound(dims, r=r) == dims[1] * (r + dims[2] - 1)
            assert theory.rank_outer_bound(dims, r=r) >= theory.rank_outer(dims, r=r)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("dims", [(9, 3, 2), (9, 2, 2, 3), (12, 4, 3)], ids=str)
@pytest.mark.parametrize("n", [1, 2])
def test_loss_bound_holds_for_any_activation_and_is_met(
    n: int, dims: tuple[int, ...], loss: str, bias: bool
) -> None:
    rng = np.random.default_rng(n)
    sizes = [(m, before + int(bias)) for before, m in itertools.pairwise(dims)]
    x, y = rng.standard_normal((n, dims[0])), rng.standard_normal((n, dims[-1]))
    stack = [rng.standard_normal(size) for size in sizes]
    if loss == "cross_entropy":
        y = np.eye(dims[-1])[np.zeros(n, int)]
    H = autodiff_hessians(stack, x, y, 0 * y, bias=bias, loss=loss, activated=True)[-1]
    values = np.abs(np.linalg.eigvalsh(H))
    rank = int(np.sum(values > 1e-11 * values.max()))
    bound = theory.rank_loss_bound(dims, n=n, loss=loss)
    assert rank <= bound
    if n == 1 and bias:
        assert rank == bound


def test_loss_bound_grows_with_the_sample() -> None:
    assert theory.rank_loss_bound((64, 30, 20, 10), n=200) == 200 * (10 + 2 * 50)
    assert theory.rank_loss_bound((5, 3), n=4) == 12
    with refused(ValueError, "at least 1", "got 0"):
        theory.rank_loss_bound((5, 4, 3), n=0)
    with refused(TypeError, "n to be an integer", "2.5"):
        theory.rank_loss_bound((5, 4, 3), n=2.5)


def test_rank_per_parameter_of_figure_s20() -> None:
    shares = theory.rank_per_parameter((2352, 5000, 5000, 5000, 10))
    assert shares["H_f"] * 61_810_000 == pytest.approx(2 * 10 * 15000 + 2 * 10 * 10 - 4 * 100)
    assert shares["H_o"] * 61_810_000 == pytest.approx(10 * 2352)
    with_biases = theory.rank_per_parameter((784, 1000, 1000, 100), bias=True)
    p = 785 * 1000 + 1001 * 1000 + 1001 * 100
    paper = 2 * 100 * 2000 + 100 * (784 + 100) - 3 * 100**2 + 3 * 100  # section S7.3
    assert with_biases["H_L"] * p == pytest.approx(paper)


@ALL_BIASES
def test_number_of_parameters_bounds_every_rank(bias: bool) -> None:
    for L in DEPTHS:
        for network in networks(L, bias):
            p = theory.number_of_parameters(network.dims, bias=bias)
            assert p >= network.predicted(theory.rank_loss)
            assert p >= network.predicted(theory.rank_functional)


def test_cosh_is_mse_and_cross_entropy_is_one_output_fewer() -> None:
    for dims in GRID[::7]:
        for function in FORMULAS:
            assert function(dims, loss="cosh") == function(dims)
            if dims[-1] > 1:
                fewer = (*dims[:-1], dims[-1] - 1)
                assert function(dims, loss="cross_entropy") == function(fewer)


def test_numpy_integers_are_taken_and_python_integers_given() -> None:
    rank = theory.rank_loss(np.array([8, 3, 6, 4]), r=np.int64(8), bias=True)
    assert rank == 79
    assert type(rank) is int


FORMULAS = [
    theory.rank_outer,
    theory.rank_functional,
    theory.rank_functional_columns,
    theory.rank_loss,
]


BAD_INPUTS = {
    "one_width": ((5,), {}, ValueError, ("two widths", "(5,)")),
    "no_width": ((), {}, ValueError, ("two widths", "()")),
    "zero_width": ((5, 0, 3), {}, ValueError, ("at least 1", "(5, 0, 3)")),
    "negative_width": ((5, 4, -3), {}, ValueError, ("at least 1", "(5, 4, -3)")),
    "float_width": ((5, 4.0, 3), {}, TypeError, ("integer", "4.0", "float")),
    "float_r": ((5, 4, 3), {"r": 2.5}, TypeError, ("r to be an integer", "2.5")),
    "string_s": ((5, 4, 3), {"s": "2"}, TypeError, ("s to be an integer", "'2'")),
    "r_above_d": ((5, 4, 3), {"r": 6}, ValueError, ("r from 0", "d = 5", "got 6")),
    "negative_r": ((5, 4, 3), {"r": -1}, ValueError, ("r from 0", "d = 5", "got -1")),
    "s_above_K": ((5, 4, 3), {"s": 4}, ValueError, ("s from 0", "min(K, r) = 3", "got 4")),
    "negative_s": ((5, 4, 3), {"s": -1}, ValueError, ("s from 0", "got -1")),
    "s_above_r": ((5, 4, 3), {"r": 1, "s": 2}, ValueError, ("min(K, r) = 1", "got 2")),
    "s_above_r_plus_1": (
        ((5, 4, 3), {"r": 1, "s": 3, "bias": True}, ValueError, ("min(K, r + 1) = 2", "got 3"))
    ),
    "s_above_K_minus_1": (
        (5, 4, 3),
        {"s": 3, "loss": "cross_entropy"},
        ValueError,
        ("min(K - 1, r) = 2", "got 3"),
    ),
    "one_class": (
        ((5, 4, 1), {"loss": "cross_entropy"}, ValueError, ("at least 2 outputs", "K = 1"))
    ),
    "unknown_loss": ((5, 4, 3), {"loss": "hinge"}, ValueError, ("loss", "'hinge'", '"mse"')),
    "no_loss": ((5, 4, 3), {"loss": ["mse"]}, ValueError, ("loss", "['mse']", '"mse"')),
    "true_r": ((5, 4, 3), {"r": True}, TypeError, ("r to be an integer", "True", "bool")),
    "bias_two": ((5, 4, 3), {"bias": 2}, TypeError, ("bias", "True or False", "2")),
    "bias_minus_one": ((5, 4, 3), {"bias": -1}, TypeError, ("bias", "True or False", "-1")),
    "bias_text": ((5, 4, 3), {"bias": "1"}, TypeError, ("bias", "True or False", "'1'")),
    "bias_none": ((5, 4, 3), {"bias": None}, TypeError, ("bias", "True or False", "None")),
}
BAD_DIMS = {
    "none": (None, ("dims", "None", "tuple")),
    "number": (5, ("dims", "5 (int)", "tuple")),
    "text": ("543", ("dims", "'543'", "tuple")),
    "generator": ((m for m in (5, 4, 3)), ("dims", "generator", "tuple")),
    "set": ({5, 4, 3}, ("dims", "set", "tuple")),
    "dict": ({0: 5, 1: 4, 2: 3}, ("dims", "dict", "tuple")),
    "matrix": (np.ones((2, 3), int), ("dims", "ndarray", "tuple")),
    "true_width": ((5, True, 3), ("a width in dims", "True", "bool")),
}


@pytest.mark.parametrize("function", FORMULAS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    ("dims", "given", "error", "keys"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys()
)
def test_input_errors(
    function: Callable[..., object],
    dims: tuple[int, ...],
    given: dict[str, object],
    error: type[Exception],
    keys: tuple[str, ...],
) -> None:
    with refused(error, *keys):
        function(dims, **given)


@pytest.mark.parametrize(("dims", "keys"), BAD_DIMS.values(), ids=BAD_DIMS.keys())
def test_what_is_no_sequence_of_widths_is_refused_everywhere(
    dims: object, keys: tuple[str, ...]
) -> None:
    bounds = [theory.rank_outer_bound, theory.rank_functional_bound, theory.rank_per_parameter]
    for function in (*FORMULAS, *bounds, theory.number_of_parameters, closed_forms):
        with refused(TypeError, *keys):
            function(dims)
    with refused(TypeError, *keys):
        theory.rank_loss_bound(dims, n=3)
    with refused(TypeError, *keys):
        closed_forms(dims, n=3)


@pytest.mark.parametrize("bias", [2, -1, 0, "1", None, np.ones(2)], ids=str)
def test_what_is_no_flag_is_no_bias(bias: object) -> None:
    for function in (*FORMULAS, theory.rank_per_parameter, theory.number_of_parameters):
        with refused(TypeError, "bias", "True or False", repr(bias)):
            function((5, 4, 3), bias=bias)
    with refused(TypeError, "bias", "True or False", repr(bias)):
        closed_forms((5, 4, 3), bias=bias, n=7)


def test_flags_and_widths_of_numpy_are_taken() -> None:
    assert theory.rank_outer(np.array([5, 4, 3]), bias=np.True_) == 18
    assert theory.rank_outer([5, 4, 3], bias=True) == 18
    assert closed_forms(np.array([5, 4, 3]), bias=np.True_, n=2).r == 1


def test_numbers_of_examples_and_active_units_are_integers() -> None:
    for n in (2.0, "2", None, True):
        with refused(TypeError, "n to be an integer", repr(n)):
            theory.rank_loss_bound((5, 4, 3), n=n)
    for n in (2.0, "2", True):
        with refused(TypeError, "n to be an integer", repr(n)):
            closed_forms((5, 4, 3), n=n)
    with refused(ValueError, "at least 1", "got -4"):
        closed_forms((5, 4, 3), n=-4)
    with refused(TypeError, "active to be an integer", "False"):
        theory.rank_outer_bound((5, 4, 3), active=False)


def test_bounds_reject_what_they_do_not_cover() -> None:
    with refused(ValueError, "(d, M_1, K)", "(5, 4, 4, 3)"):
        theory.rank_outer_bound((5, 4, 4, 3))
    with refused(ValueError, "active", "M_1 = 4", "got 5"):
        theory.rank_outer_bound((5, 4, 3), active=5)
    with refused(ValueError, "s from 0", "min(K, r) = 2", "got 3"):
        theory.rank_functional_bound((5, 4, 3), r=2, s=3)
    with refused(ValueError, "two widths", "(5,)"):
        theory.number_of_parameters((5,))
