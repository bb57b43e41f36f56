"""The reduction of deep linear networks: against dense assembly, against theory, piece by piece."""

from dataclasses import dataclass, replace
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import CASES, Case, data, dense_parts, mlp, mse, student_t
from rankmon import Problem, Tolerance, hessian_ranks, theory
from rankmon.engines.select import exact_engine
from rankmon.hessian.deep_linear import InputBasis, Layers, Reduction, coordinate_count
from rankmon.hessian.memory import DEFAULT_MEMORY_LIMIT
from rankmon.linalg.nested_basis import nested_basis
from rankmon.linalg.numerical_rank import numerical_rank
from rankmon.linalg.spectrum import padded, symmetric_spectrum
from rankmon.network.coordinates import Coordinates
from rankmon.network.recognized_stack import recognized_stack
from rankmon.problem.losses import Root
from rankmon.problem.output_hessians import DenseHessians, FactoredHessians
from rankmon.problem.point import Point
from refusals import refused

LOSSES = ("mse", "cross_entropy", "cosh", "custom")
SEEDS = 40
# Those whose problems are compiled: every loss and depth, and no, some and all biases.
ENGINE_SEEDS = (4, 21, 22, 27)


@dataclass(frozen=True)
class Structure:
    """Widths, biases and loss of a random linear network, and the number of examples."""

    dims: tuple[int, ...]
    bias: tuple[bool, ...]
    loss: str
    n: int

    @classmethod
    def draw(cls, seed: int) -> "Structure":
        rng = np.random.default_rng(seed)
        layers = int(rng.integers(1, 5))
        dims = tuple(int(width) for width in rng.integers(1, 7, layers + 1))
        loss = LOSSES[seed % 4]
        if loss == "cross_entropy":
            dims = (*dims[:-1], max(dims[-1], 2))
        kind = rng.integers(0, 3)  # no biases, all, some
        bias = [kind > 0] * layers if kind < 2 else rng.random(layers) < 0.5
        return cls(dims, tuple(bool(b) for b in bias), loss, int(rng.integers(2, 12)))

    def draws(self, seed: int) -> "list[Draw]":
        return [Draw.of(self, 1000 * seed + i) for i in range(5)]


@dataclass(frozen=True)
class Draw:
    """Parameters and data of one network: inputs of rank r, residuals that make rank Omega <= s."""

    r: int
    s: int
    params: list
    inputs: np.ndarray
    targets: object

    @classmethod
    def of(cls, structure: Structure, seed: int) -> "Draw":
        rng = np.random.default_rng(seed)
        dims, n, k = structure.dims, structure.n, structure.dims[-1]
        r = int(rng.integers(1, min(n, dims[0]) + 1))
        s = int(rng.integers(0, min(k, r) + 1))
        x = rng.standard_normal((n, r)) @ rng.standard_normal((r, dims[0]))
        params = []
        for a, b, has in zip(dims[:-1], dims[1:], structure.bias, strict=True):
            layer = {"w": rng.standard_normal((a, b)) / np.sqrt(a)}
            params.append(layer | {"b": 0.3 * rng.standard_normal(b)} if has else layer)
        residual = rng.standard_normal((n, s)) @ rng.standard_normal((s, k))
        z = apply(params, x)
        targets = {
            "mse": z - residual,
            "cosh": z - residual,
            "cross_entropy": rng.integers(0, k, n),
            "custom": {"at": z - residual, "width": 0.5 + rng.random((n, k))},
        }[structure.loss]
        return cls(r, s, params, x, targets)

    def problem(self, structure: Structure) -> Problem:
        loss = student_t if structure.loss == "custom" else structure.loss
        return Problem(apply, loss=loss, inputs=self.inputs, targets=self.targets)


def apply(params, x):
    for layer in params:
        x = x @ layer["w"] + layer.get("b", 0.0) if "b" in layer else x @ layer["w"]
    return x


# The oracle: the whole matrices by NumPy. F is affine in each layer, so that its derivatives are
# products of weights with one or two of them left out. Parameters layer by layer, [W^l b^l].


