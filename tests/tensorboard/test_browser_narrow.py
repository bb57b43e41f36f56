"""The Ranks tab in a real Chromium as wide as a phone's."""

import pytest
from selenium.webdriver.common.keys import Keys

from chromium import leaving, press_focused, read, served, show
from generated_logs import write_run
from paths import REFERENCE
from tab_browser import open_tab, until

pytestmark = pytest.mark.slow

READ = "return window.rankmonApp?.status.textContent.startsWith('Read')"


@pytest.fixture
def narrow(driver):
    """The browser with a page of 375 pixels; its windows have at least 500."""
    size = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield driver
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def opened(driver, address, *runs, **choices):
    """The tab with these runs selected."""
    open_tab(driver, address)
    until(driver, READ)
    choose = """
        const names = rankmonApp.all.map(({ name }) => name);
        const hidden = names.filter((name) => !arguments[0].includes(name));
        return rankmonApp.choose({ hidden, closed: [], ...arguments[1] });
    """
    driver.execute_script(choose, runs, choices)
    script = "return rankmonApp.runs.map(({ name }) => name).sort().join()"
    until(driver, f"{script} === arguments[0]", ",".join(sorted(runs)))


def test_a_narrow_page_shows_few_charts_of_a_section_at_first(narrow, tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"seed_{seed}", 6, 30, seed)
    with served(tmp_path) as address, leaving(narrow):
        opened(narrow, address, "seed_0", "seed_1")
        check_more(narrow)


def check_more(narrow):
    """Check that the other charts come on demand, and the focus with them."""
    show(narrow, "curvature")
    charts = "[...document.querySelectorAll('[data-testid=section-curvature] .chart')]"
    until(narrow, f"return {charts}.length === 4")
    more = "document.querySelector('[data-testid=section-curvature] .more')"
    assert read(narrow, f"return {more}.textContent") == "Show 4 more charts"
    narrow.execute_script(f"{more}.focus()")
    press_focused(narrow, Keys.ENTER)
    until(narrow, f"return {charts}.length === 8")
    assert read(narrow, f"return {charts}[4].contains(document.activeElement) && {more}.hidden")


@pytest.mark.parametrize("runs", [("gradient_flow/flow", "gradient_flow/descent"), ("relu_mnist",)])
def test_nothing_scrolls_sideways_on_a_phone(narrow, runs):
    with served(REFERENCE) as address, leaving(narrow):
        opened(narrow, address, *runs)
        shown = "return rankmonApp.sections.filter(({ box }) => !box.hidden)"
        for section in read(narrow, f"{shown}.map(({{ section }}) => section.id)"):
            show(narrow, section)
            wide = "const { scrollWidth, clientWidth } = document.documentElement;"
            assert read(narrow, f"{wide} return scrollWidth - clientWidth") <= 0, section
