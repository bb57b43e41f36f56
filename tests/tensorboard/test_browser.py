"""The Ranks tab in a real Chromium over a real TensorBoard, against its reader and NumPy."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from functools import cache

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from chromium import (
    agrees,
    attributes,
    chart,
    click,
    hover,
    leaving,
    pick,
    press,
    read,
    saved,
    served,
    show,
    text,
    texts,
)
from generated_logs import record, write_run
from paths import REFERENCE
from rankmon._util.tags import HESSIAN_PARTS
from rankmon.writers.base import Record
from rankmon.writers.tensorboard import TensorBoardWriter
from reading import legacy_events
from tab_browser import open_tab, server, until

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror=window.pwned=1> "Ränge" \'%2F'
LAYER = "<b>blöck</b>/'0'"
PROBES, EIGENVALUES = 12, 40
SELECTED = "return rankmonApp.runs.map((run) => run.name)"
CUT = "[data-testid=cut]"
# The legend and the index of the point, once the pointer is on one.
POINTED = """
    const { host, uplot } = rankmonCharts.get("ranks"), { idx, left } = uplot.cursor;
    return left >= 0 && idx !== null && [host.querySelector(".legend").innerText, idx];
"""
FIRST_CHOICES = {"hidden": [], "closed": [], "median": False, "logX": False, "theme": "auto"}
FIRST_CHOICES |= {"axis": "step", "layers": "", "split": False}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Two runs of one network and one of odd names; and a server over them."""
    logs = tmp_path_factory.mktemp("tab") / "logs"
    for seed, name in enumerate(("seed_0", "seed_1")):
        write_run(logs / name, PROBES, EIGENVALUES, seed)
    with TensorBoardWriter(logs / HOSTILE) as writer:
        scalars = {f"rank_weights/{LAYER}": 3, f"stable_rank/{LAYER}": 2.5, "rank/H_L": 7}
        texts = {"rankmon/alerts": f"rank of {LAYER}: <script>window.pwned=1</script>"}
        writer.write(Record(0, 1, 1.8e9, scalars=scalars, arrays={}, texts=texts))
    with served(logs, "--reload_interval=1") as address:
        yield logs, address


@pytest.fixture(scope="module")
def reference():
    with served(REFERENCE) as address:
        yield address


def opened(driver, address, *runs):
    """The tab, as a reader finds it who has just come, with these runs selected."""
    open_tab(driver, address)
    until(driver, "return window.rankmonApp?.status.textContent.startsWith('Read')")
    driver.execute_script(f"return rankmonApp.choose({json.dumps(FIRST_CHOICES)})")
    select(driver, *runs)


def select(driver, *runs):
    click(driver, "[data-testid=runs-none]")
    until(driver, f"{SELECTED}.length === 0")
    for name in runs:
        click(driver, f"li[data-run={json.dumps(name, ensure_ascii=False)}] input")
    until(driver, f"{SELECTED}.sort().join('|') === arguments[0]", "|".join(sorted(runs)))


def log(folder):
    """TensorBoard's own reader of what lies in the folder now."""
    return _log(folder, sum(path.stat().st_size for path in folder.iterdir()))


@cache
def _log(folder, _size):
    return legacy_events(folder)


def scalars(folder, tag):
    """Steps and values as TensorBoard's own reader has them."""
    reader = log(folder)
    if tag in reader.Tags()["scalars"]:
        events = [(event.step, event.value) for event in reader.Scalars(tag)]
    else:
        events = [(e.step, float(e.tensor_proto.float_val[0])) for e in reader.Tensors(tag)]
    return [step for step, _ in events], [value for _, value in events]


def spectra(folder, part):
    """log10 of the absolute eigenvalues by step."""
    tensors = log(folder).Tensors(f"spectrum/{part}/values")
    return {e.step: np.frombuffer(e.tensor_proto.tensor_content, "<f4") for e in tensors}


def counted(folder, part, decades):
    """The rank at each step at a cut that many decades above the logged one."""
    steps, cuts = scalars(folder, f"tolerance/{part}")
    logs = spectra(folder, part)
    return steps, [
        int((logs[step].astype(float) > np.log10(cut) + decades).sum())
        for step, cut in zip(steps, cuts, strict=True)
    ]


def test_the_tab_is_one_of_tensorboards(driver, reference):
    driver.get(reference)
    tab = "[role=tab] [data-plugin-id=ranks]"
    assert text(driver, tab).strip().lower() == "ranks"
    click(driver, tab)
    until(driver, "return document.querySelector('iframe') !== null")