def dense_parts_by_numpy(layers, x, w, b, deltas):
    """H_o with these output Hessians, and H_f with each of these residuals."""
    state, before = x.T, []  # [M_{l-1} n]
    for layer in layers:
        before.append(np.vstack([state, np.ones((int("b" in layer), len(x)))]))
        state = layer["w"].T @ state + np.reshape(layer.get("b", 0.0), (-1, 1))
    after = [np.eye(len(state))]  # [K M_l]
    for layer in reversed(layers[1:]):
        after.insert(0, after[0] @ layer["w"].T)
    jacobian = np.concatenate(
        [
            np.einsum("ka,bn->nkab", A, B).reshape(len(x), len(state), -1)
            for A, B in zip(after, before, strict=True)
        ],
        axis=2,
    )
    outer = np.einsum("n,nkp,nkl,nlq->pq", w, jacobian, b, jacobian, optimize=True)
    sizes = [A.shape[1] * len(B) for A, B in zip(after, before, strict=True)]
    spans = [slice(end - m, end) for end, m in zip(np.cumsum(sizes), sizes, strict=True)]
    functional = [np.zeros_like(outer) for _ in deltas]
    for low, columns in enumerate(spans):
        between = np.eye(len(after[low].T))
        for high in range(low + 1, len(layers)):
            rows, to_high = spans[high], np.zeros((len(before[high]), between.shape[1]))
            to_high[: len(between)] = between  # an earlier layer does not move the constant 1
            for H, delta in zip(functional, deltas, strict=True):
                G = after[high].T @ (w[:, None] * delta).T @ before[low].T
                block = np.einsum("be,af->abef", to_high, G)
                H[rows, columns] = block.reshape(rows.stop - rows.start, -1)
                H[columns, rows] = H[rows, columns].T
            between = layers[high]["w"].T @ between
    return outer, functional


def dense_spectra(layers, x, w, b, delta, reference):
    outer, (functional, fixed) = dense_parts_by_numpy(layers, x, w, b, [delta, reference])
    parts = {"H_L": outer + functional, "H_o": outer, "H_f": functional, "H_f_fixed": fixed}
    return {part: symmetric_spectrum(H) for part, H in parts.items()}


def reduced_spectra(layers, x, w, b, delta, reference):
    """The same in the coordinates that can be non-zero."""
    biases = [layer.get("b") for layer in layers]
    basis = InputBasis.of(x, w, affine=any(bias is not None for bias in biases))
    products = Layers.at([layer["w"].T for layer in layers], biases, basis.axes)
    moment = basis.second_moment(DenseHessians(len(b), b.__getitem__))
    now, held = (Reduction(products, basis.omega(d)) for d in (delta, reference))
    parts = {
        "H_L": now.loss(moment),
        "H_o": now.outer(moment),
        "H_f": now.functional(),
        "H_f_fixed": held.functional(),
    }
    p = sum(leaf.size for layer in layers for leaf in layer.values())
    return {part: padded(symmetric_spectrum(H), p) for part, H in parts.items()}


def ranks_of(spectra):
    p = len(spectra["H_L"])
    norms = {part: abs(spectrum[0]) for part, spectrum in spectra.items()}
    cuts = {part: p * np.finfo(float).eps * max(norm, norms["H_L"]) for part, norm in norms.items()}
    return {part: numerical_rank(np.abs(spectra[part]), cut) for part, cut in cuts.items()}


def mse_ranks(layers, x, y):
    """Ranks of the dense matrices under mse."""
    z = apply(layers, x)
    b = np.broadcast_to(np.eye(z.shape[1]), (*z.shape, z.shape[1]))
    spectra = dense_spectra(layers, x, np.full(len(x), 1 / len(x)), b, z - y, z - y)
    ranks = ranks_of(spectra)
    return {part: ranks[part].rank for part in ("H_L", "H_o", "H_f")}


def loss_derivatives(loss, z, targets):
    """Residuals [n k] and output Hessians [n k k] of the textbook losses."""
    eye = np.eye(z.shape[1])
    if loss == "cross_entropy":
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p - eye[targets], p[:, :, None] * eye - p[:, :, None] * p[:, None, :]
    if loss == "custom":
        u, width = z - targets["at"], targets["width"]
        return 2 * u / (width + u**2), (2 * (width - u**2) / (width + u**2) ** 2)[:, None] * eye
    u = z - targets
    if loss == "mse":
        return u, np.broadcast_to(eye, (*z.shape, len(eye)))
    return np.tanh(u), np.cosh(u)[:, None] ** -2.0 * eye


