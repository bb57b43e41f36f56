"""CSV and JSON, parsed by the standard library, against the series they were made of."""

import csv
import io
import json
from dataclasses import asdict

import numpy as np

from rankmon.report.compare import comparison_of
from rankmon.report.export import comparison_json, csv_of, prediction_json, report_json
from rankmon.report.summary import summary_of
from rankmon.runs.series import ArraySeries, RunSeries
from rankmon.theory.tables import closed_forms
from run_records import series

NAN, INF = float("nan"), float("inf")
NAME = 'a, "b"\n<i>ü</i>\udcff'  # the last is a byte that is no UTF-8, as Python reads file names
RUN = RunSeries(
    NAME,
    {
        "rank/H_L": series([12, NAN, 11]),
        "loss": series([0.1 + 0.2, INF, -INF]),
        "det_sign/W": series([1, -1, NAN]),
    },
    {"spectrum/H_L": ArraySeries(np.array([0, 10]), (np.array([1 / 3, -INF, NAN]), np.array([])))},
    {"rankmon/alerts": {10: "* <b>x</b>"}},
)


def strict(text: str):
    """Parsed as JSON that has no NaN."""

    def refuse(constant: str):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_csv_has_every_number():
    rows = list(csv.DictReader(io.StringIO(csv_of([RUN], ["*"]), newline="")))
    assert list(rows[0]) == ["run", "step", "tag", "value"]
    assert {row["run"] for row in rows} == {NAME}
    for tag, one in RUN.scalars.items():
        mine = [row for row in rows if row["tag"] == tag]
        assert [int(row["step"]) for row in mine] == one.steps.tolist()
        np.testing.assert_array_equal([float(row["value"]) for row in mine], one.values)
    assert len(rows) == 9


def test_csv_of_some_tags():
    rows = list(csv.DictReader(io.StringIO(csv_of([RUN], ["rank/*", "loss"]))))
    assert [row["tag"] for row in rows] == ["loss"] * 3 + ["rank/H_L"] * 3


def test_json_of_a_report():
    summary = summary_of(RUN)
    read = strict(report_json([RUN], [summary], ["*"]))
    (entry,) = read["runs"]
    assert read["schema"] == 1
    assert entry["summary"]["name"] == NAME
    assert entry["summary"].keys() == asdict(summary).keys()
    assert entry["summary"]["ranks"][0]["changed"] == 20
    assert entry["summary"]["determinants"][0]["sign_changes"] == [10]
    assert entry["scalars"]["loss"] == {
        "steps": [0, 10, 20],
        "values": [0.1 + 0.2, "Infinity", "-Infinity"],
    }
    assert entry["arrays"]["spectrum/H_L"] == {
        "steps": [0, 10],
        "values": [[1 / 3, "-Infinity", "NaN"], []],
    }
    assert entry["texts"] == {"rankmon/alerts": {"10": "* <b>x</b>"}}


def test_a_spectrum_travels_with_its_signs():
    spectrum = ArraySeries(np.array([0]), (np.array([1.0, 0.5]),))
    negative = ArraySeries(np.array([0]), (np.array([0.5]),))
    run = RunSeries(
        "run",
        arrays={"spectrum/H_L": spectrum, "spectrum_negative/H_L": negative, "other": negative},
    )
    for patterns in (["*"], ["spectrum/*"], ["spectrum/H_L"]):
        (entry,) = strict(report_json([run], [summary_of(run)], patterns))["runs"]
        assert entry["arrays"]["spectrum/H_L"]["values"] == [[1.0, 0.5]]
        assert entry["arrays"]["spectrum_negative/H_L"]["values"] == [[0.5]]
        assert ("other" in entry["arrays"]) == (patterns == ["*"])


def test_json_of_some_tags_has_the_whole_summary():
    (entry,) = strict(report_json([RUN], [summary_of(RUN)], ["rank/*"]))["runs"]
    assert list(entry["scalars"]) == ["rank/H_L"]
    assert entry["arrays"] == {}
    assert entry["summary"]["loss"]["first"] == 0.1 + 0.2


def test_json_of_a_comparison():
    other = RunSeries("other", {"rank/H_L": series([12, 5])})
    read = strict(comparison_json(comparison_of([RUN, other])))
    assert [run["name"] for run in read["runs"]] == [NAME, "other"]
    assert read["ranks"][0]["last"] == [11, 5]
    assert read["ranks"][0]["differ"] == 10
    assert read["loss"]["last"] == ["-Infinity", None]
    assert read["loss"]["median"] == "NaN"


def test_json_of_a_prediction():
    read = strict(prediction_json(closed_forms((8, 6, 3))))
    assert read["ranks"] == {"H_L": 51, "H_o": 24, "H_f": 36}
    assert read["dims"] == [8, 6, 3]
    assert read["bounds"][0]["value"] == 60
