"""The Ranks tab in a real Chromium: legends, colors, shares of p, figures, and the keyboard."""

import re
import xml.etree.ElementTree as ElementTree
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
    leaving,
    pick,
    press,
    press_focused,
    read,
    served,
    show,
    text,
    texts,
)
from paths import REFERENCE
from rankmon.writers.base import Record
from rankmon.writers.tensorboard import TensorBoardWriter
from tab_browser import open_tab, until

pytestmark = pytest.mark.slow

READ = "return window.rankmonApp?.status.textContent.startsWith('Read')"
SELECTED = "return rankmonApp.runs.map((run) => run.name).sort().join('|') === arguments[0]"
STEPS = range(0, 50, 10)
THEMES = ("light", "dark")
P = 40


def write(folder, scalars, hparams, texts=lambda at: {}):
    with TensorBoardWriter(folder) as writer:
        for at, step in enumerate(STEPS):
            settings = hparams if at == 0 else {}
            record = Record(
                step, 1, 1.8e9 + at, scalars(at), arrays={}, texts=texts(at), hparams=settings
            )
            writer.write(record)


def ranks(at):
    values = {"H_L": 30.0 - at, "H_o": 12.0, "H_f": 20.0 - at}
    scalars = {f"rank/{part}": value for part, value in values.items()}
    scalars |= {f"rank_low/{part}": value - 2 for part, value in values.items()}
    scalars |= {f"rank_high/{part}": value + 2 for part, value in values.items()}
    scalars |= {"rank_bound/H_o": 24.0, "rank_landmark/H_o": 8.0, "rank_theory/H_f": 20.0 - at}
    return scalars | {
        "loss": 2.0 - at / 10,
        "eigenvalue_max/H_L": 1.5,
        "eigenvalue_max_threshold/H_L": 38.0,
        "rank_weights/w": 3.0,
        "log_abs_det/w": -1.0 * at,
        "layers/rank_weights/min": 2.0,
        "layers/rank_weights/median": 3.0,
        "layers/rank_weights/max": 4.0,
    }


