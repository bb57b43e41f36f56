"""theory of one hidden layer: bounds against SVDs of Jacobians, H_f against autodiff, cuts."""

import itertools

import jax
import numpy as np
import pytest

from hidden_networks import Network, clear_rank, drawn
from rankmon import theory
from rankmon.theory.hidden_layer import _least_cover
from refusals import refused

SEEDS = range(1000, 1060)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def bound_of(network, **options):
    return theory.rank_outer_group_bound(
        network.X,
        network.slopes,
        network.K,
        features=network.features,
        output_bias=network.output_bias,
        loss=network.loss,
        **options,
    )


def rank_functional_of(network):
    return theory.rank_functional_hidden(network.X, network.slopes, network.residuals)


# One hidden layer of piecewise linear units


def test_random_networks_keep_the_group_bound_and_mostly_reach_it():
    pairs = []
    for seed in SEEDS:
        network = drawn(seed)
        rank = clear_rank(network.jacobian())
        if rank is not None:
            pairs.append((rank, bound_of(network)))
            assert rank <= pairs[-1][1] <= bound_of(network, exact=False), seed
    assert len(pairs) >= 50
    assert sum(rank == bound for rank, bound in pairs) >= 0.85 * len(pairs)


def test_the_rank_of_h_f_is_that_of_the_units_blocks():
    ranks = []
    for seed in SEEDS[:40]:
        network = drawn(seed)
        rank = clear_rank(network.functional())
        if rank is not None:
            ranks.append(rank)
            assert rank == rank_functional_of(network), seed
    assert len(ranks) >= 35
    assert len(set(ranks)) > 10


def test_the_eigenvalues_of_h_f_are_the_singular_values_with_both_signs():
    network = drawn(4)
    values = theory.unit_singular_values(network.X, network.slopes, network.residuals)
    expected = np.zeros(len(network.functional()))
    expected[: values.size], expected[-values.size :] = values.ravel(), -values.ravel()
    found = np.linalg.eigvalsh(network.functional())
    assert np.allclose(np.sort(expected), found, atol=1e-12)


def of_plain(X, W, V, activation="ReLU", **options):
    options = {"output_bias": False, "loss": "mse", **options}
    return Network(W, V, X, np.zeros((len(X), len(V))), activation, **options)


@pytest.mark.parametrize("n", [2, 7, 40])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("activation", ["ReLU", "leaky ReLU", "|z|"])
def test_kinks_that_coincide(n, K, activation):
    """With d = 1 and no bias, all units have their kink at 0: there are at most two groups."""
    rng = np.random.default_rng(n)
    X = rng.standard_normal((n, 1))
    network = of_plain(X, rng.standard_normal((6, 1)), rng.standard_normal((K, 6)), activation)
    rank, bound = clear_rank(network.jacobian()), bound_of(network)
    groups = 1 if activation == "|z|" else 2  # the slopes of |z| are equal up to a sign
    assert rank == bound == min(n, groups) * K
    assert bound < theory.rank_outer_bound((1, 6, K))
    assert clear_rank(network.functional()) in (None, rank_functional_of(network))


@pytest.mark.parametrize("output_bias", [False, True], ids=["plain", "output bias"])
@pytest.mark.parametrize("dims", [(4, 3, 2), (4, 5, 6), (3, 1, 4)], ids=str)
def test_units_that_are_always_on_are_a_linear_network(dims, output_bias):
    d, M, K = dims
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.standard_normal((60, d)), np.ones((60, 1))], axis=1)
    W = np.concatenate([0.01 * rng.standard_normal((M, d)), np.ones((M, 1))], axis=1)
    network = of_plain(X, W, rng.standard_normal((K, M)), output_bias=output_bias)
    expected = theory.rank_outer(dims, bias=True)
    if not output_bias:  # an input that is always 1, without the biases of the outputs
        expected = theory.rank_outer((d + 1, M, K))
    assert bound_of(network) == expected == clear_rank(network.jacobian())


def test_one_unit_a_group_is_theorem_9():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 5))
    network = of_plain(X, rng.standard_normal((7, 5)), rng.standard_normal((3, 7)))
    assert bound_of(network) == theory.rank_outer_bound((5, 7, 3)) == clear_rank(network.jacobian())
    dead = of_plain(np.abs(X), -np.abs(network.W), network.V)
    assert bound_of(dead) == 0


def test_few_hidden_units_and_many_outputs_bound_the_rank_by_rows():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((6, 8))
    network = of_plain(X, np.abs(rng.standard_normal((2, 8))), rng.standard_normal((5, 2)), "|z|")
    rank = clear_rank(network.jacobian())
    with_features = bound_of(network)
    without = theory.rank_outer_group_bound(X, network.slopes, 5)
    assert rank <= with_features == 6 * 5 - 3 * (6 - 2)
    assert with_features <= without


def test_bounds_hold_under_repeated_and_scaled_units():
    network = drawn(8)
    W, V = np.concatenate([network.W, 2 * network.W]), np.concatenate([network.V] * 2, axis=1)
    doubled = Network(
        W, V, network.X, network.targets, network.activation, network.output_bias, network.loss
    )
    assert clear_rank(doubled.jacobian()) <= bound_of(doubled)


# The minimum cut


def test_the_minimum_cut_is_the_least_of_all_subsets():
    rng = np.random.default_rng(0)
    for _ in range(150):
        groups, n, K = (int(rng.integers(low, high)) for low, high in ((1, 9), (1, 12), (1, 5)))
        touched = rng.random((n, groups)) < rng.random()
        bounds = rng.integers(0, 4 * K, groups)
        least = min(
            sum(bounds[g] for g in range(groups) if not replaced[g])
            + K * int(touched[:, list(map(bool, replaced))].any(axis=1).sum())
            for replaced in itertools.product((0, 1), repeat=groups)
        )
        assert _least_cover(bounds, touched, K) == least


