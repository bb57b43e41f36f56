"""Test pages that need no server, in Chromium; test_payload.py tests their data."""

import base64
import csv
import io
import re
import time
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from chromium import agrees, chart, click, hover, pick, press, read, saved, show, text
from rankmon.report.html import standalone_page
from rankmon.runs.series import ArraySeries, RunSeries, ScalarSeries
from tab_browser import until

pytestmark = pytest.mark.slow

HOSTILE = '</script><img src=x onerror=window.pwned=1> "Ränge"'
STEPS = np.arange(0, 60, 10)
RNG = np.random.default_rng(3)
LOGS = tuple(np.sort(RNG.uniform(-16, 1, 30))[::-1].astype(np.float32) for _ in STEPS)
LOGGED_CUT = 1e-9
CUT = "[data-testid=cut]"


def scalar(values) -> ScalarSeries:
    return ScalarSeries(STEPS, np.broadcast_to(np.asarray(values, np.float64), STEPS.shape))


def run(name: str, **more: ScalarSeries) -> RunSeries:
    """One run, of which a loss is infinite and another is no number; and more scalars."""
    ranks = [int((logs > np.log10(LOGGED_CUT)).sum()) for logs in LOGS]
    scalars = {"rank/H_L": scalar(ranks), "tolerance/H_L": scalar(LOGGED_CUT)}
    scalars["loss"] = scalar([3.0, np.inf, 2.0, np.nan, 1e-30, 0.0])
    arrays = {"spectrum/H_L": ArraySeries(STEPS, tuple(x.astype(np.float64) for x in LOGS))}
    return RunSeries(name, scalars | more, arrays, {"rankmon/card": {0: f"# {name}"}})


def counted(decades: float) -> list[int]:
    return [int((logs.astype(float) > np.log10(LOGGED_CUT) + decades).sum()) for logs in LOGS]


def opened(driver, tmp_path, *runs):
    path = tmp_path / "page.html"
    path.write_text(standalone_page(runs), "utf-8")
    driver.get(path.as_uri())
    until(driver, "return window.rankmonApp?.reading > 0")


