"""The layout of TensorBoard's "Custom Scalars" page: which curves share a chart.

`legend` explains the tags: `rank/H_L`, `rank_weights/<layer>`, and so on. The charts match layers
by regular expressions, so that the layout is the same in every run: TensorBoard merges the layouts
of all runs that it shows, and then shows each chart once.
"""

import re
from collections.abc import Iterable

from tensorboard.plugins.custom_scalar import layout_pb2

from rankmon._util.tags import (
    BATCHES,
    CLASS_MEANS,
    EPSILON_RANKS,
    EXTREMES,
    HESSIAN_PARTS,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    NEGATIVE,
    THRESHOLD,
)

_PARTS = f"({'|'.join(HESSIAN_PARTS)})$"
_SHARE = {family: family.rpartition("_")[2] for family in EPSILON_RANKS}


def custom_scalars_layout() -> layout_pb2.Layout:
    """Return the charts of TensorBoard's "Custom Scalars" page.

    Returns:
      A proto with the categories Hessian ranks (first the chart of figure S1 of arXiv 2106.16225),
      Curvature, Layer blocks, Weights, Changes of weights, Features, Gradients, All layers, Neural
      collapse, Neural tangent kernel, Determinants, Margins, Intervals, Probe batches, Lemma 8 and
      Monitor. If a run did not write a tag, only the curve of this tag is missing.
    """
    return layout_pb2.Layout(
        category=[
            _category("Hessian ranks", _hessian_charts()),
            _category("Curvature", _curvature_charts()),
            _category("Layer blocks", _block_charts()),
            _category("Weights", _weight_charts()),
            _category("Changes of weights", _change_charts()),
            _category("Features", _feature_charts()),
            _category("Gradients", _gradient_charts()),
            _category("All layers", _summary_charts()),
            _category("Neural collapse", _collapse_charts()),
            _category("Neural tangent kernel", _ntk_charts()),
            _category("Determinants", _determinant_charts()),
            _category("Margins", _margin_charts()),
            _category("Intervals of estimates", _interval_charts()),
            _category("Probe batches", _batch_charts()),
            _category("Lemma 8", _lemma8_charts()),
            _category("Monitor", _monitor_charts()),
        ]
    )


def seeds_layout(tags: Iterable[str]) -> layout_pb2.Layout:
    """Return charts of the median and the range over several seeds: ranks, curvature, loss, ...

    Args:
      tags: tags in the run of the medians: <tag>/median, <tag>/low and <tag>/high; others are
        ignored.
    """
    shown = re.compile(
        "(rank|rank_weights|rank_features|dead_units|collapse)/|loss$|"
        f"(stable_rank|effective_rank)/(?!{_PARTS})"
    )
    curvature = re.compile(f"({'|'.join(map(re.escape, (*EXTREMES, *EPSILON_RANKS)))})/")
    bases = [tag.removesuffix("/median") for tag in tags if tag.endswith("/median")]

    def charts(families: re.Pattern[str]) -> list[layout_pb2.Chart]:
        return [
            layout_pb2.Chart(
                title=f"{base}: median and range over the seeds",
                margin=_shaded(f"{base}/median", f"{base}/low", f"{base}/high"),
            )
            for base in bases
            if families.match(base)
        ]

    categories = [_category("Seeds", charts(shown))]
    if of_curvature := charts(curvature):
        categories.append(_category("Seeds, curvature", of_curvature))
    return layout_pb2.Layout(category=categories)


