"""Pages that need no server, as files in a real Chromium and as text."""

import base64
import json
import re

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from chromium import agrees, chart, show
from rankmon_tensorboard.page import standalone_page
from rankmon_tensorboard.series import ArraySeries, RunSeries, ScalarSeries
from tab_browser import until

HOSTILE = '</script><img src=x onerror=window.pwned=1> "Ränge"'
STEPS = np.arange(0, 60, 10)
RNG = np.random.default_rng(3)
LOGS = tuple(np.sort(RNG.uniform(-16, 1, 30))[::-1].astype(np.float32) for _ in STEPS)
CUT = 1e-9


def scalar(values) -> ScalarSeries:
    return ScalarSeries(STEPS, np.broadcast_to(np.asarray(values, np.float64), STEPS.shape))


def run(name: str) -> RunSeries:
    """One run, of which a loss is infinite and another is no number."""
    ranks = [int((logs > np.log10(CUT)).sum()) for logs in LOGS]
    scalars = {"rank/H_L": scalar(ranks), "tolerance/H_L": scalar(CUT)}
    scalars["loss"] = scalar([3.0, np.inf, 2.0, np.nan, 1e-30, 0.0])
    arrays = {"spectrum/H_L": ArraySeries(STEPS, tuple(x.astype(np.float64) for x in LOGS))}
    return RunSeries(name, scalars, arrays, {"rankmon/card": {0: f"# {name}"}})


def counted(decades: float) -> list[int]:
    return [int((logs.astype(float) > np.log10(CUT) + decades).sum()) for logs in LOGS]


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
    slider = driver.find_element(By.CSS_SELECTOR, "[data-testid=cut]")
    for keys, decades in (([Keys.ARROW_LEFT] * 12, -1.2), ([Keys.END], 8), ([Keys.HOME], -8)):
        slider.send_keys(*keys)
        until(driver, "return rankmonApp.position === arguments[0]", round(80 + 10 * decades))
        agrees(chart(driver, "ranks")["H_L"], (STEPS.tolist(), counted(decades)))


def test_the_spectrum_at_each_step(driver, tmp_path):
    opened(driver, tmp_path, run("mine"))
    show(driver, "spectrum")
    chart(driver, "spectrum")
    slider = driver.find_element(By.CSS_SELECTOR, "[data-testid=spectrum-step]")
    slider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 2)
    until(driver, "return rankmonCharts.get('spectrum').spec.title.includes('step 20')")
    values = chart(driver, "spectrum")["log10 |eigenvalue|"][2]
    np.testing.assert_array_equal(np.float32(values), LOGS[2])


def test_names_are_text(driver, tmp_path):
    opened(driver, tmp_path, run(HOSTILE), run("other"))
    chart(driver, "ranks-H_L")
    assert HOSTILE in driver.find_element(By.TAG_NAME, "aside").text
    show(driver, "notes")
    until(driver, "return document.querySelector('.markdown') !== null")
    assert driver.execute_script("return window.pwned === undefined && !document.images.length")
    assert HOSTILE in driver.title


def test_a_page_of_no_runs_says_what_to_do(driver, tmp_path):
    opened(driver, tmp_path)
    assert "RankMonitor(" in driver.find_element(By.CSS_SELECTOR, ".empty").text


@pytest.mark.parametrize("runs", [[], [run("mine"), run(HOSTILE)]])
def test_what_modules_import_is_in_the_page(runs):
    page = standalone_page(runs)
    modules = json.loads(re.search(r'type="importmap">(.*?)</script>', page)[1])["imports"]
    texts = [base64.b64decode(address.partition(",")[2]).decode() for address in modules.values()]
    texts.append(re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)[1])
    imported = {name for text in texts for name in re.findall(r'\bfrom "([^"]+)"', text)}
    assert imported <= set(modules)
    assert {"rankmon/app.js", "rankmon/uPlot.esm.js"} <= imported


def test_no_name_ends_the_data():
    page = standalone_page([run(HOSTILE)])
    data = re.search(r'id="runs">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)[0]["overview"]["name"] == HOSTILE
