"""The charts against the tags that a run writes."""

import re

import pytest

from rankmon.writers.layout import custom_scalars_layout, seeds_layout

PARTS = ["H_L", "H_o", "H_f", "H_f_fixed"]
ENDS = ["low", "high"]
DRAWN_WITH_INTERVAL = ["eigenvalue_max", "eigenvalue_min", "rank_0.1", "rank_0.01", "rank_0.001"]
CURVATURE = [
    *DRAWN_WITH_INTERVAL,
    "negative_0.01",
    "negative",
    "trace",
    "norm",
    "stable_rank",
    "effective_rank",
]
SINCE = ["since_start", "since_last"]
CHANGES = [
    f"{k}_{since}" for k in ("rank", "stable_rank", "effective_rank", "norm") for since in SINCE
]
GRADIENTS = [
    "norm_gradient",
    "rank_gradient",
    "stable_rank_gradient",
    "gradient_to_weight",
    "update_to_weight",
    "gradient_alignment",
]
NC2 = ["norms", "angles", "cosines"]
NTK = ("rank", "rank_low", "rank_high", "gap", "effective_rank", "eigenvalue_max", "alignment")
# The tags of a run with every probe; layers are named by their paths.
LAYERS = ["W1", "Dense_0/kernel"]
BLOCKS = ["rank_block", "eigenvalue_max_block", "eigenvalue_min_block", "trace_block"]
COLUMNS = ["rank_columns", "rank_columns_theory", "rank_low/columns", "rank_high/columns"]
OVER_BATCHES = [f"rank/{part}" for part in PARTS]
OVER_BATCHES += ["eigenvalue_max/H_L", "effective_rank/H_L", "ntk/rank"]
OVER_BATCHES += ["collapse/rank_means", "loss"]
RANKS = ("rank", "rank_theory", "rank_landmark", "spectrum_zeros")
TAGS = [
    *(f"{kind}/{part}" for kind in RANKS for part in PARTS),
    *(f"{kind}/{part}" for kind in CURVATURE for part in PARTS),
    *(f"interval_{end}/{kind}/{part}" for end in ENDS for kind in CURVATURE for part in PARTS),
    *(f"{kind}/{name}" for kind in ("rank_low", "rank_high") for name in [*PARTS, *LAYERS]),
    *(f"gap/{name}" for name in [*PARTS, "Omega", *LAYERS]),
    *(
        f"{kind}/{part}/{layer}"
        for kind in (*BLOCKS, "rank_low/block", "rank_high/block")
        for part in PARTS[:2]
        for layer in LAYERS
    ),
    "off_diagonal_share/H_L",
    *(f"{kind}/H_f/{layer}" for kind in COLUMNS for layer in LAYERS),
    "eigenvalue_max_threshold/H_L",
    "rank_bound/H_o",
    "rank_self/H_f",
    "rank/Omega",
    "rank_low/Omega",
    "rank_high/Omega",
    *(f"{kind}_rank/{layer}" for kind in ("stable", "effective") for layer in LAYERS),
    *(
        f"{kind}/{layer}"
        for kind in (
            "rank_weights",
            "condition_number",
            "norm",
            "mp_edge",
            "above_mp_edge",
            "singular_values_zeros",
            *CHANGES,
            *(f"{kind}/{since}" for kind in ("rank_low", "rank_high", "gap") for since in SINCE),
            "rank_features",
            "effective_rank_features",
            "stable_rank_features",
            "srank_features",
            "components_features",
            "feature_rank",
            "norm_features",
            "dead_units",
            "dead_share",
            "dormant_share_0.1",
            "dormant_share_0.025",
            "saturated_share",
            *GRADIENTS,
            "log_abs_det",
            "det_sign",
        )
        for layer in LAYERS
    ),
    *(
        f"lemma8/{kind}/{layer}"
        for kind in (
            "predicted_log_abs_det",
            "prediction_error",
            "quadrature_error",
            "balancedness",
        )
        for layer in LAYERS
    ),
    *(f"collapse/{name}" for name in ("nc1", "nc3", "nc4", "rank_means")),
    *(f"collapse/nc2_{kind}_{of}" for kind in NC2 for of in ("means", "classifier")),
    *(f"{kind}/collapse/rank_means" for kind in ("gap", "rank_low", "rank_high")),
    *(f"ntk/{name}" for name in NTK),
    *(f"batches/{tag}/{end}" for tag in OVER_BATCHES for end in ENDS),
    "lemma8/class_mean",
    "lemma8/target_input",
    "lemma8/centered",
    "lemma8/balanced",
    "lemma8/square",
    "monitor/seconds",
    "monitor/overhead",
    "monitor/nonfinite",
    "monitor/errors",
    "loss",
]