def _hessian_charts() -> list[layout_pb2.Chart]:
    return [
        # Measured ranks only: TensorBoard gives all curves of a run the same color.
        _lines("Ranks of the Hessian and its parts (figure S1)", rf"^rank/{_PARTS}"),
        *(
            _lines(
                f"Rank of {part}, measured and predicted, with its bound and landmark",
                rf"^rank(_theory|_bound|_landmark)?/{part}$",
            )
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


def _curvature_charts() -> list[layout_pb2.Chart]:
    largest, smallest = EXTREMES
    coarse, negative = map(re.escape, NEGATIVE)
    return [
        _lines("Largest eigenvalue", rf"^{largest}/{_PARTS}", rf"^{THRESHOLD}/H_L$"),
        _lines("Smallest eigenvalue", rf"^{smallest}/{_PARTS}"),
        *(
            _lines(
                f"Epsilon-rank: eigenvalues above {_SHARE[family]} ‖H_L‖",
                rf"^{re.escape(family)}/{_PARTS}",
            )
            for family in EPSILON_RANKS
        ),
        _lines("Negative eigenvalues below -0.01 ‖H_L‖", rf"^{coarse}/{_PARTS}"),
        _lines("Negative eigenvalues below minus the cut", rf"^{negative}/{_PARTS}"),
        _lines("Trace", rf"^trace/{_PARTS}"),
        _lines("Frobenius norm", rf"^norm/{_PARTS}"),
        _lines("Stable rank of the Hessian's parts", rf"^stable_rank/{_PARTS}"),
        _lines("Effective rank of the Hessian's parts", rf"^effective_rank/{_PARTS}"),
    ]


def _block_charts() -> list[layout_pb2.Chart]:
    named = {"eigenvalue_max": "Largest eigenvalue", "eigenvalue_min": "Smallest eigenvalue"}
    named |= {"rank": "Rank", "trace": "Trace"}
    return [
        _lines("Rank of each layer's columns of H_f", r"^rank_columns/H_f/"),
        _lines(
            "Predicted rank of each layer's columns of H_f (Theorem 5)",
            r"^rank_columns_theory/H_f/",
        ),
        *(
            _lines(f"{title} of each layer's diagonal block of {part}", rf"^{family}_block/{part}/")
            for part in ("H_L", "H_o")
            for family, title in named.items()
        ),
        _lines("Share of ‖H_L‖_F² outside the diagonal blocks", r"^off_diagonal_share/H_L$"),
    ]


def _weight_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("Rank of each weight", r"^rank_weights/"),
        _lines("Stable rank of each weight", rf"^stable_rank/(?!{_PARTS})"),
        _lines("Effective rank of each weight", rf"^effective_rank/(?!{_PARTS})"),
        _lines("Condition number of each weight", r"^condition_number/"),
        _lines("Frobenius norm of each weight", rf"^norm/(?!{_PARTS})"),
        _lines("Marchenko-Pastur edge of each weight", r"^mp_edge/"),
        _lines("Singular values above the Marchenko-Pastur edge", r"^above_mp_edge/"),
        _lines("Singular values that are exactly zero", r"^singular_values_zeros/"),
    ]


def _change_charts() -> list[layout_pb2.Chart]:
    families = {
        "rank": "Rank",
        "stable_rank": "Stable rank",
        "effective_rank": "Effective rank",
        "norm": "Frobenius norm",
    }
    return [
        _lines(f"{title} of each weight's change since the {since}", rf"^{family}_since_{kind}/")
        for kind, since in (("start", "start"), ("last", "last probe"))
        for family, title in families.items()
    ]


def _feature_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("Rank of each layer's input on the probe batch", r"^rank_features/"),
        _lines("Effective rank of each layer's input (RankMe)", r"^effective_rank_features/"),
        _lines("Stable rank of each layer's input", r"^stable_rank_features/"),
        _lines("srank of each layer's input, delta = 0.01", r"^srank_features/"),
        _lines("Components with 99 % of each layer's input", r"^components_features/"),
        _lines("Feature rank of each layer's input, epsilon = 0.01", r"^feature_rank/"),
        _lines("Mean norm of each layer's input", r"^norm_features/"),
        _lines("Dead units of each ReLU", r"^dead_units/"),
        _lines("Fraction of dead units of each ReLU", r"^dead_share/"),
        _lines("Fraction of dormant units, tau = 0.1", r"^dormant_share_0\.1/"),
        _lines("Fraction of dormant units, tau = 0.025", r"^dormant_share_0\.025/"),
        _lines("Fraction of saturated units", r"^saturated_share/"),
    ]


def _gradient_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("Norm of each weight's gradient on the probe batch", r"^norm_gradient/"),
        _lines("Rank of each weight's gradient", r"^rank_gradient/"),
        _lines("Stable rank of each weight's gradient", r"^stable_rank_gradient/"),
        _lines("Norm of the gradient divided by that of the weight", r"^gradient_to_weight/"),
        _lines("Norm of the update divided by that of the weight", r"^update_to_weight/"),
        _lines("Cosine between gradients of consecutive probes", r"^gradient_alignment/"),
    ]


