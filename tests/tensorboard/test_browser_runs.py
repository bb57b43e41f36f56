"""The Ranks tab in a real Chromium: the first selection, axes, NaN, equal runs, and the guide."""

import ast
import csv
import io
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

import rankmon
from chromium import (
    agrees,
    attributes,
    chart,
    click,
    drag,
    is_shown,
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
from paths import REFERENCE, ROOT
from rankmon.writers.base import Record
from rankmon.writers.tensorboard import TensorBoardWriter
from reading import legacy_events
from tab_browser import enter_tab, open_tab, until

pytestmark = pytest.mark.slow

NAN = float("nan")
READ = "return window.rankmonApp?.status.textContent.startsWith('Read')"
SELECTED = "return rankmonApp.runs.map((run) => run.name)"
PARTS = ("H_L", "H_o", "H_f")
CUT = "[data-testid=cut]"


def write(folder, steps, start, scalars, arrays=lambda at: {}):
    with TensorBoardWriter(folder) as writer:
        for at, step in enumerate(steps):
            writer.write(Record(step, 1, start + 36 * at, scalars=scalars(at), arrays=arrays(at)))


def ranks(at):
    return {f"rank/{part}": 20.0 - at for part in PARTS} | {"loss": 0.5**at}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Runs of different lengths and ages, with weights, features, blocks and NaN."""
    logs = tmp_path_factory.mktemp("runs") / "logs"
    write(logs / "lr_0.1", range(0, 5000, 1000), 1.8e9, ranks)
    write(logs / "lr_0.003", range(0, 50, 10), 1.9e9, ranks)
    write(logs / "lr_0.01", range(0, 50, 10), 1.7e9, ranks)
    write(logs / "weights_only", range(5), 2.0e9, lambda at: {"rank_weights/w": 3.0})
    write(logs / "nan/start", range(5), 1.6e9, lambda at: dict.fromkeys(ranks(at), NAN))
    write(
        logs / "nan/later",
        range(5),
        1.6e9,
        lambda at: {tag: value if at < 3 else NAN for tag, value in ranks(at).items()},
    )
    singular = np.array([2.0, 0.0, -3.0, -9.0, -14.0])
    write(
        logs / "spectra",
        range(5),
        1.65e9,
        lambda at: (
            {"rank_weights/w": 4.0, "tolerance/w": 1e-10, "rank_weights/v": 2.0}
            | {
                "rank_columns/H_f/w": 7.0 + at,
                "rank_columns_theory/H_f/w": 8.0,
                "collapse/nc1": 0.1,
            }
            | ranks(at)
        ),
        lambda at: {"singular_values/w": singular},
    )
    return logs


@pytest.fixture(scope="module")
def address(logs):
    with served(logs) as address:
        yield address


def opened(driver, address, *runs, **choices):
    """The tab as somebody finds it who has not been here before, with these runs selected."""
    open_tab(driver, address)
    until(driver, READ)
    driver.execute_script("sessionStorage.clear()")
    open_tab(driver, address)
    until(driver, READ)
    if runs:
        hide = (
            "rankmonApp.all.map(({ name }) => name).filter((name) => !arguments[0].includes(name))"
        )
        driver.execute_script(
            f"return rankmonApp.choose({{ hidden: {hide}, ...arguments[1] }})", runs, choices
        )
        until(driver, f"{SELECTED}.sort().join('|') === arguments[0]", "|".join(sorted(runs)))


def logged(folder, tag):
    events = legacy_events(folder).Scalars(tag)
    return [event.step for event in events], [event.value for event in events]


def test_the_first_look_shows_the_newest_run_with_ranks(driver, address):
    opened(driver, address)
    assert read(driver, SELECTED) == ["lr_0.003"]
    assert text(driver, "[data-testid=runs-count]") == "1 of 7 runs shown"
    rows = attributes(driver, "li[data-run]", "data-run")
    assert rows[:3] == ["lr_0.003", "lr_0.01", "lr_0.1"]
    click(driver, "[data-testid=runs-all]")
    until(driver, f"{SELECTED}.length === 7")
    open_tab(driver, address)  # the choice is remembered
    until(driver, READ)
    assert len(read(driver, SELECTED)) == 7


def test_the_reference_logs_open_on_the_run_of_figure_s1(driver):
    with served(REFERENCE) as address, leaving(driver):
        opened(driver, address)
        assert read(driver, SELECTED) == ["linear_teacher"]
        agrees(chart(driver, "ranks")["H_L"], logged(REFERENCE / "linear_teacher", "rank/H_L"))


def test_seeds_are_selected_together(driver, tmp_path):
    for seed in range(3):
        write(tmp_path / f"seeds/seed_{seed}", range(3), 1.8e9 + seed, ranks)
    ends = ("median", "low", "high")
    write(
        tmp_path / "seeds/median",
        range(3),
        1.8e9,
        lambda at: {f"rank/H_L/{end}": 3.0 for end in ends},
    )
    write(tmp_path / "other", range(3), 1.5e9, ranks)
    with served(tmp_path) as address, leaving(driver):
        opened(driver, address)
        assert read(driver, SELECTED) == [f"seeds/seed_{seed}" for seed in range(3)]


def test_runs_of_different_lengths_share_an_axis(driver, address):
    opened(driver, address, "lr_0.1", "lr_0.003", axis="share of the run")
    lines = chart(driver, "ranks-H_L")
    for run in ("lr_0.1", "lr_0.003"):
        agrees(lines[run], ([0, 0.25, 0.5, 0.75, 1], [20, 19, 18, 17, 16]))
    pick(driver, "axis", "hours")
    until(driver, "return rankmonCharts.get('ranks-H_L').spec.x === 'hours'")
    steps, values = [0, 0.01, 0.02, 0.03, 0.04], [20, 19, 18, 17, 16]
    kind, shown, found = chart(driver, "ranks-H_L")["lr_0.1"]
    np.testing.assert_allclose(
        [x for x, v in zip(shown, found, strict=True) if v is not None], steps
    )
    assert [v for v in found if v is not None] == values


def test_a_run_of_nan_says_so(driver, address):
    opened(driver, address, "nan/start")
    chart(driver, "ranks")
    said = text(driver, "[data-testid=chart-ranks] .missing")
    assert re.fullmatch(r"NaN at every step: H_L; H_o; H_f; loss\.", said)
    opened(driver, address, "nan/later", "lr_0.01")
    chart(driver, "ranks-H_o")
    assert text(driver, "[data-testid=chart-ranks-H_o] .missing") == "▲ NaN at 2 steps: nan/later."
    drawing = saved(driver, "ranks-H_o", "svg").decode()
    assert len(re.findall(r'd="M[^"]*L[^"]*L[^"]*Z" fill="#', drawing)) == 2  # triangles
    assert "NaN" in text(driver, "[data-testid='overview-nan/later']")


def test_runs_that_coincide_are_counted_and_stay_visible(driver, address):
    opened(driver, address, "lr_0.003", "lr_0.01")
    chart(driver, "ranks-H_L")
    assert (
        text(driver, "[data-testid=chart-ranks-H_L] .missing")
        == "2 runs coincide: lr_0.003; lr_0.01."
    )
    widths = read(driver, "return rankmonCharts.get('ranks-H_L').spec.lines.map((l) => l.width)")
    assert widths[0] > widths[1]
    shown = texts(driver, "[data-testid=chart-ranks-H_L] .legend .name")
    assert shown == ["lr_0.003", "lr_0.01"]  # without the pointer


def test_the_cut_recounts_weights_and_marks_the_others(driver, address):
    opened(driver, address, "spectra")
    press(driver, CUT, *[Keys.PAGE_DOWN] * 2, *[Keys.ARROW_RIGHT] * 3)
    until(driver, "return rankmonApp.counts.has('spectra')")
    place = read(driver, "return Number(document.querySelector(arguments[0]).value)", CUT)
    cut = -10 + (place - 80) / 10
    expected = float(sum(value > cut for value in (2.0, 0.0, -3.0, -9.0, -14.0)))
    until(
        driver,
        "return rankmonCharts.get('weights-w').spec.lines[0].values[0] === arguments[0]",
        expected,
    )
    chart(driver, "weights-w")
    stale = "return document.querySelector('[data-testid=chart-weights-{}]').matches('.stale')"
    assert not read(driver, stale.format("w"))
    assert read(driver, stale.format("v"))  # its singular values are not logged
    click(driver, "[data-testid=cut-reset]")
    until(driver, "return !document.querySelector('.stale')")


def test_sections_of_the_guide_appear_when_logged(driver, logs, address):
    opened(driver, address, "spectra")
    show(driver, "layer-blocks")
    lines = chart(driver, "rank_columns-H_f")
    agrees(lines["w"], logged(logs / "spectra", "rank_columns/H_f/w"))
    agrees(lines["w, theory"], logged(logs / "spectra", "rank_columns_theory/H_f/w"))
    show(driver, "neural-collapse")
    press(driver, "[data-testid=chart-collapse] .ask", Keys.ENTER)
    assert "class" in text(driver, "[data-testid=chart-collapse] p.help")
    opened(driver, address, "lr_0.1")
    assert not is_shown(driver, "[data-testid=section-layer-blocks]")


def test_the_legend_hides_lines_by_keyboard(driver, address):
    opened(driver, address, "lr_0.1")
    chart(driver, "ranks")
    entry = "[data-testid=chart-ranks] .legend .entry"
    press(driver, entry, Keys.SPACE)
    assert attributes(driver, entry, "aria-pressed") == ["false", "true", "true", "true"]
    head = next(csv.reader(io.StringIO(saved(driver, "ranks", "csv").decode())))
    assert head == ["step", "H_o", "H_f", "loss"]
    press(driver, entry, Keys.ENTER)
    assert attributes(driver, entry, "aria-pressed") == ["true"] * 4


def test_charts_zoom_together(driver, address):
    opened(driver, address, "lr_0.1", "lr_0.003")
    for part in ("H_L", "H_o"):
        chart(driver, f"ranks-{part}")
    drag(driver, "[data-testid=chart-ranks-H_o] .u-over", 0.25)
    until(driver, "return rankmonCharts.get('ranks-H_L').isZoomed()")
    ends = "return ['min', 'max'].map((end) => rankmonCharts.get('ranks-H_L').uplot.scales.x[end])"
    low, high = read(driver, ends)
    assert (low, high) == (pytest.approx(2000, rel=0.02), pytest.approx(3000, rel=0.02))
    click(driver, "[data-testid=chart-ranks-H_o] .zoom")
    until(
        driver,
        "const { x } = rankmonCharts.get('ranks-H_o').uplot.scales; return x.max - x.min === 4000",
    )


def test_a_pinned_spectrum_stays(driver):
    with served(REFERENCE) as address, leaving(driver):
        opened(driver, address)
        show(driver, "spectrum")
        chart(driver, "spectrum")
        first = chart(driver, "spectrum")["log10 |eigenvalue|"]
        click(driver, "[data-testid=pin]")
        press(driver, "[data-testid=spectrum-step]", Keys.HOME)
        until(driver, "return rankmonCharts.get('spectrum').spec.title.includes('step 0')")
        lines = chart(driver, "spectrum")
        assert lines["pinned: H_L at step 2000"][2][: len(first[2])] == first[2]
        assert lines["log10 |eigenvalue|"][2][: len(first[2])] != first[2]
        click(driver, "[data-testid=pin]")
        assert "pinned: H_L at step 2000" not in chart(driver, "spectrum")


def test_a_link_shows_what_i_see(driver):
    with served(REFERENCE) as address, leaving(driver):
        opened(driver, address, "relu_mnist", axis="share of the run", closed=["weights"])
        press(driver, CUT, *[Keys.ARROW_RIGHT] * 5)
        until(driver, "return rankmonApp.position === 85 && rankmonApp.counts.has('relu_mnist')")
        show(driver, "spectrum")
        press(driver, "[data-testid=spectrum-step]", Keys.HOME)
        until(driver, "return rankmonCharts.get('spectrum').spec.title.includes('step 0')")
        link = read(driver, "return window.parent.location.href")
        opened(driver, address)
        assert read(driver, SELECTED) == ["linear_teacher"]
        driver.execute_script("sessionStorage.clear()")
        driver.get("about:blank")
        driver.get(link)
        enter_tab(driver)
        until(driver, READ)
        assert read(driver, SELECTED) == ["relu_mnist"]
        state = read(driver, "return [rankmonApp.state.axis, rankmonApp.state.closed]")
        assert state == ["share of the run", ["weights"]]
        label = "[data-testid=cut-label]"
        assert text(driver, label).startswith("× 10^0.5")
        show(driver, "spectrum")
        until(driver, "return rankmonCharts.get('spectrum')?.spec.title.includes('step 0')")


def test_the_legend_explains_the_parts(driver, address):
    opened(driver, address, "lr_0.1")
    chart(driver, "ranks")
    title = "return document.querySelector('[data-testid=chart-ranks] .legend .name').title"
    until(driver, f"{title}.includes('Gauss-Newton')")


def test_axis_labels_tell_neighbors_apart(driver, address):
    opened(driver, address)
    script = """
        const done = arguments[1];
        import(new URL("static/ticks.js", document.baseURI))
            .then(({ tickWords }) => done(arguments[0].map(tickWords)), (e) => done(String(e)));
    """
    cases = [[0, 0.2, 0.4], [1.5e6, 1.6e6, 1.7e6], [1.00001, 1.00002], [0, 1e-7, 2e-7]]
    cases += [[0, 50_000, 100_000], [-3e-5, -1.5e-5, 0]]
    found = driver.execute_async_script(script, cases)
    for values, words in zip(cases, found, strict=True):
        assert len(set(words)) == len(values), words
        assert [float(word) for word in words] == pytest.approx(values)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(driver, address, theme):
    opened(driver, address, "spectra", "nan/later", theme=theme)
    driver.execute_script("rankmonApp.applyTheme()")
    for section in ("layer-blocks", "neural-collapse", "weights"):
        show(driver, section)
    (folder,) = find_spec("axe_core_python").submodule_search_locations
    driver.execute_script((Path(folder) / "axe.min.js").read_text())
    found = driver.execute_async_script("axe.run(document).then(arguments[0])")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
    assert len(found["passes"]) > 20


@pytest.mark.parametrize("width", [500, 1000])
def test_nothing_scrolls_sideways(driver, address, width):
    size = driver.get_window_size()
    driver.set_window_size(width, 800)
    try:
        opened(driver, address, "spectra", "lr_0.1")
        show(driver, "weights")
        wide = "return document.documentElement.scrollWidth - window.innerWidth"
        assert read(driver, wide) <= 0
        search = "[data-testid=run-search]"
        assert is_shown(driver, search) == (width > 720)
        if width < 720:
            press(driver, "aside .fold", Keys.ENTER)
            assert is_shown(driver, search)
    finally:
        driver.set_window_size(size["width"], size["height"])


def test_the_snippet_of_the_empty_page_runs(tmp_path, monkeypatch):
    source = (ROOT / "rankmon/tensorboard/static/app.js").read_text()
    snippet = re.search(r"NO_RUNS = `(.*?)`", source, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    problem = rankmon.Problem(
        lambda w, x: x @ w, loss="mse", inputs=np.eye(3), targets=np.ones((3, 2))
    )
    names = {"rankmon": rankmon, "problem": problem, "steps": 101, "params": np.ones((3, 2))}
    exec(compile(ast.parse(snippet), "snippet", "exec"), names | {"train_step": lambda w: 0.5 * w})
    assert [record.step for record in rankmon.read_jsonl(tmp_path / "logs/run_1/rankmon.jsonl")]