def test_some_groups_but_not_all_are_replaced():
    """Two units that only one example activates, beside one that many do."""
    X = np.random.default_rng(0).standard_normal((41, 4))
    slopes = np.zeros((41, 3))
    slopes[0, :2], slopes[1:, 2] = (1, 1), 1
    slopes[1, 1] = 1  # so that the two are not one group
    of_all = theory.rank_outer_group_bound(X, slopes, 2)
    assert of_all == 2 * 2 + (4 + 2 - 1)


# tanh, and stacks of any depth


def test_tanh_networks_have_the_rank_of_the_formula():
    counted = 0
    for seed in range(100):
        network = drawn(2 * seed, ("tanh",))
        rank = clear_rank(network.jacobian())
        ones = np.ones((network.n, int(network.output_bias)))
        features = np.concatenate([network.features, ones], axis=1)
        expected = theory.rank_outer_tanh(
            len(network.W),
            network.K,
            n=network.n,
            inputs_rank=int(np.linalg.matrix_rank(network.X)),
            features_rank=int(np.linalg.matrix_rank(features)),
            output_bias=network.output_bias,
            loss=network.loss,
        )
        if rank is not None:
            assert rank == expected, seed
            counted += 1
    assert counted >= 95


def test_units_that_are_equal_lower_the_rank_below_the_formula():
    network = drawn(0, ("tanh",))
    W = np.repeat(network.W[:1], len(network.W), axis=0)
    equal = Network(W, network.V, network.X, network.targets, "tanh", False, "mse")
    sizes = {"n": equal.n, "inputs_rank": network.X.shape[1], "features_rank": 1}
    assert clear_rank(equal.jacobian()) < theory.rank_outer_tanh(len(W), equal.K, **sizes)


def deep_jacobian(weights, x, sigma):
    """The Jacobian of a ReLU network of any depth, by automatic differentiation."""
    from jax.flatten_util import ravel_pytree

    flat, unravel = ravel_pytree(weights)

    def outputs(theta):
        h = x
        *hidden, last = unravel(theta)
        for W, b in hidden:
            h = sigma(h @ W.T + b)
        return h @ last[0].T + last[1]

    return np.asarray(jax.jit(jax.jacobian(outputs))(flat)).reshape(-1, flat.size)


@pytest.mark.parametrize(
    ("sigma", "is_scaled"),
    [(lambda z: jax.nn.leaky_relu(z, 0.1), True), (jax.nn.relu, True), (jax.numpy.tanh, False)],
    ids=["leaky", "relu", "tanh"],
)
@pytest.mark.parametrize("zero_rows", [0, 2])
def test_rescalings_bound_the_rank_of_deep_stacks(sigma, is_scaled, zero_rows):
    rng = np.random.default_rng(3)
    dims = (3, 4, 4, 2)
    weights = [
        (rng.standard_normal((after, before)), rng.standard_normal(after))
        for before, after in itertools.pairwise(dims)
    ]
    for layer in range(2):  # units without incoming weights and bias have no direction
        weights[layer][0][:zero_rows], weights[layer][1][:zero_rows] = 0, 0
    x = rng.standard_normal((200, 3))
    J = deep_jacobian(weights, x, sigma)
    counted = sum(4 - zero_rows for _ in range(2)) if is_scaled else 0
    bound = theory.rank_outer_rescaling_bound(J.shape[1], 2, n=200, features=5, rescalings=counted)
    assert clear_rank(J) <= bound
    if not zero_rows and sigma is not jax.nn.relu:
        assert clear_rank(J) == bound
    projected = J.reshape(200, 2, -1) - J.reshape(200, 2, -1).mean(axis=1, keepdims=True)
    under_cross_entropy = theory.rank_outer_rescaling_bound(
        J.shape[1], 2, n=200, features=5, rescalings=counted, loss="cross_entropy"
    )
    assert under_cross_entropy == bound - 5
    assert clear_rank(projected.reshape(400, -1)) <= under_cross_entropy


# What is refused


def test_arrays_that_do_not_fit_are_refused():
    x, s = np.ones((4, 2)), np.ones((4, 3))
    bound = theory.rank_outer_group_bound
    with refused(ValueError, "inputs (4, 2)", "slopes (3, 3)"):
        bound(x, s[:3], 2)
    with refused(ValueError, "features", "(4, 3)", "(4, 2)"):
        bound(x, s, 2, features=x)
    with refused(ValueError, "slopes", "finite"):
        bound(x, s * np.nan, 2)
    with refused(ValueError, "outputs", "at least 1"):
        bound(x, s, 0)
    with refused(ValueError, "2 outputs", "cross entropy"):
        bound(x, s, 1, loss="cross_entropy")
    with refused(ValueError, "weights", "(4,)"):
        theory.rank_functional_hidden(x, s, x, weights=np.ones(3))
    with refused(TypeError, "output_bias"):
        bound(x, s, 2, output_bias=1)


def test_numbers_out_of_range_are_refused():
    with refused(ValueError, "features_rank", "5"):
        theory.rank_outer_tanh(3, 2, n=4, inputs_rank=2, features_rank=5)
    with refused(ValueError, "inputs_rank", "5"):
        theory.rank_outer_tanh(3, 2, n=4, inputs_rank=5, features_rank=2)
    with refused(ValueError, "rescalings", "11"):
        theory.rank_outer_rescaling_bound(10, 2, n=4, features=2, rescalings=11)
    with refused(TypeError, "n to be an integer"):
        theory.rank_outer_rescaling_bound(10, 2, n=4.0, features=2, rescalings=1)
