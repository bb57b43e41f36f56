"""Heat maps of the Ranks tab in a real Chromium, read by keyboard."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from chromium import chart, press_focused, read, served, show
from generated_logs import write_run
from rankmon.writers.base import Record
from rankmon.writers.tensorboard import TensorBoardWriter
from reading import legacy_events
from tab_browser import open_tab, until

pytestmark = pytest.mark.slow

READ = "return window.rankmonApp?.status.textContent.startsWith('Read')"
PROBES, EIGENVALUES, LAYERS = 6, 30, 12
LAST = 10 * (PROBES - 1)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A run with spectra, and one with more layers than a chart has lines."""
    logs = tmp_path_factory.mktemp("maps") / "logs"
    write_run(logs / "spectra", PROBES, EIGENVALUES, seed=0)
    rng = np.random.default_rng(0)
    with TensorBoardWriter(logs / "deep") as writer:
        for step in range(0, LAST + 1, 10):
            ranks = {f"rank_weights/layer_{at}": rng.integers(1, 30) for at in range(LAYERS)}
            writer.write(Record(step, 1, 1.8e9 + step, scalars=ranks, arrays={}))
    return logs


@pytest.fixture(scope="module")
def address(logs):
    with served(logs) as address:
        yield address


def opened(driver, address, run, **choices):
    """The tab with this run selected."""
    open_tab(driver, address)
    until(driver, READ)
    choose = """
        const names = rankmonApp.all.map(({ name }) => name);
        const hidden = names.filter((name) => name !== arguments[0]);
        return rankmonApp.choose({ hidden, closed: [], ...arguments[1] });
    """
    driver.execute_script(choose, run, choices)
    until(driver, "return rankmonApp.runs.map(({ name }) => name).join() === arguments[0]", run)


def focus(driver, name):
    """Reach a chart's plot as a reader does who has no pointer."""
    chart(driver, name)
    before = "return rankmonCharts.get(arguments[0]).host.querySelector('.saving summary').focus()"
    driver.execute_script(before, name)
    press_focused(driver, Keys.TAB)
    until(driver, "return document.activeElement === rankmonCharts.get(arguments[0]).plot", name)


def reading(driver, name):
    """Return what the chart shows and announces."""
    script = """
        const { reading } = rankmonCharts.get(arguments[0]);
        return [reading.textContent, reading.getAttribute("aria-live")];
    """
    text, live = read(driver, script, name)
    assert live == ("polite" if text else None)
    return text


def test_a_spectrum_over_steps_is_read_by_keyboard(driver, logs, address):
    opened(driver, address, "spectra")
    show(driver, "spectrum")
    focus(driver, "heatmap")
    events = legacy_events(logs / "spectra").Tensors("spectrum/H_L/values")
    logged = {e.step: np.frombuffer(e.tensor_proto.tensor_content, "<f4") for e in events}
    assert max(logged) == LAST

    def agrees(step, index):
        pattern = r"step (\d+), index (\d+): log10 \|eigenvalue\| (-?[\d.]+)"
        found = re.fullmatch(pattern, reading(driver, "heatmap"))
        assert (int(found[1]), int(found[2])) == (step, index)
        assert float(found[3]) == pytest.approx(float(logged[step][index - 1]), abs=6e-4)

    agrees(LAST, 1)
    press_focused(driver, Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_LEFT)
    agrees(LAST - 10, 3)
    press_focused(driver, Keys.PAGE_UP, Keys.ARROW_DOWN)
    agrees(LAST - 10, 12)
    press_focused(driver, Keys.HOME)
    agrees(0, 12)
    press_focused(driver, *[Keys.PAGE_UP] * 9, Keys.ARROW_LEFT)  # not beyond the map
    agrees(0, EIGENVALUES)
    press_focused(driver, Keys.END)
    agrees(LAST, EIGENVALUES)
    zoom = "rankmonCharts.get('heatmap').uplot.setScale('x', { min: 10, max: 31 })"
    driver.execute_script(zoom)
    press_focused(driver, Keys.HOME, Keys.ARROW_RIGHT, Keys.PAGE_DOWN)
    agrees(20, EIGENVALUES - 10)
    press_focused(driver, Keys.END)
    agrees(30, EIGENVALUES - 10)
    driver.execute_script("rankmonCharts.get('heatmap').zoom.click()")
    press_focused(driver, Keys.ESCAPE)
    assert reading(driver, "heatmap") == ""
    assert driver.execute_script("return document.activeElement === document.body")
    assert not driver.execute_script("return document.querySelectorAll('.spot').length")


def test_layers_over_steps_are_read_by_keyboard(driver, logs, address):
    opened(driver, address, "deep")
    show(driver, "weights")
    focus(driver, "weights-rank_weights")
    reader = legacy_events(logs / "deep")
    logged = {
        at: {e.step: e.value for e in reader.Scalars(f"rank_weights/layer_{at}")}
        for at in range(LAYERS)
    }

    def agrees(step, layer):
        shown = reading(driver, "weights-rank_weights")
        assert shown == f"step {step}, layer_{layer}: {logged[layer][step]:.0f}"

    agrees(LAST, 0)  # the first layer is on top
    press_focused(driver, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    agrees(LAST - 10, 1)
    press_focused(driver, Keys.HOME, Keys.PAGE_DOWN, Keys.ARROW_DOWN)
    agrees(0, LAYERS - 1)
    press_focused(driver, Keys.TAB)  # leaves as well
    assert reading(driver, "weights-rank_weights") == ""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_while_a_map_is_read(driver, address, theme):
    opened(driver, address, "spectra", theme=theme)
    driver.execute_script("rankmonApp.applyTheme()")
    show(driver, "spectrum")
    focus(driver, "heatmap")
    press_focused(driver, Keys.ARROW_UP)
    assert reading(driver, "heatmap")
    (folder,) = find_spec("axe_core_python").submodule_search_locations
    driver.execute_script((Path(folder) / "axe.min.js").read_text())
    found = driver.execute_async_script("axe.run(document).then(arguments[0])")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
