"""Test that runs over a swept variable continue where they stopped, and measure nothing twice."""

from pathlib import Path

import numpy as np
import pytest

import figure_runs
from figure_runs import Run
from figure_tables import Verdict, rank_verdict, ranks_at_own_cuts, report
from rankmon import Record, read_jsonl
from reading import legacy_events


def measured(value):
    return {"rank/H_L": 10.0 * value}, {"spectrum/H_L": np.arange(float(value))}


def fill(folder, settings, values, stop_at=None):
    """The values that were measured before the stop."""
    done = []
    with Run(folder, settings, values) as run:
        for value in run.missing:
            if value == stop_at:
                break
            run.write(measured(value))
            done.append(value)
        return done, [record.step for record in run.records]


def points(folder):
    events = legacy_events(folder)
    return [(e.step, e.value) for e in events.Scalars("rank/H_L")]


def test_a_stopped_run_measures_what_is_missing(tmp_path):
    assert fill(tmp_path, {"seed": 0}, [2, 3, 5, 8], stop_at=5) == ([2, 3], [2, 3])
    assert fill(tmp_path, {"seed": 0}, [2, 3, 5, 8]) == ([5, 8], [2, 3, 5, 8])
    files = sorted(tmp_path.glob("*tfevents*"))
    assert fill(tmp_path, {"seed": 0}, [2, 3, 5, 8]) == ([], [2, 3, 5, 8])
    assert sorted(tmp_path.glob("*tfevents*")) == files
    assert points(tmp_path) == [(2, 20.0), (3, 30.0), (5, 50.0), (8, 80.0)]
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    np.testing.assert_array_equal(records[2].arrays["spectrum/H_L"], np.arange(5.0))


@pytest.mark.parametrize(
    ("settings", "values"),
    [({"seed": 1}, [2, 3]), ({"seed": 0}, [1, 2, 3]), ({"seed": 0}, [3, 4]), ({"seed": 0}, [2, 4])],
    ids=["seed", "earlier", "later", "between"],
)
def test_other_settings_begin_anew_and_lose_nothing(tmp_path, settings, values):
    fill(tmp_path, {"seed": 0}, [2, 3])
    kept = [value for value in values if settings == {"seed": 0} and values[0] == 2 == value]
    assert fill(tmp_path, settings, values) == (values[len(kept) :], values)
    assert fill(tmp_path, settings, values) == ([], values)
    assert [value for value, _ in points(tmp_path)] == values
    everything = read_jsonl(tmp_path / "rankmon.jsonl", superseded=True)
    assert sorted(record.step for record in everything) == sorted([2, 3, *values[len(kept) :]])


def test_a_run_has_one_writer(tmp_path):
    with Run(tmp_path, {}, [1]), pytest.raises(BlockingIOError), Run(tmp_path, {}, [1]):
        pass


def test_quick_mode_takes_the_digits_unless_a_file_is_given(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--quick", "--figure", "B", "B"])
    options = figure_runs.parse_options("What it is.", "x", ["A", "B"])
    assert options.figure == ["B"]
    x, labels = figure_runs.images("cifar10", 3, 20, options)
    assert x.shape == (20, 9)
    assert labels.shape == (20,)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    options.cifar_npz = Path("folder/images.npz")
    assert figure_runs.source("mnist", options) == {"dataset": "mnist"}
    assert figure_runs.source("cifar10", options)["file"] == "images.npz"


def test_each_part_is_counted_as_numpy_counts_it():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    shapes = {"H_L": 1e3, "H_f": 1e-3}
    spectra = {
        part: np.r_[size * -(0.7 ** np.arange(25)), np.zeros(15)] for part, size in shapes.items()
    }
    ranks = ranks_at_own_cuts(spectra)
    for part, spectrum in spectra.items():
        matrix = (basis * spectrum) @ basis.T
        assert ranks[part].rank == np.linalg.matrix_rank(matrix) == 25
        assert ranks[part].tolerance == pytest.approx(40 * 2.0**-52 * shapes[part])


def record_of(predicted, count, low, high, *, full_rank=1.0, r=4.0):
    scalars = {"p": 40.0, "r": r, "d": 5.0, "rank/Omega": 3.0, "full_rank": full_rank}
    for part in ("H_L", "H_o", "H_f"):
        scalars[f"rank_theory/{part}"] = predicted
        for way in ("", "_autodiff"):
            scalars |= {f"rank{way}/{part}": count, f"rank_low{way}/{part}": low,
                        f"rank_high{way}/{part}": high}  # fmt: skip
    return Record(1, 1, 0.0, scalars, {})


def test_verdicts_tell_exact_from_ambiguous_from_wrong(tmp_path, capsys):
    exact, ambiguous = record_of(7, 7, 7, 7), record_of(7, 6, 5, 8, r=5.0)
    wrong, outside = record_of(7, 6, 6, 6), record_of(7, 6, 6, 6, full_rank=0.0)
    assert rank_verdict([exact]) == Verdict(ranks=3, exact=3, few=3)
    assert rank_verdict([ambiguous]) == Verdict(ranks=3, interval=3)
    assert rank_verdict([wrong]) == Verdict(ranks=3, mismatches=3, few=3)
    assert rank_verdict([outside]) == Verdict(outside=3)
    one_engine_off = dict(exact.scalars) | {"rank/H_f": 6.0, "rank_low/H_f": 6, "rank_high/H_f": 6}
    assert rank_verdict([Record(1, 1, 0.0, one_engine_off, {})]).mismatches == 1
    report({("S8", "width"): [exact, ambiguous], ("S8", "depth"): [exact]}, tmp_path)
    printed = capsys.readouterr().out
    assert "holds" in printed
    assert "0 mismatches of 9" in printed
    assert printed.count("~") == 3
    assert (tmp_path / "table.txt").read_text().strip() in printed
    with pytest.raises(SystemExit):
        report({("S8", "width"): [exact], ("S8", "depth"): [wrong]}, tmp_path)
    printed = capsys.readouterr().out
    assert "FAILS" in printed
    assert "3 mismatches" in printed
    with pytest.raises(SystemExit):  # nothing was compared
        report({("S8", "width"): [outside]}, tmp_path)
