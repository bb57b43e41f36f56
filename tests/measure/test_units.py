"""Dormant and saturated units against the definitions, one unit and one example at a time."""

import numpy as np
import pytest

from rankmon.measure.units import dormant_units, saturated_units


def dormant_by_definition(h, tau):
    """Sokar et al. 2023, equation 1: one column of activations for each neuron."""
    n, H = h.shape
    means = [sum(abs(h[x, i]) for x in range(n)) / n for i in range(H)]
    score = [means[i] / (sum(means) / H) for i in range(H)]
    return [s <= tau for s in score]


@pytest.mark.parametrize("tau", [0.0, 0.025, 0.1])
@pytest.mark.parametrize(("n", "H"), [(1, 5), (8, 1), (30, 40), (3, 200)])
def test_dormant_units(n, H, tau):
    rng = np.random.default_rng(n + H)
    h = rng.standard_normal((n, H)) * 10.0 ** rng.uniform(-3, 0, H)
    h[:, rng.permutation(H)[: H // 4]] = 0
    assert dormant_units(np.mean(np.abs(h), axis=0), tau).tolist() == dormant_by_definition(h, tau)


def test_scores_at_tau_are_dormant():
    assert dormant_units(np.array([1.0, 1.0, 1.0, 0.0]), 0.0).tolist() == [False] * 3 + [True]
    magnitudes = np.array([0.25, 3.75])  # their mean is 2
    assert dormant_units(magnitudes, 0.125).tolist() == [True, False]


def test_zero_units_are_dormant_even_if_all_are():
    assert dormant_units(np.zeros(4), 0.1).all()
    assert dormant_units(np.zeros(1), 0.1).all()
    assert not dormant_units(np.array([1e-30]), 0.1).any()


def test_scores_do_not_depend_on_the_scale():
    magnitudes = np.array([0.01, 0.2, 5.0, 0.0])
    for scale in (1e-200, 1e200, 2e307):
        assert (dormant_units(scale * magnitudes, 0.1) == dormant_units(magnitudes, 0.1)).all()


def test_saturated_units_are_flat_on_every_example():
    slopes = np.array([[0.04, 0.04, 1.0, 0.05], [0.0, 0.06, 1.0, 0.05]])
    assert saturated_units(slopes).tolist() == [True, False, False, False]
    assert saturated_units(slopes, share=0.07).tolist() == [True, True, False, True]
    assert saturated_units(slopes[:1]).tolist() == [True, True, False, False]
