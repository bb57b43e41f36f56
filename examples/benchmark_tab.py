"""Measure the Ranks tab: seconds until it can be used, and milliseconds for a step of a slider.

Chromium shows the tab of a TensorBoard server, first with 20 runs of 1,000 probes, each with four
spectra of 500 eigenvalues, and then with one such run of a network of 40 layers, whose weights have
singular values. Writing the runs takes minutes; --logdir keeps them for the next time.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generated_logs import write_deep_run, write_run
from tab_browser import browser, open_tab, server, until

RUNS, LAYERS, PROBES, EIGENVALUES = 20, 40, 1000, 500
SEEDS, DEEP = [f"seed_{seed}" for seed in range(RUNS)], "layers_40"
DRAWN = """
if (!window.rankmonCharts?.size) return false;
if (arguments[0]) document.querySelector(`[data-testid=section-${arguments[0]}]`).scrollIntoView();
const charts = [...rankmonCharts.values()].filter(({ id }) => id.startsWith(arguments[1]));
return charts.length >= arguments[2] && charts.every((chart) => !chart.isSeen || chart.uplot)
    && charts.some((chart) => chart.uplot);"""
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


@dataclass(frozen=True)
class Case:
    """The runs that are shown, and the charts that are waited for.

    Attributes:
      title: printed above the times.
      runs: the names of the runs that are shown.
      section: the section that is scrolled to; "" for the top of the page.
      charts: the beginning of the names of the charts that are waited for.
      count: their number.
    """

    title: str
    runs: Sequence[str]
    section: str
    charts: str
    count: int


CASES = (
    Case(f"{RUNS} runs of {PROBES} probes", SEEDS, "", "ranks-H_", 4),
    Case(f"{LAYERS} layers x {PROBES} probes, ranks", [DEEP], "", "ranks", 1),
    Case(f"{LAYERS} layers x {PROBES} probes, weights", [DEEP], "weights", "weights-", 3),
)


def write_missing(folder: Path) -> None:
    """Write the runs that do not exist yet."""
    for seed, name in enumerate(SEEDS):
        if not (folder / name).exists():
            print(f"writing run {seed + 1} of {RUNS}", file=sys.stderr, flush=True)
            write_run(folder / name, PROBES, EIGENVALUES, seed)
    if not (folder / DEEP).exists():
        print(f"writing the run of {LAYERS} layers", file=sys.stderr, flush=True)
        write_deep_run(folder / DEEP, PROBES, EIGENVALUES, LAYERS)


def has_read_all(address: str) -> bool:
    """Return whether the server serves the last probe of every run."""
    names = "&".join(f"run={name}" for name in (*SEEDS, DEEP))
    route = f"data/plugin/ranks/scalars?prefix=loss&{names}"
    try:
        with urllib.request.urlopen(address + route) as answer:
            runs = json.load(answer)["runs"].values()
    except OSError:
        return False
    done = [run.get("loss", {}).get("steps", [0])[-1] == 10 * (PROBES - 1) for run in runs]
    return len(done) == RUNS + 1 and all(done)


def seconds_to_open(driver, address: str, case: Case) -> float:
    """Measure the time from the creation of the tab's frame until the case's charts are drawn."""
    open_tab(driver, f"{address}?p.ranks.runs={urllib.parse.quote(json.dumps(list(case.runs)))}")
    begun = time.perf_counter()
    until(driver, DRAWN, case.section, case.charts, case.count)
    return time.perf_counter() - begun


def measure(driver, address: str, case: Case) -> None:
    """Open the page, move the slider, and print the times."""
    seconds = [seconds_to_open(driver, address, case) for _ in range(5)]
    until(driver, COUNTED)  # the slider's data are fetched in the background
    time.sleep(5)
    times = [ms for _ in range(3) for ms in driver.execute_async_script(MOVED)]
    print(case.title)
    print(f"  usable after {statistics.median(seconds):.2f} s (at most {max(seconds):.2f})")
    most = statistics.quantiles(times, n=20)[-1]
    median, longest = statistics.median(times), max(times)
    print(f"  a slider step: {median:.0f} ms, 95 % under {most:.0f} ms, longest {longest:.0f} ms")


def main() -> None:
    """Measure each case, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", type=Path, default=Path("logs/benchmark_tab"))
    folder = parser.parse_args().logdir
    write_missing(folder)
    with server(folder) as address, browser(1500, 1000) as driver:
        while not has_read_all(address):
            time.sleep(0.5)
        driver.set_script_timeout(120)
        for case in CASES:
            measure(driver, address, case)


if __name__ == "__main__":
    main()
