"""Browser tests reach the page through tests/chromium.py, whose helpers bear that it redraws."""

import re

from paths import ROOT

# An element that Selenium found is stale as soon as the page draws another in its place.
KEPT = re.compile(r"\b(find_elements?|active_element|WebDriverWait)\b")


def test_only_the_helpers_find_elements():
    allowed = {ROOT / "tests" / "chromium.py", ROOT / "tests" / "house" / "test_browsers.py"}
    files = {path for name in ("tests", "examples") for path in (ROOT / name).rglob("*.py")}
    found = [str(path) for path in sorted(files - allowed) if KEPT.search(path.read_text())]
    assert not found, "use text, texts, attributes, click, press, pick and hover of chromium.py"
