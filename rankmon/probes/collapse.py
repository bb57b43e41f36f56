"""The collapse probe: neural collapse (NC1 to NC4) of the last layer's features."""

from dataclasses import dataclass

import numpy as np

from rankmon._util.facts import Fact
from rankmon._util.optional_readers import optionally
from rankmon._util.tags import CLASS_MEANS
from rankmon.linalg.numerical_rank import DEFAULT_TOLERANCE, Tolerance, as_tolerance
from rankmon.measure.collapse import Classes, Collapse, neural_collapse
from rankmon.network.last_layer import LastLayer, last_layer
from rankmon.probes.base import Description, Measurement, State, count_scalar
from rankmon.problem.class_labels import class_labels
from rankmon.problem.flat import FlatProblem
from rankmon.problem.point import Snapshot
from rankmon.problem.problem import Problem


@dataclass(frozen=True)
class CollapseProbe:
    """Neural collapse of a classifier: NC1 to NC4, and the rank of the class means.

    The features are the input of the last layer, whose product with a kernel, plus a bias, is the
    output. Each position of an output [n, ..., k] is an example; examples of weight zero do not
    count. The probe applies to cross entropy, and to other losses whose targets are labels or
    one-hot vectors. Quantities are those of Papyan, Han and Donoho (2020), arXiv 2008.08186,
    figures 2 to 7, on the probe batch.

    Args:
      tolerance: the cut of the class means; by default max(C, d) * eps64 * R for C classes and d
        features, where R^2 is the sum over the classes of the mean squared norm of features, plus
        eps * R for features computed below float64.
    """

    tolerance: Tolerance = DEFAULT_TOLERANCE
    name: str = "collapse"

    def __post_init__(self) -> None:
        as_tolerance(self.tolerance)

    def placeholder_state(self, problem: Problem) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def prepare(self, flat: FlatProblem) -> "PreparedCollapse":
        """Read the classes, and find the last layer.

        Raises:
          ValueError: if the problem is not a classification, if fewer than two classes have
            examples, or if the outputs are not a product of features and a kernel, plus a bias.
        """
        found = class_labels(flat)
        weights = flat.weights[flat.weights > 0]
        classes = Classes.of(found.labels, weights)
        if len(classes.present) < 2:
            raise ValueError(
                "expected a probe batch with examples of at least two classes, got only class "
                f"{classes.present[0]}; take examples of all classes, or omit the collapse probe"
            )
        # A reader that fails is not a refusal: the probe then measures nothing.
        read = optionally(flat.problem, "the last layer", lambda: (last_layer(flat),), otherwise=())
        if read == (None,):
            raise ValueError(
                "expected outputs that are a product of features and a kernel, plus a bias, got "
                "other operations after the last product, or none outside loops; return the "
                "logits from apply, for instance without a softmax, or omit the collapse probe"
            )
        layer = read[0] if read else None
        return PreparedCollapse(flat, classes, found.source, layer, self.tolerance)


@dataclass(frozen=True)
class PreparedCollapse:
    """`CollapseProbe` for one problem.

    Attributes:
      flat: the problem.
      classes: the classes of the examples with positive weight.
      source: the form of the targets, in plain text.
      layer: the last layer; None if the network's program could not be read.
      tolerance: the rule for the cut.
    """

    flat: FlatProblem
    classes: Classes
    source: str
    layer: LastLayer | None
    tolerance: Tolerance

    def initial_state(self) -> State:
        """Return an empty state: there is nothing to remember."""
        return {}

    def measure(self, snapshot: Snapshot, state: State) -> tuple[Measurement, State]:
        """Measure the last layer at the snapshot; all numbers are NaN if it is not finite."""
        if self.layer is None:
            return Measurement({}), state
        with self.flat.precision.scope():
            last = self.layer.evaluate(snapshot.leaves, self.flat.inputs)
            features, kernel = (np.asarray(x, np.float64) for x in (last.features, last.kernel))
            decisions = np.asarray(last.decisions)
        kept = self.flat.weights > 0
        found = neural_collapse(
            features[kept],
            self.classes,
            kernel.T,
            decisions[kept],
            tolerance=self.tolerance,
            eps=self.flat.precision.eps,
        )
        scalars = _scalars(found)
        if not self._has_variation:
            del scalars["collapse/nc1"], scalars["collapse/nc4"]
        if snapshot.nonfinite:
            scalars = dict.fromkeys(scalars, float("nan"))
        return Measurement(scalars), state

    @property
    def _has_variation(self) -> bool:
        """Whether some class has more than one example."""
        return bool(np.max(self.classes.counts) > 1)

    def describe(self) -> Description:
        """Describe the last layer, the classes, the cut, and the limits of the measures."""
        if self.layer is None:
            return Description()
        shown = f"{self.layer.kernel}, with {self.layer.width:,} features"
        cut = self.tolerance.rule(
            "max(C, d) eps64 R for C classes, d features; plus eps R for features below float64, "
            "where R² is the sum over the classes of the mean of ‖h‖²"
        )
        return Description(
            [
                Fact("last layer", shown),
                Fact("classes", self._classes()),
                Fact("class mean cut", cut),
                *(Fact("neural collapse", text) for text in self._limits(self.layer.width)),
            ]
        )

    def _classes(self) -> str:
        """Return the numbers of classes and of examples, as text."""
        counts, k = self.classes.counts, self.flat.k
        least, most = int(np.min(counts)), int(np.max(counts))
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return f"{len(counts):,} of {k:,} have examples, {each} each; classes are {self.source}"

    def _limits(self, width: int) -> list[str]:
        """Return the reasons why measures are left out, or differ from the paper's."""
        counts, k = self.classes.counts, self.flat.k
        texts = []
        if not self._has_variation:
            texts.append(
                "NC1 and NC4 are left out: each class has a single example, which is its mean"
            )
        elif np.min(counts) == 1:
            single = int(np.sum(counts == 1))
            texts.append(f"{single:,} classes have a single example, which is its mean")
        if np.ptp(counts) and self._has_variation:
            texts.append(
                "the classes differ in size: Σ_W is a mean over the examples, μ_G and Σ_B are "
                "means over the classes"
            )
        if len(counts) < k:
            texts.append(
                "classes without examples are left out of NC1 to NC3; for NC3 the mean of the "
                "remaining rows of the classifier is subtracted; a decision for such a class "
                "counts as a disagreement in NC4"
            )
        if len(counts) == 2:
            texts.append("with two classes, NC2 of the class means is 0 for any features")
        if width < len(counts) - 1:
            texts.append(
                f"{width:,} features are too few for a simplex of {len(counts):,} class means"
            )
        return texts


def _scalars(found: Collapse) -> dict[str, float]:
    """Return tag -> number."""
    rank, name = found.rank_means, CLASS_MEANS
    scalars = {"collapse/nc1": found.nc1}
    for of, simplex in (("means", found.means), ("classifier", found.classifier)):
        scalars[f"collapse/nc2_norms_{of}"] = simplex.norms
        scalars[f"collapse/nc2_angles_{of}"] = simplex.angles
        scalars[f"collapse/nc2_cosines_{of}"] = simplex.cosines
    return scalars | {
        "collapse/nc3": found.nc3,
        "collapse/nc4": found.nc4,
        name: count_scalar(rank.known),
        f"tolerance/{name}": rank.tolerance,
        f"rank_low/{name}": count_scalar(rank.low),
        f"rank_high/{name}": count_scalar(rank.high),
        f"gap/{name}": rank.gap,
    }
