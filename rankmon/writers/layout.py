"""The layout of TensorBoard's "Custom Scalars" page: which curves share a chart.

`legend` explains the tags: `rank/H_L`, `rank_weights/<layer>`, and so on. The charts match layers
by regular expressions, so that the layout is the same in every run: TensorBoard merges the layouts
of all runs that it shows, and then shows each chart once.
"""

import re
from collections.abc import Iterable

from tensorboard.plugins.custom_scalar import layout_pb2

from rankmon._util.tags import HESSIAN_PARTS


def custom_scalars_layout() -> layout_pb2.Layout:
    """Return the charts of TensorBoard's "Custom Scalars" page.

    Returns:
      A proto with the categories Hessian ranks (first the chart of figure S1 of arXiv 2106.16225),
      Weights, Features, Determinants, Margins, Lemma 8 and Monitor. If a run did not write a tag,
      only the curve of this tag is missing.
    """
    return layout_pb2.Layout(
        category=[
            _category("Hessian ranks", _hessian_charts()),
            _category("Weights", _weight_charts()),
            _category("Features", _feature_charts()),
            _category("Determinants", _determinant_charts()),
            _category("Margins", _margin_charts()),
            _category("Lemma 8", _lemma8_charts()),
            _category("Monitor", _monitor_charts()),
        ]
    )


def seeds_layout(tags: Iterable[str]) -> layout_pb2.Layout:
    """Return charts of the median and the range over several seeds: ranks, dead units and the loss.

    Args:
      tags: tags in the run of the medians: <tag>/median, <tag>/low and <tag>/high; others are
        ignored.
    """
    shown = re.compile(
        "(rank|rank_weights|rank_features|stable_rank|effective_rank|dead_units)/|loss$"
    )
    bases = [tag.removesuffix("/median") for tag in tags if tag.endswith("/median")]
    charts = [
        layout_pb2.Chart(
            title=f"{base}: median and range over the seeds",
            margin=_shaded(f"{base}/median", f"{base}/low", f"{base}/high"),
        )
        for base in bases
        if shown.match(base)
    ]
    return layout_pb2.Layout(category=[_category("Seeds", charts)])


def _hessian_charts() -> list[layout_pb2.Chart]:
    parts = "|".join(HESSIAN_PARTS)
    return [
        _lines(
            "Ranks of the Hessian and its parts, measured and predicted (figure S1)",
            rf"^rank/({parts})$",
            rf"^rank_theory/({parts})$",
        ),
        *(
            _lines(f"Rank of {part}, measured and predicted", rf"^rank(_theory)?/{part}$")
            for part in HESSIAN_PARTS
        ),
        _lines(
            "Rank of H_f with a cut relative to its own norm, and s, the rank of the "
            "residual-input covariance Omega",
            r"^rank_self/H_f$",
            r"^rank/Omega$",
        ),
        _lines("Number of eigenvalues that are exactly zero", r"^spectrum_zeros/"),
    ]


def _weight_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("Rank of each weight", r"^rank_weights/"),
        _lines("Stable rank of each weight", r"^stable_rank/"),
        _lines("Effective rank of each weight", r"^effective_rank/"),
        _lines("Condition number of each weight", r"^condition_number/"),
    ]


def _feature_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("Rank of each layer's input on the probe batch", r"^rank_features/"),
        _lines("Dead units of each ReLU", r"^dead_units/"),
        _lines("Fraction of dead units of each ReLU", r"^dead_share/"),
        _lines("Rank of H_o, and its bound by Theorem 9", r"^rank(_bound)?/H_o$"),
    ]


def _determinant_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("log |det| of each square weight", r"^log_abs_det/"),
        _lines("Sign of the determinant of each square weight", r"^det_sign/"),
    ]


def _margin_charts() -> list[layout_pb2.Chart]:
    of_the_problem = "|".join([*HESSIAN_PARTS, "Omega"])
    return [
        *(_margin(part) for part in HESSIAN_PARTS),
        _lines("Gap around the cut, Hessian and Omega", rf"^gap/({of_the_problem})$"),
        _lines("Gap around the cut, weights", rf"^gap/(?!({of_the_problem})$)"),
    ]


def _lemma8_charts() -> list[layout_pb2.Chart]:
    return [
        _lines(
            "log |det|, predicted and measured",
            r"^lemma8/predicted_log_abs_det/",
            r"^log_abs_det/",
        ),
        _lines(
            "Measured minus predicted log |det|, and the quadrature error",
            r"^lemma8/(prediction|quadrature)_error/",
        ),
        _lines("Balancedness of adjacent weights", r"^lemma8/balancedness"),
        _lines(
            "Class means, and the assumptions of Lemma 8",
            r"^lemma8/(?!predicted_log_abs_det|prediction_error|quadrature_error|balancedness)",
        ),
    ]


def _monitor_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("Loss on the probe batch", r"^loss$"),
        _lines("Duration of each probe in seconds", r"^monitor/seconds$"),
        _lines("Fraction of the wall time spent in probes", r"^monitor/overhead$"),
        _lines("Non-finite parameters and errors", r"^monitor/(nonfinite|errors)"),
    ]


def _category(title: str, charts: list[layout_pb2.Chart]) -> layout_pb2.Category:
    return layout_pb2.Category(title=title, chart=charts)


def _lines(title: str, *patterns: str) -> layout_pb2.Chart:
    """Return a chart of all tags that match one of the patterns at their beginning."""
    return layout_pb2.Chart(
        title=title, multiline=layout_pb2.MultilineChartContent(tag=list(patterns))
    )


def _margin(part: str) -> layout_pb2.Chart:
    """Return a chart of a part's rank, with the range of its counts at 0.1 to 10 times the cut."""
    return layout_pb2.Chart(
        title=f"Rank of {part}, with the ranks at 10 times and a tenth of the cut",
        margin=_shaded(f"rank/{part}", f"rank_low/{part}", f"rank_high/{part}"),
    )


def _shaded(value: str, lower: str, upper: str) -> layout_pb2.MarginChartContent:
    series = layout_pb2.MarginChartContent.Series(value=value, lower=lower, upper=upper)
    return layout_pb2.MarginChartContent(series=[series])
