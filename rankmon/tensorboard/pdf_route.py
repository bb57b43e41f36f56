"""The route that answers an SVG of a chart with a PDF, where matplotlib is installed."""

import logging
from importlib.util import find_spec

from tensorboard.backend import http_util
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wrappers import Request, Response

MOST_BYTES = 2_000_000
_SVG, _PDF = "image/svg+xml", "application/pdf"
_log = logging.getLogger(__name__)


def can_draw() -> bool:
    """Return whether matplotlib is installed; it is imported by the first PDF only."""
    return find_spec("matplotlib") is not None


@Request.application
def serve_pdf(request: Request) -> Response:
    """Answer a POST of an SVG of the tab with a PDF, and refuse others."""
    if request.method != "POST":
        return _refused(request, 405, f"POST, got {request.method}", ("Allow", "POST"))
    if request.mimetype != _SVG:
        return _refused(request, 415, f"the content type {_SVG}, got {request.mimetype!r:.60}")
    if request.content_length is None:
        return _refused(request, 411, "a Content-Length, got none")
    too_large = f"at most {MOST_BYTES} bytes, got more; show fewer runs"
    if request.content_length > MOST_BYTES:
        return _refused(request, 413, too_large)
    if not can_draw():
        return _refused(request, 501, "matplotlib, got none; pip install 'rankmon[plots]'")
    request.max_content_length = MOST_BYTES
    try:
        svg = request.get_data(cache=False)
    except RequestEntityTooLarge:
        return _refused(request, 413, too_large)
    try:
        from rankmon.tensorboard.drawing import pdf_of

        pdf = pdf_of(svg)
    except ValueError as error:
        return http_util.Respond(request, str(error), "text/plain", code=400)
    except Exception as error:  # of a library: the server goes on, and its log has the traceback
        _log.exception("the PDF of a chart was not drawn")
        return _refused(request, 500, f"a drawing, got {error!r:.200}")
    return http_util.Respond(request, pdf, _PDF)


def _refused(request: Request, code: int, expected: str, *headers: tuple[str, str]) -> Response:
    text = f"expected {expected}"
    return http_util.Respond(request, text, "text/plain", code=code, headers=list(headers))
