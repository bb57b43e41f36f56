"""Test the route of PDFs in TensorBoard's own application: the file, refusals, and hostile SVGs."""

import base64
import io
import random
import sys
import zlib

import pytest
from PIL import Image
from pypdf import PdfReader
from tensorboard import program
from tensorboard.backend.application import TensorBoardWSGIApp
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.plugins.core.core_plugin import CorePluginLoader
from werkzeug.test import Client

from rankmon.tensorboard.plugin import RanksLoader

ROUTE = "/data/plugin/ranks/pdf"
TYPE = "image/svg+xml"
STYLE = 'style="font:italic  12px system-ui, sans-serif" text-anchor="start"'


def png(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (31, 161, 135)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def svg(inside: str, size: str = 'width="320" height="200"') -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{inside}</svg>'.encode()


FIGURE = svg(
    f"""<defs></defs><rect width="100%" height="100%" fill="#fff"/>
<path d="M10 20L40 60" fill="none" stroke="#0072b2" stroke-width="4" stroke-dasharray="10,3,2,3"
 stroke-linejoin="round" stroke-linecap="butt" opacity="1"/>
<text x="42" y="14" fill="#222" {STYLE} dominant-baseline="auto">rank $x^2$ Ränge ▲</text>
<svg y="40" width="320" height="160" viewBox="0 0 640 320"><defs>
<clipPath id="clip0"><path d="M80 20h400v200h-400Z"/></clipPath>
<clipPath id="clip1" clip-path="url(#clip0)"><path d="M80 20L400 30L400 90Z"/></clipPath></defs>
<rect width="100%" height="100%" fill="transparent"/>
<path d="M80 20L400 30L90 200Z" fill="hsl(275 60% 38% / 0.18)" opacity="1" clip-path="url(#clip1)"/>
<path d="M100 100a8 8 0 1 0 16 0a8 8 0 1 0 -16 0" fill="#fff" stroke="#d55e00" opacity="0.5"/>
<image href="{png(3, 2)}" x="1" y="2" width="30" height="20" clip-path="url(#clip0)"/>
<text x="0" y="0" fill="hsl(1 60% 38%)" style="font:24px system-ui, sans-serif" text-anchor="middle"
 dominant-baseline="hanging" transform="matrix(0,-1,1,0,20,100)">left axis</text></svg>"""
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Return a client of TensorBoard's application over an empty folder."""
    board = program.TensorBoard([CorePluginLoader(), RanksLoader()])
    logs = str(tmp_path_factory.mktemp("logs"))
    board.configure(("tensorboard", "--logdir", logs, "--reload_interval=0"))
    provider = LocalDataIngester(board.flags).data_provider
    return Client(TensorBoardWSGIApp(board.flags, [RanksLoader()], provider))


def sent(client, body: bytes, kind: str = TYPE, **more):
    return client.post(ROUTE, data=body, content_type=kind, **more)


def test_a_pdf_has_the_size_and_the_letters_of_the_figure(client):
    answer = sent(client, FIGURE)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/pdf")
    (page,) = PdfReader(io.BytesIO(answer.data)).pages
    assert [float(size) for size in page.mediabox[2:]] == [240, 150]  # 320 x 200 pixels in points
    assert {"rank $x^2$ Ränge ▲", "left axis"} <= set(page.extract_text().splitlines())


def test_fonts_are_in_the_file(client):
    (page,) = PdfReader(io.BytesIO(sent(client, FIGURE).data)).pages
    fonts = [font.get_object() for font in page["/Resources"]["/Font"].values()]
    assert len(fonts) >= 2
    for font in fonts:
        inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
        assert "/FontFile2" in inner["/FontDescriptor"].get_object()


def test_lines_are_vectors_and_images_images(client):
    (page,) = PdfReader(io.BytesIO(sent(client, FIGURE).data)).pages
    drawing = page.get_contents().get_data().decode("latin-1")
    assert "7.5 135 m\n30 105 l" in drawing  # 10 20, 40 60 of 200 pixels
    assert "0 0.4470588235 0.6980392157 RG" in drawing
    assert "[ 7.5 2.25 1.5 2.25 ] 0 d" in drawing
    (image,) = page.images
    assert image.image.size == (3, 2)


def test_the_same_figure_gives_the_same_file(client):
    assert sent(client, FIGURE).data == sent(client, FIGURE).data


@pytest.mark.parametrize(
    ("method", "kind", "body", "code", "word"),
    [
        ("GET", TYPE, b"", 405, "POST"),
        ("PUT", TYPE, FIGURE, 405, "POST"),
        ("POST", "text/plain", FIGURE, 415, TYPE),
        ("POST", "application/x-www-form-urlencoded", FIGURE, 415, TYPE),
        ("POST", TYPE, FIGURE + b" " * 2_000_000, 413, "bytes"),
        ("POST", TYPE, b"", 411, "Content-Length"),
    ],
    ids=["get", "put", "text", "form", "large", "empty"],
)
def test_other_requests_are_refused(client, method, kind, body, code, word):
    answer = client.open(ROUTE, method=method, data=body, content_type=kind)
    assert answer.status_code == code
    assert answer.text.startswith("expected ")
    assert word in answer.text
    assert (answer.headers.get("Allow") == "POST") == (code == 405)


def bomb() -> str:
    """Return a PNG of 30,000 x 30,000 pixels in one kilobyte."""
    content = bytearray(base64.b64decode(png(3, 2).partition(",")[2]))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return "data:image/png;base64," + base64.b64encode(bytes(content)).decode()


def image(href: str) -> bytes:
    return svg(f'<image href="{href}" x="0" y="0" width="9" height="9"/>')


HOSTILE = {
    "entity": b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + svg("<text>&a;</text>"),
    "declaration": b'<?xml version="1.0" encoding="utf-16"?>' + FIGURE,
    "utf8": svg("<text>") + b"\xff\xfe",
    "cut": FIGURE[:-30],
    "html": b"<html></html>",
    "script": svg("<script>1</script>"),
    "file": image("file:///etc/passwd"),
    "address": image("http://127.0.0.1/a.png"),
    "no png": image("data:image/png;base64,R0lGODlhAQABAAAAACw="),
    "no base64": image("data:image/png;base64,*"),
    "bomb": image(bomb()),
    "many pixels": svg(f'<image href="{png(1500, 1500)}" x="0" y="0" width="9" height="9"/>' * 2),
    "infinite": svg('<path d="M0 0L1e999 1"/>'),
    "not a number": svg('<text x="nan" y="1" style="font:12px a">a</text>'),
    "spaces in a path": svg(f'<path d="M{" " * 1_000_000}x"/>'),
    "spaces in a font": svg(f'<text x="1" y="1" style="font:{" " * 1_000_000}">a</text>'),
    "far": svg('<path d="M0 0L999999 1"/>'),
    "huge page": svg("", 'width="99999" height="9"'),
    "no size": svg("", ""),
    "no path": svg('<path d=""/>'),
    "no start": svg('<path d="L1 1"/>'),
    "other path": svg('<path d="M0 0Q1 1 2 2"/>'),
    "other arc": svg('<path d="M0 0a1 2 0 1 0 5 5"/>'),
    "few numbers": svg('<path d="M0"/>'),
    "other color": svg('<path d="M0 0L1 1" fill="url(#a)"/>'),
    "other font": svg('<text x="1" y="1" style="font:url(file:///etc/passwd)">a</text>'),
    "other transform": svg('<path d="M0 0L1 1" transform="rotate(9)"/>'),
    "flat transform": svg('<path d="M0 0L1 1" transform="matrix(1,2,3)"/>'),
    "no clip": svg('<path d="M0 0L1 1" clip-path="url(#none)"/>'),
    "circle of clips": svg(
        '<defs><clipPath id="a" clip-path="url(#a)"><path d="M0 0h1v1h-1Z"/></clipPath></defs>'
        '<path d="M0 0L1 1" clip-path="url(#a)"/>'
    ),
    "deep": svg("<svg>" * 50_000 + "</svg>" * 50_000),
    "many": svg('<path d="M0 0L1 1"/>' * 20_001),
    "long": svg(f'<text x="1" y="1" style="font:12px a">{"a" * 501}</text>'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_another_svg_is_refused_and_the_server_goes_on(client, name):
    answer = sent(client, HOSTILE[name])
    assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (400, "text/plain")
    assert answer.text.startswith("expected ")
    assert len(answer.text) < 300
    assert "root:" not in answer.text


def test_a_damaged_figure_is_drawn_or_refused(client):
    chance = random.Random(0)
    for _ in range(60):
        damaged = bytearray(FIGURE)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(90, len(damaged))] = chance.choice(b'0123456789.-"<> aMLZe')
        assert sent(client, bytes(damaged)).status_code in (200, 400), damaged.decode()
    assert sent(client, FIGURE).status_code == 200


def test_without_matplotlib_the_page_offers_none(client, monkeypatch):
    guide = ROUTE.replace("pdf", "guide")
    assert client.get(guide).get_json()["pdf"] is True
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert client.get(guide).get_json()["pdf"] is False
    answer = sent(client, FIGURE)
    assert answer.status_code == 501
    assert "pip install 'rankmon[plots]'" in answer.text
