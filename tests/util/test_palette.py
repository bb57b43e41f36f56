"""Test the palette: contrast by WCAG 2.2, and distances for color-blind readers.

Simulations by Machado, Oliveira and Fernandes (2009), severity 1; distances are CIE 1976 Delta E.
"""

import itertools
import re

import numpy as np
import pytest

from paths import ROOT
from rankmon._util.palette import DASHES, LINES, PAGES, PARTS, WIDTHS

STATIC = ROOT / "rankmon" / "tensorboard" / "static"
VISION = {
    "usual": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(linear(c) @ TO_XYZ[1] for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(color: str, vision: np.ndarray) -> np.ndarray:
    x, y, z = TO_XYZ @ np.clip(vision @ linear(color), 0, 1) / (TO_XYZ @ np.ones(3))
    f = [np.cbrt(t) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(colors, kind: str) -> float:
    seen = [lab(color, VISION[kind]) for color in colors]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


def css(theme: str) -> dict[str, str]:
    """The variables of the style sheet in a theme."""
    text = (STATIC / "style.css").read_text()
    blocks = re.findall(r":root(?:\[data-theme=\"(\w+)\"\])? \{(.*?)\}", text, re.DOTALL)
    found = {name or "light": dict(re.findall(r"--(\w+): (#\w+);", body)) for name, body in blocks}
    return found["light"] | found[theme]


def full(color: str) -> str:
    return color if len(color) == 7 else "#" + "".join(2 * letter for letter in color[1:])


@THEMES
def test_the_oracle_and_the_page(theme):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert full(css(theme)["page"]) == PAGES[theme]


@THEMES
def test_lines_stand_out_from_the_page(theme):
    for color in (*PARTS[theme].values(), *LINES[theme]):
        assert contrast(color, PAGES[theme]) >= 3


@THEMES
@pytest.mark.parametrize("kind", VISION)
def test_parts_are_told_apart(theme, kind):
    assert closest(PARTS[theme].values(), kind) >= 15


@THEMES
@pytest.mark.parametrize("kind", VISION)
def test_four_lines_are_told_apart(theme, kind):
    assert closest(LINES[theme][:4], kind) >= 15


@THEMES
def test_texts_stand_out_from_page_and_panel(theme):
    colors = {name: full(color) for name, color in css(theme).items()}
    for name in ("text", "muted", "accent", "met", "unmet"):
        for ground in ("page", "panel"):
            assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)


def test_the_browser_has_the_same_colors():
    source = (STATIC / "theme.js").read_text()
    for theme in ("light", "dark"):
        (block,) = re.findall(rf"  {theme}: \{{(.*?)\n  \}}", source, re.DOTALL)
        assert dict(re.findall(r"(H_\w+): \"(#\w{6})\"", block)) == PARTS[theme]
        (lines,) = re.findall(r"lines: \[(.*?)\]", block)
        assert tuple(re.findall(r"#\w{6}", lines)) == LINES[theme]
    (looks,) = re.findall(r"const LOOKS = \{(.*?)\n\};", source, re.DOTALL)
    for part, dash in DASHES.items():
        (look,) = re.findall(rf"  {part}: \{{(.*?)\}}", looks)
        assert [int(n) for n in re.findall(r"\d+", look.partition("dash")[2])] == list(dash)
        assert float(re.search(r"width: ([\d.]+)", look)[1]) == WIDTHS[part]


def test_parts_differ_in_dash():
    assert len(set(DASHES.values())) == len(DASHES)
