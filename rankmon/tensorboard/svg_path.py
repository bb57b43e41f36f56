"""The path data and transforms of the tab's SVG, as paths and transforms of Matplotlib."""

import math
import re
from typing import Any

from matplotlib.path import Path
from matplotlib.transforms import Affine2D

FURTHEST = 1e5  # pixels
# A circle's quarter as a Bézier curve has its handles this far from its ends.
_HANDLE = 4 / 3 * math.tan(math.pi / 8)
_TOKEN = re.compile(r"[\s,]*(?:([A-Za-z])|([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,3})?))", re.A)
_COUNTS = {"M": 2, "L": 2, "C": 6, "h": 1, "v": 1, "a": 7, "Z": 0}


def number(text: str | None) -> float:
    """Return a finite number of the drawing; raise ValueError for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) <= FURTHEST:
        raise ValueError(f"expected a number up to {FURTHEST:g} in the SVG, got {str(text)[:20]!r}")
    return value


def path_of(data: str) -> Path:
    """Return a path from the tab's commands: M, L, C, h, v, Z, and a, which draws half circles."""
    vertices: list[tuple[float, float]] = []
    codes: list[Any] = []
    start = at = (0.0, 0.0)
    for command, values in _commands(data):
        if command == "Z":
            points, code = [start], Path.CLOSEPOLY
        elif command == "C":
            points, code = [values[0:2], values[2:4], values[4:6]], Path.CURVE4
        elif command == "a":
            points, code = _half_circle(at, values), Path.CURVE4
        else:
            x, y = at
            moved = {"h": (x + values[0], y), "v": (x, y + values[0])} if len(values) == 1 else {}
            points, code = [moved.get(command, values)], Path.LINETO
        if command == "M":
            start, code = points[0], Path.MOVETO
        elif not vertices:
            raise ValueError(f"expected path data that begin with M, got {data[:20]!r}")
        vertices += points
        codes += [code] * len(points)
        at = points[-1]
    if not vertices:
        raise ValueError("expected path data, got none")
    return Path(vertices, codes)


def _commands(data: str) -> list[tuple[str, tuple]]:
    """Split path data into commands with their numbers."""
    found: list[tuple[str, list[float]]] = []
    data, at = data.rstrip(), 0
    while at < len(data):
        token = _TOKEN.match(data, at)
        if token is None or (token[1] or "M") not in _COUNTS:
            raise ValueError(f"expected path data of {', '.join(_COUNTS)}, got {data[at:][:20]!r}")
        if token[1]:
            found.append((token[1], []))
        elif found:
            found[-1][1].append(number(token[2]))
        at = token.end()
    for command, values in found:
        if len(values) != _COUNTS[command]:
            raise ValueError(
                f"expected {_COUNTS[command]} numbers after {command}, got {len(values)}"
            )
    return [(command, tuple(values)) for command, values in found]


def _half_circle(at: tuple[float, float], values: tuple) -> list[tuple[float, float]]:
    """Return two Bézier curves for an arc that is half a circle, drawn as with SVG's sweep 0."""
    radius, other, *_, dx, dy = values
    if dy or radius != other or not math.isclose(abs(dx), 2 * radius, abs_tol=0.02):
        raise ValueError(f"expected arcs of half a circle, got a {values}")
    x, y = at
    r, handle = dx / 2, dx / 2 * _HANDLE
    bottom = (x + r, y + r)
    return [
        (x, y + handle),
        (x + r - handle, y + r),
        bottom,
        (x + r + handle, y + r),
        (x + dx, y + handle),
        (x + dx, y),
    ]


def transform_of(text: str | None) -> Affine2D:
    """Return the transform of `matrix(a,b,c,d,e,f)`; of None, the identity."""
    if text is None:
        return Affine2D()
    match = re.fullmatch(r"matrix\(([^()]*)\)", text)
    values = [number(one) for one in match[1].split(",")] if match else []
    if len(values) != 6:
        raise ValueError(f"expected the transform matrix(a,b,c,d,e,f), got {text[:40]!r}")
    return Affine2D.from_values(*values)
