"""Draw the tab's SVG of a chart as a PDF; needs matplotlib.

The tab writes few kinds of SVG elements (static/svg.js). All others are refused, so that nothing is
left out of the picture, and nothing that a request names is read.
"""

import base64
import binascii
import colorsys
import io
import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, Bbox, Transform, TransformedBbox
from numpy.typing import NDArray
from PIL import Image

from rankmon.tensorboard.svg_path import number, path_of, transform_of

MOST_ELEMENTS, MOST_TEXTS, MOST_LETTERS, MOST_PIXELS, WIDEST = 20_000, 2000, 500, 4_000_000, 4000
_PER_INCH, _POINTS = 96, 72  # pixels of CSS, and points, of an inch
_SVG = "{http://www.w3.org/2000/svg}"
_HSL = re.compile(r"hsl\((\d+) ([\d.]+)% ([\d.]+)%(?: / ([\d.]+))?\)", re.A)
_FONT = re.compile(r"font:\s*(italic)?\s*(bold)?\s*([\d.]+)px [\w, -]+", re.A)
_LONGEST_STYLE = 100
_PNG = "data:image/png;base64,"
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}
_BASELINES = {
    "auto": "baseline",
    "hanging": "top",
    "central": "center",
    "text-after-edge": "bottom",
}
# Letters stay text, and their font is in the file.
_STYLE: Any = {"pdf.fonttype": 42, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
_ALONE = (
    threading.Lock()
)  # Matplotlib's settings belong to the process, and requests come in threads


def pdf_of(svg: bytes) -> bytes:
    """Return a PDF of the size of an SVG of the tab; raise ValueError if it is any other SVG."""
    root = _parsed(svg)
    width, height = (number(root.get(name)) for name in ("width", "height"))
    if not (0 < width <= WIDEST and 0 < height <= WIDEST):
        raise ValueError(f"expected at most {WIDEST} pixels in the SVG, got {width} x {height}")
    with _ALONE, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Characters of a name that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH), frameon=False)
        inches = Affine2D().scale(1 / _PER_INCH, -1 / _PER_INCH).translate(0, height / _PER_INCH)
        page = _Page(inches, figure.dpi_scale_trans, (width, height))
        for order, artist in enumerate(page.drawn(root)):
            artist.set_zorder(order)
            figure.add_artist(artist, clip=False)
        file = io.BytesIO()
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    return file.getvalue()


def _parsed(svg: bytes) -> Element:
    """Return the root of an SVG that is not too large."""
    if b"<!" in svg or b"<?" in svg:
        raise ValueError("expected an SVG without declarations, got one with <! or <?")
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"expected an SVG, got text that is no XML: {error}") from error
    if root.tag != f"{_SVG}svg":
        raise ValueError(f"expected an SVG, got the element {root.tag[:40]!r}")
    texts = [one.text or "" for one in root.iter(f"{_SVG}text")]
    counts = (sum(1 for _ in root.iter()), len(texts), max(map(len, texts), default=0))
    most = (MOST_ELEMENTS, MOST_TEXTS, MOST_LETTERS)
    if any(count > limit for count, limit in zip(counts, most, strict=True)):
        raise ValueError(
            f"expected at most {most} elements, texts and letters of one, got {counts}"
        )
    return root


