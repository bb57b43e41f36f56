"""Neural collapse of the last layer: NC1 to NC4 of Papyan, Han and Donoho.

Source: V. Papyan, X. Y. Han, D. L. Donoho, "Prevalence of neural collapse during the terminal phase
of deep learning training", PNAS 117 (2020) 24652-24663, arXiv 2008.08186, figures 2 to 7, and the
authors' code (github.com/neuralcollapse/neuralcollapse).

Symbols: C classes with examples in the batch, of K outputs; h_i the features of example i, with
class c_i and weight w_i, which sum to 1; mu_c the mean of a class; mu_G the mean of the mu_c; M the
matrix of rows mu_c - mu_G, C x d; W the classifier, one row for each class, K x d.

The paper assumes classes of equal size. Otherwise, as in the authors' code, Sigma_W is a mean over
all examples, and mu_G and Sigma_B are means over the classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rankmon.linalg.numerical_rank import (
    DEFAULT_TOLERANCE,
    NumericalRank,
    Tolerance,
    numerical_rank,
    undefined_rank,
)

NAN = float("nan")
EPS = float(np.finfo(np.float64).eps)
_ENTRIES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Classes:
    """The classes of a batch.

    Attributes:
      present: the labels that occur, ascending.
      index: for each example the place of its label in `present`.
      weights: the weight of each example, positive; they sum to 1.
    """

    present: Int[np.ndarray, " c"]
    index: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, labels: Int[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> "Classes":
        """Return the classes of examples with these labels and positive weights."""
        present, index = np.unique(labels, return_inverse=True)
        return cls(present, index.reshape(-1), weights / np.sum(weights))

    @property
    def counts(self) -> Int[np.ndarray, " c"]:
        """The number of examples of each class."""
        return np.bincount(self.index, minlength=len(self.present))

    def means(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "c d"]:
        """Return the weighted mean of the rows of each class."""
        order = np.argsort(self.index, kind="stable")
        starts = np.searchsorted(self.index[order], np.arange(len(self.present)))
        weights = self.weights[order, None]
        sums = np.add.reduceat(weights * rows[order], starts, axis=0)
        return sums / np.add.reduceat(weights, starts, axis=0)


@dataclass(frozen=True)
class Simplex:
    """The distance of vectors from a simplex: equal norms, and equal angles of -1 / (K - 1).

    The standard deviations divide by the number of norms or pairs. (The authors' code divides by
    one less for the norms.)

    Attributes:
      norms: the standard deviation of the norms divided by their mean (figure 2); NaN if all
        vectors are zero.
      angles: the standard deviation of the cosines of all pairs (figure 3); NaN if a vector is
        zero.
      cosines: the mean of |cos + 1 / (K - 1)| over all pairs (figure 4); NaN if a vector is zero.
    """

    norms: float = NAN
    angles: float = NAN
    cosines: float = NAN


@dataclass(frozen=True)
class Collapse:
    """The measures of neural collapse; each of NC1 to NC4 is 0 at a complete collapse.

    Attributes:
      nc1: tr(Sigma_W Sigma_B^+) / C (figure 6), the variation within classes in the directions of
        the class means, relative to the variation between them. Infinite if the class means
        coincide (numerically) but examples differ, NaN if all examples coincide.
      means: NC2 of the rows of M; NaN if the means coincide.
      classifier: NC2 of the rows of W whose classes have examples.
      nc3: ||W / ||W||_F - M / ||M||_F||_F^2 (figure 5), 0 to 4. If some classes have no examples,
        the rows of W are those that have, minus their mean, as M is. NaN if W or M is zero.
      nc4: the fraction of examples for which the class with the largest output is not that with the
        nearest mean (figure 7, on the batch that the means come from). A class without examples has
        no mean and counts as a disagreement. NaN if the means coincide.
      rank_means: the rank of M, at most C - 1.
    """

    nc1: float
    means: Simplex
    classifier: Simplex
    nc3: float
    nc4: float
    rank_means: NumericalRank


def neural_collapse(
    features: Float[np.ndarray, "n d"],
    classes: Classes,
    classifier: Float[np.ndarray, "k d"],
    decisions: Int[np.ndarray, " n"],
    *,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    eps: float = EPS,
) -> Collapse:
    """Return NC1 to NC4, and the rank of the class means.

    The cut separates directions of M from rounding errors. These are relative to the features, not
    to M: mu_c is a mean of features, from which mu_G is subtracted. The default cut is
    max(C, d) eps64 R, where R^2 is the sum over the classes of the mean of ||h_i||^2, so that
    R >= ||M||_F. If features have a coarser eps, eps R is added: the means of features with
    relative errors eps change M by at most eps R. Sigma_B^+ inverts only directions of M above the
    cut.

    Args:
      features: h, one row per example.
      classes: the classes of these examples, at least two.
      classifier: W.
      decisions: the index of the largest output of each example; negative if it is undefined.
      tolerance: the cut; if it is relative, relative to ||M||_2.
      eps: the relative rounding error of the features.

    Returns:
      The measures; those of data that are not finite are NaN.
    """
    count, K = len(classes.present), len(classifier)
    own = classifier[classes.present]
    of_classifier = simplex(own, K) if np.all(np.isfinite(own)) else Simplex()
    size = min(count - 1, features.shape[1])
    if not np.all(np.isfinite(features)):
        return Collapse(NAN, Simplex(), of_classifier, NAN, NAN, undefined_rank(size))
    unit = float(np.max(np.abs(features), initial=0.0)) or 1.0
    h = features / unit  # squares of tiny or huge features would leave the range of floats
    mu = classes.means(h)
    center = np.mean(mu, axis=0)
    M = mu - center
    R = float(np.sqrt(np.sum(classes.means(np.sum(h**2, axis=1, keepdims=True)))))
    _, s, directions = np.linalg.svd(M, full_matrices=False)
    s, directions = s[:size], directions[:size]  # the rows of M sum to zero
    cut = unit * R * (max(count, features.shape[1]) * EPS + (eps if eps > EPS else 0.0))
    if tolerance != DEFAULT_TOLERANCE:
        cut = tolerance.cut(unit * float(np.max(s, initial=0.0)), default=0.0)
    rank = numerical_rank(unit * s, cut, size=size)
    within = h - mu[classes.index]
    if not rank.rank:
        # The norm of Sigma_W^(1/2), which is also one of rounding errors if all examples coincide.
        spread = unit * float(np.sqrt(np.sum(classes.weights[:, None] * within**2)))
        nc1 = float("inf") if spread > cut else NAN
        return Collapse(nc1, Simplex(), of_classifier, NAN, NAN, rank)
    projected = within @ (directions[: rank.rank] / s[: rank.rank, None]).T
    return Collapse(
        nc1=float(classes.weights @ np.sum(projected**2, axis=1)),
        means=simplex(M, count, zero=cut / unit),
        classifier=of_classifier,
        nc3=duality_gap(own - np.mean(own, axis=0) if count < K else own, M),
        nc4=_disagreement(h - center, M, classes, decisions, error=EPS * R),
        rank_means=rank,
    )


def simplex(rows: Float[np.ndarray, "c d"], count: int, *, zero: float = 0.0) -> Simplex:
    """Return the distance of these rows from (a part of) a simplex of `count` vectors.

    Args:
      rows: the vectors, at least two, finite.
      count: the number of vectors of the simplex.
      zero: the norm up to which a vector counts as zero, so that its angles are undefined.
    """
    unit = float(np.max(np.abs(rows), initial=0.0))
    if unit == 0:
        return Simplex()
    norms = np.linalg.norm(rows / unit, axis=1)
    spread = float(np.std(norms) / np.mean(norms))
    if unit * np.min(norms) <= zero:
        return Simplex(norms=spread)
    directions = rows / unit / norms[:, None]
    pairs = len(rows) * (len(rows) - 1)
    mean = sum(np.sum(cosines) for cosines in _cosines(directions)) / pairs
    # In a second pass, because the difference of two sums would cancel near a collapse.
    variance = sum(np.sum((cosines - mean) ** 2) for cosines in _cosines(directions)) / pairs
    distance = sum(np.sum(np.abs(x + 1 / (count - 1))) for x in _cosines(directions)) / pairs
    return Simplex(spread, float(np.sqrt(variance)), float(distance))


def _cosines(directions: Float[np.ndarray, "c d"]) -> Iterator[Float[np.ndarray, " m"]]:
    """Yield the products of all pairs of different rows, some rows at a time."""
    count = len(directions)
    step = max(1, _ENTRIES_AT_ONCE // count)
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        products = directions[rows] @ directions.T
        yield products[rows[:, None] != np.arange(count)]


def duality_gap(W: Float[np.ndarray, "c d"], M: Float[np.ndarray, "c d"]) -> float:
    """Return ||W / ||W||_F - M / ||M||_F||_F^2; NaN if W or M is zero or not finite."""
    if not (np.all(np.isfinite(W)) and np.any(W) and np.any(M)):
        return NAN
    W, M = (x / np.max(np.abs(x)) for x in (W, M))
    return float(np.sum((W / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2))


def _disagreement(
    h: Float[np.ndarray, "n d"],
    M: Float[np.ndarray, "c d"],
    classes: Classes,
    decisions: Int[np.ndarray, " n"],
    *,
    error: float,
) -> float:
    """Return the weight of the examples for which another mean is nearer than that decided for.

    Means at the same distance up to rounding errors are equally near.

    Args:
      h: the features minus mu_G.
      M: the class means minus mu_G.
      classes: the classes.
      decisions: the network's class for each example.
      error: the size of the rounding errors of the class means.
    """
    if np.any(decisions < 0):
        return NAN
    decided = np.minimum(np.searchsorted(classes.present, decisions), len(M) - 1)
    differs = classes.present[decided] != decisions  # a class without examples
    squares = np.sum(M**2, axis=1)
    largest = np.sqrt(np.max(squares))
    step = max(1, _ENTRIES_AT_ONCE // len(M))
    for start in range(0, len(h), step):
        part = slice(start, start + step)
        distances = squares - 2 * h[part] @ M.T  # without ||h||^2, the same for all means
        own = np.take_along_axis(distances, decided[part, None], axis=1)[:, 0]
        sizes = np.linalg.norm(h[part], axis=1) + largest
        rounding = sizes * ((h.shape[1] + 4) * EPS * sizes + 4 * error)
        differs[part] |= own > np.min(distances, axis=1) + rounding
    return float(np.sum(classes.weights[differs]))