def test_curves_carry_the_logged_values(driver, reference):
    opened(driver, reference, "linear_teacher")
    lines = chart(driver, "ranks")
    folder = REFERENCE / "linear_teacher"
    names = {"H_L": "H_L", "H_o": "H_o", "H_f": "H_f", "H_f_fixed": "H_f, residual fixed"}
    for part, label in names.items():
        agrees(lines[label], scalars(folder, f"rank/{part}"))
        agrees(lines[f"{label}, theory"], scalars(folder, f"rank_theory/{part}"))
        agrees(lines[f"{label}, low"], scalars(folder, f"rank_low/{part}"))
        agrees(lines[f"{label}, high"], scalars(folder, f"rank_high/{part}"))
        assert lines[f"{label}, theory"][0] == "markers"
    agrees(lines["loss"], scalars(folder, "loss"))


def test_several_runs_are_compared(driver, generated):
    logs, address = generated
    opened(driver, address, "seed_0", "seed_1")
    lines = chart(driver, "ranks-H_f")
    expected = {run: scalars(logs / run, "rank/H_f") for run in ("seed_0", "seed_1")}
    for run, series in expected.items():
        agrees(lines[run], series)
    pick(driver, "spread", "median and range")
    lines = chart(driver, "ranks")
    steps = expected["seed_0"][0]
    values = np.array([series for _, series in expected.values()])
    agrees(lines["H_f"], (steps, np.median(values, 0).tolist()))
    agrees(lines["H_f, low"], (steps, values.min(0).tolist()))
    agrees(lines["H_f, high"], (steps, values.max(0).tolist()))


def test_the_slider_recounts_what_was_logged(driver, generated):
    logs, address = generated
    opened(driver, address, "seed_0")
    label = "return document.querySelector('[data-testid=cut-label]').textContent"
    for keys, decades in (
        ([Keys.ARROW_RIGHT] * 3, 0.3),
        ([Keys.ARROW_LEFT] * 30, -2.7),
        ([Keys.HOME], -8.0),
        ([Keys.END], 8.0),
        ([Keys.PAGE_DOWN] * 2, None),
    ):
        press(driver, CUT, *keys)
        place = read(driver, "return Number(document.querySelector(arguments[0]).value)", CUT)
        moved = (place - 80) / 10
        assert decades is None or moved == pytest.approx(decades)
        until(driver, f"{label}.startsWith(arguments[0])", f"× 10^{moved:.1f}")
        lines = chart(driver, "ranks")
        for part in HESSIAN_PARTS:
            name = "H_f, residual fixed" if part == "H_f_fixed" else part
            agrees(lines[name], counted(logs / "seed_0", part, moved))
            low, high = (np.clip(moved + by, -8, 8) for by in (1, -1))
            agrees(lines[f"{name}, low"], counted(logs / "seed_0", part, low))
            agrees(lines[f"{name}, high"], counted(logs / "seed_0", part, high))
    click(driver, "[data-testid=cut-reset]")
    until(driver, f"{label}.startsWith('as logged')")
    agrees(chart(driver, "ranks")["H_L"], scalars(logs / "seed_0", "rank/H_L"))


def test_the_slider_recounts_the_reference(driver, reference):
    opened(driver, reference, "linear_teacher")
    press(driver, CUT, *[Keys.ARROW_LEFT] * 15)
    until(driver, "return rankmonApp.counts.has('linear_teacher') && rankmonApp.position === 65")
    until(driver, "return rankmonCharts.get('ranks').drawn.lines[2].values.length === 41")
    lines = chart(driver, "ranks")
    for part in ("H_L", "H_o", "H_f"):
        agrees(lines[part], counted(REFERENCE / "linear_teacher", part, -1.5))


def test_runs_are_selected_and_searched(driver, generated):
    _, address = generated
    opened(driver, address, HOSTILE, "seed_0", "seed_1")
    names = SELECTED
    search = "[data-testid=run-search]"
    press(driver, search, "SEED")
    listed = "[...document.querySelectorAll('li[data-run]')].filter((row) => !row.hidden)"
    assert read(driver, f"return {listed}.map((row) => row.checkVisibility())") == [True, True]
    click(driver, "[data-testid=runs-none]")
    until(driver, f"{names}.length === 1")  # the one that was not listed
    press(driver, search, *[Keys.BACKSPACE] * 4)
    row = "li[data-run=seed_1]"
    hover(driver, row, f"return document.querySelector('{row}').matches(':hover')")
    click(driver, f"{row} button")
    until(driver, f"{names}.join() === 'seed_1'")
    click(driver, "[data-testid=runs-none]")
    until(driver, "return rankmonApp.empty.textContent.includes('No run is selected')")
    click(driver, "[data-testid=runs-all]")
    until(driver, f"{names}.length === 3")


