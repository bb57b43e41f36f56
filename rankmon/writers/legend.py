"""The legend: tags, unit and meaning of every curve.

The card of a run shows the rows for the curves that it logs; the README shows all rows.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from rankmon._util.tags import ALERTS, CARD

HEADER = ("tag", "unit", "meaning")


@dataclass(frozen=True)
class Entry:
    r"""One family of tags and their meaning.

    Attributes:
      tags: the tags as they are shown; "…" and "<layer>" match any text.
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
        choices = [re.sub("…|<layer>", ".+", re.escape(tag)) for tag in self.tags]
        return re.compile("|".join(choices), re.DOTALL)

    @property
    def row(self) -> tuple[str, str, str]:
        """The cells of a Markdown table, under `HEADER`."""
        return ", ".join(f"`{tag}`" for tag in self.tags), self.unit, self.meaning


LEGEND = (
    Entry(
        ("rank/H_L", "rank/H_o", "rank/H_f"),
        "count",
        "ranks of the loss Hessian, of its outer-product (Gauss-Newton) term and of its functional "
        "term, counted above one common cut, p · eps · max(‖H_L‖₂, ‖X‖₂) for part X",
    ),
    Entry(
        ("rank/H_f_fixed",),
        "count",
        "rank of H_f at today's weights with the residuals of the first probe",
    ),
    Entry(
        ("rank_theory/…",),
        "count",
        "the closed forms at the measured rank r of the inputs (as far as each part can show it) "
        "and s of Omega, for deep linear networks of full-rank weights; for other stacks of dense "
        "layers those of the *linear counterpart*: a landmark, not a claim. Once all of H_f lies "
        "below the cut, s counts as 0 (set from that count: agreement there is no evidence)",
    ),
    Entry(
        ("rank_self/H_f",),
        "count",
        "H_f counted relative to its own norm: does not fall while the residual shrinks",
    ),
    Entry(
        ("rank/Omega",),
        "count",
        "s, the rank of the residual-input covariance Omega = E[delta x^T], at its own cut",
    ),
    Entry(
        ("rank_bound/H_o",),
        "count",
        "Theorem 9's upper bound on the rank of H_o, for ReLU networks of one hidden layer without "
        "biases",
    ),
    Entry(
        ("rank_low/…", "rank_high/…"),
        "count",
        "the rank counted at 10 times the cut and at a tenth of it. low = high: nothing lies near "
        "the cut",
    ),
    Entry(
        ("gap/…",),
        "ratio",
        "of the singular values on either side of the cut: infinite with only exact zeros below "
        "it, NaN at rank 0",
    ),
    Entry(
        ("tolerance/…",),
        "as the singular values",
        "the cut itself: what lies above it counts",
    ),
    Entry(
        ("spectrum/…",),
        "log10",
        "the absolute eigenvalues, as a histogram and, at `spectrum/…/values`, as numbers; exact "
        "zeros are left out",
    ),
    Entry(("spectrum_zeros/…",), "count", "eigenvalues that are exactly zero"),
    Entry(
        ("rank_weights/<layer>",),
        "count",
        "rank of each weight matrix; the cut follows the dtype that the weights are stored in",
    ),
    Entry(
        ("stable_rank/<layer>", "effective_rank/<layer>"),
        "soft count",
        "‖W‖_F² / ‖W‖₂², and exp of the entropy of the singular values over their sum: they fall "
        "smoothly while a weight nears a lower rank",
    ),
    Entry(
        ("condition_number/<layer>",),
        "ratio",
        "largest to smallest singular value of each weight; infinite where that is zero",
    ),
    Entry(
        ("log_abs_det/<layer>",),
        "natural log",
        "log\\|det W\\| of each square weight; -inf where it is singular",
    ),
    Entry(
        ("det_sign/<layer>",),
        "-1, 0, 1",
        "sign of the determinant of each square weight; 0 where it is singular",
    ),
    Entry(
        ("rank_features/<layer>",),
        "count",
        "rank of what the layer receives on the probe batch: a row an example (and position; for a "
        "convolution a row an image)",
    ),
    Entry(
        ("dead_units/<layer>",),
        "count",
        "units that the ReLU after the layer leaves at zero on all of the probe batch",
    ),
    Entry(("dead_share/<layer>",), "share, 0 to 1", "the same as a share of the layer's units"),
    Entry(
        ("lemma8/centered", "lemma8/balanced", "lemma8/square"),
        "0 or 1",
        "whether Lemma 8's assumptions hold: targets and inputs uncorrelated, neighboring weights "
        "balanced, all weights square",
    ),
    Entry(
        ("lemma8/target_input", "lemma8/class_mean"),
        "relative size",
        "how far the first of them is from holding: the correlation of targets and inputs, 0 to 1, "
        "and the largest class mean of the inputs over their root mean square",
    ),
    Entry(
        ("lemma8/balancedness/<layer>",),
        "relative size",
        "how far the weight and the next one are from being balanced: 0 is balanced, √2 the most",
    ),
    Entry(
        ("lemma8/predicted_log_abs_det/<layer>",),
        "natural log",
        "log\\|det W\\| as Lemma 8 predicts it along the gradient flow",
    ),
    Entry(
        ("lemma8/prediction_error/<layer>", "lemma8/quadrature_error/<layer>"),
        "natural log",
        "measured minus predicted log\\|det W\\|, and how much of that may be the integral "
        "over the probes",
    ),
    Entry(("loss",), "of the loss", "mean loss on the probe batch"),
    Entry(("monitor/seconds",), "seconds", "what this probe took"),
    Entry(
        ("monitor/overhead",),
        "share, 0 to 1",
        "of the wall time since the first call that probes have taken",
    ),
    Entry(
        ("monitor/nonfinite",),
        "count",
        "parameters that are NaN or infinite; ranks are NaN while there are any",
    ),
    Entry(("monitor/errors",), "count", "errors of the monitor's own, so far"),
    Entry(
        ("monitor/skipped", "monitor/blocked"),
        "count",
        "due steps, so far, that found the worker's queue full and were left out, or waited",
    ),
    Entry(
        ("user/…",),
        "yours",
        "a number of yours whose tag is one of the monitor's own",
    ),
    Entry(
        (ALERTS,),
        "text",
        "what the alerts found, at the step where it begins to hold; where a run went on without "
        "its state",
    ),
    Entry((CARD,), "text", "what is monitored, and the rows of this table that apply"),
)
OVER_SEEDS = Entry(
    ("…/median", "…/low", "…/high"),
    "that of …",
    "median, lowest and highest value over the seeds, in the run `median` of a `SeedsMonitor`; NaN "
    "where a seed's is",
)
