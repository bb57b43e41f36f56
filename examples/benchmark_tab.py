"""Measure the Ranks tab: seconds until it can be used, and milliseconds for a step of a slider.

Chromium shows the tab of a TensorBoard server with 20 runs of 1,000 probes, each with four spectra
of 500 eigenvalues. Writing the runs takes minutes; --logdir keeps them for the next time.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.parse
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
    """Write the runs that do not exist yet."""
    for seed in range(RUNS):
        if not (folder / f"seed_{seed}").exists():
            print(f"writing run {seed + 1} of {RUNS}", file=sys.stderr, flush=True)
            write_run(folder / f"seed_{seed}", PROBES, EIGENVALUES, seed)


def has_read_all(address: str) -> bool:
    """Return whether the server serves the last probe of every run."""
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
    """Measure the time from the creation of the tab's frame until its curves are drawn."""
    names = json.dumps([f"seed_{seed}" for seed in range(RUNS)])
    open_tab(driver, f"{address}?p.ranks.runs={urllib.parse.quote(names)}")
    begun = time.perf_counter()
    until(driver, DRAWN)
    return time.perf_counter() - begun


def main() -> None:
    """Measure, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", type=Path, default=Path("logs/benchmark_tab"))
    folder = parser.parse_args().logdir
    write_missing(folder)
    with server(folder) as address, browser(1500, 1000) as driver:
        while not has_read_all(address):
            time.sleep(0.5)
        driver.set_script_timeout(120)
        seconds = [seconds_to_open(driver, address) for _ in range(5)]
        until(driver, COUNTED)  # the slider's data are fetched in the background
        time.sleep(5)
        times = [ms for _ in range(3) for ms in driver.execute_async_script(MOVED)]
    print(f"{RUNS} runs of {PROBES} probes, {EIGENVALUES} eigenvalues a spectrum")
    print(f"usable after {statistics.median(seconds):.2f} s (at most {max(seconds):.2f})")
    most = statistics.quantiles(times, n=20)[-1]
    print(f"a slider step: {statistics.median(times):.0f} ms, 95 % of them under {most:.0f} ms")
    print(f"the longest: {max(times):.0f} ms")


if __name__ == "__main__":
    main()
