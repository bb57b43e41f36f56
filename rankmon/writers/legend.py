"""The legend: tags, unit and meaning of every curve.

A run's card shows the rows for the curves that it logs; the README shows all rows.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from rankmon._util.tags import ALERTS, CARD, HESSIAN_PARTS, LAYERS

HEADER = ("tag", "unit", "meaning")
_PART = f"(?:{'|'.join(HESSIAN_PARTS)})"
_PATTERNS = {"…": ".+", "<part>": _PART, "<layer>": rf"(?!{_PART}\Z).+"}
_VARIABLE = re.compile("|".join(_PATTERNS))


@dataclass(frozen=True)
class Entry:
    r"""One family of tags and their meaning.

    Attributes:
      tags: the tags as they are shown; "…" matches any text, "<part>" a part of the Hessian, and
        "<layer>" any other text.
      unit: the unit of the numbers.
      meaning: their meaning in Markdown, with "|" written as "\|".
    """

    tags: tuple[str, ...]
    unit: str
    meaning: str

    def explains(self, tag: str) -> bool:
        """Return whether the tag belongs to the family."""
        return self._pattern.fullmatch(tag) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        choices = [_VARIABLE.sub(lambda one: _PATTERNS[one[0]], re.escape(t)) for t in self.tags]
        return re.compile("|".join(choices), re.DOTALL)

    @property
    def row(self) -> tuple[str, str, str]:
        """The cells of a Markdown table, under `HEADER`."""
        return ", ".join(f"`{tag}`" for tag in self.tags), self.unit, self.meaning


LEGEND = (
    Entry(
        ("rank/H_L", "rank/H_o", "rank/H_f"),
        "count",
        "numerical ranks of the loss Hessian H_L, its outer-product (Gauss-Newton) term H_o and "
        "its functional term H_f. The cut for part X is p · eps · max(‖H_L‖₂, ‖X‖₂)",
    ),
    Entry(
        ("rank/H_f_fixed",),
        "count",
        "rank of H_f at the current weights, with the residuals held at those of the first probe",
    ),
    Entry(
        ("rank_theory/…",),
        "count",
        "rank predicted by the closed forms for deep linear networks with full-rank weights, at "
        "the measured ranks r of the inputs and s of Omega. (H_o depends on the squares of the "
        "inputs, so its prediction counts fewer small input directions.) For other stacks of "
        "dense layers, it is the prediction for the same layers without activations (the *linear "
        "counterpart*): a reference value, not a claim. Once all eigenvalues of H_f are below a "
        "tenth of the cut, the prediction uses s = 0; agreement from then on is not evidence",
    ),
    Entry(
        ("rank_self/H_f",),
        "count",
        "rank of H_f with a cut relative to its own norm; it does not fall as the residual shrinks",
    ),
    Entry(
        ("rank/Omega",),
        "count",
        "s, the rank of the residual-input covariance Omega = E[delta x^T], with a cut relative to "
        "its own norm",
    ),
    Entry(
        ("rank_bound/H_o",),
        "count",
        "upper bound of Theorem 9 on the rank of H_o, for ReLU networks with one hidden layer and "
        "no biases",
    ),
    Entry(
        ("rank_low/…", "rank_high/…"),
        "count",
        "the rank at 10 times the cut and at a tenth of the cut. If they are equal, no singular "
        "value lies near the cut. If the rank is NaN, these are the bounds that are known",
    ),
    Entry(
        ("gap/…",),
        "ratio",
        "smallest singular value above the cut, divided by the largest below it; infinite if all "
        "values below the cut are exactly zero, NaN if the rank is 0",
    ),
    Entry(
        ("tolerance/…",),
        "unit of the singular values",
        "the cut: singular values above it count towards the rank",
    ),
    Entry(
        ("spectrum/…",),
        "log10",
        "absolute values of the eigenvalues, without exact zeros: a histogram, and the numbers "
        "themselves at `spectrum/…/values`",
    ),
    Entry(
        ("spectrum_negative/…",),
        "log10",
        "the same for the negative eigenvalues only, which are also in `spectrum/…`",
    ),
    Entry(("spectrum_zeros/…",), "count", "number of eigenvalues that are exactly zero"),
    Entry(
        ("eigenvalue_max/<part>", "eigenvalue_min/<part>"),
        "as the eigenvalues",
        "largest and smallest eigenvalue, with their signs, of H_L, H_o, H_f and H_f_fixed",
    ),
    Entry(
        ("rank_0.1/<part>", "rank_0.01/<part>", "rank_0.001/<part>"),
        "count",
        "epsilon-ranks: number of eigenvalues with a magnitude above 0.1, 0.01 and 0.001 ‖H_L‖₂",
    ),
    Entry(
        ("negative_0.01/<part>", "negative/<part>"),
        "count",
        "number of eigenvalues below -0.01 ‖H_L‖₂, and, if all eigenvalues are computed, below "
        "minus the cut of the rank",
    ),
    Entry(
        ("trace/<part>", "norm/<part>"),
        "as the eigenvalues",
        "sum of the eigenvalues λᵢ, and the Frobenius norm, the root of the sum of their squares",
    ),
    Entry(
        ("stable_rank/<part>", "effective_rank/<part>"),
        "soft count",
        "‖X‖_F² / ‖X‖₂² of part X, and the exponential of the entropy of \\|λᵢ\\| divided by their "
        "sum",
    ),
    Entry(
        ("interval_low/…", "interval_high/…"),
        "unit of …",
        "ends of the interval of an estimate …, which contains the true value with a "
        "probability of at least 95 %; numbers that are computed exactly have no interval",
    ),
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
        "the last probe; 0 if the weight has not changed. The cut contains the rounding errors of "
        "the stored weights: eps ‖W‖_F, or, if it is larger, √t · eps / 2 times the sum of the "
        "largest norms of a row and of a column, for t steps, both over entries that changed. NaN "
        "if the earlier weights are not known: since the last probe, at the first one; since the "
        "start, in a run resumed from a state that was saved without them",
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
        "values (Gavish and Donoho 2014); 0 if the median is 0. Only a reference for a product",
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
        "number of the largest singular values of X that sum to 99 % of the sum of all (srank of "
        "Kumar et al., delta = 0.01), and the same for their squares: with `centered=True`, the "
        "principal components that have 99 % of the variance. 0 if X is zero",
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
        "fraction of the layer's units for which the derivative of the activation (GELU, SiLU, "
        "tanh, sigmoid, ELU, leaky ReLU) is below 5 % of its maximum on the whole probe batch. A "
        "leaky ReLU with a slope below 5 % is saturated if its input is never positive, and never "
        "with a larger slope",
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
    Entry(
        ("lemma8/centered", "lemma8/balanced", "lemma8/square"),
        "0 or 1",
        "1 if the assumption of Lemma 8 holds: targets and inputs are uncorrelated, adjacent "
        "weights are balanced, all weights are square",
    ),
    Entry(
        ("lemma8/target_input", "lemma8/class_mean"),
        "relative size",
        "violation of the first assumption: the correlation of targets and inputs (0 to 1), and "
        "the largest class mean of the inputs divided by their root mean square",
    ),
    Entry(
        ("lemma8/balancedness/<layer>",),
        "relative size",
        "imbalance between this weight and the next, from 0 (balanced) to √2",
    ),
    Entry(
        ("lemma8/predicted_log_abs_det/<layer>",),
        "natural log",
        "log\\|det W\\| predicted by Lemma 8 for the gradient flow",
    ),
    Entry(
        ("lemma8/prediction_error/<layer>", "lemma8/quadrature_error/<layer>"),
        "natural log",
        "measured minus predicted log\\|det W\\|, and an estimate of the part that is due to the "
        "integration over the probes",
    ),
    Entry(
        ("layers/…", LAYERS),
        "unit of …",
        "lowest, median and highest value over the layers of families of curves with more than "
        "three layers; NaN if the value of any layer is NaN. With more than 24 layers, TensorBoard "
        "has arrays of all layers' values instead of their curves, and the text gives their order",
    ),
    Entry(("loss",), "unit of the loss", "mean loss on the probe batch"),
    Entry(("monitor/seconds",), "seconds", "duration of this probe"),
    Entry(
        ("monitor/overhead",),
        "fraction, 0 to 1",
        "fraction of the wall time since the first call that was spent in probes",
    ),
    Entry(
        ("monitor/nonfinite",),
        "count",
        "number of NaN or infinite parameters; ranks that depend on them are NaN",
    ),
    Entry(("monitor/errors",), "count", "errors in the monitor so far"),
    Entry(
        ("monitor/skipped", "monitor/blocked"),
        "count",
        "due steps so far that were skipped, or had to wait, because the worker's queue was full",
    ),
    Entry(
        ("user/…",),
        "user-defined",
        "a number that you report under a tag that the monitor also uses",
    ),
    Entry(
        (ALERTS,),
        "text",
        "messages of the alerts, at the step at which each begins to hold, and a note if a run was "
        "resumed without its state",
    ),
    Entry((CARD,), "text", "description of the run, with the rows of this table that apply"),
)
OVER_SEEDS = Entry(
    ("…/median", "…/low", "…/high"),
    "unit of …",
    "median, lowest and highest value over the seeds, in the run `median` of a `SeedsMonitor`; NaN "
    "if the value of any seed is NaN",
)
