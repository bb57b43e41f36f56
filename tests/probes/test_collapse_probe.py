"""The collapse probe on networks: against NumPy, and what it refuses or leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rankmon import CollapseProbe, MemoryWriter, Problem, RankMonitor
from rankmon.network import last_layer
from refusals import refused, warned

RNG = np.random.default_rng(0)
N, D, M, K = 40, 4, 6, 3
TAGS = {
    "collapse/nc1",
    "collapse/nc3",
    "collapse/nc4",
    "collapse/rank_means",
    *(
        f"collapse/nc2_{x}_{of}"
        for x in ("norms", "angles", "cosines")
        for of in ("means", "classifier")
    ),
    *(f"{x}/collapse/rank_means" for x in ("tolerance", "rank_low", "rank_high", "gap")),
}
X = RNG.standard_normal((N, D))
LABELS = RNG.permutation(np.arange(N) % K)
PARAMS = {
    "U": RNG.standard_normal((D, M)),
    "W": RNG.standard_normal((M, K)),
    "b": RNG.standard_normal(K),
}


def apply(p, x):
    return jnp.tanh(x @ p["U"]) @ p["W"] + p["b"]


def network(loss="cross_entropy", *, inputs=X, targets=LABELS, apply=apply, **options):
    return Problem(apply, loss=loss, inputs=inputs, targets=targets, **options)


def record_of(problem, params=PARAMS, probes=("collapse",)):
    memory = MemoryWriter()
    with RankMonitor(
        problem, every=1, probes=probes, writers=[memory], on_error="raise"
    ) as monitor:
        monitor(0, params)
    return memory.records[0]


def measured(problem, params=PARAMS):
    scalars = record_of(problem, params).scalars
    return {tag: value for tag, value in scalars.items() if "collapse" in tag}


def by_hand(h, labels, W, z):
    """NC1, NC3 and NC4, with dense covariances; all examples count equally."""
    mu = np.array([h[labels == c].mean(0) for c in range(K)])
    M_ = mu - mu.mean(0)
    within = h - mu[labels]
    S_W, S_B = within.T @ within / len(h), M_.T @ M_ / K
    nearest = np.argmin(np.linalg.norm(h[:, None] - mu, axis=2), axis=1)
    return {
        "collapse/nc1": np.trace(S_W @ np.linalg.pinv(S_B, rcond=1e-10, hermitian=True)) / K,
        "collapse/nc3": np.sum((W / np.linalg.norm(W) - M_ / np.linalg.norm(M_)) ** 2),
        "collapse/nc4": np.mean(nearest != np.argmax(z, axis=1)),
        "collapse/rank_means": K - 1,
    }


def assert_by_hand(found, h, labels, W, z):
    assert found.keys() >= TAGS
    for tag, value in by_hand(h, labels, W, z).items():
        assert found[tag] == pytest.approx(value, rel=1e-9), tag


def hidden(x):
    return np.tanh(x @ PARAMS["U"])


TARGETS = {
    "labels": ("cross_entropy", LABELS),
    "smoothed": ("cross_entropy", 0.9 * np.eye(K)[LABELS] + 0.1 / K),
    "mse": ("mse", np.eye(K)[LABELS]),
    "callable": (lambda z, y: jnp.sum(z**2) - z[y], LABELS),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_perceptron(name):
    loss, targets = TARGETS[name]
    h = hidden(X)
    z = h @ PARAMS["W"] + PARAMS["b"]
    found = measured(network(loss, targets=targets))
    assert found.keys() == TAGS
    assert_by_hand(found, h, LABELS, PARAMS["W"].T, z)


def test_positions_are_examples_and_masked_ones_do_not_count():
    x = RNG.standard_normal((N, 5, D))
    labels = RNG.integers(0, K, (N, 5))
    mask = RNG.random((N, 5)) < 0.7
    mask[3] = False
    found = measured(network(inputs=x, targets=labels, weights=mask.astype(float)))
    h = hidden(x)[mask]
    assert_by_hand(found, h, labels[mask], PARAMS["W"].T, h @ PARAMS["W"] + PARAMS["b"])


def test_weights_count_as_copies():
    weights = RNG.integers(0, 3, N)
    h, labels = (np.repeat(a, weights, axis=0) for a in (hidden(X), LABELS))
    found = measured(network(weights=weights))
    assert_by_hand(found, h, labels, PARAMS["W"].T, h @ PARAMS["W"] + PARAMS["b"])


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        self.sow("intermediates", "h", x.mean((1, 2)))
        return nn.Dense(K)(x.mean((1, 2)))


def test_a_module_in_float32_is_measured_in_float64():
    x = RNG.standard_normal((N, 6, 6, 1)).astype(np.float32)
    module = Convolutions()
    variables = module.init(jax.random.key(0), x)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    with jax.enable_x64(True):
        z, kept = module.apply(
            {"params": params}, np.asarray(x, np.float64), mutable="intermediates"
        )
        h = np.asarray(kept["intermediates"]["h"][0])
    problem = Problem.from_linen(module, loss="cross_entropy", inputs=x, targets=LABELS)
    found = measured(problem, variables)
    assert_by_hand(found, h, LABELS, params["Dense_0"]["kernel"].T, np.asarray(z))


def test_coarse_arithmetic_is_measured_with_its_own_cut():
    def low(p, x):
        h = jnp.tanh(x.astype(jnp.bfloat16) @ p["U"].astype(jnp.bfloat16))
        return (h @ p["W"].astype(jnp.bfloat16) + p["b"].astype(jnp.bfloat16)).astype(jnp.float32)

    coarse, exact = (measured(network(apply=low, lift_dtype=lift)) for lift in (False, True))
    assert coarse["tolerance/collapse/rank_means"] > 1e6 * exact["tolerance/collapse/rank_means"]
    for tag, value in coarse.items():
        if tag.startswith("collapse/"):
            assert value == pytest.approx(exact[tag], rel=0.02, abs=0.03), tag


def test_a_complete_collapse():
    corners = np.eye(K) - 1 / K
    problem = network(inputs=corners[LABELS], apply=lambda p, x: x @ p["W"])
    found = measured(problem, {"W": 4 * corners})
    assert found["collapse/rank_means"] == K - 1
    zero = [found[tag] for tag in TAGS if tag.startswith("collapse/nc")]
    np.testing.assert_allclose(zero, 0, atol=1e-14)


@pytest.mark.parametrize("leaf", ["U", "W", "b"])
def test_snapshots_that_are_not_finite_give_nan_for_every_tag(leaf):
    broken = {
        **PARAMS,
        leaf: np.where(
            np.arange(PARAMS[leaf].size).reshape(PARAMS[leaf].shape), PARAMS[leaf], np.nan
        ),
    }
    with pytest.warns(UserWarning, match="infinite"):
        found = measured(network(), broken)
    assert found.keys() == TAGS
    assert np.all(np.isnan(list(found.values())))


def test_single_examples_have_no_variation():
    problem = network(inputs=X[:K], targets=np.arange(K))
    record = record_of(problem)
    found = {tag for tag in record.scalars if "collapse" in tag}
    assert found == TAGS - {"collapse/nc1", "collapse/nc4"}
    assert "NC1 and NC4 are left out" in record.texts["rankmon/card"]


def card_of(*args, **options):
    return record_of(*args, **options).texts["rankmon/card"]


def test_the_card_describes_layer_classes_and_limits():
    text = card_of(network())
    assert "W, with 6 features" in text
    assert "3 of 3 have examples, 13 to 14 each; classes are labels" in text
    assert "the classes differ in size" in text
    assert "without examples are left out" not in text
    pair = np.flatnonzero(LABELS > 0)
    text = card_of(network(inputs=X[pair], targets=LABELS[pair]))
    assert "2 of 3 have examples" in text
    assert "classes without examples are left out" in text
    assert "with two classes" in text
    narrow = {"U": PARAMS["U"][:, :1], "W": PARAMS["W"][:1], "b": PARAMS["b"]}
    assert "1 features are too few for a simplex of 3" in card_of(network(), narrow)


REFUSED = {
    "regression": (network("mse", targets=RNG.standard_normal((N, K))), "classification"),
    "one class": (network(targets=np.ones(N, int)), "at least two classes"),
    "one weighted class": (network(weights=(LABELS == 1).astype(float)), "at least two classes"),
    "softmax": (
        network(lambda z, y: -jnp.log(z[y]), apply=lambda p, x: jax.nn.softmax(apply(p, x))),
        "logits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_problems_are_refused(name):
    problem, key = REFUSED[name]
    with refused(ValueError, key, "omit the collapse probe"):
        record_of(problem)


def test_a_tolerance_is_checked():
    with refused(TypeError, "Tolerance(relative=...)"):
        CollapseProbe(tolerance=1e-3)


def test_a_program_that_cannot_be_read_leaves_the_probe_out(monkeypatch):
    """The only way to make this reader fail alone is to put the fault into it."""

    def raises(*_):
        raise KeyError("renamed_in_the_next_jax")

    monkeypatch.setattr(last_layer, "_product", raises)
    with warned("the last layer", "renamed_in_the_next_jax", "report"):
        record = record_of(network(), probes=["weights", "collapse"])
    assert not TAGS & record.scalars.keys()
    assert "rank_weights/W" in record.scalars