def card(at, p=P):
    table = f"| fact | value |\n| --- | --- |\n| p | {p} differentiated parameters |"
    return {"rankmon/card": table} if at == 0 or p != P else {}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Three runs of a sweep over the learning rate, and one without hyperparameters."""
    logs = tmp_path_factory.mktemp("design") / "logs"
    for lr in (0.1, 0.003, 0.01):
        write(logs / f"sweep/lr_{lr}", ranks, {"lr": lr, "net": "mlp"}, card)
    write(logs / "other", ranks, {})
    write(logs / "other_p", ranks, {}, lambda at: card(at, P + at) if at < 2 else {})
    problem = rankmon.Problem(
        lambda params, x: x @ params["held"] @ params["w"],
        loss="mse",
        inputs=np.eye(3),
        targets=np.ones((3, 2)),
        exclude=["held"],
    )
    with rankmon.RankMonitor(
        problem, logdir=logs / "held", every=1, hparams={"lr": 0.1}
    ) as monitor:
        monitor(0, {"held": np.eye(3), "w": np.ones((3, 2))})
    with served(logs) as address:
        yield address


SWEEP = ("sweep/lr_0.003", "sweep/lr_0.01", "sweep/lr_0.1")


def opened(driver, address, *runs, **choices):
    """The tab as somebody finds it who has not been here before, with these runs selected."""
    open_tab(driver, address)
    until(driver, READ)
    driver.execute_script("sessionStorage.clear()")
    open_tab(driver, address)
    until(driver, READ)
    driver.execute_script(
        "const [shown, choices] = arguments, names = rankmonApp.all.map(({ name }) => name);"
        "const hidden = names.filter((name) => !shown.includes(name));"
        "return rankmonApp.choose({ hidden, ...choices }).then(() => rankmonApp.applyTheme())",
        runs,
        choices,
    )
    until(driver, SELECTED, "|".join(sorted(runs)))


def colors(driver):
    return read(driver, "return rankmonApp.runs.map(({ name, color }) => [name, color])")


def luminance(color):
    channels = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("theme", THEMES)
def test_the_legend_explains_circles_dashes_and_bands(driver, address, theme):
    opened(driver, address, "other", theme=theme)
    chart(driver, "ranks")
    key = text(driver, "[data-testid=chart-ranks] .key")
    for words in ("theory", "upper bound", "linear counterpart", "a tenth of the cut"):
        assert words in key
    marked = read(
        driver,
        "const { spec, uplot } = rankmonCharts.get('ranks');"
        "const isMarked = (at) => uplot.series[at].points.show(uplot, at) === true;"
        "return spec.lines.filter((_, at) => isMarked(at + 1))"
        ".map(({ label }) => label)",
    )
    assert "H_o, upper bound" not in marked  # points on it would look like measurements
    assert "H_o" in marked


def test_values_of_the_legend_are_selected_and_copied(driver, address):
    opened(driver, address, "other")
    chart(driver, "ranks")
    copied = read(
        driver,
        "const row = document.querySelector('[data-testid=chart-ranks] .legend .value');"
        "getSelection().selectAllChildren(row); return String(getSelection())",
    )
    assert copied.startswith("26")
    assert read(
        driver,
        "return [...document.querySelectorAll('.legend .value')]"
        ".every((one) => !one.closest('button'))",
    )


def test_medians_have_bounds_and_landmarks(driver, address):
    opened(driver, address, *SWEEP, median=True)
    lines = chart(driver, "ranks")
    agrees(lines["H_o, upper bound"], (list(STEPS), [24.0] * 5))
    agrees(lines["H_o, linear counterpart"], (list(STEPS), [8.0] * 5))
    agrees(lines["H_f, theory"], (list(STEPS), [20.0 - at for at in range(5)]))


def test_common_folders_of_runs_are_written_once(driver, address):
    opened(driver, address, *SWEEP)
    chart(driver, "ranks-H_L")
    names = "[...document.querySelectorAll('[data-testid=chart-ranks-H_L] .legend .name')]"
    shown = read(driver, f"return {names}.map((n) => [n.innerText, n.title])")
    assert [name for name, _ in shown][:3] == ["lr_0.003", "lr_0.01", "lr_0.1"]
    assert shown[0][1] == "sweep/lr_0.003"


@pytest.mark.parametrize("theme", THEMES)
def test_runs_are_colored_by_a_hyperparameter(driver, address, theme):
    opened(driver, address, *SWEEP, theme=theme)
    by_name = dict(colors(driver))
    pick(driver, "color-by", "lr")
    until(driver, "return rankmonApp.state.colorBy === 'lr' && rankmonApp.runs[0].color[0] === '#'")
    by_rate = dict(colors(driver))
    assert by_rate != by_name
    assert list(by_rate) == list(SWEEP)
    ground = 1.0 if theme == "light" else luminance("#303030")
    light = [luminance(color) for color in by_rate.values()]
    assert light == sorted(light) and len(set(light)) == 3  # noqa: PT018
    contrast = [(max(ground, one) + 0.05) / (min(ground, one) + 0.05) for one in light]
    assert min(contrast) >= 3
    assert text(driver, "li[data-run='sweep/lr_0.003'] small") == "0.003"
    options = texts(driver, "[data-testid=color-by] option")
    assert options[:2] == ["run", "lr"]
    assert "net" not in options  # the same everywhere
    pick(driver, "color-by", "run")
    until(driver, "return rankmonApp.state.colorBy === ''")
    assert dict(colors(driver)) == by_name


def test_ranks_are_shares_of_p_only_if_it_is_certain(driver, address):
    opened(driver, address, *SWEEP)
    until(driver, "return rankmonApp.texts.size === 3")
    pick(driver, "share", "share of p")
    until(driver, "return rankmonCharts.get('ranks-H_L')?.spec.left === 'rank / p'")
    lines = chart(driver, "ranks-H_L")
    agrees(lines[SWEEP[0]], (list(STEPS), [(30.0 - at) / P for at in range(5)]))
    for run in ("other", "other_p"):  # no card, and two that differ
        opened(driver, address, run, share=True)
        until(driver, "return arguments[0] === 'other' || rankmonApp.texts.has(arguments[0])", run)
        agrees(chart(driver, "ranks")["H_L"], (list(STEPS), [30.0 - at for at in range(5)]))
        until(
            driver, "return document.querySelector('[data-testid=share]').closest('label').hidden"
        )


def test_p_is_the_number_of_differentiated_parameters(driver, address):
    opened(driver, address, "held", share=True)
    until(driver, "return rankmonCharts.get('ranks')?.spec.left === 'rank / p'")
    p = "import(new URL('static/perparameter.js', document.baseURI))"
    p += ".then(({ parametersOf }) => parametersOf(rankmonApp, rankmonApp.runs[0]))"
    assert driver.execute_async_script(f"{p}.then(arguments[0])") == 6
    with served(REFERENCE) as older, leaving(driver):
        opened(driver, older, "linear_teacher")
        until(driver, "return rankmonApp.texts.size === 1")
        assert driver.execute_async_script(f"{p}.then(arguments[0])") == 1700


def test_a_far_threshold_does_not_flatten_the_curves(driver, address):
    opened(driver, address, "other")
    show(driver, "curvature")
    chart(driver, "curvature-eigenvalue_max")
    where = "[data-testid=chart-curvature-eigenvalue_max]"
    assert "38 or more, is above this chart" in text(driver, f"{where} .missing")
    top = "return rankmonCharts.get('curvature-eigenvalue_max').uplot.scales.y.max"
    assert read(driver, top) < 2


def test_labels_of_a_logarithmic_axis_are_exact(driver, address):
    opened(driver, address, "other")
    script = """
        const [low, high, done] = arguments;
        const u = { bbox: { height: 300 * devicePixelRatio } };
        import(new URL("static/ticks.js", document.baseURI)).then(({ logSplits, powerTick }) => {
            const places = logSplits(u, 1, low, high);
            done(places.map((at) => [at, powerTick(at)]));
        }, (error) => done(String(error)));
    """
    cases = [(1.6, 2.0), (1.2, 5), (0.9, 1.1), (1e-12, 3.0), (1e-30, 1.0), (2e-5, 7e-4), (150, 151)]
    for low, high in cases:
        ticks = driver.execute_async_script(script, np.log10(low), np.log10(high))
        assert 2 <= len(ticks) <= 12, (low, high, ticks)
        for place, word in ticks:
            assert np.log10(low) <= place <= np.log10(high)
            assert 10**place == pytest.approx(float(word), rel=1e-9), (place, word)


@pytest.mark.parametrize("theme", THEMES)
def test_a_figure_is_a_column_wide_and_light(driver, address, theme):
    opened(driver, address, "other", theme=theme)
    chart(driver, "ranks")
    drawing = driver.execute_async_script(
        "const done = arguments[0];"
        "import(new URL('static/pictures.js', document.baseURI))"
        ".then(({ figureOf }) => figureOf(rankmonCharts.get('ranks'))).then(done)"
    )
    root = ElementTree.fromstring(drawing)
    assert float(root.get("width")) / 96 == pytest.approx(3.3, abs=0.01)
    fills = [rect.get("fill") for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert "#fff" in fills
    strokes = {path.get("stroke") for path in root.iter("{http://www.w3.org/2000/svg}path")}
    assert {"#0072b2", "#009e73", "#d55e00"} <= strokes
    assert "#4aa8e8" not in strokes
    words = {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "step" in words
    assert "Ranks" not in words  # a figure has a caption
    assert read(driver, "return document.documentElement.dataset.theme") == theme


def test_the_menu_opens_and_closes_by_keyboard_and_mouse(driver, address):
    opened(driver, address, "other")
    chart(driver, "ranks")
    menu = "[data-testid=chart-ranks] .saving"
    is_open = f"return document.querySelector('{menu}').open"
    is_closed = is_open.replace("return ", "return !")
    press(driver, f"{menu} summary", Keys.ENTER)
    until(driver, is_open)
    assert texts(driver, f"{menu} button") == ["PNG", "SVG", "Figure", "PDF", "CSV", "Copy"]
    press(driver, f"{menu} button", Keys.ESCAPE)
    until(driver, is_closed)
    until(driver, f"return document.activeElement.matches('{menu} summary')")
    click(driver, f"{menu} summary")
    until(driver, is_open)
    click(driver, "[data-testid=section-ranks] > summary h2")
    until(driver, is_closed)


def test_the_table_leaves_room_for_the_chart(driver, address):
    opened(driver, address, *SWEEP, "other", "other_p")
    show(driver, "overview")
    assert any("eigenvalue" in head for head in texts(driver, ".facts thead th"))
    region = "[data-testid=section-overview] [role=region]"
    assert 0 < read(driver, f"return document.querySelector('{region}').offsetHeight") <= 300
    assert attributes(driver, region, "tabindex") == ["0"]


@pytest.mark.parametrize("theme", THEMES)
def test_the_tab_key_reaches_all_with_a_visible_focus(driver, address, theme):
    opened(driver, address, *SWEEP, theme=theme)
    chart(driver, "ranks-H_L")
    until(driver, "return rankmonApp.texts.size === 3")  # cards, for `share`
    driver.execute_script("window.scrollTo(0, 0); document.activeElement.blur()")
    click(driver, "[data-testid=run-search]")
    reached = []
    script = """
        const one = document.activeElement, look = getComputedStyle(one);
        const seen = look.outlineStyle !== "none" && parseFloat(look.outlineWidth) >= 1;
        const { testid } = one.dataset;
        const name = testid ?? one.className.split(" ")[0] + one.tagName;
        return [name, seen || one.tagName === "BODY"];
    """
    for _ in range(40):
        press_focused(driver, Keys.TAB)
        reached.append(read(driver, script))
    assert all(seen for _, seen in reached), reached
    order = [name for name, _ in reached]
    wanted = ["runs-all", "color-by", "cut", "axis", "log-steps", "share", "spread", "theme"]
    assert [name for name in order if name in wanted] == wanted
    assert "entryBUTTON" in order  # of a legend


def test_equal_cards_are_one(driver, address):
    opened(driver, address, *SWEEP)
    show(driver, "notes")
    until(driver, "return rankmonApp.texts.size === 3")
    until(driver, "return document.querySelector('.notes .card')?.textContent.includes('3 runs')")
    (card,) = texts(driver, ".notes .card > summary")
    assert re.search(r"3 runs, all alike\): card", card)


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_serious_in_more_sections(driver, address, theme):
    opened(driver, address, *SWEEP, theme=theme, colorBy="lr")
    for section in ("overview", "ranks", "weights", "determinants", "curvature", "layers", "notes"):
        show(driver, section)
    press(driver, "[data-testid=section-ranks] .saving summary", Keys.ENTER)
    (folder,) = find_spec("axe_core_python").submodule_search_locations
    driver.execute_script((Path(folder) / "axe.min.js").read_text())
    result = driver.execute_async_script("axe.run(document).then(arguments[0])")
    assert [(one["id"], one["nodes"][0]["html"]) for one in result["violations"]] == []
    assert len(result["passes"]) > 20
