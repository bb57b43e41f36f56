"""Start a TensorBoard server, and open its Ranks tab in Chromium."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import JavascriptException, NoSuchFrameException

SECONDS = 60
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu")
# No network requests of the browser's own while pages are tested and timed.
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update")
QUIET += ("--disable-sync", "--disable-quic")


@contextmanager
def server(folder: Path, *flags: str) -> Iterator[str]:
    """Start a TensorBoard server for a log folder; yield its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    command += flags
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            yield next(filter(None, (re.search(r"http://\S+/", line) for line in lines)))[0]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # now and then TensorBoard misses the signal
                process.kill()


def browser(width: int, height: int) -> webdriver.Chrome:
    """Start Debian's Chromium (packages chromium and chromium-driver), without a window."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, *QUIET, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium")
    # Without a path, Selenium would ask the network which driver fits.
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def open_tab(driver: webdriver.Chrome, address: str) -> None:
    """Open the tab and switch to its frame as soon as TensorBoard has created it."""
    driver.get("about:blank")
    driver.get(f"{address}#ranks")
    enter_tab(driver)


def enter_tab(driver: webdriver.Chrome) -> None:
    """Switch to the tab's frame as soon as TensorBoard has created it."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return driver.switch_to.frame(0)
        except NoSuchFrameException:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def until(driver: webdriver.Chrome, script: str, *arguments: Any) -> Any:
    """Return what a script returns once that is true; raise TimeoutError after a minute.

    A script that fails is asked again: what it reads may be about to be drawn.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        error = None
        try:
            if found := driver.execute_script(script, *arguments):
                return found
        except JavascriptException as failed:
            error = failed
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected yes within a minute, got no from: {script}") from error
        time.sleep(0.01)
