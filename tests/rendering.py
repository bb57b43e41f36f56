"""Render Markdown as TensorBoard's text page does, and parse the HTML."""

import warnings
from html.parser import HTMLParser

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of a copy of html5lib in TensorBoard
    from tensorboard.plugin_util import markdown_to_safe_html

_PARTS = {"td": "cell", "th": "cell", "h3": "heading", "h4": "heading"}


class Page(HTMLParser):
    """The texts of the cells by row, the texts of the headings, and the names of all tags."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.headings, self.tags, self._inside = [], [], set(), None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in _PARTS:
            self._inside = self.rows[-1] if _PARTS[tag] == "cell" else self.headings
            self._inside.append("")

    def handle_endtag(self, tag):
        if tag in _PARTS:
            self._inside = None

    def handle_data(self, data):
        if self._inside is not None:
            self._inside[-1] += data


def rendered(markdown):
    """Return the page that TensorBoard renders from Markdown."""
    return Page(markdown_to_safe_html(markdown))
