"""Take the README's picture of the Ranks tab, with the reference run of figure S1."""

from pathlib import Path

from tab_browser import browser, open_tab, server, until

ROOT = Path(__file__).parents[1]
LISTED = "return window.rankmonApp?.all.length > 0"
# One run, with the weights' section closed, so that the spectrum is in view.
CHOSEN = """
rankmonApp.runList.selectOnly("linear_teacher");
document.querySelector("[data-testid=section-weights]").open = false;
"""
SPECTRUM = "return rankmonCharts.get('spectrum')?.uplot && rankmonCharts.get('heatmap')?.uplot"
STEP = """
const slider = document.querySelector("[data-testid=spectrum-step]");
slider.value = 22;
slider.dispatchEvent(new Event("input"));
"""
SHOWN = "return rankmonCharts.get('spectrum').drawn.title.includes('step 1100')"


def main() -> None:
    """Write the picture."""
    target = ROOT / "examples" / "pictures" / "ranks_tab.png"
    with server(ROOT / "logs" / "reference") as address, browser(1400, 1290) as driver:
        open_tab(driver, address)
        until(driver, LISTED)
        driver.execute_script(CHOSEN)
        until(driver, SPECTRUM)
        driver.execute_script(STEP)
        until(driver, SHOWN)
        driver.switch_to.default_content()
        driver.save_screenshot(str(target))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
