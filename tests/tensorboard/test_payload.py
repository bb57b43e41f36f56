"""Test the charts' data against counts and tables computed one number at a time."""

import base64
import json
import re
import struct

import numpy as np
import pytest

from rankmon._util.strict_json import json_numbers
from rankmon._util.tags import is_rankmons
from rankmon.report.html import standalone_page
from rankmon.runs.read import read_runs
from rankmon.runs.series import ArraySeries, RunSeries, ScalarSeries
from rankmon.tensorboard import payload
from rankmon.writers.base import Record
from rankmon.writers.tensorboard import TensorBoardWriter
from refusals import refused

NAN, INF = float("nan"), float("inf")
EMPTY = ArraySeries(np.zeros(0, np.int64), ())
LETTERS = {np.dtype("<u2"): "H", np.dtype("<u4"): "I", np.dtype("<f4"): "f"}


def scalars(*values: float, steps: list[int] | None = None) -> ScalarSeries:
    steps = list(range(len(values))) if steps is None else steps
    return ScalarSeries(np.array(steps, np.int64), np.array(values, np.float64))


def arrays(*vectors: list[float], steps: list[int] | None = None) -> ArraySeries:
    steps = list(range(len(vectors))) if steps is None else steps
    values = tuple(np.array(vector, np.float64) for vector in vectors)
    return ArraySeries(np.array(steps, np.int64), values)


def sent(made):
    """As it arrives: through JSON as the standard has it."""
    return json.loads(json.dumps(made, allow_nan=False))


def unpacked(text: str, letter: str) -> list[float]:
    """Little-endian numbers, read by `struct`."""
    content = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(content) // struct.calcsize(letter)}{letter}", content))


def rows(text: str, letter: str, width: int) -> list[list[float]]:
    numbers = unpacked(text, letter)
    return [numbers[at : at + width] for at in range(0, len(numbers), width)]


# Counts


def counts_by_step(made: payload.Json) -> list[list[float]]:
    """161 counts a step; they are sent a row a place of the slider."""
    letter = {8: "B", 16: "H", 32: "I"}[made["bits"]]
    return [
        list(column)
        for column in zip(*rows(made["counts"], letter, len(made["steps"])), strict=True)
    ]


def test_counts_are_those_of_eigenvalues_above_each_cut():
    rng = np.random.default_rng(0)
    logs = [np.sort(rng.uniform(-14, 3, size))[::-1] for size in (0, 1, 7, 40)]
    cuts = [1e-5, 3.7e-6, 0.02, 1.4e-9]
    made = sent(payload.counts(arrays(*logs), scalars(*cuts)))
    assert (made["steps"], made["bits"]) == ([0, 1, 2, 3], 8)
    table = counts_by_step(made)
    assert len(table) == 4
    for row, log, cut in zip(table, logs, cuts, strict=True):
        eigenvalues = [10.0**value for value in log]
        for j, count in enumerate(row):
            moved = cut * 10 ** ((j - 80) / 10)
            assert count == sum(eigenvalue > moved for eigenvalue in eigenvalues), (j, cut)


def test_an_eigenvalue_at_the_cut_is_not_above_it():
    (row,) = counts_by_step(payload.counts(arrays([0.0, -1.0]), scalars(1.0)))
    assert [row[j] for j in (69, 70, 79, 80, 81)] == [2, 1, 1, 0, 0]
    assert [row[j] for j in (0, 160)] == [2, 0]


def test_counts_are_made_where_spectrum_and_cut_were_logged():
    spectra = arrays([1.0], [2.0], [3.0], steps=[0, 10, 30])
    made = payload.counts(spectra, scalars(1.0, 1.0, 1.0, steps=[10, 20, 30]))
    assert made["steps"] == [10, 30]
    firsts = [sum(row) for row in counts_by_step(made)]
    assert firsts == [100, 110]  # above 10^2 lie positions 0..99


@pytest.mark.parametrize("cut", [NAN, INF, -INF, 0.0, -1.0])
def test_no_count_beside_a_cut_that_is_none(cut):
    made = sent(payload.counts(arrays([1.0, 0.0], [1.0, 0.0]), scalars(cut, 1.0)))
    broken, whole = counts_by_step(made)
    assert set(broken) == {0}
    assert max(whole) == 2


def test_no_count_of_a_spectrum_with_nan():
    (row,) = counts_by_step(payload.counts(arrays([1.0, NAN]), scalars(1.0)))
    assert set(row) == {0}


