"""Summaries against numbers counted by hand, and over seeds against NumPy's medians."""

import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import Problem, RankMonitor, SeedsMonitor, read_jsonl
from rankmon.monitor.alerts import RankBelow
from rankmon.report.summary import AlertText, only_tags, summary_of
from rankmon.runs.read import read_runs
from rankmon.runs.series import ArraySeries, RunSeries
from run_records import series

NAN, INF = float("nan"), float("inf")


def run_of(**scalars) -> RunSeries:
    return RunSeries(
        "a/run", {tag.replace("__", "/"): series(values) for tag, values in scalars.items()}
    )


def test_a_rank():
    run = run_of(
        rank__H_L=[5, 5, 4, 2, 3],
        rank_low__H_L=[5, 5, 3, 1, 2],
        rank_high__H_L=[5, 5, 5, 4, 6],
        rank_theory__H_L=[5, 4, 4, 4, 7],
    )
    (rank,) = summary_of(run).ranks
    assert (rank.tag, rank.first, rank.last, rank.lowest) == ("rank/H_L", 5, 3, 2)
    assert (rank.low, rank.high) == (2, 6)
    assert (rank.theory, rank.predicted_steps, rank.agreed_steps) == (7, 5, 2)
    assert rank.changed == 20


def test_predictions_at_some_steps_only():
    run = RunSeries(
        "run",
        {
            "rank/H_f": series([4, 4, NAN, 4], [0, 1, 2, 5]),
            "rank_theory/H_f": series([4, 3, 4, 4, NAN], [1, 2, 3, 5, 6]),
        },
    )
    (rank,) = summary_of(run).ranks
    assert (rank.predicted_steps, rank.agreed_steps) == (2, 2)
    assert rank.changed is None


@pytest.mark.parametrize(
    ("values", "first", "last", "lowest", "changed"),
    [
        ([NAN, 3, 3], 3, 3, 3, None),
        ([3, NAN, 2], 3, 2, 2, 20),
        ([3, NAN, NAN], 3, NAN, 3, None),
        ([NAN, NAN], NAN, NAN, NAN, None),
    ],
    ids=str,
)
def test_ranks_that_are_not_finite(values, first, last, lowest, changed):
    (rank,) = summary_of(run_of(rank__H_L=values)).ranks
    np.testing.assert_array_equal([rank.first, rank.last, rank.lowest], [first, last, lowest])
    assert rank.changed == changed


def test_the_order_and_the_margins_of_ranks():
    run = run_of(
        rank_features__W=[3],
        rank_weights__W=[2],
        rank_low__W=[1],
        rank_high__W=[4],
        rank__Omega=[1],
        rank_bound__H_o=[8],
        rank_self__H_f=[6],
        rank__H_f=[6],
        rank__H_L=[9],
    )
    ranks = {rank.tag: (rank.low, rank.high) for rank in summary_of(run).ranks}
    assert list(ranks) == [
        "rank/H_L",
        "rank/H_f",
        "rank/Omega",
        "rank_self/H_f",
        "rank_bound/H_o",
        "rank_weights/W",
        "rank_features/W",
    ]
    assert ranks["rank_weights/W"] == (1, 4)
    assert np.isnan(ranks["rank_features/W"]).all()  # these are the weight's, of the same layer


def test_weights_and_determinants():
    run = run_of(
        stable_rank__W=[3, 2, 2.5],
        effective_rank__W=[4, 4, 4],
        condition_number__W=[10, INF, INF],
        det_sign__W=[1, -1, NAN, -1, 1, 0, 0],
        log_abs_det__W=[2, 1, NAN, 0, 1, -INF, -INF],
    )
    summary = summary_of(run)
    (weight,), (determinant,) = summary.weights, summary.determinants
    assert (weight.layer, weight.stable_rank.lowest, weight.stable_rank.last) == ("W", 2, 2.5)
    assert (weight.condition_number.first, weight.condition_number.last) == (10, INF)
    assert (determinant.sign.first, determinant.sign.last) == (1, 0)
    assert determinant.sign_changes == (10, 40, 50)
    assert determinant.log_abs.last == -INF


def test_the_run_itself():
    run = RunSeries(
        "run",
        {"loss": series([8, 1, 2], [0, 5, 9]), "monitor/errors": series([0, 1, 2], [0, 5, 9])},
        {"spectrum/H_L": ArraySeries(np.array([0, 7]), (np.ones(2), np.ones(3)))},
        {"rankmon/alerts": {5: "* fell", 11: "* rose"}, "rankmon/card": {0: "card"}},
    )
    summary = summary_of(run)
    assert (summary.probes, summary.first_step, summary.last_step) == (5, 0, 11)
    assert (summary.loss.first, summary.loss.last, summary.loss.lowest) == (8, 2, 1)
    assert summary.alerts == (AlertText(5, "* fell"), AlertText(11, "* rose"))
    assert summary.errors == 2
    assert summary.ranks == summary.weights == summary.determinants == ()


def test_the_alerts_of_a_monitor(tmp_path):
    problem = Problem(
        lambda w, x: x @ w["W"], loss="mse", inputs=np.eye(3), targets=np.ones((3, 3))
    )
    alerts = [RankBelow(0.9, action=lambda alarm: None)]
    with RankMonitor(problem, logdir=tmp_path, every=1, alerts=alerts) as monitor:
        for step, rank in enumerate((3, 3, 2, 1)):
            monitor(step, {"W": jnp.diag(jnp.arange(3) < rank).astype(float)})
    (run,) = read_runs(tmp_path)
    (alert,) = summary_of(run).alerts
    assert alert == AlertText(2, "* rank_weights/W is 2, below 0.9 times its first value (3)")
    (weight,) = [rank for rank in summary_of(run).ranks if rank.tag == "rank_weights/W"]
    assert (weight.first, weight.last, weight.changed) == (3, 1, 2)