def assert_the_same(fast, dense, p, about):
    """Eigenvalues to rounding, and ranks that are as certain."""
    scale = max(abs(dense["H_L"][0]), abs(dense["H_f_fixed"][0]))
    for part, want in dense.items():
        assert fast[part].shape == want.shape == (p,)
        np.testing.assert_allclose(
            np.sort(fast[part]), np.sort(want), atol=1e-10 * scale, err_msg=f"{about} {part}"
        )
    others = ranks_of(dense)
    for part, rank in ranks_of(fast).items():
        assert rank.rank == others[part].rank, (about, part)
        # A tenth of the cut of a smaller network is rounding, of whichever algorithm.
        if p >= 50:
            assert rank.certain == others[part].certain, (about, part)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_reduction_has_the_spectra_of_the_dense_matrices(seed):
    structure = Structure.draw(seed)
    rng = np.random.default_rng(seed)
    n, k = structure.n, structure.dims[-1]
    for i, draw in enumerate(structure.draws(seed)):
        z = apply(draw.params, draw.inputs)
        delta, b = loss_derivatives(structure.loss, z, draw.targets)
        reference = rng.standard_normal((n, 1)) @ rng.standard_normal((1, k))
        arguments = (draw.params, draw.inputs, np.full(n, 1 / n), b, delta, reference)
        dense = dense_spectra(*arguments)
        assert_the_same(reduced_spectra(*arguments), dense, len(dense["H_L"]), (structure, i))


def spectra_of(problem, params, name, reference):
    flat = problem.flat(params)
    engine = exact_engine(flat, name=name, memory_limit=DEFAULT_MEMORY_LIMIT)
    return engine.spectra(Point.of(problem, params, reference))


@cache
def compiled(seed):
    structure = Structure.draw(seed)
    draw = structure.draws(seed)[0]
    problem = draw.problem(structure)
    return structure, problem, problem.flat(draw.params)


def engine_spectra(seed, draw, reference):
    """Both engines' spectra of this draw; the compiled programs take the data as arguments."""
    _, problem, flat = compiled(seed)
    flat.inputs[...] = draw.inputs
    jax.tree.map(np.copyto, flat.targets, draw.targets)
    flat.memo.pop(("engine", "deep_linear", DEFAULT_MEMORY_LIMIT), None)
    flat.memo["coordinates"] = Coordinates.whole(flat)  # those of other data do not apply
    return [spectra_of(problem, draw.params, name, reference) for name in ("deep_linear", "dense")]


@pytest.mark.parametrize("seed", ENGINE_SEEDS)
def test_reduced_and_dense_engines_agree(seed):
    structure, problem, flat = compiled(seed)
    rng = np.random.default_rng(seed)
    for i, draw in enumerate(structure.draws(seed)):
        reference = rng.standard_normal((structure.n, 1)) @ rng.standard_normal((1, flat.k))
        fast, dense = engine_spectra(seed, draw, reference)
        assert_the_same(fast, dense, flat.p, (structure, i))
        engine = exact_engine(flat, name="deep_linear", memory_limit=DEFAULT_MEMORY_LIMIT)
        counted = engine.ranks(Point.of(problem, draw.params, reference), Tolerance())
        for part, rank in counted.parts.items():
            assert rank.rank == ranks_of(fast)[part].rank
        delta, b = loss_derivatives(structure.loss, apply(draw.params, draw.inputs), draw.targets)
        weights = np.full(structure.n, 1 / structure.n)
        oracle = dense_spectra(draw.params, draw.inputs, weights, b, delta, reference)
        assert_the_same(oracle, dense, flat.p, (structure, i))


def test_the_random_networks_have_what_they_are_for():
    structures = [Structure.draw(seed) for seed in range(SEEDS)]
    pairs = [(s, draw) for seed, s in enumerate(structures) for draw in s.draws(seed)]
    assert {s.loss for s in structures} == set(LOSSES)
    assert {len(s.dims) - 1 for s in structures} == {1, 2, 3, 4}
    deep = [s.dims for s in structures if len(s.dims) > 2]
    assert sum(min(dims[1:-1]) < min(dims[0], dims[-1]) for dims in deep) > 5
    assert sum(all(s.bias) for s in structures) > 5
    assert sum(any(s.bias) and not all(s.bias) for s in structures) >= 5
    q = [min(draw.r, *s.dims[1:]) for s, draw in pairs]
    assert sum(draw.r < s.dims[0] for s, draw in pairs) > 40
    assert sum(draw.s < q for (_, draw), q in zip(pairs, q, strict=True)) > 40
    assert sum(draw.s == 0 for _, draw in pairs) > 20
    some = [structures[seed] for seed in ENGINE_SEEDS]
    assert {s.loss for s in some} == set(LOSSES)
    assert {len(s.dims) - 1 for s in some} >= {1, 2, 3, 4}
    assert {(all(s.bias), any(s.bias)) for s in some} == {
        (True, True),
        (False, True),
        (False, False),
    }


