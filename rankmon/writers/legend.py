"""The legend: tags, unit and meaning of every curve.

A run's card shows the rows for the curves that it logs; docs/curves.md shows all rows.
`legend_layers` has the rows for curves of layers.
"""

from rankmon._util.tags import ALERTS, CARD, LAYERS
from rankmon.writers.legend_entry import HEADER, Entry
from rankmon.writers.legend_layers import OF_LAYERS

__all__ = ["HEADER", "LEGEND", "OVER_SEEDS", "Entry"]

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
        "inputs, so for H_o an input direction must be larger to count in r.) Once all "
        "eigenvalues of H_f are below a tenth of the cut, the prediction uses s = 0; from then "
        "on, agreement does not support the theory. For one hidden layer of piecewise linear "
        "units, H_f's is the exact sum over the units, counted at the cut of H_f; for one of tanh, "
        "H_o's is a formula that is checked, not proved. Runs of earlier versions have "
        "`rank_landmark/…` under this tag, for other stacks of dense layers",
    ),
    Entry(
        ("rank_landmark/…",),
        "count",
        "for a stack of dense layers with activations, the closed form for the same layers "
        "without activations (the *linear counterpart*): a reference value, not a claim",
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
        "upper bound on the rank of H_o for stacks of dense layers with activations: for one "
        "hidden layer of ReLU or leaky ReLU the least over groups of units with the same slopes, "
        "which contains Theorem 9's; for other stacks the smaller of n K and the number of "
        "parameters less that of rescalings of units that change no output",
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
        "the cut: singular values above it count toward the rank",
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
        ("eigenvalue_max_threshold/H_L",),
        "as the eigenvalues",
        "the largest eigenvalue of H_L for which training is stable (`learning_rate=` of the probe "
        '"hessian"): 2 / eta, with momentum 2 (1 + beta) / eta, with Nesterov\'s '
        "2 (1 + beta) / ((1 + 2 beta) eta). It presumes the full batch, no regularization and no "
        "adaptive steps; infinite for eta = 0",
    ),
    Entry(
        ("ntk/rank", "ntk/rank_low", "ntk/rank_high"),
        "count",
        "rank of the neural tangent kernel's Gram matrix J J^T on the probe batch, from the "
        "singular values of J = dF/dtheta; and the ranks at 10 times the cut and at a tenth of it",
    ),
    Entry(
        ("ntk/tolerance",),
        "as the singular values of J",
        "the cut of this rank, max(n k, p) · eps · ‖J‖₂",
    ),
    Entry(("ntk/gap",), "ratio", "ratio of the singular values of J at this cut, as for `gap/…`"),
    Entry(
        ("ntk/effective_rank",),
        "soft count",
        "exponential of the entropy of the kernel's eigenvalues divided by their sum; NaN for a "
        "zero kernel",
    ),
    Entry(("ntk/eigenvalue_max",), "as the kernel", "largest eigenvalue of the kernel, ‖J‖₂²"),
    Entry(
        ("ntk/alignment",),
        "cosine, 0 to 1",
        "kernel alignment ⟨K, K₀⟩_F / (‖K‖_F ‖K₀‖_F), not centered, with the kernel K₀ of the "
        "first probe; 1 as long as the kernel changes at most in scale. NaN if either is zero, "
        "and in a run resumed from a state that was saved without K₀",
    ),
    Entry(
        ("rank_0.1/<part>", "rank_0.01/<part>", "rank_0.001/<part>"),
        "count",
        "epsilon-ranks: number of eigenvalues with a magnitude above 0.1, 0.01 and 0.001 ‖H_L‖₂",
    ),
    Entry(
        ("negative_0.01/<part>", "negative/<part>"),
        "count",
        "number of eigenvalues below -0.01 ‖H_L‖₂, and number of eigenvalues below -c, with the "
        "cut c of the rank; the second only if all eigenvalues are computed",
    ),
    Entry(
        ("trace/<part>", "norm/<part>"),
        "as the eigenvalues",
        "sum of the eigenvalues λᵢ, and the Frobenius norm, the root of the sum of their squares",
    ),
    Entry(
        ("stable_rank/<part>", "effective_rank/<part>"),
        "soft count",
        "‖X‖_F² / ‖X‖₂² of part X, and the exponential of the entropy of the shares "
        "\\|λᵢ\\| / Σⱼ \\|λⱼ\\| of the eigenvalues",
    ),
    Entry(
        ("rank_block/<part>/<layer>",),
        "count",
        "rank of the diagonal block of each layer in H_L and H_o, at the cut of this part "
        "(`rank_low/block/…` and `rank_high/block/…`: at 10 times and a tenth of it). A layer is a "
        "weight matrix with the bias or the other vectors beside it. Blocks are measured with "
        "`HessianProbe(blocks=True)`, their ranks by exact engines only",
    ),
    Entry(
        (
            "eigenvalue_max_block/<part>/<layer>",
            "eigenvalue_min_block/<part>/<layer>",
            "trace_block/<part>/<layer>",
        ),
        "as the eigenvalues",
        "largest and smallest eigenvalue, and the trace, of the same diagonal blocks; estimates "
        "with intervals without an exact engine",
    ),
    Entry(
        ("off_diagonal_share/H_L",),
        "fraction, 0 to 1",
        "share of ‖H_L‖_F² outside the diagonal blocks of the layers; NaN if H_L is zero",
    ),
    Entry(
        ("rank_columns/H_f/<layer>",),
        "count",
        "rank of the column block of each layer in H_f (all rows, the columns of this layer), at "
        "the cut of H_f (`rank_low/columns/…` and `rank_high/columns/…`: at 10 times and a tenth "
        "of it)",
    ),
    Entry(
        ("rank_columns_theory/H_f/<layer>",),
        "count",
        "the same rank as Theorem 5 predicts it, with biases by its extension, under the "
        "conditions of `rank_theory/…`. It is 0 once all singular values of the block are below a "
        "tenth of the cut; agreement from then on is not evidence",
    ),
    Entry(
        ("interval_low/…", "interval_high/…"),
        "unit of …",
        "ends of the interval of an estimate …, which contains the true value with a "
        "probability of at least 95 %; numbers that are computed exactly have no interval",
    ),
    *OF_LAYERS,
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
        "lowest, median and highest value over the layers, for each family of curves with more "
        "than three layers; NaN if the value of any layer is NaN. If any family has more than 24 "
        "layers, TensorBoard has, for each family, an array of the values of all layers instead "
        "of a curve for each layer; the text `rankmon/layers` gives the order of the layers",
    ),
    Entry(
        ("batches/…",),
        "unit of …",
        "with several probe batches (`batches=`, or a list of Problems): lowest and highest value "
        "over the batches, at `batches/…/low` and `batches/…/high`; the curve … itself is the "
        "median over the batches, for an even number the mean of the two in the middle. NaN if the "
        "value of any batch is NaN or missing. `rankmon.jsonl` has the values of all batches",
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