def test_spectra_with_the_cut(driver, generated):
    logs, address = generated
    opened(driver, address, "seed_1")
    chart(driver, "heatmap")
    pick(driver, "spectrum-part", "H_o")
    until(driver, "return rankmonCharts.get('spectrum')?.spec.title.includes('H_o')")
    chart(driver, "spectrum")
    press(driver, "[data-testid=spectrum-step]", Keys.HOME, *[Keys.ARROW_RIGHT] * 4)
    until(driver, "return rankmonCharts.get('spectrum').spec.title.includes('step 40')")
    lines = chart(driver, "spectrum")
    _, indices, values = lines["log10 |eigenvalue|"]
    logged = spectra(logs / "seed_1", "H_o")[40]
    assert indices == list(range(1, EIGENVALUES + 1))
    np.testing.assert_array_equal(np.float32(values), logged)
    assert set(np.round(lines["cut"][2], 6)) == {-10.0}
    heat = chart(driver, "heatmap")
    agrees(heat["rank at the cut"], scalars(logs / "seed_1", "rank/H_o"))


def test_negative_eigenvalues_are_drawn_apart(driver, generated):
    logs, address = generated
    opened(driver, address, "seed_1")
    chart(driver, "heatmap")
    pick(driver, "spectrum-part", "H_L")
    until(driver, "return rankmonCharts.get('spectrum')?.spec.title.includes('H_L')")
    chart(driver, "spectrum")
    press(driver, "[data-testid=spectrum-step]", Keys.HOME, *[Keys.ARROW_RIGHT] * 3)
    until(driver, "return rankmonCharts.get('spectrum').spec.title.includes('step 30')")
    events = log(logs / "seed_1").Tensors("spectrum_negative/H_L/values")
    (logged,) = [e.tensor_proto.tensor_content for e in events if e.step == 30]
    expected = np.frombuffer(logged, "<f4")
    assert 0 < len(expected) < EIGENVALUES
    _, indices, values = chart(driver, "spectrum")["negative eigenvalues only"]
    assert [value for value in values if value is not None] == expected.astype(float).tolist()
    assert indices[: len(expected)] == list(range(1, len(expected) + 1))
    title = read(driver, "return rankmonCharts.get('spectrum').spec.title")
    assert f"{len(expected)} negative" in title


def test_a_spectrum_of_an_earlier_version_has_no_signs(driver, reference):
    opened(driver, reference, "relu_mnist")
    show(driver, "spectrum")
    lines = chart(driver, "spectrum")
    signs = "spectrum_negative/H_L/values" in log(REFERENCE / "relu_mnist").Tags()["tensors"]
    assert ("negative eigenvalues only" in lines) == signs


def estimated_run(folder, *, known):
    """Ranks of which bounds are known at some steps, and an eigenvalue or only its interval."""
    with TensorBoardWriter(folder) as writer:
        for at in range(6):
            scalars = {
                "rank/H_o": 300.0,
                "rank_low/H_o": 300.0,
                "rank_high/H_o": 300.0,
                "rank/H_L": 1500.0 if at in known else float("nan"),
                "rank_low/H_L": 1024.0 + at,
                "rank_high/H_L": 19_968.0,
                "eigenvalue_max/H_L": float("nan") if known else 8.0 - at,
                "eigenvalue_max_threshold/H_L": float("inf") if at == 0 else 4.0 / at,
                "interval_low/eigenvalue_max/H_L": 7.5 - at,
                "interval_high/eigenvalue_max/H_L": 9.0 - at,
                "rank_0.01/H_L": 13.0,
                "interval_low/rank_0.01/H_L": 9.0,
                "interval_high/rank_0.01/H_L": 19.0,
            }
            writer.write(Record(10 * at, 1, 1.8e9 + at, scalars=scalars, arrays={}))


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    logs = tmp_path_factory.mktemp("estimated") / "logs"
    estimated_run(logs / "bounds", known=())
    estimated_run(logs / "mixed", known=(2, 3))
    with served(logs) as address:
        yield logs, address