@pytest.mark.parametrize(
    ("dims", "r", "s"),
    [
        ((30, 25, 20, 15, 10), 30, 10),
        ((30, 25, 20, 15, 10), 17, 7),
        ((8, 3, 6, 4), 8, 2),
        ((6, 6, 6, 6), 6, 6),
        ((5, 9, 2, 9, 5), 4, 1),
        ((7, 3), 7, 3),
    ],
    ids=str,
)
def test_without_biases_as_many_coordinates_as_the_rank(dims, r, s):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, r)) @ rng.standard_normal((r, dims[0]))
    basis = InputBasis.of(x, np.full(60, 1 / 60), affine=False)
    assert basis.axes.shape == (dims[0], r)
    weights = [
        rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(dims[:-1], dims[1:], strict=True)
    ]
    omega = rng.standard_normal((dims[-1], s)) @ rng.standard_normal((s, r))
    reduction = Reduction(Layers.at(weights, [None] * len(weights), basis.axes), omega)
    moment = basis.second_moment(FactoredHessians(Root(np.ones((60, dims[-1])))))
    assert len(reduction.functional()) == theory.rank_functional(dims, r=r, s=s)
    # Where s is less than it could be, H_o and H_f share directions that no rectangle shows.
    fewest = theory.rank_loss(dims, r=r, s=s)
    assert len(reduction.loss(moment)) == fewest or s < min(dims[-1], r)
    assert len(reduction.loss(moment)) >= fewest
    assert len(reduction.outer(moment)) >= theory.rank_outer(dims, r=r)


def test_the_wide_network_needs_few_coordinates():
    dims = (64, 100, 100, 100, 10)
    x = np.random.default_rng(0).standard_normal((300, 64))
    basis = InputBasis.of(x, np.full(300, 1 / 300), affine=False)
    assert coordinate_count(dims, [False] * 4, basis) == theory.rank_loss(dims) == 6340


def test_fixed_residuals_have_coordinates_of_their_own():
    """In the coordinates of today's Omega, of rank 2, H_f^fixed would lose rank."""
    dims = (8, 7, 6, 4)
    rng = np.random.default_rng(3)
    network, params = mlp(dims, seed=4)
    x = rng.standard_normal((40, 8))
    z = network(params, x)
    residual = x @ rng.standard_normal((8, 2)) @ rng.standard_normal((2, 4))
    problem = Problem(network, loss="mse", inputs=x, targets=z - residual)
    ranks = hessian_ranks(
        problem, params, reference=rng.standard_normal((40, 4)), engine="deep_linear"
    )
    assert ranks["H_f"].rank == theory.rank_functional(dims, s=2)
    assert ranks["H_f_fixed"].rank == theory.rank_functional(dims, s=4) == 88
    assert all(rank.certain for rank in ranks.values())


