"""What the Ranks tab costs its reader: seconds until it can be used, milliseconds a slider step.

In a real Chromium (Debian's packages chromium and chromium-driver), on a real TensorBoard server,
over 20 runs of 1,000 probes with four spectra of 500 eigenvalues each. Writing them takes minutes;
they are kept in --logdir for the next time.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

from generated_logs import write_run

RUNS, PROBES, EIGENVALUES = 20, 1000, 500
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000")
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


def written(folder: Path) -> None:
    """Writes the runs that are not there yet."""
    for seed in range(RUNS):
        if not (folder / f"seed_{seed}").exists():
            print(f"writing run {seed + 1} of {RUNS}", file=sys.stderr, flush=True)
            write_run(folder / f"seed_{seed}", PROBES, EIGENVALUES, seed)


@contextmanager
def server(folder: Path):
    """The address of a TensorBoard server that has read all runs."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = iter(process.stderr.readline, "")
        address = next(filter(None, (re.search(r"http://\S+/", line) for line in said)))[0]
        while not has_read_all(address):
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def has_read_all(address: str) -> bool:
    """Whether the server gives the last probe of every run."""
    names = "&".join(f"run=seed_{seed}" for seed in range(RUNS))
    try:
        with urllib.request.urlopen(
            f"{address}data/plugin/ranks/scalars?prefix=loss&{names}"
        ) as got:
            runs = json.load(got)["runs"].values()
    except OSError:
        return False
    done = [run.get("loss", {}).get("steps", [0])[-1] == 10 * (PROBES - 1) for run in runs]
    return len(done) == RUNS and all(done)


def until(driver, script: str) -> None:
    """Waits until a script says yes."""
    while not driver.execute_script(script):
        time.sleep(0.01)


def opened(driver, address: str) -> float:
    """Seconds from when TensorBoard makes the tab's frame until its curves are drawn."""
    driver.get("about:blank")
    driver.get(f"{address}#ranks")
    while not (frames := driver.find_elements(By.TAG_NAME, "iframe")):
        time.sleep(0.01)
    begun = time.perf_counter()
    driver.switch_to.frame(frames[0])
    until(driver, DRAWN)
    return time.perf_counter() - begun


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logdir", type=Path, default=Path("logs/benchmark_tab"))
    folder = parser.parse_args().logdir
    written(folder)
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    with server(folder) as address, webdriver.Chrome(options=options) as driver:
        driver.set_script_timeout(120)
        seconds = [opened(driver, address) for _ in range(3)]
        until(driver, COUNTED)
        times = driver.execute_async_script(MOVED)
    print(f"{RUNS} runs of {PROBES} probes, {EIGENVALUES} eigenvalues a spectrum")
    print(f"usable after {statistics.median(seconds):.2f} s (at most {max(seconds):.2f})")
    print(f"a slider step: {statistics.median(times):.0f} ms (at most {max(times):.0f})")


if __name__ == "__main__":
    main()