def test_only_some_tags():
    run = run_of(
        rank__H_L=[1], rank_weights__a=[1], rank_weights__b=[1], stable_rank__a=[1], det_sign__a=[1]
    )
    ranks = only_tags(summary_of(run), ["rank/*", "*_weights/b"]).ranks
    assert [rank.tag for rank in ranks] == ["rank/H_L", "rank_weights/b"]
    chosen = only_tags(summary_of(run), ["*/a"])
    assert [rank.tag for rank in chosen.ranks] == ["rank_weights/a"]
    assert [weight.layer for weight in chosen.weights] == ["a"]
    assert [one.layer for one in chosen.determinants] == ["a"]
    assert only_tags(summary_of(run), ["nothing"]).weights == ()


def test_the_medians_over_seeds(tmp_path):
    rng = np.random.default_rng(0)
    problem = Problem(
        lambda w, x: x @ w["W"], loss="mse", inputs=np.eye(5), targets=np.ones((5, 4))
    )
    weights = np.stack([rng.normal(size=(5, r)) @ rng.normal(size=(r, 4)) for r in (1, 2, 4)])
    with SeedsMonitor(problem, seeds=3, logdir=tmp_path, every=1) as monitor:
        monitor(0, {"W": jnp.asarray(weights)})
    summaries = {run.name: summary_of(run) for run in read_runs(tmp_path)}
    assert set(summaries) == {"median", "seed_0", "seed_1", "seed_2"}
    assert [one.over_seeds for one in summaries.values()] == [True, False, False, False]
    median = {rank.tag: rank for rank in summaries["median"].ranks}
    weight = median["rank_weights/W"]
    assert (weight.last, weight.low, weight.high) == (2, 1, 4)
    losses = [read_jsonl(tmp_path / f"seed_{i}/rankmon.jsonl")[0].scalars["loss"] for i in range(3)]
    assert summaries["median"].loss.last == np.median(losses)
    assert list(median) == [rank.tag for rank in summaries["seed_0"].ranks]


def test_a_layer_named_median_is_a_layer():
    run = run_of(rank_weights__median=[3], rank_low__median=[3], rank_high__median=[3], loss=[1])
    summary = summary_of(run)
    assert not summary.over_seeds
    assert [rank.tag for rank in summary.ranks] == ["rank_weights/median"]


# Curvature and bounds


def test_curvature_with_and_without_intervals():
    run = run_of(
        eigenvalue_max__H_L=[5, 4, 6],
        interval_low__eigenvalue_max__H_L=[4, 3, 5.5],
        interval_high__eigenvalue_max__H_L=[6, 5, 7],
        rank_0__H_L=[1],
        **{"rank_0.1/H_f": [3, 2, 2], "trace/H_o": [1, NAN, 2]},
        stable_rank__H_L=[3],
        stable_rank__W=[2],
        trace__W=[2],
    )
    summary = summary_of(run)
    curves = {curve.tag: curve for curve in summary.curvature}
    assert set(curves) == {"eigenvalue_max/H_L", "rank_0.1/H_f", "trace/H_o", "stable_rank/H_L"}
    largest = curves["eigenvalue_max/H_L"]
    assert (largest.first, largest.last, largest.lowest) == (5, 6, 4)
    assert (largest.low, largest.high) == (5.5, 7)
    assert np.isnan([curves["trace/H_o"].low, curves["trace/H_o"].high]).all()
    assert [weight.layer for weight in summary.weights] == ["W"]  # H_L is no layer
    assert [rank.tag for rank in summary.ranks] == []
    chosen = only_tags(summary, ["trace/*"])
    assert [curve.tag for curve in chosen.curvature] == ["trace/H_o"]


def test_an_interval_of_an_earlier_step_is_not_that_of_the_last():
    run = RunSeries(
        "run",
        {"trace/H_L": series([1, 2], [0, 1])}
        | {f"interval_{end}/trace/H_L": series([1], [0]) for end in ("low", "high")},
    )
    (curve,) = summary_of(run).curvature
    assert np.isnan([curve.low, curve.high]).all()


def test_a_rank_of_which_bounds_are_known():
    run = run_of(rank__H_L=[NAN, NAN], rank_low__H_L=[7, 8], rank_high__H_L=[90, 80])
    (rank,) = summary_of(run).ranks
    assert rank.is_bounded
    assert (rank.low, rank.high) == (8, 80)
    broken = run_of(rank__H_L=[3, NAN], rank_low__H_L=[3, NAN], rank_high__H_L=[3, NAN])
    assert not summary_of(broken).ranks[0].is_bounded
    known = run_of(rank__H_L=[3], rank_low__H_L=[2], rank_high__H_L=[4])
    assert not summary_of(known).ranks[0].is_bounded


def test_bounds_over_seeds():
    """One seed's rank is known to be 5, that of the other to lie between 3 and 9."""
    kinds = {"rank/H_L": (NAN, NAN, NAN), "rank_low/H_L": (4, 3, 5), "rank_high/H_L": (7, 5, 9)}
    run = RunSeries(
        "median",
        {
            f"{tag}/{kind}": series([value])
            for tag, values in kinds.items()
            for kind, value in zip(("median", "low", "high"), values, strict=True)
        },
    )
    (rank,) = summary_of(run).ranks
    assert rank.is_bounded
    assert (rank.low, rank.high) == (3, 9)