def _summary_charts() -> list[layout_pb2.Chart]:
    """Return a chart of the lowest, median and highest value over the layers, by family."""
    named = {
        "rank_weights": "Rank of the weights",
        "stable_rank": "Stable rank of the weights",
        "effective_rank": "Effective rank of the weights",
        "condition_number": "Condition number of the weights",
        "rank_features": "Rank of the layers' inputs",
        "dead_share": "Fraction of dead units",
        "norm_gradient": "Norm of the gradients",
        "rank_gradient": "Rank of the gradients",
        "stable_rank_gradient": "Stable rank of the gradients",
        "gradient_to_weight": "Ratio of gradient to weight",
        "update_to_weight": "Ratio of update to weight",
        "gradient_alignment": "Cosine between consecutive gradients",
    }
    return [
        _lines(f"{title}: lowest, median and highest over the layers", rf"^layers/{family}/")
        for family, title in named.items()
    ]


def _ntk_charts() -> list[layout_pb2.Chart]:
    return [
        layout_pb2.Chart(
            title="Rank of the kernel, with the ranks at 10 times and a tenth of the cut",
            margin=_shaded("ntk/rank", "ntk/rank_low", "ntk/rank_high"),
        ),
        _lines("Gap around the cut of the kernel", r"^ntk/gap$"),
        _lines("Effective rank of the kernel", r"^ntk/effective_rank$"),
        _lines("Largest eigenvalue of the kernel", r"^ntk/eigenvalue_max$"),
        _lines("Alignment with the first kernel", r"^ntk/alignment$"),
    ]


def _collapse_charts() -> list[layout_pb2.Chart]:
    return [
        _lines("NC1: variation within classes relative to that between them", r"^collapse/nc1$"),
        _lines("NC2: spread of the norms of class means and classifier", r"^collapse/nc2_norms"),
        _lines("NC2: spread of the cosines of class means and classifier", r"^collapse/nc2_angles"),
        _lines("NC2: distance of the cosines from those of a simplex", r"^collapse/nc2_cosines"),
        _lines("NC3: distance of class means and classifier", r"^collapse/nc3$"),
        _lines("NC4: disagreement with the nearest class mean", r"^collapse/nc4$"),
        layout_pb2.Chart(
            title="Rank of the class means, with the ranks at 10 times and a tenth of the cut",
            margin=_shaded(CLASS_MEANS, f"rank_low/{CLASS_MEANS}", f"rank_high/{CLASS_MEANS}"),
        ),
        _lines("Gap around the cut, class means", rf"^gap/{CLASS_MEANS}$"),
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
        # All other gaps; layers are not listed by name, so that the layout is the same in all runs.
        _lines(
            "Gap around the cut, weights",
            rf"^gap/(?!({of_the_problem}|{CLASS_MEANS})$|since_(start|last)/)",
        ),
        _lines("Gap around the cut, changes of weights", r"^gap/since_(start|last)/"),
    ]


def _interval_charts() -> list[layout_pb2.Chart]:
    """Return charts of estimates as bands; exact engines log no intervals."""
    named = {"eigenvalue_max": "Largest eigenvalue", "eigenvalue_min": "Smallest eigenvalue"}
    named |= {family: f"Eigenvalues above {_SHARE[family]} ‖H_L‖" for family in EPSILON_RANKS}
    return [
        layout_pb2.Chart(
            title=f"{title} of {part}, with its interval",
            margin=_shaded(tag, f"{INTERVAL_LOW}/{tag}", f"{INTERVAL_HIGH}/{tag}"),
        )
        for family, title in named.items()
        for part in HESSIAN_PARTS
        for tag in [f"{family}/{part}"]
    ]


def _batch_charts() -> list[layout_pb2.Chart]:
    """Return charts of medians with the range over several probe batches as a band."""
    named = {f"rank/{part}": f"Rank of {part}" for part in HESSIAN_PARTS}
    named |= {
        "eigenvalue_max/H_L": "Largest eigenvalue of H_L",
        "effective_rank/H_L": "Effective rank of H_L",
        "ntk/rank": "Rank of the kernel",
        CLASS_MEANS: "Rank of the class means",
        "loss": "Loss",
    }
    return [
        layout_pb2.Chart(
            title=f"{title}: median and range over the probe batches",
            margin=_shaded(tag, f"{BATCHES}{tag}/low", f"{BATCHES}{tag}/high"),
        )
        for tag, title in named.items()
    ]


def _lemma8_charts() -> list[layout_pb2.Chart]:
    return [
        _lines(
            "log |det|, predicted and measured",
            r"^lemma8/predicted_log_abs_det/",
            r"^log_abs_det/",
        ),
        _lines("Measured minus predicted log |det|", r"^lemma8/prediction_error/"),
        _lines("Quadrature error of the prediction", r"^lemma8/quadrature_error/"),
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
