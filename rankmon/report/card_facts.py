"""Read the facts on a run back from its card."""

import html
import re

from rankmon._util import markdown
from rankmon._util.tags import CARD
from rankmon.runs.series import RunSeries

_ROW = re.compile(r"\| (.*?) (?<!\\)\| (.*) \|")


def card_facts(run: RunSeries) -> dict[str, str]:
    """Return name -> text of the facts on the last card of a run; empty without a card."""
    cards = run.texts.get(CARD, {})
    if not cards:
        return {}
    table, _, _ = cards[max(cards)].partition("\n#### ")
    rows = (_ROW.fullmatch(line) for line in table.splitlines())
    return {_plain(row[1]): _plain(row[2]) for row in rows if row}


def _plain(cell: str) -> str:
    return html.unescape(markdown.plain(cell))
