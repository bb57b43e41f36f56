"""What tests read of the tab's charts in a browser; no tests."""

import numpy as np

from tab_browser import until


def show(driver, section):
    """Scrolls to a section until it is drawn; what is drawn above it may push it out of sight."""
    script = """
        const box = document.querySelector(`[data-testid=section-${arguments[0]}]`);
        box.scrollIntoView();
        return box.querySelector(".chart, tbody tr, .markdown") !== null;
    """
    until(driver, script, section)


def chart(driver, name):
    """The lines of a chart as drawn: label -> (kind, steps, values)."""
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
    """Whether a line has these steps and values, and nothing at others."""
    _, steps, values = line
    shown = {step: value for step, value in zip(steps, values, strict=True) if value is not None}
    wanted = dict(zip(*expected, strict=True))
    assert list(shown) == list(wanted)
    np.testing.assert_allclose(list(shown.values()), list(wanted.values()), rtol=1e-6)