def charts():
    return {
        (category.title, chart.title): chart
        for category in custom_scalars_layout().category
        for chart in category.chart
    }


def curves(chart) -> list[str]:
    """The tags that TensorBoard shows in a chart: those that a pattern matches from the start."""
    if chart.HasField("margin"):
        return [tag for s in chart.margin.series for tag in (s.value, s.lower, s.upper)]
    return [tag for tag in TAGS if any(re.match(pattern, tag) for pattern in chart.multiline.tag)]


def curves_of(category: str, title: str) -> list[str]:
    (found,) = [c for (k, t), c in charts().items() if k == category and t.startswith(title)]
    return curves(found)


def layered(*kinds: str) -> set[str]:
    return {f"{kind}/{layer}" for kind in kinds for layer in LAYERS}


def of_parts(*kinds: str) -> set[str]:
    return {f"{kind}/{part}" for kind in kinds for part in PARTS}


def compared(part: str) -> set[str]:
    """The measured rank of a part, and the values to compare it with."""
    return {f"{kind}/{part}" for kind in ("rank", "rank_theory", "rank_landmark")}


def test_categories():
    titles = [category.title for category in custom_scalars_layout().category]
    assert titles == [
        "Hessian ranks",
        "Curvature",
        "Layer blocks",
        "Weights",
        "Changes of weights",
        "Features",
        "Gradients",
        "All layers",
        "Neural collapse",
        "Neural tangent kernel",
        "Determinants",
        "Margins",
        "Intervals of estimates",
        "Probe batches",
        "Lemma 8",
        "Monitor",
    ]


