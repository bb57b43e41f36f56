"""Test comparisons of runs against values written by hand."""

import numpy as np

from rankmon.report.compare import comparison_of, only_ranks
from rankmon.runs.series import RunSeries
from refusals import refused
from run_records import series

NAN = float("nan")


def run_of(name: str, **scalars) -> RunSeries:
    return RunSeries(name, {tag.replace("__", "/"): series(*one) for tag, one in scalars.items()})


def test_final_ranks_median_and_range():
    runs = [
        run_of("a", rank__H_L=([9, 5],), loss=([1, 0.5],)),
        run_of("b", rank__H_L=([9, 2, 1],), loss=([1, 0.25],)),
        run_of("c", rank__H_L=([9, 8],), rank_weights__W=([3, 3],)),
        run_of("d", rank__H_L=([9, NAN],), rank_weights__W=([3, 4],)),
    ]
    compared = comparison_of(runs)
    assert [(run.name, run.probes, run.last_step) for run in compared.runs] == [
        ("a", 2, 10),
        ("b", 3, 20),
        ("c", 2, 10),
        ("d", 2, 10),
    ]
    rank, weight = compared.ranks
    np.testing.assert_array_equal(rank.last, [5, 1, 8, NAN])
    assert (rank.median, rank.lowest, rank.highest) == (5, 1, 8)
    assert (weight.tag, weight.last) == ("rank_weights/W", (None, None, 3, 4))
    assert (weight.median, weight.lowest, weight.highest) == (3.5, 3, 4)
    assert compared.loss is not None
    assert (compared.loss.median, compared.loss.last) == (0.375, (0.5, 0.25, None, None))


def test_where_they_first_differ():
    runs = [
        run_of("a", rank__H_L=([9, 8, 7], [0, 10, 20]), rank__H_f=([4, 4, 3, 3], [0, 5, 10, 20])),
        run_of("b", rank__H_L=([9, 7], [0, 20]), rank__H_f=([4, 5, 2, 3], [0, 7, 10, 20])),
        run_of("c", rank__H_L=([6], [30])),
    ]
    compared = comparison_of(runs)
    assert [(rank.tag, rank.differ) for rank in compared.ranks] == [
        ("rank/H_L", None),  # they share the steps 0 and 20
        ("rank/H_f", 10),
    ]
    assert [rank.tag for rank in compared.first_differing] == ["rank/H_f"]


def test_ranks_that_differ_first_together_and_not_at_all():
    a = run_of("a", rank__H_L=([1, 2],), rank__H_f=([1, 2],), rank__H_o=([1, 1],))
    b = run_of("b", rank__H_L=([1, 3],), rank__H_f=([1, NAN],), rank__H_o=([1, 1],))
    assert [r.tag for r in comparison_of([a, b]).first_differing] == ["rank/H_L", "rank/H_f"]
    assert comparison_of([a, a]).first_differing == ()
    assert comparison_of([b, b]).first_differing == ()  # NaN is like NaN


def test_only_some_ranks():
    run = run_of("a", rank__H_L=([1],), rank_weights__W=([1],))
    chosen = only_ranks(comparison_of([run, run]), ["rank_w*"])
    assert [rank.tag for rank in chosen.ranks] == ["rank_weights/W"]


def test_medians_over_seeds_are_no_runs():
    seeds = [run_of(f"seed_{i}", rank__H_L=([i],)) for i in range(2)]
    medians = {f"rank__H_L__{kind}": ([0.5],) for kind in ("median", "low", "high")}
    compared = comparison_of([*seeds, run_of("median", **medians)])
    assert [run.name for run in compared.runs] == ["seed_0", "seed_1"]


def test_one_run_is_too_few():
    with refused(ValueError, "2 runs", "got 1"):
        comparison_of([run_of("a", rank__H_L=([1],))])


def test_a_rank_that_is_unknown_in_one_run_widens_the_range():
    bounds = {"rank_low__H_L": ([2, 2],), "rank_high__H_L": ([90, 80],)}
    compared = comparison_of(
        [
            run_of("a", rank__H_L=([9, 5],)),
            run_of("b", rank__H_L=([NAN, NAN],), **bounds),
            run_of("c", rank__H_L=([9, 6],)),
        ]
    )
    (rank,) = compared.ranks
    assert rank.bounds == (None, (2, 80), None)
    assert (rank.lowest, rank.highest) == (2, 80)
    assert np.isnan(rank.median)  # of numbers of which one is unknown
