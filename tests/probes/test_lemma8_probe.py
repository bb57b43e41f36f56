"""Test the Lemma 8 probe: measured and predicted log|det| of weights in a discrete loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import (
    Lemma8Probe,
    Problem,
    RankMonitor,
    lemma8,
)


def test_lemma8_in_a_discrete_loop():
    """log|det| beside its prediction: off by about the quadrature error that is logged."""
    width, rate = 4, 1e-3
    rng = np.random.default_rng(0)
    labels = np.arange(40) % width
    x = rng.standard_normal((40, width))
    x -= lemma8.class_means(x, labels, width)[labels]
    y = np.eye(width)[labels]

    def apply(weights, x):
        for weight in weights:
            x = x @ weight.T
        return x

    with jax.enable_x64(True):
        weights = lemma8.balanced_stack(jax.random.key(0), layers=3, width=width)
        gradient = jax.grad(lambda w: 0.5 * jnp.mean(jnp.sum((apply(w, x) - y) ** 2, 1)))
        descend = jax.jit(
            lambda weights: jax.tree.map(lambda w, g: w - rate * g, weights, gradient(weights))
        )
        problem = Problem(apply, loss="mse", inputs=x, targets=y)
        monitor = RankMonitor(problem, every=20, probes=[Lemma8Probe(rate), "weights"])
        records = []
        for step in range(401):
            records.append(monitor(step, weights))
            weights = descend(weights)
    first, s = records[0].scalars, records[-1].scalars
    assert first["lemma8/centered"] == first["lemma8/balanced"] == first["lemma8/square"] == 1
    assert s["lemma8/balanced"] == 0  # discrete steps keep balance only approximately
    assert s["lemma8/class_mean"] < 1e-15
    for layer in range(3):
        fall = s[f"log_abs_det/{layer}"]
        off = s[f"lemma8/predicted_log_abs_det/{layer}"] - fall
        assert fall < -0.5
        assert s[f"lemma8/prediction_error/{layer}"] == pytest.approx(-off, abs=1e-12)
        assert abs(off) < 0.02
        assert 0 < s[f"lemma8/quadrature_error/{layer}"] < 0.02
    assert s["lemma8/balancedness/0"] < 1e-3


def test_lemma8_of_a_singular_weight_beside_one_that_is_nearly_so():
    rng = np.random.default_rng(8)
    factor = rng.integers(-3, 4, (6, 4))
    nearly = np.diag([1.0, 1, 1, 1, 1, 1e-12])
    problem = Problem(
        lambda w, x: x @ w[0].T @ w[1].T, loss="mse", inputs=np.eye(6), targets=np.eye(6)
    )
    params = [(factor @ factor.T).astype(np.float32), nearly]
    with RankMonitor(problem, every=1, probes=[Lemma8Probe(1e-3), "weights"]) as monitor:
        s = monitor(0, params).scalars
    for tag in ("log_abs_det", "lemma8/predicted_log_abs_det"):
        assert s[f"{tag}/0"] == -np.inf
        assert s[f"{tag}/1"] == pytest.approx(np.log(1e-12), rel=1e-12)
    assert s["det_sign/0"] == 0


@pytest.mark.parametrize(
    ("targets", "known"),
    [(np.eye(3), True), (1 - np.eye(3), False), (np.eye(3) / 2, False)],
    ids=["one-hot", "two classes each", "halves"],
)
def test_class_means_need_one_class_for_each_example(targets, known):
    problem = Problem(lambda w, x: x @ w[0].T, loss="mse", inputs=np.eye(3), targets=targets)
    with RankMonitor(problem, every=1, probes=[Lemma8Probe(1e-3)]) as monitor:
        assert ("lemma8/class_mean" in monitor(0, [np.eye(3)]).scalars) == known