@pytest.mark.parametrize(
    ("category", "title", "expected"),
    [
        ("Hessian ranks", "Ranks of the Hessian", of_parts("rank")),
        ("Hessian ranks", "Rank of H_f,", compared("H_f")),
        ("Hessian ranks", "Rank of H_o,", compared("H_o") | {"rank_bound/H_o"}),
        ("Hessian ranks", "Rank of H_f with a cut", {"rank_self/H_f", "rank/Omega"}),
        ("Hessian ranks", "Number of eigenvalues", {f"spectrum_zeros/{part}" for part in PARTS}),
        ("Curvature", "Largest", of_parts("eigenvalue_max") | {"eigenvalue_max_threshold/H_L"}),
        ("Curvature", "Smallest", of_parts("eigenvalue_min")),
        ("Curvature", "Epsilon-rank: eigenvalues above 0.1 ", of_parts("rank_0.1")),
        ("Curvature", "Epsilon-rank: eigenvalues above 0.01 ", of_parts("rank_0.01")),
        ("Curvature", "Epsilon-rank: eigenvalues above 0.001 ", of_parts("rank_0.001")),
        ("Curvature", "Negative eigenvalues below -0.01 ", of_parts("negative_0.01")),
        ("Curvature", "Negative eigenvalues below minus", of_parts("negative")),
        ("Curvature", "Trace", of_parts("trace")),
        ("Curvature", "Frobenius", of_parts("norm")),
        ("Curvature", "Stable", of_parts("stable_rank")),
        ("Curvature", "Effective", of_parts("effective_rank")),
        (
            "Intervals of estimates",
            "Smallest eigenvalue of H_f,",
            {
                "eigenvalue_min/H_f",
                "interval_low/eigenvalue_min/H_f",
                "interval_high/eigenvalue_min/H_f",
            },
        ),
        ("Weights", "Rank", layered("rank_weights")),
        ("Weights", "Stable", layered("stable_rank")),
        ("Weights", "Effective", layered("effective_rank")),
        ("Weights", "Condition", layered("condition_number")),
        ("Weights", "Frobenius", layered("norm")),
        ("Weights", "Marchenko", layered("mp_edge")),
        ("Weights", "Singular values above", layered("above_mp_edge")),
        ("Weights", "Singular values that", layered("singular_values_zeros")),
        *(
            ("Changes of weights", f"{title} of each weight's change since the {since}", {*tags})
            for since, kind in (("start", "start"), ("last probe", "last"))
            for title, tags in (
                ("Rank", layered(f"rank_since_{kind}")),
                ("Stable rank", layered(f"stable_rank_since_{kind}")),
                ("Effective rank", layered(f"effective_rank_since_{kind}")),
                ("Frobenius norm", layered(f"norm_since_{kind}")),
            )
        ),
        ("Features", "Rank of each layer", layered("rank_features")),
        ("Features", "Dead", layered("dead_units")),
        ("Features", "Fraction of dead", layered("dead_share")),
        ("Features", "Effective", layered("effective_rank_features")),
        ("Features", "Stable", layered("stable_rank_features")),
        ("Features", "srank", layered("srank_features")),
        ("Features", "Components", layered("components_features")),
        ("Features", "Feature rank", layered("feature_rank")),
        ("Features", "Mean norm", layered("norm_features")),
        ("Features", "Fraction of dormant units, tau = 0.1", layered("dormant_share_0.1")),
        ("Features", "Fraction of dormant units, tau = 0.025", layered("dormant_share_0.025")),
        ("Features", "Fraction of saturated", layered("saturated_share")),
        ("Gradients", "Norm of each", layered("norm_gradient")),
        ("Gradients", "Rank", layered("rank_gradient")),
        ("Gradients", "Stable", layered("stable_rank_gradient")),
        ("Gradients", "Norm of the gradient", layered("gradient_to_weight")),
        ("Gradients", "Norm of the update", layered("update_to_weight")),
        ("Gradients", "Cosine", layered("gradient_alignment")),
        ("Neural collapse", "NC1", {"collapse/nc1"}),
        (
            "Neural collapse",
            "NC2: spread of the norms",
            {"collapse/nc2_norms_means", "collapse/nc2_norms_classifier"},
        ),
        (
            "Neural collapse",
            "NC2: spread of the cos",
            {"collapse/nc2_angles_means", "collapse/nc2_angles_classifier"},
        ),
        (
            "Neural collapse",
            "NC2: distance",
            {"collapse/nc2_cosines_means", "collapse/nc2_cosines_classifier"},
        ),
        ("Neural collapse", "NC3", {"collapse/nc3"}),
        ("Neural collapse", "NC4", {"collapse/nc4"}),
        ("Neural collapse", "Gap", {"gap/collapse/rank_means"}),
        (
            "Neural collapse",
            "Rank",
            {f"{kind}collapse/rank_means" for kind in ("", "rank_low/", "rank_high/")},
        ),
        ("Determinants", "log", layered("log_abs_det")),
        ("Determinants", "Sign", layered("det_sign")),
        (
            "Margins",
            "Rank of H_f_fixed",
            {f"{k}/H_f_fixed" for k in ("rank", "rank_low", "rank_high")},
        ),
        ("Margins", "Gap around the cut, H", {f"gap/{name}" for name in [*PARTS, "Omega"]}),
        ("Margins", "Gap around the cut, w", layered("gap")),
        ("Margins", "Gap around the cut, c", layered(*(f"gap/{since}" for since in SINCE))),
        ("Layer blocks", "Rank of each layer's columns", layered("rank_columns/H_f")),
        ("Layer blocks", "Predicted rank", layered("rank_columns_theory/H_f")),
        ("Layer blocks", "Rank of each layer's diagonal block of H_o", layered("rank_block/H_o")),
        ("Layer blocks", "Share", {"off_diagonal_share/H_L"}),
        ("Lemma 8", "log", layered("lemma8/predicted_log_abs_det", "log_abs_det")),
        ("Lemma 8", "Measured minus", layered("lemma8/prediction_error")),
        ("Lemma 8", "Quadrature", layered("lemma8/quadrature_error")),
        ("Lemma 8", "Balanced", layered("lemma8/balancedness")),
        (
            "Lemma 8",
            "Class means",
            {
                f"lemma8/{name}"
                for name in ("class_mean", "target_input", "centered", "balanced", "square")
            },
        ),
        ("Monitor", "Loss", {"loss"}),
        ("Monitor", "Duration", {"monitor/seconds"}),
        ("Monitor", "Fraction", {"monitor/overhead"}),
        ("Monitor", "Non-finite", {"monitor/nonfinite", "monitor/errors"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_curves_of_a_chart(category, title, expected):
    assert set(curves_of(category, title)) == expected


def test_every_tag_has_a_chart():
    shown = {tag for chart in charts().values() for tag in curves(chart)}
    # The margins of weights and Omega are logged, without a chart of their own.
    uncharted = layered("rank_low", "rank_high") | {"rank_low/Omega", "rank_high/Omega"}
    uncharted |= layered(*(f"rank_{end}/{since}" for end in ENDS for since in SINCE))
    # So are those of blocks.
    ends = ("rank_low", "rank_high")
    uncharted |= layered(*(f"{end}/block/{part}" for end in ends for part in PARTS[:2]))
    uncharted |= layered(*(f"{end}/columns/H_f" for end in ends))
    # So are the intervals of the other curves of curvature.
    others = set(CURVATURE) - set(DRAWN_WITH_INTERVAL)
    uncharted |= of_parts(*(f"interval_{end}/{kind}" for end in ENDS for kind in others))
    assert shown == set(TAGS) - uncharted


def test_no_chart_has_many_curves_of_one_color():
    """TensorBoard gives all curves of a run the same color: five, or one kind for each layer."""
    for (_, title), chart in charts().items():
        shown = curves(chart)
        kinds = {tag.rpartition("/")[0] for tag in shown if tag.rpartition("/")[2] in LAYERS}
        others = [tag for tag in shown if tag.rpartition("/")[2] not in LAYERS]
        compared = 2 if title == "log |det|, predicted and measured" or "changes" in title else 1
        assert len(others) <= 5, title
        assert len(kinds) <= compared, title


def test_low_is_the_lower_edge_of_each_margin_chart():
    series = [s for c in charts().values() if c.HasField("margin") for s in c.margin.series]
    means = "collapse/rank_means"
    assert [(s.lower, s.value, s.upper) for s in series] == [
        (f"rank_low/{means}", means, f"rank_high/{means}"),
        ("ntk/rank_low", "ntk/rank", "ntk/rank_high"),
        *((f"rank_low/{part}", f"rank/{part}", f"rank_high/{part}") for part in PARTS),
        *(
            (f"interval_low/{kind}/{part}", f"{kind}/{part}", f"interval_high/{kind}/{part}")
            for kind in DRAWN_WITH_INTERVAL
            for part in PARTS
        ),
        *((f"batches/{tag}/low", tag, f"batches/{tag}/high") for tag in OVER_BATCHES),
    ]


def test_it_is_the_same_every_time_and_titles_are_distinct():
    one, other = custom_scalars_layout(), custom_scalars_layout()
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert len(charts()) == sum(len(category.chart) for category in one.category)


def test_charts_over_seeds_keep_parts_and_layers_apart():
    bases = ["rank/H_L", "stable_rank/W1", "stable_rank/H_L", "rank_0.1/H_f", "eigenvalue_min/H_L"]
    bases += ["interval_low/eigenvalue_min/H_L", "loss", "monitor/errors", "trace/H_L"]
    tags = [f"{base}/{kind}" for base in bases for kind in ("median", "low", "high")]
    shown = {
        category.title: [s.value for chart in category.chart for s in chart.margin.series]
        for category in seeds_layout(tags).category
    }
    assert shown == {
        "Seeds": ["rank/H_L/median", "stable_rank/W1/median", "loss/median"],
        "Seeds, curvature": ["rank_0.1/H_f/median", "eigenvalue_min/H_L/median"],
    }
    only_ranks = seeds_layout(["rank/H_L/median"]).category
    assert [category.title for category in only_ranks] == ["Seeds"]
