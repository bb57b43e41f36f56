"""The guide of the tab: sections of charts, and the unit and meaning of each family of curves.

The Custom Scalars page has the same charts (`writers.layout`), and the card of a run the same
meanings (`writers.legend`); the tab takes both from there.
"""

from functools import cache
from typing import Any

from tensorboard.plugins.custom_scalar import layout_pb2

from rankmon._util.markdown import plain
from rankmon.writers.layout import custom_scalars_layout
from rankmon.writers.legend import LEGEND

# Sections of the tab that are nothing but these charts; the tab has its own for the others.
_SECTIONS = (
    "Layer blocks",
    "Changes of weights",
    "Features",
    "Gradients",
    "Neural collapse",
    "Neural tangent kernel",
)
Json = dict[str, Any]


@cache
def guide() -> Json:
    """Return the sections with their charts, and the legend, as JSON objects.

    A chart has a title and the regular expressions of its tags; of a chart with "margin", they
    match the tags of value, low and high.
    """
    categories = {category.title: category for category in custom_scalars_layout().category}
    return {
        "sections": [
            {"title": title, "charts": [_chart(chart) for chart in categories[title].chart]}
            for title in _SECTIONS
        ],
        "legend": [
            {"tags": list(entry.patterns), "unit": entry.unit, "meaning": plain(entry.meaning)}
            for entry in LEGEND
        ],
    }


def _chart(chart: layout_pb2.Chart) -> Json:
    if chart.HasField("margin"):
        (series,) = chart.margin.series
        return {"title": chart.title, "margin": [series.value, series.lower, series.upper]}
    return {"title": chart.title, "tags": list(chart.multiline.tag)}