def test_an_unknown_rank_is_drawn_as_an_interval(driver, estimated):
    logs, address = estimated
    opened(driver, address, "bounds")
    lines = chart(driver, "ranks")
    assert all(value is None for value in lines["H_L"][2])
    agrees(lines["H_L, low"], scalars(logs / "bounds", "rank_low/H_L"))
    agrees(lines["H_L, high"], scalars(logs / "bounds", "rank_high/H_L"))
    agrees(lines["H_o"], scalars(logs / "bounds", "rank/H_o"))
    legend, _ = hover(driver, "[data-testid=chart-ranks] .u-over", POINTED, share=0.005)
    assert re.search(r"H\s*L\W*1,024–19,968", legend)
    assert re.search(r"H\s*o\W*300\b", legend)
    # Bars in the color of the part, in the exported picture too.
    drawing = saved(driver, "ranks", "svg")
    root = ElementTree.fromstring(drawing)
    paths = [p.get("d") for p in root.iter("{http://www.w3.org/2000/svg}path")
             if p.get("stroke") == "#0072b2"]  # fmt: skip
    assert any(path.count("M") == 3 * 6 for path in paths)  # a bar and two ends at each step
    # The table of the chart has no rank.
    table = list(csv.DictReader(io.StringIO(saved(driver, "ranks", "csv").decode())))
    assert {row["H_L"] for row in table} == {""}


def test_unknown_ranks_of_several_runs(driver, estimated):
    logs, address = estimated
    opened(driver, address, "bounds", "mixed")
    assert "2.5 … 4" in text(driver, "[data-testid=overview-mixed]")  # the eigenvalue, and alone
    until(driver, "return rankmonCharts.get('ranks-H_L')?.drawn?.bands?.length === 2")
    lines = chart(driver, "ranks-H_L")
    steps, lows = scalars(logs / "mixed", "rank_low/H_L")
    assert [value for value in lines["mixed"][2] if value is not None] == [1500, 1500]
    unknown = [at for at in range(6) if at not in (2, 3)]
    agrees(lines["mixed, low"], ([steps[at] for at in unknown], [lows[at] for at in unknown]))
    pick(driver, "spread", "median and range")
    lines = chart(driver, "ranks")
    assert all(value is None for value in lines["H_L"][2])  # no median of unknown ranks
    agrees(lines["H_L, low"], (steps, lows))
    agrees(lines["H_L, high"], (steps, [19_968.0] * 6))


def test_curvature_with_and_without_intervals(driver, generated, estimated):
    logs, address = estimated
    opened(driver, address, "bounds")
    show(driver, "curvature")
    lines = chart(driver, "curvature-eigenvalue_max")
    folder, tag = logs / "bounds", "eigenvalue_max/H_L"
    agrees(lines["H_L"], scalars(folder, tag))
    agrees(lines["H_L, low"], scalars(folder, f"interval_low/{tag}"))
    agrees(lines["H_L, high"], scalars(folder, f"interval_high/{tag}"))
    assert lines["stability threshold"][2] == [None, *(pytest.approx(4 / at) for at in range(1, 6))]
    assert set(chart(driver, "curvature-rank_0.01")) == {"H_L", "H_L, low", "H_L, high"}
    assert "curvature-trace" not in read(driver, "return [...rankmonCharts.keys()]")
    logs, address = generated
    opened(driver, address, "seed_0")
    show(driver, "curvature")
    lines = chart(driver, "curvature-eigenvalue_min")
    assert set(lines) == {"H_L", "H_o", "H_f", "H_f, residual fixed"}
    agrees(lines["H_f"], scalars(logs / "seed_0", "eigenvalue_min/H_f"))
    weights = read(driver, "return [...rankmonCharts.keys()].filter((k) => /^weights/.test(k))")
    assert not [name for name in weights if "H_" in name]


def test_weights_have_a_chart_each(driver, reference):
    opened(driver, reference, "relu_mnist")
    folder = REFERENCE / "relu_mnist"
    for layer in range(4):
        lines = chart(driver, f"weights-{layer}")
        for tag, label in (("rank_weights", "rank"), ("stable_rank",) * 2, ("effective_rank",) * 2):
            agrees(lines[label.replace("_", " ")], scalars(folder, f"{tag}/{layer}"))
    lines = chart(driver, "determinants")
    steps, sizes = scalars(folder, "log_abs_det/0")
    _, signs = scalars(folder, "det_sign/0")
    changed = [at for at in range(1, len(signs)) if signs[at] != signs[at - 1]]
    assert [steps[at] for at in changed] == [400, 600]
    agrees(lines["layer 0"], (steps, sizes))
    agrees(
        lines["layer 0, sign changes"],
        ([steps[at] for at in changed], [sizes[at] for at in changed]),
    )


