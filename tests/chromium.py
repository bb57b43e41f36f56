"""Helpers for browser tests: scroll to a section of the Ranks tab, and read its charts."""

import numpy as np

from tab_browser import until


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
    until(driver, "return rankmonCharts.has(arguments[0])", name)
    driver.execute_script(there + "chart.host.scrollIntoView({ block: 'center' })", name)
    until(driver, there + "return chart.uplot && chart.drawn === chart.spec", name)
    lines = driver.execute_script(
        there + "return chart.spec.lines.map((line, at) =>"
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
