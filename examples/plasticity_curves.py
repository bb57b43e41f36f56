"""Compare the curves of runs with the accuracies that follow them: when does each move?"""

import numpy as np
from scipy.stats import spearmanr

LOSS = 0.1  # plasticity is lost at the first of two tasks with an accuracy so far below the best
FIRST, SECOND = "Dense_0/kernel", "Dense_1/kernel"
CURVES = {
    f"stable_rank/{FIRST}": "stable rank of W1",
    f"effective_rank/{FIRST}": "effective rank of W1",
    f"norm/{FIRST}": "norm of W1",
    f"norm_since_start/{FIRST}": "norm of W1 - W1(0)",
    f"rank_since_start/{FIRST}": "rank of W1 - W1(0)",
    f"stable_rank_since_start/{FIRST}": "stable rank of W1 - W1(0)",
    f"rank_features/{SECOND}": "rank of hidden layer 1",
    f"srank_features/{SECOND}": "srank of hidden layer 1",
    f"effective_rank_features/{SECOND}": "effective rank of hidden layer 1",
    f"stable_rank_features/{SECOND}": "stable rank of hidden layer 1",
    f"feature_rank/{SECOND}": "feature rank of hidden layer 1",
    f"norm_features/{SECOND}": "norm of hidden layer 1",
    "effective_rank_features/head/kernel": "effective rank of hidden layer 2",
    f"dead_share/{FIRST}": "dead share of hidden layer 1",
    f"dormant_share_0.1/{FIRST}": "dormant share of hidden layer 1",
    f"norm_gradient/{FIRST}": "norm of W1's gradient",
    f"stable_rank_gradient/{FIRST}": "stable rank of W1's gradient",
    f"gradient_to_weight/{FIRST}": "W1's gradient to weight",
}


def values_of(run, tag):
    """Return a curve at the tasks' first steps, one row for each seed."""
    return np.array([[x.scalars.get(tag, np.nan) for x in starts] for starts, _, _ in run])


def curve(run, tag):
    """Return the medians over the seeds of a curve at the tasks' first steps."""
    return np.median(values_of(run, tag), axis=0)


def reached(run):
    """Return the medians of the accuracies on permuted labels."""
    return np.median([accuracies for _, _, accuracies in run], axis=0)


def onset(run):
    """Return the first task, counted from 0, at which plasticity is lost, or None."""
    accuracies = reached(run)
    low = accuracies < np.maximum.accumulate(accuracies) - LOSS
    lost = np.flatnonzero(low[:-1] & low[1:])
    return int(lost[0]) if lost.size else None


def moved(run, tag):
    """Return how far a curve has moved when the loss begins, as a share of its range."""
    values = curve(run, tag)
    size = np.nanmax(values) - np.nanmin(values)
    return float(abs(values[onset(run)] - first(values)) / size) if size else 0.0


def first(values):
    """Return the first value: of the change since the start, the second, if a zero has none."""
    return values[np.isfinite(values)][0]


def crossing(runs, name, tag):
    """Return the first task at which a run has the value that plain SGD has at its loss, or None.

    A curve that rises in SGD until then has to be at this value or above, one that falls at it or
    below.
    """
    values, at = curve(runs["SGD"], tag), onset(runs["SGD"])
    way = values[at] - first(values)
    beyond = np.sign(way) * (curve(runs[name], tag) - values[at]) >= 0
    return int(np.argmax(beyond)) if way and np.any(beyond) else None


def correlation(run, tag):
    """Return Spearman's correlation with the accuracies, from the second task on."""
    values, accuracies = curve(run, tag)[1:], reached(run)[1:]
    values, accuracies = values[np.isfinite(values)], accuracies[np.isfinite(values)]
    if not (np.ptp(values) > 0 and np.ptp(accuracies) > 0):
        return float("nan")
    return float(spearmanr(values, accuracies).statistic)


def warns(runs, tag):
    """Return whether, for each seed, SGD's value at its loss precedes each loss and only those."""
    for seed in range(len(runs["SGD"])):
        alone = {name: [run[seed]] for name, run in runs.items()}
        for name, run in alone.items():
            at, lost = crossing(alone, name, tag), onset(run)
            if (at is None) != (lost is None) or (lost is not None and at > lost):
                return False
    return True