@dataclass(frozen=True)
class _Page:
    """The page that the elements of an <svg> are drawn on.

    Attributes:
      inches: the transform from its pixels to inches of the figure.
      display: the transform from inches to Matplotlib's pixels.
      size: width and height in its pixels.
      is_inner: whether it is an <svg> in another one.
      clips: its clip paths by name.
    """

    inches: Transform
    display: Transform
    size: tuple[float, float]
    is_inner: bool = False
    clips: dict[str, Element] = field(default_factory=dict)

    def drawn(self, svg: Element) -> Iterator[Artist]:
        """Yield the elements of an <svg> as artists, in their order."""
        self.clips.update({c.get("id", ""): c for c in svg.findall(f"{_SVG}defs/{_SVG}clipPath")})
        drawers = {"path": _path, "rect": self._rect, "text": _text, "image": _image}
        pixels = 0
        for element in svg:
            kind = element.tag.removeprefix(_SVG)
            if kind == "svg" and not self.is_inner:
                yield from self._inner(element).drawn(element)
            elif kind in drawers:
                inches = transform_of(element.get("transform")) + self.inches
                artist = drawers[kind](element, inches, inches + self.display)
                pixels += artist.pixels.size // 4 if isinstance(artist, _Pixels) else 0
                if pixels > MOST_PIXELS:
                    raise ValueError(f"expected images of at most {MOST_PIXELS} pixels, got more")
                self._clip(artist, element.get("clip-path"))
                yield artist
            elif kind != "defs":
                raise ValueError(f"expected {', '.join(drawers)} in the SVG, got {kind[:40]!r}")

    def _inner(self, svg: Element) -> "_Page":
        """Return the page of an <svg> in this one: moved down, and scaled to its size."""
        width, height, top = (number(svg.get(name, "0")) for name in ("width", "height", "y"))
        box = [number(value) for value in svg.get("viewBox", "").split()]
        if len(box) != 4 or box[:2] != [0, 0] or min(*box[2:], width, height) <= 0:
            raise ValueError(f"expected a width, a height and a viewBox from 0 0, got {box[:4]}")
        moved = Affine2D().scale(width / box[2], height / box[3]).translate(0, top)
        return _Page(moved + self.inches, self.display, (box[2], box[3]), is_inner=True)

    def _rect(self, element: Element, _: Transform, place: Transform) -> Artist:
        """Return the ground, which is the only rectangle that is no path."""
        width, height = self.size
        outline = Path([(0, 0), (width, 0), (width, height), (0, height), (0, 0)], closed=True)
        return PathPatch(outline, transform=place, lw=0, fc=_color(element.get("fill")))

    def _clip(self, artist: Artist, name: str | None) -> None:
        """Clip to a path and to the path that this is clipped to; one of them is a rectangle.

        Matplotlib clips to one rectangle and one path.
        """
        for _ in range(2):
            if name is None:
                return
            clip = self.clips.get(name.removeprefix("url(#").removesuffix(")"))
            if clip is None or len(clip) != 1:
                raise ValueError(
                    f"expected the name of a clip path with one path, got {name[:40]!r}"
                )
            place = transform_of(clip.get("transform")) + self.inches + self.display
            path = path_of(clip[0].get("d", ""))
            box = _rectangle(path)
            if box is not None and artist.get_clip_box() is None:
                artist.set_clip_box(TransformedBbox(box, place))
            elif artist.get_clip_path() is None:
                artist.set_clip_path(path, place)
            else:
                raise ValueError("expected a rectangle as one of two clip paths, got none")
            name = clip.get("clip-path")
        if name is not None:
            raise ValueError("expected at most two clip paths in each other, got more")


def _rectangle(path: Path) -> Bbox | None:
    """Return the rectangle that a path is; None for other paths."""
    vertices = np.asarray(path.vertices)
    corners = np.unique(vertices, axis=0)
    sides = [len(np.unique(vertices[:, axis])) for axis in (0, 1)]
    return path.get_extents() if len(corners) == 4 and sides == [2, 2] else None


def _points(inches: Transform) -> float:
    """Return the points of a pixel."""
    (x0, y0), (x1, y1) = inches.transform([(0, 0), (0, 1)])
    return _POINTS * math.hypot(x1 - x0, y1 - y0)


def _path(element: Element, inches: Transform, place: Transform) -> Artist:
    points, opacity = _points(inches), number(element.get("opacity", "1"))
    width = number(element.get("stroke-width", "1")) * points
    dash = element.get("stroke-dasharray")
    dashes = [number(one) * points for one in dash.split(",")] if dash else []
    edge = _color(element.get("stroke"), opacity)
    return PathPatch(
        path_of(element.get("d", "")),
        transform=place,
        facecolor=_color(element.get("fill"), opacity),
        edgecolor=edge,
        linewidth=width if edge[3] else 0,
        linestyle=_dashed(dashes, width),
        joinstyle=_one_of(element.get("stroke-linejoin", "miter"), ("miter", "round", "bevel")),
        capstyle=_one_of(element.get("stroke-linecap", "butt"), ("butt", "round")),
    )