RANKS_OF_LAYERS = {
    step: np.random.default_rng(step).integers(1, 64, 40) for step in range(0, 50, 10)
}


@pytest.fixture(scope="module")
def many_layers(tmp_path_factory):
    """A run of forty layers, whose curves are summaries."""
    logs = tmp_path_factory.mktemp("layers") / "logs"
    with TensorBoardWriter(logs / "deep") as writer:
        for step, ranks in RANKS_OF_LAYERS.items():
            scalars = {f"rank_weights/block_{i}": float(rank) for i, rank in enumerate(ranks)}
            for name in ("min", "median", "max"):
                scalars[f"layers/rank_weights/{name}"] = float(getattr(np, name)(ranks))
            writer.write(Record(step, 1, 1.8e9 + step, scalars=scalars, arrays={}))
    with served(logs) as address:
        yield logs, address


def test_many_layers_have_one_chart_for_each_family(driver, many_layers):
    logs, address = many_layers
    opened(driver, address, "deep")
    lines = chart(driver, "layers-rank_weights")
    label = "median"
    for shown, name in ((label, "median"), (f"{label}, low", "min"), (f"{label}, high", "max")):
        agrees(lines[shown], scalars(logs / "deep", f"layers/rank_weights/{name}"))
    table = mapped(driver, "weights-rank_weights")
    assert list(table) == ["step", *(f"block_{i}" for i in range(40))]
    assert [int(step) for step in table["step"]] == list(RANKS_OF_LAYERS)
    for i in range(40):  # TensorBoard has an array in place of their curves
        shown = [float(rank) for rank in table[f"block_{i}"]]
        assert shown == [ranks[i] for ranks in RANKS_OF_LAYERS.values()]
    press(driver, "[data-testid=layer-filter]", "BLOCK_1")
    until(driver, "return rankmonCharts.get('weights-rank_weights').spec.rowNames.length === 11")
    click(driver, "[data-testid=split]")
    ranks = [float(ranks[10]) for ranks in RANKS_OF_LAYERS.values()]
    agrees(chart(driver, "weights-block_10")["rank"], (list(RANKS_OF_LAYERS), ranks))
    driver.execute_script("rankmonApp.choose({ layers: '', split: false })")


def mapped(driver, name):
    """The rows of a map of layers by steps, and the steps, as the chart's CSV has them."""
    table = read(driver, "return rankmonCharts.get(arguments[0]).csv()", name)
    head, *rows = csv.reader(io.StringIO(table))
    return dict(zip(head, zip(*rows, strict=True), strict=True))


def test_lemma8_says_what_is_met(driver, reference):
    opened(driver, reference, "gradient_flow/descent", "gradient_flow/flow")
    show(driver, "lemma8")
    both = chart(driver, "lemma8-1-measured")
    for run in ("descent", "flow"):
        folder = REFERENCE / "gradient_flow" / run
        agrees(both[f"gradient_flow/{run}"], scalars(folder, "log_abs_det/1"))
        predicted = scalars(folder, "lemma8/predicted_log_abs_det/1")
        agrees(both[f"gradient_flow/{run}, predicted"], predicted)
    rows = "[data-testid=section-lemma8] tbody tr"
    said = dict(zip(attributes(driver, rows, "data-testid"), texts(driver, rows), strict=True))
    assert said["lemma8-run-gradient_flow/flow"].count("✓ met") == 3
    # Steps of a finite size unbalance the weights.
    assert "✗" in said["lemma8-run-gradient_flow/descent"]
    select(driver, "gradient_flow/flow")
    show(driver, "lemma8")
    lines = chart(driver, "lemma8-1")
    folder = REFERENCE / "gradient_flow" / "flow"
    agrees(lines["measured"], scalars(folder, "log_abs_det/1"))
    agrees(lines["predicted"], scalars(folder, "lemma8/predicted_log_abs_det/1"))


