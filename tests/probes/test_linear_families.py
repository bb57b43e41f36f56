"""The predicted ranks of residual, tied and convolutional linear networks, live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rankmon
from rankmon import HessianProbe, Problem, theory
from small_probes import measured_by

PARTS = ("H_L", "H_o", "H_f", "H_f_fixed")
N = 40


def gaussian(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng([seed, *shape]).standard_normal(shape)


def blocks(p, x):
    for A, B in zip(p["A"], p["B"], strict=True):
        x = x + x @ A.T @ B.T
    return x


def chain(p, x):
    for W in p:
        x = x + x @ W
    return x


def tied(p, x):
    h = x @ p["in"]
    for _ in range(3):
        h = h @ p["again"]
    return h @ p["out"]


def autoencoder(p, x):
    return x @ p @ p.T


def convolutions(p, h):
    for w in p:
        h = jax.lax.conv_general_dilated(
            h, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
    return h.reshape(len(h), -1)


NETWORKS = {  # the network, its parameters, the shape of an input, and a learning rate
    "residual": (
        blocks,
        lambda seed: {
            "A": [gaussian(4, 4, seed=seed, scale=0.3), gaussian(5, 4, seed=seed, scale=0.3)],
            "B": [gaussian(4, 4, seed=seed + 9, scale=0.3), gaussian(4, 5, seed=seed, scale=0.3)],
        },
        (4,),
        0.1,
    ),
    "tied": (
        tied,
        lambda seed: {
            "in": gaussian(10, 6, seed=seed, scale=10**-0.5),
            "again": 0.8 * np.eye(6) + gaussian(6, 6, seed=seed, scale=0.3 * 6**-0.5),
            "out": gaussian(6, 3, seed=seed + 5, scale=6**-0.5),
        },
        (10,),
        0.1,
    ),
    "convolutional": (
        convolutions,
        lambda seed: [
            gaussian(2, 2, 3, seed=seed, scale=0.5),
            gaussian(2, 3, 2, seed=seed, scale=0.5),
        ],
        (5, 2),
        0.05,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_theory_is_the_measured_rank_during_training_wherever_it_is_certain(name, tmp_path):
    apply, drawn, shape, rate = NETWORKS[name]
    with jax.enable_x64(True):
        x = gaussian(N, *shape)
        y = np.asarray(apply(drawn(7), x))
        params = drawn(3)

        def loss(p):
            return 0.5 * jnp.sum((apply(p, x) - y) ** 2) / N

        def step(p, _):
            moved = jax.tree.map(lambda w, g: w - rate * g, p, jax.grad(loss)(p))
            return moved, None

        train = jax.jit(lambda p: jax.lax.scan(step, p, length=1000)[0])
        problem = Problem(apply, loss="mse", inputs=x, targets=y)
        certain = dict.fromkeys(PARTS, 0)
        with rankmon.RankMonitor(problem, logdir=tmp_path, every=1) as monitor:
            for at in range(9):
                scalars = monitor(at, params).scalars
                for part in PARTS:
                    rank, low, high = (
                        scalars[f"{kind}/{part}"] for kind in ("rank", "rank_low", "rank_high")
                    )
                    if low == rank == high:
                        tag = f"rank_theory/{part}"
                        vanishing = 0 < scalars["rank_high/H_f"] < scalars["rank_theory/H_f"]
                        if part == "H_L" and vanishing:
                            assert tag not in scalars
                            continue
                        certain[part] += 1
                        assert scalars[tag] == rank, (at, part)
                params = train(params)
        assert scalars["loss"] < 1e-20, scalars["loss"]
        assert all(count >= 2 for count in certain.values()), certain


def measured(apply, params, x, *, loss="mse", targets=None, blocks=False):
    y = gaussian(*apply(params, x).shape, seed=5) if targets is None else targets
    problem = Problem(apply, loss=loss, inputs=x, targets=y)
    prepared = HessianProbe(blocks=blocks).prepare(problem.flat(params))
    return prepared, measured_by(prepared, problem, params)[0].scalars


def theory_of(scalars):
    return {
        tag.removeprefix("rank_theory/"): value
        for tag, value in scalars.items()
        if tag.startswith("rank_theory/")
    }


def test_no_line_while_a_block_is_zero():
    params = NETWORKS["residual"][1](0)
    params["B"] = [np.zeros_like(B) for B in params["B"]]
    _, scalars = measured(blocks, params, gaussian(N, 4))
    assert scalars["rank/H_o"] == 16
    assert not theory_of(scalars)


def test_only_h_o_for_blocks_narrower_than_the_rank_of_omega():
    # Three blocks, and Omega of rank 3 for d = 4, of the covariance of three-dimensional inputs.
    A, B = [gaussian(2, 4, seed=i) for i in range(3)], [gaussian(4, 2, seed=i) for i in range(3)]
    x = gaussian(N, 3) @ gaussian(3, 4)
    _, scalars = measured(blocks, {"A": A, "B": B}, x)
    assert scalars["rank/Omega"] == 3
    assert theory_of(scalars) == {"H_o": scalars["rank/H_o"]}


def test_only_h_o_for_a_tied_weight_without_krylov_spaces():
    params = {"in": gaussian(5, 4), "again": np.eye(4), "out": gaussian(4, 1)}
    _, scalars = measured(tied, params, gaussian(N, 5))
    assert theory_of(scalars) == {"H_o": scalars["rank/H_o"]}
    params["again"] = gaussian(4, 4)
    _, scalars = measured(tied, params, gaussian(N, 5))
    assert theory_of(scalars) == {part: scalars[f"rank/{part}"] for part in PARTS}


def test_only_h_o_for_an_autoencoder_with_a_symmetric_omega():
    x, W, R = np.concatenate([np.eye(5), -np.eye(5)]), gaussian(5, 2), gaussian(5, 2, seed=1)
    _, scalars = measured(autoencoder, W, x, targets=x @ (W @ W.T - R @ R.T))
    assert theory_of(scalars) == {"H_o": scalars["rank/H_o"]}
    _, scalars = measured(autoencoder, W, gaussian(N, 5))
    assert theory_of(scalars) == {part: scalars[f"rank/{part}"] for part in PARTS}


def test_no_line_for_kernels_with_a_common_factor():
    x, one = gaussian(N, 6, 1), np.array([1.0, 2.0]).reshape(2, 1, 1)
    other = np.array([1.0, -0.5]).reshape(2, 1, 1)
    _, scalars = measured(convolutions, [one, one], x)
    assert scalars["rank/H_o"] == 2
    assert not theory_of(scalars)
    _, scalars = measured(convolutions, [one, other], x)
    assert theory_of(scalars) == {part: scalars[f"rank/{part}"] for part in PARTS}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_columns_of_a_residual_chain_are_those_of_theorem_5(loss):
    # The second layer has the first leaf.
    params, x = {"a": gaussian(4, 4, seed=1), "b": gaussian(4, 4, seed=2)}, gaussian(N, 4)
    labels = np.arange(N) % 4 if loss == "cross_entropy" else None

    def apply(p, x):
        return chain([p["b"], p["a"]], x)

    _, scalars = measured(apply, params, x, loss=loss, targets=labels, blocks=True)
    for layer in "ab":
        found = scalars[f"rank_columns/H_f/{layer}"]
        assert scalars[f"rank_columns_theory/H_f/{layer}"] == found
    assert theory_of(scalars) == {part: scalars[f"rank/{part}"] for part in PARTS}


def test_predicted_ranks_name_the_family():
    apply, drawn, *_ = NETWORKS["tied"]
    x, params = gaussian(N, 10), drawn(0)
    problem = Problem(apply, loss="mse", inputs=x, targets=gaussian(N, 3))
    found = rankmon.predicted_ranks(problem, params)
    assert found.family == theory.TiedChain(10, hidden=6, outputs=3, repeats=3)
    assert (found.dims, found.r, found.s.rank, found.full_rank) == ((10, 3), 10, 3, True)
    ranks = found.family.ranks(s=3)
    assert found.ranks == {part: rank.value for part, rank in ranks.items()}


def test_the_card_names_family_formulas_and_their_basis():
    apply, drawn, *_ = NETWORKS["residual"]
    prepared, _ = measured(apply, drawn(0), gaussian(N, 4))
    described = prepared.describe()
    assert described.network == "linear network (residual blocks 4 (4, 5))"
    assert described.hparams["family"] == "residual blocks 4 (4, 5)"
    sources = {one.quantity: one.source for one in described.predictions}
    assert set(sources) == {"Omega (s)", *PARTS}
    assert "checked exactly" in sources["H_f"]
    assert "general position" in described.reservation


def test_the_card_names_the_parts_without_a_formula():
    kernels = [gaussian(2, 2, 2, seed=seed) for seed in range(3)]
    prepared, scalars = measured(convolutions, kernels, gaussian(N, 6, 2))
    assert theory_of(scalars) == {"H_o": scalars["rank/H_o"]}
    described = prepared.describe()
    assert [one.quantity for one in described.predictions] == ["Omega (s)", "H_o"]
    assert "no formula for H_L, H_f." in described.reservation
