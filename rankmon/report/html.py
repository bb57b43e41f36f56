"""The tab's charts as one HTML page that needs no server and loads nothing from anywhere."""

import base64
import html
import json
import re
from collections.abc import Sequence

from rankmon.runs.series import RunSeries
from rankmon.tensorboard import payload
from rankmon.tensorboard.assets import static_files, static_text

# Modules that import each other by these names, since a module inside a page has no address.
_NAME = "rankmon/"
_IMPORT = re.compile(r'(\bfrom\s*|\bimport\s*)"\./(?:vendor/)?([\w.-]+)"')
_STYLES = ("vendor/uPlot.min.css", "style.css")
_START = f"""
import {{ App }} from "{_NAME}app.js";
import {{ embedded }} from "{_NAME}source.js";
const runs = JSON.parse(document.getElementById("runs").textContent);
new App(document.body, embedded(runs)).start();
"""

# Nothing but what is in the page, whatever a log may hold.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{styles}
</style>
<!--
{licence}
-->
<script type="importmap">{modules}</script>
<script type="application/json" id="runs">{runs}</script>
</head>
<body>
<script type="module">{start}</script>
</body>
</html>
"""


def standalone_page(runs: Sequence[RunSeries]) -> str:
    """Return the page of these runs, as HTML.

    Args:
      runs: in the order in which they are listed; spectra are thinned to 400 steps a part.
    """
    return _PAGE.format(
        policy=_POLICY,
        title=html.escape(f"Ranks: {', '.join(run.name for run in runs)}"),
        styles="\n".join(static_text(name) for name in _STYLES),
        licence=static_text("vendor/LICENSE.txt").strip().replace("--", "- -"),
        modules=_embedded({"imports": _modules()}),
        runs=_embedded([payload.whole(run) for run in runs]),
        start=_START,
    )


def _modules() -> dict[str, str]:
    """Return the addresses of the modules by name, each with its module's text in it."""
    scripts = [name for name in static_files() if name.endswith(".js") and name != "index.js"]
    return {
        _NAME + name.rpartition("/")[2]: _address(_IMPORT.sub(_renamed, static_text(name)))
        for name in sorted(scripts)
    }


def _renamed(found: re.Match[str]) -> str:
    return f'{found[1]}"{_NAME}{found[2]}"'


def _address(script: str) -> str:
    return "data:text/javascript;base64," + base64.b64encode(script.encode()).decode("ascii")


def _embedded(data: object) -> str:
    """Return JSON that no name can end: "<" is written as an escape."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