@pytest.mark.parametrize(
    ("size", "bits"), [(255, 8), (256, 16), (65_535, 16), (65_536, 32), (70_001, 32)]
)
def test_counts_have_as_few_bits_as_fit(size, bits):
    made = sent(payload.counts(arrays([0.0] * size, [0.0]), scalars(1e-3, 1e-3)))
    assert made["bits"] == bits
    assert [row[0] for row in counts_by_step(made)] == [size, 1]


def test_counts_of_a_run_leave_out_parts_without_cuts():
    made = payload.counts_of_run(
        {"H_L": arrays([0.0]), "old": arrays([0.0]), "none": EMPTY},
        {"H_L": scalars(1.0), "none": scalars()},
    )
    assert (made["per_decade"], made["lowest"]) == (10, -80)
    assert set(made["parts"]) == {"H_L", "none"}
    assert made["parts"]["none"] == {"steps": [], "bits": 8, "counts": ""}


# One spectrum


@pytest.mark.parametrize(
    ("asked", "step"), [(-5, 0), (4, 0), (6, 10), (10, 10), (26, 40), (10**18, 40)]
)
def test_the_spectrum_of_the_nearest_step(asked, step):
    logs = {0: [2.0, 1.5], 10: [0.1], 40: [3.0, -7.25, -30.0]}
    series = arrays(*logs.values(), steps=list(logs))
    made = sent(payload.spectrum(series, scalars(0.01, steps=[10]), scalars(6, steps=[40]), asked))
    assert made["step"] == step
    assert unpacked(made["values"], "f") == [np.float32(value) for value in logs[step]]
    assert made["cut"] == (pytest.approx(-2) if step == 10 else None)
    assert made["zeros"] == (6 if step == 40 else None)


@pytest.mark.parametrize("cut", [NAN, INF, 0.0, -1.0])
def test_a_spectrum_beside_a_cut_that_is_none(cut):
    made = sent(payload.spectrum(arrays([]), scalars(cut), scalars(NAN), 0))
    assert made == {"step": 0, "values": "", "negative": None, "zeros": None, "cut": None}


def test_a_spectrum_with_nothing_beside_it():
    made = payload.spectrum(arrays([1.0]), None, None, 0)
    alone = {"negative": None, "zeros": None, "cut": None}
    assert made == {"step": 0, "values": "AACAPw==", **alone}


def test_the_negative_eigenvalues_of_a_step():
    """A run that went on with a later version has signs at its later steps only."""
    series, negative = arrays([1.0, 0.5], [1.0, 0.5], [2.0]), arrays([0.5], [], steps=[1, 2])
    made = [sent(payload.spectrum(series, None, None, step, negative)) for step in range(3)]
    assert made[0]["negative"] is None
    assert unpacked(made[1]["negative"], "f") == [0.5]
    assert made[2]["negative"] == ""
    run = RunSeries("run", arrays={"spectrum/H_L": series, "spectrum_negative/H_L": negative})
    whole = sent(payload.whole(run))
    assert whole["overview"]["spectra"] == ["H_L"]
    assert whole["spectra"]["H_L"] == made


# Heat maps


def test_a_heat_map_of_few_steps_is_whole():
    logs = [[3.0, -1.0], [], [2.0, 1.0, -9.5]]
    cuts = scalars(0.1, 0.001, steps=[5, 6])
    made = sent(payload.heatmap(arrays(*logs, steps=[4, 5, 6]), cuts))
    assert made["steps"] == made["logged"] == [4, 5, 6]
    assert made["indices"] == [0, 1, 2]
    assert made["cut"] == ["NaN", pytest.approx(-1), pytest.approx(-3)]
    np.testing.assert_array_equal(
        rows(made["values"], "f", 3), [[3.0, -1.0, NAN], [NAN] * 3, [2.0, 1.0, -9.5]]
    )


