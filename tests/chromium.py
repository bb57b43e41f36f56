"""Helpers for browser tests: read a page, and act on it, whenever it may redraw.

A read is one script, which sees one state of the page, once the page has done what it was asked to.
An action finds its element and acts at once, again if the element was redrawn meanwhile.
"""

import itertools
import time
from contextlib import contextmanager

import numpy as np
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    MoveTargetOutOfBoundsException,
    NoSuchElementException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tab_browser import server, until
from tensorboard_process import fetch_until

SECONDS = 30
# What an element raises that is not there yet, is covered, or was redrawn; chromedriver has other
# words for the last, too.
_REDRAWN = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    MoveTargetOutOfBoundsException,
    NoSuchElementException,
    StaleElementReferenceException,
)
_GONE = ("does not belong to the document", "No node with given id")

# Observers of the page, which draw what has come into view, run after a frame.
_READ = """
    const done = arguments[arguments.length - 1];
    const ask = () => { %s };
    const answer = () => {
        const app = window.rankmonApp;
        if (app?.busy || app?.later || app?.linking) return done(null);
        try {
            done([ask()]);
        } catch (error) {
            done(String(error));
        }
    };
    requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(answer)));
"""
# A click aims at a place: at an element that moves, it would miss.
_STEADY = """
    const [one, done] = arguments;
    one.scrollIntoView({ block: "nearest" });
    const place = () => JSON.stringify(one.getBoundingClientRect());
    const next = (run) => requestAnimationFrame(() => requestAnimationFrame(run));
    const compare = (before) => next(() => (place() === before ? done() : compare(place())));
    compare(place());
"""
_ALL = "return [...document.querySelectorAll(arguments[0])]"


def read(driver, script, *arguments):
    """Return what a script returns once the page has done what it was asked to.

    While the script fails, or returns nothing, it is asked again: what it reads may come yet.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        answer = driver.execute_async_script(_READ % script, *arguments)
        if isinstance(answer, list) and answer[0] is not None:
            return answer[0]
        assert time.monotonic() < deadline, f"got {answer} from: {script} of {arguments}"
        time.sleep(0.01)


def texts(driver, selector):
    """Return the texts of all elements that a selector finds, maybe of none."""
    return read(driver, f"{_ALL}.map((one) => one.innerText)", selector)


def text(driver, selector):
    """Return the text of the first element that a selector finds, once there is one."""
    return read(driver, "return document.querySelector(arguments[0]).innerText", selector)


def attributes(driver, selector, name):
    """Return an attribute of all elements that a selector finds; None where it is missing."""
    return read(driver, f"{_ALL}.map((one) => one.getAttribute(arguments[1]))", selector, name)


def is_shown(driver, selector):
    """Return whether the first element that a selector finds is visible."""
    return read(driver, "return document.querySelector(arguments[0]).checkVisibility()", selector)


def act(driver, selector, action):
    """Find an element and act on it; again if it was not there or was redrawn meanwhile."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return action(driver.find_element(By.CSS_SELECTOR, selector))
        except WebDriverException as error:
            again = isinstance(error, _REDRAWN) or any(word in str(error) for word in _GONE)
            if not again or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def click(driver, selector):
    """Click an element, once it stays in its place."""

    def clicked(one):
        driver.execute_async_script(_STEADY, one)
        one.click()

    act(driver, selector, clicked)


def press(driver, selector, *keys):
    """Press keys on an element one at a time, so that none is pressed twice if it is redrawn."""
    for key in "".join(keys):
        act(driver, selector, lambda one, key=key: one.send_keys(key))


def press_focused(driver, *keys):
    """Press keys on whatever has the focus."""
    ActionChains(driver).send_keys(*keys).perform()


def pick(driver, name, words):
    """Choose an option of the drop-down list with this test id."""
    act(
        driver,
        f"select[data-testid={name}]",
        lambda one: Select(one).select_by_visible_text(words),
    )


