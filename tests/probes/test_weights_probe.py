"""Test the weights probe against `weight_ranks`; large matrices have ranks only."""

import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import (
    Problem,
    WeightsProbe,
    weight_ranks,
)
from refusals import refused
from small_probes import measured_by


def test_the_weights_probe_says_what_weight_ranks_says():
    rng = np.random.default_rng(0)
    params = {
        "square": jnp.asarray(rng.standard_normal((4, 4)), jnp.float32),
        "conv": jnp.asarray(rng.standard_normal((2, 2, 3, 5)), jnp.bfloat16),
        "bias": jnp.ones(5),
    }

    def apply(params, x):
        return x @ params["square"]

    problem = Problem(apply, loss="mse", inputs=np.ones((2, 4)), targets=np.ones((2, 4)))
    measurement, _ = measured_by(WeightsProbe().prepare(problem.flat(params)), problem, params)
    ranks = weight_ranks(params)
    assert set(ranks) == {"square", "conv"}
    for name, rank in ranks.items():
        assert measurement.scalars[f"rank_weights/{name}"] == rank.rank
        assert measurement.scalars[f"stable_rank/{name}"] == rank.stable_rank
        assert measurement.scalars[f"effective_rank/{name}"] == rank.effective_rank
    assert ranks["conv"].size == 5
    sign, log_abs = np.linalg.slogdet(np.asarray(params["square"], np.float64))
    assert measurement.scalars["det_sign/square"] == sign
    assert measurement.scalars["log_abs_det/square"] == pytest.approx(log_abs, rel=1e-12)
    assert "det_sign/conv" not in measurement.scalars


def test_large_weights_get_a_rank_alone():
    rng = np.random.default_rng(0)
    params = {"small": rng.standard_normal((20, 90)), "large": np.ones((30, 40))}
    params["large"][:7] += rng.standard_normal((7, 40))
    problem = Problem(
        lambda p, x: x @ p["large"], loss="mse", inputs=np.ones((3, 30)), targets=np.ones((3, 40))
    )
    probe = WeightsProbe(largest=25).prepare(problem.flat(params))
    measured, _ = measured_by(probe, problem, params)
    assert measured.scalars["rank_weights/large"] == 8
    assert measured.scalars["rank_low/large"] == measured.scalars["rank_high/large"] == 8
    assert "stable_rank/large" not in measured.scalars
    assert "stable_rank/small" in measured.scalars
    with refused(TypeError, "largest", "float"):
        WeightsProbe(largest=1e3)