def test_the_basis_of_the_inputs_keeps_the_digits_of_the_data():
    """A direction of relative size 1e-12 is 1e-24 in X^T X, and would be lost there."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((20, 4)))[0] for _ in range(2))
    x = left * np.array([1.0, 1e-4, 1e-8, 1e-12]) @ right[:6].T
    basis = InputBasis.of(x, np.full(20, 1 / 20), affine=False)
    assert basis.axes.shape[1] == 4
    np.testing.assert_allclose(basis.coordinates @ basis.axes.T, x, atol=1e-15)


def test_examples_of_weight_zero_do_not_count_for_the_inputs():
    x = np.eye(5)
    weights = np.array([0.5, 0.5, 0, 0, 0])
    assert InputBasis.of(x, weights, affine=False).axes.shape == (5, 2)
    # (e_1, 1) and (e_2, 1)
    assert InputBasis.of(x, weights, affine=True).axes.shape == (6, 2)


def test_nested_bases_span_what_they_should():
    rng = np.random.default_rng(0)
    small = rng.standard_normal((9, 2)) @ rng.standard_normal((2, 5))
    large = np.concatenate([1e-8 * small, rng.standard_normal((9, 3))], axis=1)
    basis, counts = nested_basis([np.zeros((9, 4)), small, large, np.eye(9)])
    assert counts == [0, 2, 5, 9]
    np.testing.assert_allclose(basis.T @ basis, np.eye(9), atol=1e-14)
    for generator, count in ((small, 2), (large, 5)):
        outside = generator - basis[:, :count] @ (basis[:, :count].T @ generator)
        assert np.max(np.abs(outside)) < 1e-14


def test_a_basis_never_sees_what_is_not_finite():
    with pytest.raises(OverflowError, match="finite"):
        nested_basis([np.array([[1.0], [np.inf]])])


def weighted_case(bias):
    """Examples of weight zero, and of weights that differ."""
    if not bias:
        return CASES["linear-weights"]
    apply, params = mlp((5, 4, 4, 3), bias=True)
    plain = CASES["linear-weights"]
    return Case("", apply, params, plain.inputs, plain.targets, "mse", mse, plain.weights)


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_spectra_equal_those_of_autodiff(bias):
    case = weighted_case(bias)
    reference = np.random.default_rng(5).standard_normal((9, 3))
    want = dense_parts(case, reference)
    problem = Problem(case.apply, **case.statement)
    engine = spectra_of(problem, case.params, "deep_linear", reference)
    weights, b = case.weights / case.weights.sum(), np.broadcast_to(np.eye(3), (9, 3, 3))
    oracle = dense_spectra(case.params, case.inputs, weights, b, want["delta"], reference)
    for part in ("H_L", "H_o", "H_f", "H_f_fixed"):
        eigenvalues = np.linalg.eigvalsh(want[part])
        for spectrum in (engine[part], oracle[part]):
            atol = 1e-13 * abs(spectrum[0])
            np.testing.assert_allclose(np.sort(spectrum), eigenvalues, rtol=0, atol=atol)


def test_weights_of_low_rank_and_zero_weights():
    rng = np.random.default_rng(0)
    x, y = data(20, 6, 4)
    thin = rng.standard_normal((5, 1)) @ rng.standard_normal((1, 5))
    problem = Problem(apply, loss="mse", inputs=x, targets=y)
    for middle in (thin, np.zeros((5, 5))):
        params = [{"w": rng.standard_normal((6, 5))}, {"w": middle}, {"w": np.eye(5)[:, :4]}]
        found = hessian_ranks(problem, params, engine="deep_linear")
        want = mse_ranks(params, x, y)
        assert {part: rank.rank for part, rank in found.items()} == want


@pytest.mark.parametrize("seed", ENGINE_SEEDS)
def test_inputs_of_rank_zero(seed):
    structure, _, flat = compiled(seed)
    draw = structure.draws(seed)[0]
    nothing = replace(draw, inputs=np.zeros_like(draw.inputs))
    fast, dense = engine_spectra(seed, nothing, np.ones((structure.n, flat.k)))
    assert_the_same(fast, dense, flat.p, structure)
    if not any(structure.bias):
        assert {rank.rank for rank in ranks_of(fast).values()} == {0}


def test_overflow_inside_has_no_rank_and_reaches_no_lapack():
    """The products of weights overflow, the outputs do not: the inputs are tiny."""
    network, params = mlp((3, 3, 3, 2))
    huge = [{"w": layer["w"] * 1e110} for layer in params]
    x, y = data(5, 3, 2)
    problem = Problem(network, loss="mse", inputs=x * 1e-300, targets=y)
    ranks = hessian_ranks(problem, huge, reference=np.ones((5, 2)), engine="deep_linear")
    assert {rank.rank for rank in ranks.values()} == {None}


def test_held_residuals_that_overflow_have_no_rank():
    structure, _, flat = compiled(4)
    draw = structure.draws(4)[0]
    large = replace(draw, inputs=1e5 * draw.inputs)
    assert engine_spectra(4, large, np.full((structure.n, flat.k), 1e307)) == [None, None]


# Recognition


class Deep(nn.Module):
    """Eleven layers: Dense_10 sorts before Dense_2."""

    @nn.compact
    def __call__(self, x):
        for width in (5, 4, 6, 5, 4, 6, 5, 4, 6, 5):
            x = nn.Dense(width, use_bias=False)(x)
        return nn.Dense(3, use_bias=False)(x)


def test_eleven_layers_in_the_order_of_the_data_flow():
    x, y = data(12, 6, 3)
    dims = (6, 5, 4, 6, 5, 4, 6, 5, 4, 6, 5, 3)
    rng = np.random.default_rng(0)
    kernels = [
        (rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32)
        for a, b in zip(dims[:-1], dims[1:], strict=True)
    ]
    params = {"params": {f"Dense_{i}": {"kernel": w} for i, w in enumerate(kernels)}}
    problem = Problem(lambda p, x: Deep().apply(p, x), loss="mse", inputs=x, targets=y)
    fast = hessian_ranks(problem, params)
    flat = problem.flat(params)
    assert exact_engine(flat, name="auto", memory_limit=DEFAULT_MEMORY_LIMIT).name == "deep_linear"
    assert fast["H_L"].rank == theory.rank_loss(dims)
    want = mse_ranks([{"w": w.astype(np.float64)} for w in kernels], x, y)
    assert {part: rank.rank for part, rank in fast.items()} == want


@pytest.mark.parametrize("stored", ["in_out", "out_in"])
def test_square_layers_in_both_orientations(stored):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((4, 4)) for _ in range(3)]

    def network(ws, x):
        for w in ws:
            x = x @ w if stored == "in_out" else x @ w.T
        return x

    x, y = data(4, 4, 4)
    problem = Problem(network, loss="mse", inputs=x, targets=y)
    got = spectra_of(problem, weights, "deep_linear", None)
    layers = [{"w": w if stored == "in_out" else w.T} for w in weights]
    b = np.broadcast_to(np.eye(4), (4, 4, 4))
    delta = network(weights, x) - y
    want = dense_spectra(layers, x, np.full(4, 1 / 4), b, delta, delta)
    assert set(got) == {"H_L", "H_o", "H_f"}
    for part in got:
        atol = 1e-12 * abs(want["H_L"][0])
        np.testing.assert_allclose(np.sort(got[part]), np.sort(want[part]), rtol=0, atol=atol)


REFUSED = {
    "relu with a large bias": lambda w, x: jax.nn.relu(x @ w[0] + 1e3) @ w[1] - 1e3,
    "clip at 100": lambda w, x: jnp.clip(x @ w[0], -100, 100) @ w[1],
    "softshrink 1e-6": lambda w, x: (
        jnp.where(jnp.abs(x @ w[0]) > 1e-6, x @ w[0] - 1e-6 * jnp.sign(x @ w[0]), 0.0) @ w[1]
    ),
    "tied": lambda w, x: x @ w[0] @ w[0] @ w[1],
    "skip": lambda w, x: (x + x @ w[0]) @ w[1],
    "tanh": lambda w, x: jnp.tanh(x @ w[0]) @ w[1],
    "scaled": lambda w, x: 2.0 * (x @ w[0]) @ w[1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_chain_is_refused(name):
    x, y = data(9, 4, 4)
    weights = [w / 2 for w in data(4, 4, 4)]
    problem = Problem(REFUSED[name], loss="mse", inputs=x, targets=y)
    flat = problem.flat(weights)
    stack = recognized_stack(flat)
    assert stack is None or not stack.linear
    if name in ("tanh", "skip"):
        engine = exact_engine(flat, name="auto", memory_limit=DEFAULT_MEMORY_LIMIT)
        assert engine.name == ("stack" if name == "tanh" else "dense")
    with refused(ValueError, "deep linear network", "engine='auto'"):
        hessian_ranks(problem, weights, engine="deep_linear")


def test_parameters_held_fixed_are_refused():
    network, params = mlp((4, 3, 2))
    x, y = data(9, 4, 2)
    problem = Problem(network, loss="mse", inputs=x, targets=y, exclude=["0/*"])
    with refused(ValueError, "every parameter differentiated", "engine='auto'"):
        hessian_ranks(problem, params, engine="deep_linear")


def test_too_many_coordinates_are_refused_with_their_number():
    network, params = mlp((30, 25, 20, 15, 10))
    x, y = data(40, 30, 10)
    problem = Problem(network, loss="mse", inputs=x, targets=y)
    with refused(MemoryError, "1,200", "1,700", "memory_limit"):
        hessian_ranks(problem, params, memory_limit=2**20)