def _dashed(dashes: list[float], width: float) -> Any:
    """Return Matplotlib's line style, whose dashes are in widths of the line."""
    if not dashes or width <= 0 or min(dashes) < 0 or not any(dashes):
        return "-"
    return (0, [one / width for one in dashes * (1 + len(dashes) % 2)])


def _text(element: Element, inches: Transform, place: Transform) -> Artist:
    font = _FONT.fullmatch(element.get("style", "")[:_LONGEST_STYLE])
    if font is None:
        raise ValueError(
            f"expected the style font:...px of a text, got {element.get('style')!r:.60}"
        )
    (x0, y0), (x1, y1) = inches.transform([(0, 0), (1, 0)])
    return Text(
        number(element.get("x")),
        number(element.get("y")),
        element.text or "",
        transform=place,
        style=font[1] or "normal",
        weight=font[2] or "normal",
        size=number(font[3]) * _points(inches),
        color=_color(element.get("fill")),
        ha=_ANCHORS[_one_of(element.get("text-anchor", "start"), _ANCHORS)],
        va=_BASELINES[_one_of(element.get("dominant-baseline", "auto"), _BASELINES)],
        rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
        rotation_mode="anchor",
        parse_math=False,
    )


def _image(element: Element, inches: Transform, place: Transform) -> Artist:
    href = element.get("href", "")
    if not href.startswith(_PNG):
        raise ValueError(f"expected an image as {_PNG}..., got {href[:40]!r}")
    x, y, width, height = (number(element.get(name)) for name in ("x", "y", "width", "height"))
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(href[len(_PNG) :])), formats=["PNG"]
        ) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"expected images of at most {MOST_PIXELS} pixels, got more")
            pixels = np.asarray(picture.convert("RGBA"))
    except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a PNG as base64 in the SVG, got: {error}") from error
    return _Pixels(pixels, TransformedBbox(Bbox.from_bounds(x, y, width, height), place))


class _Pixels(Artist):
    """An image with its own pixels: those of Matplotlib's images are resampled to 72 an inch."""

    def __init__(self, pixels: NDArray[np.uint8], box: TransformedBbox) -> None:
        super().__init__()
        self.pixels, self._box = pixels, box

    def draw(self, renderer: Any) -> None:
        """Draw the image, clipped."""
        gc = renderer.new_gc()
        gc.set_clip_rectangle(self.get_clip_box())
        gc.set_clip_path(self.get_clip_path())
        left, bottom, width, height = self._box.bounds
        place = Affine2D().scale(width, height).translate(left, bottom)
        renderer.draw_image(gc, 0, 0, self.pixels[::-1], place)
        gc.restore()


def _color(text: str | None, opacity: float = 1) -> tuple[float, float, float, float]:
    """Return red, green, blue and alpha of a color of CSS; of none, transparent black."""
    if text in (None, "none", "transparent"):
        return (0, 0, 0, 0)
    if hsl := _HSL.fullmatch(text):
        hue, saturation, lightness, alpha = (float(one or 1) for one in hsl.groups())
        color = (*colorsys.hls_to_rgb(hue / 360 % 1, lightness / 100, saturation / 100), alpha)
    elif re.fullmatch(r"#[0-9a-fA-F]{3,8}", text) and len(text) in (4, 7, 9):
        color = to_rgba(text)
    else:
        raise ValueError(f"expected a color as #rrggbb or hsl(), got {text[:40]!r}")
    red, green, blue, alpha = (min(max(one, 0), 1) for one in color)
    return red, green, blue, alpha * min(max(opacity, 0), 1)


def _one_of(value: str, known: Sequence[str] | dict[str, str]) -> Any:
    if value not in known:
        raise ValueError(f"expected {', '.join(known)} in the SVG, got {value[:40]!r}")
    return value