def test_a_heat_map_of_many_is_thinned_and_keeps_first_and_last():
    rng = np.random.default_rng(1)
    logs = [rng.uniform(-9, 1, 1000 if step == 0 else int(rng.integers(1, 1000))).tolist()
            for step in range(950)]  # fmt: skip
    steps = [7 * at for at in range(950)]
    made = sent(payload.heatmap(arrays(*logs, steps=steps), None))
    assert made["logged"] == steps
    assert (len(made["steps"]), len(made["indices"])) == (400, 300)
    assert (made["steps"][0], made["steps"][-1]) == (0, steps[-1])
    assert (made["indices"][0], made["indices"][-1]) == (0, 999)
    assert made["cut"] == ["NaN"] * 400
    for step, row in zip(made["steps"], rows(made["values"], "f", 300), strict=True):
        there = dict(enumerate(logs[step // 7]))
        expected = np.array([there.get(index, NAN) for index in made["indices"]], np.float32)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("cut", [NAN, INF, 0.0, -1.0])
def test_a_heat_map_beside_a_cut_that_is_none(cut):
    assert payload.heatmap(arrays([1.0]), scalars(cut))["cut"] == ["NaN"]


@pytest.mark.parametrize("series", [EMPTY, arrays([], [])], ids=["no steps", "no eigenvalues"])
def test_a_heat_map_of_nothing(series):
    made = sent(payload.heatmap(series, None))
    assert made["steps"] == series.steps.tolist()
    assert (made["indices"], made["values"]) == ([], "")


@pytest.mark.parametrize("count", [0, 1, 2, 399, 400, 401, 799, 1000, 12_345])
def test_thinning_is_even(count):
    kept = payload.thinned(count, 400).tolist()
    assert len(kept) == min(count, 400)
    assert kept[:1] + kept[-1:] == ([0, count - 1] if count else [])
    gaps = set(np.diff(kept))
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


# Numbers and texts


def test_numbers_that_json_does_not_have_are_words():
    made = json_numbers([0, 1.5, NAN, INF, -INF, -0.0, 1e300])
    assert json.dumps(made, allow_nan=False) == (
        '[0.0, 1.5, "NaN", "Infinity", "-Infinity", -0.0, 1e+300]'
    )
    assert json_numbers([]) == []


def test_the_value_at_a_step():
    series = scalars(1.0, NAN, 3.0, steps=[0, 5, 10])
    found = [payload.value_at(series, step) for step in (-1, 0, 4, 5, 10, 11)]
    np.testing.assert_array_equal(found, [NAN, 1.0, NAN, NAN, 3.0, NAN])
    assert np.isnan(payload.value_at(scalars(), 0))
    assert np.isnan(payload.value_at(None, 0))


def test_scalars_whose_tags_begin_as_asked():
    series = {tag: scalars(1.0, NAN) for tag in ("loss", "rank/H_L", "rank_low/H_L", "my_rank/x")}
    made = sent(payload.scalars(series, ["rank/", "loss"]))
    assert made == {tag: {"steps": [0, 1], "values": [1.0, "NaN"]} for tag in ("loss", "rank/H_L")}
    assert set(payload.scalars(series, [""])) == set(series)
    assert payload.scalars(series, []) == {}


def test_texts_are_html_without_scripts():
    card = "**bold** <script>alert(1)</script> [x](javascript:alert(2)) <b onclick='y'>läuft</b>"
    made = sent(payload.texts({"rankmon/card": {3: "later", 0: card}}))
    (first, second) = made["rankmon/card"]
    assert (first["step"], second["step"]) == (0, 3)
    assert "<strong>bold</strong>" in first["html"]
    assert "läuft" in first["html"]
    for word in ("<script", "<b ", 'href="javascript'):
        assert word not in first["html"]
    assert "later" in second["html"]


# Runs


@pytest.mark.parametrize(
    ("tag", "is_own"),
    [
        ("rank/H_L", True),
        ("rank/H_L/median", True),
        ("rank_weights/a/b", True),
        ("rank_features/relu", True),
        ("stable_rank/W", True),
        ("det_sign/W", True),
        ("lemma8/centered", True),
        ("loss", False),
        ("accuracy", False),
        ("ranking/ndcg", False),
        ("my/rank/x", False),
        ("rank", False),
        ("monitor/fps", False),
    ],
)
def test_whose_run_it_is(tmp_path, tag, is_own):
    """The tab shows the runs that the command `rankmon report` does."""
    assert is_rankmons(["loss", tag]) == is_own
    with TensorBoardWriter(tmp_path) as writer:
        writer.write(Record(0, 1, 0.0, {"loss": 1.0, tag: 2.0}, {}))
    if is_own:
        assert len(read_runs(tmp_path)) == 1
    else:
        with refused(ValueError, "runs"):
            read_runs(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        Record(0, 1, 0.0, {}, {"spectrum/H_L": np.ones(2)}),
        Record(0, 1, 0.0, {"mine": 1.0}, {}, {"rankmon/card": "what is measured"}),
    ],
    ids=["spectra", "a card"],
)
def test_spectra_or_a_card_alone_are_rankmons(tmp_path, record):
    with TensorBoardWriter(tmp_path) as writer:
        writer.write(record)
    assert len(read_runs(tmp_path)) == 1
    assert is_rankmons([*record.scalars, *record.arrays, *record.texts])


def test_the_overview_of_a_run():
    made = payload.overview(
        "<i>a</i>/b",
        {"rank/H_o": 0, "loss": 0},
        ["mine", "spectrum/H_o", "spectrum/H_L", "singular_values/w_10", "singular_values/w_2"],
        ["x"],
        1.8e9,
    )
    assert made == {
        "name": "<i>a</i>/b",
        "scalars": ["loss", "rank/H_o"],
        "spectra": ["H_L", "H_o"],
        "weights": ["w_2", "w_10"],
        "texts": ["x"],
        "latest": 1.8e9,
        "hparams": {},
    }


def test_a_whole_run_is_its_payloads():
    spectra = arrays([1.0, -3.0], [2.0], steps=[0, 5])
    run = RunSeries(
        name='"ä"',
        scalars={
            "rank/H_L": scalars(1, NAN, steps=[0, 5]),
            "tolerance/H_L": scalars(0.1, 0.0, steps=[0, 5]),
            "spectrum_zeros/H_L": scalars(3, 4, steps=[0, 5]),
            "gap/H_L": scalars(INF, -INF, steps=[0, 5]),
        },
        arrays={"spectrum/H_L": spectra, "spectrum/old": spectra, "mine": arrays([1.0])},
        texts={"rankmon/card": {0: "text"}},
    )
    made = sent(payload.whole(run))
    assert made["overview"]["name"] == '"ä"'
    assert made["overview"]["spectra"] == ["H_L", "old"]
    assert set(made["scalars"]) == set(run.scalars)
    assert made["scalars"]["gap/H_L"]["values"] == ["Infinity", "-Infinity"]
    assert set(made["counts"]["parts"]) == {"H_L"}
    assert [one["step"] for one in made["spectra"]["H_L"]] == [0, 5]
    assert [one["zeros"] for one in made["spectra"]["H_L"]] == [3, 4]
    assert [one["cut"] for one in made["spectra"]["H_L"]] == [pytest.approx(-1), None]
    assert [unpacked(one["values"], "f") for one in made["spectra"]["old"]] == [[1.0, -3.0], [2.0]]
    assert made["heatmaps"]["H_L"] == sent(payload.heatmap(spectra, run.scalars["tolerance/H_L"]))
    assert set(made["heatmaps"]) == {"H_L", "old"}
    assert "text" in made["texts"]["rankmon/card"][0]["html"]


def test_a_long_run_as_a_whole_keeps_no_more_spectra_than_a_heat_map():
    spectra = arrays(*([1.0] for _ in range(1000)))
    made = payload.whole(RunSeries("long", arrays={"spectrum/H_L": spectra}))
    kept = [one["step"] for one in made["spectra"]["H_L"]]
    assert kept == made["heatmaps"]["H_L"]["steps"]
    assert (len(kept), kept[0], kept[-1]) == (400, 0, 999)


def test_a_run_of_nothing():
    made = sent(payload.whole(RunSeries(".")))
    nothing = {"scalars": [], "spectra": [], "weights": [], "texts": [], "latest": None}
    nothing["hparams"] = {}
    assert made["overview"] == {"name": "."} | nothing
    assert made["counts"]["parts"] == made["spectra"] == made["texts"] == {}


# The page that needs no server

HOSTILE = '</script><img src=x onerror=window.pwned=1> "Ränge"'


def ranked(name: str) -> RunSeries:
    return RunSeries(name, scalars={"rank/H_L": scalars(3, 2)})


@pytest.mark.parametrize("runs", [[], [ranked("mine"), ranked(HOSTILE)]], ids=["none", "two"])
def test_what_modules_import_is_in_the_page(runs):
    page = standalone_page(runs)
    modules = json.loads(re.search(r'type="importmap">(.*?)</script>', page)[1])["imports"]
    texts = [base64.b64decode(address.partition(",")[2]).decode() for address in modules.values()]
    texts.append(re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)[1])
    imported = {name for text in texts for name in re.findall(r'\bfrom "([^"]+)"', text)}
    assert imported <= set(modules)
    assert {"rankmon/app.js", "rankmon/uPlot.esm.min.js"} <= imported


def test_no_name_ends_the_data():
    page = standalone_page([ranked(HOSTILE)])
    data = re.search(r'id="runs">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)[0]["overview"]["name"] == HOSTILE