def test_charts_hold_the_runs(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    lines = chart(driver, "ranks")
    agrees(lines["H_L"], (STEPS.tolist(), counted(0)))
    assert lines["loss"][2] == [3.0, None, 2.0, None, 1e-30, 0.0]
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_the_slider_recounts(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    for keys, decades in (([Keys.ARROW_LEFT] * 12, -1.2), ([Keys.END], 8), ([Keys.HOME], -8)):
        press(driver, CUT, *keys)
        until(driver, "return rankmonApp.position === arguments[0]", round(80 + 10 * decades))
        agrees(chart(driver, "ranks")["H_L"], (STEPS.tolist(), counted(decades)))


def test_the_spectrum_at_each_step(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    show(driver, "spectrum")
    chart(driver, "spectrum")
    press(driver, "[data-testid=spectrum-step]", Keys.HOME, *[Keys.ARROW_RIGHT] * 2)
    until(driver, "return rankmonCharts.get('spectrum').spec.title.includes('step 20')")
    values = chart(driver, "spectrum")["log10 |eigenvalue|"][2]
    np.testing.assert_array_equal(np.float32(values), LOGS[2])


def test_names_are_text(driver, tmp_path):
    opened(driver, tmp_path, run(HOSTILE), run("other"))
    chart(driver, "ranks-H_L")
    assert HOSTILE in text(driver, "aside")
    show(driver, "notes")
    until(driver, "return document.querySelector('.markdown') !== null")
    assert driver.execute_script("return window.pwned === undefined && !document.images.length")
    assert HOSTILE in driver.title


def test_a_page_of_no_runs_says_what_to_do(driver, tmp_path):
    opened(driver, tmp_path)
    assert "RankMonitor(" in text(driver, ".empty")


def names_shown(driver) -> list[str]:
    return read(driver, "return rankmonApp.runs.map((run) => run.name)")


def test_a_table_has_an_empty_cell_where_nothing_was_logged(driver, tmp_path):
    theory = ScalarSeries(np.array([5, 20]), np.array([17.0, 18.0]))
    opened(driver, tmp_path, run("mine", **{"rank_theory/H_L": theory}))
    chart(driver, "ranks")
    table = list(csv.DictReader(io.StringIO(saved(driver, "ranks", "csv").decode())))
    assert [row["step"] for row in table] == ["0", "5", "10", "20", "30", "40", "50"]
    assert [row["H_L, theory"] for row in table] == ["", "17", "", "18", "", "", ""]
    ranks = [str(rank) for rank in counted(0)]
    assert [row["H_L"] for row in table] == [ranks[0], "", *ranks[1:]]
    assert [row["loss"] for row in table] == ["3", "", "", "2", "", "1e-30", "0"]


def test_a_saved_drawing_has_a_path_a_line(driver, tmp_path):
    opened(driver, tmp_path, run("one"), run(HOSTILE))
    lines = chart(driver, "ranks-H_L")
    root = ElementTree.fromstring(saved(driver, "ranks-H_L", "svg"))
    colors = read(
        driver, "return rankmonCharts.get('ranks-H_L').visible().map((line) => line.color)"
    )
    drawn = [path.get("stroke") for path in root.iter("{http://www.w3.org/2000/svg}path")]
    # One in the plot and one in the legend.
    assert len(colors) == len(lines) == 2
    assert all(drawn.count(color) >= 2 for color in colors)
    words = {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"one", HOSTILE, "Ranks: ", "H", "L"} <= words


def test_a_saved_drawing_shows_the_lines_of_the_chart(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    chart(driver, "ranks")
    picture = saved(driver, "ranks", "png")
    drawing = saved(driver, "ranks", "svg")
    (tmp_path / "ranks.svg").write_bytes(drawing)
    driver.get((tmp_path / "ranks.svg").as_uri())
    shown, expected = (
        np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)
        for image in (driver.get_screenshot_as_png(), picture)
    )
    blue = [(abs(image - [0x00, 0x72, 0xB2]).max(-1) < 60) for image in (shown, expected)]
    count, wanted = (int(found.sum()) for found in blue)
    assert wanted > 1000
    assert count == pytest.approx(wanted, rel=0.1)


def test_a_line_of_many_points_keeps_its_extremes(driver, tmp_path):
    """However many points share a pixel: one step up, one down, and rounding between."""
    steps = np.arange(6000)
    values = np.full(6000, 500.0) + RNG.random(6000)
    values[3001], values[4500] = 900, 100
    series = {"rank/H_L": ScalarSeries(steps, values)}
    opened(driver, tmp_path, RunSeries("long", series, {}, {}))
    chart(driver, "ranks")
    script = """
        const { uplot } = rankmonCharts.get("ranks");
        const row = (value) => Math.round(uplot.valToPos(value, "y", true));
        const column = (at) => Math.round(uplot.valToPos(at, "x", true));
        const inked = (at, value) => {
            const { data } = uplot.ctx.getImageData(column(at) - 3, row(value), 7, 2);
            const isBlue = (i) => data[i + 3] > 100 && data[i + 2] > data[i] + 60;
            return [...data.keys()].some((i) => i % 4 === 0 && isBlue(i));
        };
        return [inked(3001, 899), inked(4500, 101), inked(2000, 700)];
    """
    assert read(driver, script) == [True, True, False]  # the top, the bottom, and elsewhere


def test_a_heat_map_is_saved_with_its_colors(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    show(driver, "spectrum")
    chart(driver, "heatmap")
    root = ElementTree.fromstring(saved(driver, "heatmap", "svg"))
    addresses = [image.get("href") for image in root.iter("{http://www.w3.org/2000/svg}image")]
    files = [io.BytesIO(base64.b64decode(one.partition("base64,")[2])) for one in addresses]
    table = np.concatenate([np.asarray(Image.open(one).convert("RGB")) for one in files], axis=1)
    assert table.shape[:2] == (len(LOGS[2]), len(STEPS))
    clipped = {clip.get("id") for clip in root.iter("{http://www.w3.org/2000/svg}clipPath")}
    used = {mark.get("clip-path") for mark in root.iter()} - {None}
    assert used <= {f"url(#{name})" for name in clipped}
    above = np.sort(np.concatenate([logs[logs > np.log10(LOGGED_CUT)] for logs in LOGS]))
    low, high = above[int(0.02 * len(above))], above[-1]  # the noise below the cut has one color
    shares = np.clip((LOGS[2][::-1] - low) / (high - low), 0, 1)  # the first index is at the bottom
    expected = 255 * matplotlib.colormaps["viridis"](shares)[:, :3]
    np.testing.assert_allclose(table[:, 2], expected, atol=24)  # ours has eight points
    picture = Image.open(io.BytesIO(saved(driver, "heatmap", "png"))).convert("RGB")
    assert len(picture.getcolors(1 << 24)) > 20


def test_dark_charts_have_light_ink(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    chart(driver, "ranks")
    brightest = {}
    for theme in ("light", "dark"):
        pick(driver, "theme", theme)
        chart(driver, "ranks")
        picture = Image.open(io.BytesIO(saved(driver, "ranks", "png"))).convert("L")
        ground = picture.getpixel((1, 1))
        lowest, highest = picture.getextrema()
        brightest[theme] = (ground, max(ground - lowest, highest - ground))
        assert brightest[theme][1] > 120  # text that can be read
    assert brightest["dark"][0] < 60 < 240 < brightest["light"][0]


def test_a_line_is_hidden_by_its_legend(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    chart(driver, "ranks")
    click(driver, "[data-testid=chart-ranks] .legend .entry:has([title^=loss])")
    for _ in range(2):  # and stays hidden when data are new
        header = saved(driver, "ranks", "csv").decode().splitlines()[0]
        assert header == '"step","H_L"'
        press(driver, CUT, Keys.ARROW_LEFT)
        until(driver, "return rankmonApp.position === 79")
        chart(driver, "ranks")
        click(driver, "[data-testid=cut-reset]")


def test_hovering_a_heat_map_reads_an_eigenvalue(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    show(driver, "spectrum")
    chart(driver, "heatmap")
    reading = "return document.querySelector('[data-testid=chart-heatmap] figcaption').textContent"
    said = hover(driver, "[data-testid=chart-heatmap] .u-over", reading)
    step, index, value = re.match(
        r"step (\d+), index (\d+): log10 \|eigenvalue\| (\S+)$", said
    ).groups()
    logged = LOGS[STEPS.tolist().index(int(step))][int(index) - 1]
    assert float(value) == pytest.approx(float(logged), abs=1e-3)


def summary(name: str) -> RunSeries:
    """What the training of several seeds writes beside them."""
    scalars = {"rank/H_L/median": 7.0, "rank/H_L/low": 5.0, "rank/H_L/high": 9.0}
    series = {tag: scalar(np.arange(6) + value) for tag, value in scalars.items()}
    return RunSeries(name, series, {}, {})


def test_a_summary_of_seeds_is_drawn_alone_with_its_range(driver, tmp_path):
    opened(driver, tmp_path, summary("median"))
    lines = chart(driver, "ranks")
    for label, least in (("H_L", 7), ("H_L, low", 5), ("H_L, high", 9)):
        agrees(lines[label], (STEPS.tolist(), (np.arange(6) + least).tolist()))


def test_a_summary_of_seeds_is_not_one_of_them(driver, tmp_path):
    opened(driver, tmp_path, summary("median"), run("seed_0"), run("seed_1"))
    assert names_shown(driver) == ["seed_0", "seed_1"]
    assert set(chart(driver, "ranks-H_L")) == {"seed_0", "seed_1"}


def test_a_layer_called_median_makes_no_summary(driver, tmp_path):
    opened(driver, tmp_path, run("plain"), run("named", **{"rank_weights/median": scalar(3)}))
    assert names_shown(driver) == ["plain", "named"]


def test_the_last_choice_of_a_spectrum_is_shown(driver, tmp_path):
    """However long the answer for one chosen before takes."""
    opened(driver, tmp_path, run("slow"), run("quick"))
    show(driver, "spectrum")
    chart(driver, "spectrum")
    driver.execute_script("rankmonApp.choose({ run: 'quick' });")
    shown = "return rankmonCharts.get('spectrum').spec.title.startsWith('quick:')"
    until(driver, shown)
    driver.execute_script(
        "const own = rankmonApp.source.heatmap; window.asked = []; window.answered = [];"
        "rankmonApp.source.heatmap = async (run, part) => {"
        "  asked.push(run);"
        "  await new Promise((done) => setTimeout(done, run === 'slow' ? 400 : 0));"
        "  setTimeout(() => answered.push(run), 100);"
        "  return own(run, part); };"
        "rankmonApp.choose({ run: 'slow' });"
    )
    until(driver, "return asked.includes('slow')")
    driver.execute_script("rankmonApp.choose({ run: 'quick' })")
    until(driver, "return answered.includes('slow') && answered.includes('quick')")
    assert read(driver, shown)


def test_a_spectrum_that_fails_is_said_and_asked_for_again(driver, tmp_path):
    opened(driver, tmp_path, run("mine"), run("other"))
    show(driver, "spectrum")
    chart(driver, "spectrum")
    driver.execute_script(
        "const { source } = rankmonApp; window.own = source.heatmap;"
        "source.heatmap = () => Promise.reject(new Error('<b>gone</b>'));"
        "return rankmonApp.choose({ run: 'other' })"
    )
    until(driver, "return rankmonApp.status.textContent === 'Not updated: <b>gone</b>'")
    driver.execute_script("rankmonApp.source.heatmap = own; return rankmonApp.refresh()")
    until(driver, "return rankmonCharts.get('spectrum').spec.title.startsWith('other:')")
    assert read(driver, "return rankmonApp.status.textContent") == ""


def test_a_step_that_fails_is_said(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    show(driver, "spectrum")
    chart(driver, "spectrum")
    driver.execute_script("rankmonApp.source.spectrum = () => Promise.reject(new Error('gone'))")
    press(driver, "[data-testid=spectrum-step]", Keys.HOME)
    until(driver, "return rankmonApp.status.textContent === 'Not updated: gone'")


def test_counts_that_fail_are_said_and_asked_for_again(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    until(driver, "return rankmonApp.counts.has('mine')")
    driver.execute_script(
        "const { source, counts, countedTo } = rankmonApp; window.own = source.counts;"
        "source.counts = () => Promise.reject(new Error('gone'));"
        "counts.clear(); countedTo.clear()"
    )
    press(driver, CUT, Keys.ARROW_LEFT)
    until(driver, "return rankmonApp.status.textContent === 'Not updated: gone'")
    assert text(driver, "[data-testid=cut-label]").startswith("× 10^-0.1: ")
    driver.execute_script("rankmonApp.source.counts = own")
    press(driver, CUT, Keys.ARROW_LEFT)
    until(driver, "return rankmonApp.counts.has('mine')")
    agrees(chart(driver, "ranks")["H_L"], (STEPS.tolist(), counted(-0.2)))


def test_counts_are_asked_for_once_and_drawn_when_they_come(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    until(driver, "return rankmonApp.counts.has('mine')")
    driver.execute_script(
        "const { source, counts, countedTo } = rankmonApp; const own = source.counts;"
        "window.asked = 0; counts.clear(); countedTo.clear();"
        "source.counts = async (run) => {"
        "  const wait = asked++ ? 3000 : 700;"  # the first is what is fetched before it is needed
        "  await new Promise((done) => setTimeout(done, wait));"
        "  return own(run); };"
        "rankmonApp.fetchCounts()"
    )
    press(driver, CUT, *[Keys.ARROW_LEFT] * 3)
    until(driver, "return rankmonApp.position === 77 && rankmonApp.counts.has('mine')")
    agrees(chart(driver, "ranks")["H_L"], (STEPS.tolist(), counted(-0.3)))
    assert read(driver, "return asked") == 1


def test_a_median_is_taken_where_all_runs_have_a_value(driver, tmp_path):
    steps = [np.array([0, 10, 20, 30]), np.array([0, 20, 30]), np.array([0, 15, 20, 30, 40])]
    values = [np.array([9.0, 8, 7, 6]), np.array([5.0, 30, 2]), np.array([1.0, 1, 8, 100, 1])]
    runs = [
        RunSeries(f"seed_{at}", {"rank/H_L": ScalarSeries(*one)}, {}, {})
        for at, one in enumerate(zip(steps, values, strict=True))
    ]
    opened(driver, tmp_path, *runs)
    pick(driver, "spread", "median and range")
    common = [0, 20, 30]
    table = np.array([y[np.isin(x, common)] for x, y in zip(steps, values, strict=True)])
    lines = chart(driver, "ranks")
    agrees(lines["H_L"], (common, np.median(table, 0).tolist()))
    agrees(lines["H_L, low"], (common, table.min(0).tolist()))
    agrees(lines["H_L, high"], (common, table.max(0).tolist()))
    for left_out in ("seed_1", "seed_2"):  # until it is one run, which has no range
        click(driver, f"li[data-run={left_out}] input")
    until(driver, "return rankmonApp.runs.length === 1")
    lines = chart(driver, "ranks")
    agrees(lines["H_L"], (steps[0].tolist(), values[0].tolist()))
    assert set(lines) == {"H_L"}


@pytest.mark.parametrize("kind", ["PNG", "SVG", "CSV"])
def test_buttons_save_files(driver, tmp_path, kind):
    opened(driver, tmp_path, run("mine"))
    chart(driver, "ranks")
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    click(driver, "[data-testid=chart-ranks] .saving summary")
    click(driver, f"[data-testid=chart-ranks] .saving button[title$='as {kind}']")
    path = tmp_path / f"ranks.{kind.lower()}"
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.02)
    assert path.read_bytes() == saved(driver, "ranks", kind.lower())
