"""Take the README's picture of the Ranks tab: its first screen with the reference runs."""

from pathlib import Path

from tab_browser import browser, open_tab, server, until

ROOT = Path(__file__).parents[1]
DRAWN = "return window.rankmonCharts?.get('ranks')?.uplot && rankmonCharts.get('weights-0')?.uplot"


def main() -> None:
    """Write the picture."""
    target = ROOT / "examples" / "pictures" / "ranks_tab.png"
    with server(ROOT / "logs" / "reference") as address, browser(1400, 1000) as driver:
        open_tab(driver, address)
        until(driver, DRAWN)
        driver.switch_to.default_content()
        driver.save_screenshot(str(target))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