def hover(driver, selector, script, share=0.5):
    """Rest the pointer on an element until a script returns a true value; return that.

    The pointer rests at this share of the element's width. It goes to and fro by a pixel: a chart
    that is redrawn below it learns of it only when it moves.
    """
    deadline = time.monotonic() + SECONDS
    fro = itertools.cycle((0, 1))

    def moved(one):
        driver.execute_async_script(_STEADY, one)
        place = round((share - 0.5) * one.size["width"]) + next(fro)
        ActionChains(driver).move_to_element_with_offset(one, place, 0).perform()

    while True:
        act(driver, selector, moved)
        try:
            if found := driver.execute_script(script):
                return found
        except JavascriptException:
            pass  # what it reads is being drawn
        assert time.monotonic() < deadline, script
        time.sleep(0.05)


def drag(driver, selector, share):
    """Drag the pointer from the middle of an element by a share of its width."""

    def dragged(one):
        driver.execute_async_script(_STEADY, one)
        by = round(share * one.size["width"])
        mouse = ActionChains(driver).move_to_element(one).click_and_hold()
        mouse.move_by_offset(by, 0).release().perform()

    act(driver, selector, dragged)


@contextmanager
def leaving(driver):
    """Leave the page at the end, before its server ends: it would ask that again and again."""
    try:
        yield
    finally:
        driver.get("about:blank")


@contextmanager
def served(folder, *flags):
    """Start a server, and yield its address once it has read the runs that lie in the folder."""
    logged = [path for path in folder.rglob("*tfevents*") if b"rank" in path.read_bytes()]
    names = {str(path.parent.relative_to(folder)) for path in logged}
    answers = [None]

    def ready(answer):
        answers.append(answer)
        known = {run["name"] for run in answer["runs"]}
        return names <= known and answer == answers[-2]  # no more tags came, no later records

    with server(folder, *flags) as address:
        fetch_until(address, "ranks/runs", ready)
        yield address


def saved(driver, name, kind):
    """Return the bytes of what a chart saves as "svg", "png" or "csv"."""
    read(driver, "return rankmonCharts.get(arguments[0]).uplot ? true : null", name)
    return bytes(
        driver.execute_async_script(
            "const [name, kind, done] = arguments;"
            "Promise.resolve(rankmonCharts.get(name)[kind]())"
            ".then((saved) => new Response(saved).arrayBuffer())"
            ".then((bytes) => done([...new Uint8Array(bytes)]))",
            name,
            kind,
        )
    )


def show(driver, section):
    """Scroll to a section until it is drawn; charts drawn above it may move it out of view."""
    script = """
        const box = document.querySelector(`[data-testid=section-${arguments[0]}]`);
        box.scrollIntoView();
        return box.querySelector(".chart, tbody tr, .markdown") !== null;
    """
    until(driver, script, section)


def chart(driver, name):
    """Return the lines of a chart as drawn: label -> (kind, steps, values)."""
    there = "const chart = rankmonCharts.get(arguments[0]);"
    until(driver, f"{there} chart.host.scrollIntoView({{ block: 'center' }}); return true", name)
    lines = read(
        driver,
        there + "chart.host.scrollIntoView({ block: 'center' });"
        "if (!chart.uplot || chart.drawn !== chart.spec) return null;"
        "return chart.spec.lines.map((line, at) =>"
        "[line.label, line.kind ?? 'line', chart.data[0], chart.data[at + 1]])",
        name,
    )
    return {label: (kind, steps, values) for label, kind, steps, values in lines}


def agrees(line, expected):
    """Assert that a line has these steps and values, and no others."""
    _, steps, values = line
    shown = {step: value for step, value in zip(steps, values, strict=True) if value is not None}
    wanted = dict(zip(*expected, strict=True))
    assert list(shown) == list(wanted)
    np.testing.assert_allclose(list(shown.values()), list(wanted.values()), rtol=1e-6)
