"""The Ranks tab in a real Chromium: charts saved as PDF, and pages that offer none."""

import io
import os
import time

import numpy as np
import pytest
from pypdf import PdfReader
from selenium.webdriver.common.keys import Keys

import rankmon
from chromium import chart, click, press, press_focused, read, texts
from rankmon.report.html import standalone_page
from rankmon.runs.read import read_runs
from tab_browser import open_tab, until
from tensorboard_process import tensorboard_server

pytestmark = pytest.mark.slow

MENU = "[data-testid=chart-ranks] .saving"
ITEMS = ["PNG", "SVG", "Figure", "PDF", "CSV", "Copy"]
READ = "return window.rankmonApp?.reading > 0"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pdf") / "logs"
    problem = rankmon.Problem(
        lambda params, x: x @ params["a"] @ params["b"],
        loss="mse",
        inputs=np.eye(3),
        targets=np.ones((3, 2)),
    )
    with rankmon.RankMonitor(problem, logdir=folder / "run", every=1) as monitor:
        for step in range(4):
            monitor(step, {"a": np.eye(3) * (step + 1), "b": np.ones((3, 2))})
    return folder


@pytest.fixture(scope="module")
def address(logs):
    with tensorboard_server(logs) as address:
        yield address


def opened(driver, address, folder):
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    open_tab(driver, address)
    until(driver, READ)
    chart(driver, "ranks")


def downloaded(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, list(path.parent.iterdir())
        time.sleep(0.05)
    return path.read_bytes()


def by_mouse(driver):
    click(driver, f"{MENU} summary")
    click(driver, f"{MENU} button:nth-of-type({ITEMS.index('PDF') + 1})")


def by_keyboard(driver):
    press(driver, f"{MENU} summary", Keys.ENTER)
    press_focused(driver, *[Keys.TAB] * (ITEMS.index("PDF") + 1), Keys.ENTER)


@pytest.mark.parametrize("save", [by_mouse, by_keyboard], ids=["mouse", "keyboard"])
def test_a_chart_is_saved_as_pdf(driver, address, tmp_path, save):
    opened(driver, address, tmp_path)
    save(driver)
    (page,) = PdfReader(io.BytesIO(downloaded(tmp_path / "ranks.pdf"))).pages
    assert float(page.mediabox.width) / 72 == pytest.approx(3.3, abs=0.01)
    words = page.extract_text().split()
    assert {"rank", "step", "loss"} <= set(words)
    assert "H" in "".join(words)
    assert not page.images
    assert not read(driver, f"return document.querySelector('{MENU}').open")


def test_an_error_of_the_server_is_said(driver, address, tmp_path):
    opened(driver, address, tmp_path)
    driver.execute_script(
        "rankmonApp.source.pdf = async () => { throw new Error('expected a drawing') }"
    )
    by_mouse(driver)
    until(driver, "return rankmonApp.status.textContent === 'Not saved: expected a drawing'")
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_matplotlib_offers_none(driver, logs, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with tensorboard_server(logs, PYTHONPATH=search) as address:
        opened(driver, address, tmp_path)
        click(driver, f"{MENU} summary")
        assert texts(driver, f"{MENU} button") == [item for item in ITEMS if item != "PDF"]


def test_a_page_without_a_server_offers_none(driver, logs, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(standalone_page(read_runs(logs)), "utf-8")
    driver.get(path.as_uri())
    until(driver, READ)
    chart(driver, "ranks")
    click(driver, f"{MENU} summary")
    assert texts(driver, f"{MENU} button") == [item for item in ITEMS if item != "PDF"]
