"""The rows of the legend for curves of layers: weights, features, gradients, collapse."""

from rankmon.writers.legend_entry import Entry

OF_LAYERS = (
    Entry(
        ("rank_weights/<layer>",),
        "count",
        "rank of each weight matrix; the cut depends on the dtype in which the weights are stored",
    ),
    Entry(
        ("stable_rank/<layer>", "effective_rank/<layer>"),
        "soft count",
        "‖W‖_F² / ‖W‖₂², and the exponential of the entropy of the normalized singular values; "
        "both fall smoothly as a weight approaches a lower rank",
    ),
    Entry(
        ("condition_number/<layer>",),
        "ratio",
        "largest singular value of each weight divided by the smallest; infinite if the smallest "
        "is zero",
    ),
    Entry(
        ("log_abs_det/<layer>",),
        "natural log",
        "log\\|det W\\| of each square weight; -inf if it is singular",
    ),
    Entry(
        ("det_sign/<layer>",),
        "-1, 0, 1",
        "sign of the determinant of each square weight; 0 if it is singular",
    ),
    Entry(
        ("norm/<layer>",),
        "as the weights",
        'Frobenius norm of each weight (`track=` or `spectra=` of the probe "weights")',
    ),
    Entry(
        ("rank_since_start/<layer>", "rank_since_last/<layer>"),
        "count",
        "rank of the change of each weight since the first probe with finite weights, or since "
        "the last probe; 0 if the weight has not changed. The cut includes a bound on the "
        "rounding errors of the stored weights, the larger of eps ‖W‖_F and √t · eps / 2 · (the "
        "largest norm of a row of W + the largest norm of a column), for t steps; entries that "
        "did not change count as zero in these norms. NaN if the earlier weights are not known: "
        "`rank_since_last` at the first probe, and `rank_since_start` in a run that resumed from "
        "a state without them",
    ),
    Entry(
        (
            "stable_rank_since_start/<layer>",
            "effective_rank_since_start/<layer>",
            "stable_rank_since_last/<layer>",
            "effective_rank_since_last/<layer>",
        ),
        "soft count",
        "the soft ranks of the change of each weight; NaN for no change",
    ),
    Entry(
        ("norm_since_start/<layer>", "norm_since_last/<layer>"),
        "as the weights",
        "Frobenius norm of the change of each weight",
    ),
    Entry(
        ("singular_values/<layer>",),
        "log10",
        "singular values of each weight, without exact zeros: a histogram, and the numbers "
        "themselves at `singular_values/…/values`",
    ),
    Entry(
        ("singular_values_zeros/<layer>",),
        "count",
        "number of singular values that are exactly zero",
    ),
    Entry(
        ("mp_edge/<layer>",),
        "as the weights",
        "Marchenko-Pastur edge σ (√m + √n): about the largest singular value of an m x n matrix "
        "with independent entries of variance σ². σ is computed from the median of the singular "
        "values (Gavish and Donoho 2014); 0 if the median is 0. For a product of two weights, the "
        "edge is only a reference",
    ),
    Entry(
        ("above_mp_edge/<layer>",),
        "count",
        "number of singular values above that edge and above the cut of the rank; 0 or 1 for a "
        "random matrix",
    ),
    Entry(
        ("rank_features/<layer>",),
        "count",
        "rank of the layer's input on the probe batch, as a matrix with one row per example and "
        "position (for a convolution, one row per image)",
    ),
    Entry(
        ("effective_rank_features/<layer>", "stable_rank_features/<layer>"),
        "soft count",
        "of these features X: the exponential of the entropy of the normalized singular values "
        "(Roy and Vetterli; RankMe up to its epsilon), and ‖X‖_F² / ‖X‖₂²; NaN if X is zero",
    ),
    Entry(
        ("srank_features/<layer>", "components_features/<layer>"),
        "count",
        "smallest k for which the k largest singular values of X sum to at least 99 % of the sum "
        "of all (srank of Kumar et al., delta = 0.01), and the same for the squares of the "
        "singular values, which with `centered=True` is the number of principal components that "
        "have 99 % of the variance. 0 if X is zero",
    ),
    Entry(
        ("feature_rank/<layer>",),
        "count",
        "number of singular values of X / √n above 0.01, for n rows (Lyle et al.); it depends on "
        "the scale of X",
    ),
    Entry(("norm_features/<layer>",), "as the features", "mean Euclidean norm of the rows of X"),
    Entry(
        ("dead_units/<layer>",),
        "count",
        "units for which the ReLU after the layer returns zero on the whole probe batch",
    ),
    Entry(
        ("dead_share/<layer>",), "fraction, 0 to 1", "fraction of the layer's units that are dead"
    ),
    Entry(
        ("dormant_share_0.1/<layer>", "dormant_share_0.025/<layer>"),
        "fraction, 0 to 1",
        "fraction of the layer's units that are tau-dormant (Sokar et al.): the mean absolute "
        "output of the activation is at most tau = 0.1 or 0.025 times its mean over the units. 1 "
        "if all outputs are zero",
    ),
    Entry(
        ("saturated_share/<layer>",),
        "fraction, 0 to 1",
        "fraction of the layer's units for which the absolute derivative of the activation (GELU, "
        "SiLU, tanh, sigmoid, ELU, leaky ReLU) is below 5 % of its maximum on the whole probe "
        "batch. For a leaky ReLU with a slope below 5 %, these are the units whose input is never "
        "positive; with a larger slope, no unit is saturated",
    ),
    Entry(
        ("norm_gradient/<layer>",),
        "loss / unit of the weights",
        "Frobenius norm of the gradient G of the mean loss over the probe batch (not over the "
        "training batch), without regularization terms, with respect to each weight",
    ),
    Entry(
        ("rank_gradient/<layer>",),
        "count",
        "rank of G as a matrix; the cut allows for the rounding errors of G. If it is 0, G "
        "consists of rounding errors, and so do its stable rank and alignment",
    ),
    Entry(
        ("stable_rank_gradient/<layer>",),
        "soft count",
        "‖G‖_F² / ‖G‖₂²; NaN if G is zero",
    ),
    Entry(
        ("gradient_to_weight/<layer>",),
        "ratio",
        "‖G‖_F / ‖W‖_F; infinite if only W is zero, NaN if both are",
    ),
    Entry(
        ("gradient_alignment/<layer>",),
        "cosine, -1 to 1",
        "cosine of the angle between G and the G of the probe before; NaN at the first probe, and "
        "if one of them is zero",
    ),
    Entry(
        ("update_to_weight/<layer>",),
        "ratio",
        "‖ΔW‖_F / ‖W‖_F. ΔW is the update that the optimizer would make at this step with the "
        "gradient on the probe batch, if the monitor gets the optimizer and its state; otherwise "
        "the change since the step before, if that was measured. Infinite if only W is zero, NaN "
        "if both are",
    ),
    Entry(
        ("collapse/nc1",),
        "ratio",
        "NC1 of neural collapse: tr(Σ_W Σ_B⁺) / C, the variation of the last layer's features "
        "within classes relative to that between the class means; 0 if the features of each class "
        "are equal. Infinite if the class means coincide, NaN if all features do",
    ),
    Entry(
        ("collapse/nc2_norms_means", "collapse/nc2_norms_classifier"),
        "ratio",
        "NC2, equal norms: standard deviation divided by mean of the norms of the class means "
        "minus their mean, and of the rows of the classifier; NaN if all are zero",
    ),
    Entry(
        ("collapse/nc2_angles_means", "collapse/nc2_angles_classifier"),
        "cosine",
        "NC2, equal angles: standard deviation of the cosines between these vectors, over all "
        "pairs; NaN if one of them is zero",
    ),
    Entry(
        ("collapse/nc2_cosines_means", "collapse/nc2_cosines_classifier"),
        "cosine",
        "NC2, largest angles: mean distance of these cosines from -1 / (C - 1), those of a "
        "simplex; NaN if a vector is zero",
    ),
    Entry(
        ("collapse/nc3",),
        "squared distance, 0 to 4",
        "NC3, self-duality: ‖W / ‖W‖_F - M / ‖M‖_F‖_F² of the classifier W and the class means M "
        "minus their mean; NaN if W or M is zero",
    ),
    Entry(
        ("collapse/nc4",),
        "fraction, 0 to 1",
        "NC4: fraction of the examples for which the class with the largest output is not the one "
        "with the nearest mean; NaN if the class means coincide",
    ),
    Entry(
        ("collapse/rank_means",),
        "count",
        "rank of the class means minus their mean, at most C - 1 for C classes",
    ),
)
