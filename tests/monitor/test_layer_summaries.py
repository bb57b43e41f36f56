"""Test the lowest, median and highest value over the layers against NumPy."""

import numpy as np
import pytest

from rankmon.monitor.layer_summaries import layer_summaries

VALUES = [3.0, 1.0, 7.0, 5.0]


def of_layers(family, values=VALUES):
    return {f"{family}/block_{i}/kernel": value for i, value in enumerate(values)}


@pytest.mark.parametrize("family", ["rank_weights", "stable_rank", "dead_share"])
def test_the_lowest_median_and_highest_value(family):
    assert layer_summaries({**of_layers(family), "loss": 9.0, f"{family}/H_L": 99.0}) == {
        f"layers/{family}/min": 1.0,
        f"layers/{family}/median": float(np.median(VALUES)),
        f"layers/{family}/max": 7.0,
    }


def test_three_layers_are_their_own_summary():
    assert not layer_summaries(of_layers("rank_weights", VALUES[:3]))


@pytest.mark.parametrize("tag", ["rank/{}", "gap/{}", "rank_theory/{}", "mine/{}", "rank_low/{}"])
def test_other_families_have_none(tag):
    assert not layer_summaries({tag.format(f"layer_{i}"): 1.0 for i in range(9)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_nan_stays_nan_and_infinite_values_keep_their_place(value):
    found = layer_summaries(of_layers("log_abs_det", [*VALUES, value]))
    expected = [np.min([*VALUES, value]), np.median([*VALUES, value]), np.max([*VALUES, value])]
    np.testing.assert_array_equal(list(found.values()), expected)
