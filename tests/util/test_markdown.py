"""Test text in Markdown: TensorBoard's renderer shows it unchanged, in its own cell."""

import pytest

from rankmon._util import markdown
from rendering import rendered

NASTY = {
    "pipe": "a|b",
    "pipes and backslashes": "a\\|b \\\\| c\\",
    "backticks": "a`b``c`",
    "one backtick": "`",
    "backtick and pipe": "a`|`b",
    "escaped backtick": "a\\`b",
    "html": "<script>alert(1)</script><b>x</b>",
    "entity": "a &amp; b &lt; c & d",
    "emphasis": "*a* **b** _c_ __d__ _e",
    "intraword": "Dense_0/kernel_1",
    "link": "[x](http://example.org) ![y](z.png)",
    "reference": "[x][y]: z",
    "newlines": "a\nb\r\nc\x0bd\x85e\u2028f",
    "control characters": "a\x02b\x03c\x1b[31md\x00e",
    "table": "| - | - |",
    "heading": "# a",
    "strike": "~~a~~",
    "unicode": "‖W‖_F² · Ω",
}


def shown(text):
    """What a reader should see: the text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@pytest.mark.parametrize("write", [markdown.escaped, markdown.code])
@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_a_cell_shows_the_text_as_it_is(write, text):
    source = markdown.table(["a", "b", "c"], [["1", write(text), "2"], [write(text), "", "3"]])
    assert len(source.splitlines()) == 4
    page = rendered(source)
    assert page.rows == [["a", "b", "c"], ["1", shown(text), "2"], [shown(text), "", "3"]]
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "code"}


def test_a_plain_name_is_code():
    assert markdown.code("Dense_0/kernel") == "`Dense_0/kernel`"
    assert markdown.code("a|b") == "a\\|b"
    assert markdown.code("") == ""