def test_hovering_shows_exact_values(driver, generated):
    logs, address = generated
    opened(driver, address, "seed_0")
    chart(driver, "ranks")
    legend, shown = hover(driver, "[data-testid=chart-ranks] .u-over", POINTED)
    for part in ("H_L", "H_o"):
        steps, values = scalars(logs / "seed_0", f"rank/{part}")
        letters = r"\s*".join(part.split("_"))
        assert re.search(rf"{letters}\W*{int(values[shown])}\b", legend)
    assert re.search(rf"step\W*{steps[shown]}\b", legend)


def test_charts_are_saved(driver, generated):
    logs, address = generated
    opened(driver, address, "seed_0")
    chart(driver, "ranks")
    table = list(csv.DictReader(io.StringIO(saved(driver, "ranks", "csv").decode())))
    steps, values = scalars(logs / "seed_0", "rank/H_L")
    assert [int(row["step"]) for row in table] == steps
    assert [float(row["H_L"]) for row in table] == values
    root = ElementTree.fromstring(saved(driver, "ranks", "svg"))
    words = {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Ranks", "H", "L", "o", "f", ", residual fixed", "loss", "step", "rank"} <= words
    strokes = {path.get("stroke") for path in root.iter("{http://www.w3.org/2000/svg}path")}
    assert {"#0072b2", "#009e73", "#d55e00", "#cc79a7"} <= strokes
    picture = Image.open(io.BytesIO(saved(driver, "ranks", "png"))).convert("RGB")
    colors = {color for _, color in picture.getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (255, 255, 255)} <= colors


def test_dark_and_logarithmic(driver, generated):
    _, address = generated
    opened(driver, address, "seed_0")
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert read(driver, ground) == "rgb(255, 255, 255)"
    pick(driver, "theme", "dark")
    assert read(driver, ground) != "rgb(255, 255, 255)"
    click(driver, "[data-testid=log-steps]")
    chart(driver, "ranks")
    places = read(
        driver,
        "const { uplot } = rankmonCharts.get('ranks');"
        "return [10, 20, 100].map((step) => uplot.valToPos(step, 'x'))",
    )
    assert places[1] - places[0] > 0.2 * (places[2] - places[0])  # an eighth of it were linear
    pick(driver, "theme", "auto")


def test_a_run_that_goes_on(driver, tmp_path):
    rng = np.random.default_rng(5)
    with (
        TensorBoardWriter(tmp_path / "live") as writer,
        server(tmp_path, "--reload_interval=1") as address,
        leaving(driver),
    ):
        writer.write(record(0, 0, EIGENVALUES, rng))
        writer.write(record(10, 0.5, EIGENVALUES, rng))
        opened(driver, address)
        reload_until(driver, "return rankmonApp.all.some((run) => run.name === 'live')")
        select(driver, "live")
        assert len(chart(driver, "ranks")["H_L"][1]) == 2
        writer.write(record(20, 1, EIGENVALUES, rng))
        drawn = "return rankmonCharts.get('ranks').drawn.lines.find(({ label }) => label === 'H_L')"
        reload_until(driver, f"{drawn}.steps.length === 3")
        agrees(chart(driver, "ranks")["H_L"], scalars(tmp_path / "live", "rank/H_L"))
        press(driver, CUT, *[Keys.ARROW_LEFT] * 30)
        until(driver, "return rankmonApp.position === 50")
        writer.write(record(30, 1, EIGENVALUES, rng))
        reload_until(driver, f"{drawn}.steps.length === 4")
        agrees(chart(driver, "ranks")["H_L"], counted(tmp_path / "live", "H_L", -3))


def reload_until(driver, script):
    """Clicks "Reload" until TensorBoard has read what was written."""
    click = "document.querySelector('[data-testid=reload]').click();"
    until(driver, f"{click} {script}")


def test_names_are_text(driver, generated):
    _, address = generated
    opened(driver, address, HOSTILE)
    lines = chart(driver, f"weights-{LAYER}")
    assert lines["rank"][2] == [3]
    assert lines["stable rank"][2] == [2.5]
    page = text(driver, "body")
    assert HOSTILE in page
    assert LAYER in page
    show(driver, "notes")
    assert "window.pwned" in text(driver, "[data-testid=section-notes] .markdown")
    assert read(driver, "return window.pwned === undefined")
    assert not texts(driver, "img, .markdown script")


def test_a_folder_without_runs_says_what_to_do(driver, tmp_path):
    (tmp_path / "logs").mkdir()
    with server(tmp_path / "logs") as address, leaving(driver):
        open_tab(driver, address)
        until(driver, "return document.body.textContent.includes('RankMonitor(')")
