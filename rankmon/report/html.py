"""Build one HTML page with the charts of the Ranks tab; it works offline, without a server."""

import base64
import html
import json
import re
from collections.abc import Sequence

from rankmon.runs.series import RunSeries
from rankmon.tensorboard import payload
from rankmon.tensorboard.assets import static_files, static_text
from rankmon.tensorboard.guide import guide

# Modules inside a page have no address: they import each other by names with this prefix.
_NAME = "rankmon/"
_IMPORT = re.compile(r'(\bfrom\s*|\bimport\s*)"\./(?:vendor/)?([\w.-]+)"')
_STYLES = ("vendor/uPlot.min.css", "style.css")
_START = f"""
import {{ App }} from "{_NAME}app.js";
import {{ embedded }} from "{_NAME}source.js";
const runs = JSON.parse(document.getElementById("runs").textContent);
const guide = JSON.parse(document.getElementById("guide").textContent);
new App(document.body, embedded(runs, guide)).start();
"""

# The page may load nothing from outside, whatever text a log contains.
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
<script type="application/json" id="guide">{guide}</script>
</head>
<body>
<script type="module">{start}</script>
</body>
</html>
"""


def standalone_page(runs: Sequence[RunSeries]) -> str:
    """Return an HTML page with the charts of these runs.

    Args:
      runs: the runs in the order of the page's list. Spectra are thinned to 400 steps per part.
    """
    # An HTML comment, such as that of the license, must not contain "--".
    return _PAGE.format(
        policy=_POLICY,
        title=html.escape(f"Ranks: {', '.join(run.name for run in runs)}"),
        styles="\n".join(static_text(name) for name in _STYLES),
        licence=static_text("vendor/LICENSE.txt").strip().replace("--", "- -"),
        modules=_embedded({"imports": _modules()}),
        runs=_embedded([payload.whole(run) for run in runs]),
        guide=_embedded(guide()),
        start=_START,
    )


def _modules() -> dict[str, str]:
    """Return the modules: name -> data URL that contains the module's code."""
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
    """Return JSON with "<" escaped, so that no text in it can close the script element."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
