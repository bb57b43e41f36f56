"""What the Ranks tab costs its reader: seconds until it can be used, milliseconds a slider step.

In a real Chromium, on a real TensorBoard server, over 20 runs of 1,000 probes with four spectra of
500 eigenvalues each. Writing them takes minutes; they are kept in --logdir for the next time.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from pathlib import Path

from generated_logs import write_run
from tab_browser import browser, open_tab, server, until

RUNS, PROBES, EIGENVALUES = 20, 1000, 500
DRAWN = """return window.rankmonCharts?.size > 3
    && [...rankmonCharts.values()].slice(0, 4).every((chart) => chart.uplot)"""
COUNTED = "return rankmonApp.counts.size === rankmonApp.runs.length"
MOVED = """
const done = arguments[0], slider = document.querySelector("[data-testid=cut]"), times = [];
(async () => {
  for (let position = 60; position < 100; position++) {
    const begun = performance.now();
    slider.value = position;
    slider.dispatchEvent(new Event("input"));
    await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
    times.push(performance.now() - begun);
  }
  done(times);
})();
"""


def write_missing(folder: Path) -> None:
    """Writes the runs that are not there yet."""
    for seed in range(RUNS):
        if not (folder / f"seed_{seed}").exists():
            print(f"writing run {seed + 1} of {RUNS}", file=sys.stderr, flush=True)
            write_run(folder / f"seed_{seed}", PROBES, EIGENVALUES, seed)


def has_read_all(address: str) -> bool:
    """Whether the server gives the last probe of every run."""
    names = "&".join(f"run=seed_{seed}" for seed in range(RUNS))
    route = f"data/plugin/ranks/scalars?prefix=loss&{names}"
    try:
        with urllib.request.urlopen(address + route) as answer:
            runs = json.load(answer)["runs"].values()
    except OSError:
        return False
    done = [run.get("loss", {}).get("steps", [0])[-1] == 10 * (PROBES - 1) for run in runs]
    return len(done) == RUNS and all(done)


def seconds_to_open(driver, address: str) -> float:
    """From when TensorBoard has made the tab's frame until its curves are drawn."""
    open_tab(driver, address)
    begun = time.perf_counter()
    until(driver, DRAWN)
    return time.perf_counter() - begun


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", type=Path, default=Path("logs/benchmark_tab"))
    folder = parser.parse_args().logdir
    write_missing(folder)
    with server(folder) as address, browser(1500, 1000) as driver:
        while not has_read_all(address):
            time.sleep(0.5)
        driver.set_script_timeout(120)
        seconds = [seconds_to_open(driver, address) for _ in range(5)]
        until(driver, COUNTED)  # what the slider needs is fetched in the background
        time.sleep(5)
        times = [ms for _ in range(3) for ms in driver.execute_async_script(MOVED)]
    print(f"{RUNS} runs of {PROBES} probes, {EIGENVALUES} eigenvalues a spectrum")
    print(f"usable after {statistics.median(seconds):.2f} s (at most {max(seconds):.2f})")
    most = statistics.quantiles(times, n=20)[-1]
    print(f"a slider step: {statistics.median(times):.0f} ms, 95 % of them under {most:.0f} ms")
    print(f"the longest: {max(times):.0f} ms")


if __name__ == "__main__":
    main()
