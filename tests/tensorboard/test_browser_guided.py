"""Sections of the guide in a real Chromium: a chart for each family, with or without layers."""

import pytest

from chromium import agrees, chart, leaving, read, served, show
from rankmon.writers.base import Record
from rankmon.writers.tensorboard import TensorBoardWriter
from reading import legacy_events
from tab_browser import open_tab, until

pytestmark = pytest.mark.slow

COLLAPSE = ("nc1", "nc2_norms_means", "nc2_norms_classifier", "nc3", "nc4", "rank_means")
KERNEL = ("rank", "effective_rank", "eigenvalue_max", "alignment")
TAGS = [f"collapse/{name}" for name in COLLAPSE] + [f"ntk/{name}" for name in KERNEL]
TAGS += ["rank_weights/a", "rank_weights/b", "rank_gradient/b"]
TITLE = "NC1: variation within classes relative to that between them"


def test_each_family_has_its_chart(driver, tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        for step in range(3):
            scalars = {tag: step + at / 8 for at, tag in enumerate(TAGS)}
            writer.write(Record(step, 1, 1.8e9 + step, scalars=scalars, arrays={}))
    reader = legacy_events(tmp_path)

    def logged(tag):
        events = reader.Scalars(tag)
        return [event.step for event in events], [event.value for event in events]

    with served(tmp_path) as address, leaving(driver):
        open_tab(driver, address)
        until(driver, "return window.rankmonApp?.status.textContent.startsWith('Read')")
        for section, tags in (("neural-collapse", 5), ("neural-tangent-kernel", 4)):
            show(driver, section)
            selector = f"[data-testid=section-{section}] .chart"
            until(driver, f"return document.querySelectorAll('{selector}').length === {tags}")
        agrees(chart(driver, "collapse")[TITLE], logged("collapse/nc1"))
        norms = chart(driver, "collapse-nc2_norms_classifier")
        for name in ("means", "classifier"):
            agrees(norms[name], logged(f"collapse/nc2_norms_{name}"))
        agrees(chart(driver, "ntk-alignment")["Alignment with the first kernel"], logged(TAGS[9]))
        show(driver, "gradients")
        agrees(chart(driver, "rank_gradient")["b"], logged("rank_gradient/b"))
        color = "return rankmonCharts.get(arguments[0]).spec.lines[0].color"
        second = read(driver, color, "rank_gradient")
    assert second == "#d55e00"  # of the second of two layers, also where it is alone
