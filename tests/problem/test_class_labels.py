"""The classes of a probe batch, and targets that have none."""

import numpy as np
import pytest

from rankmon import Problem
from rankmon.problem.class_labels import class_labels
from refusals import refused

N, K = 6, 3
LABELS = np.array([0, 2, 1, 2, 0, 0])
ONE_HOT = np.eye(K)[LABELS]


def huber(z, y):
    return abs(z - y).sum()


def read(loss, targets, *, k=K, weights=None, x=None):
    x = np.ones((N, 2)) if x is None else x
    problem = Problem(lambda p, x: x @ p, loss=loss, inputs=x, targets=targets, weights=weights)
    return class_labels(problem.flat(np.ones((2, k))))


CLASSIFICATIONS = {
    "labels": ("cross_entropy", LABELS),
    "one-hot": ("cross_entropy", ONE_HOT),
    "one-hot integers": ("cross_entropy", ONE_HOT.astype(int)),
    "smoothed": ("cross_entropy", 0.9 * ONE_HOT + 0.1 / K),
    "mixture": ("cross_entropy", 0.6 * ONE_HOT + 0.4 * np.roll(ONE_HOT, 1, axis=0)),
    "mse": ("mse", ONE_HOT),
    "centered mse": ("mse", ONE_HOT - 1 / K),
    "signs": ("cosh", 2 * ONE_HOT - 1),
    "callable": (huber, ONE_HOT),
    "callable of labels": (lambda z, y: z[y], LABELS),
}


@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_classes_of(name):
    np.testing.assert_array_equal(read(*CLASSIFICATIONS[name]).labels, LABELS)


def test_positions_are_examples_and_weight_zero_does_not_count():
    targets = np.stack([LABELS, LABELS[::-1]], axis=1)
    weights = np.ones((N, 2))
    weights[1, 0] = weights[3] = 0
    found = read("cross_entropy", targets, x=np.ones((N, 2, 2)), weights=weights)
    np.testing.assert_array_equal(found.labels, targets[weights > 0])


def test_labels_of_weight_zero_may_be_outside_the_classes():
    labels = LABELS.copy()
    labels[2] = -1
    weights = np.ones(N)
    weights[2] = 0
    found = read(lambda z, y: z[y], labels, weights=weights)
    np.testing.assert_array_equal(found.labels, np.delete(LABELS, 2))


REGRESSIONS = {
    "mse": ("mse", np.random.default_rng(0).standard_normal((N, K)), "mse"),
    "several labels": ("mse", np.ones((N, K)), "ties"),
    "other values": ("mse", ONE_HOT * np.arange(1, 7)[:, None], "mse"),
    "ties": ("cross_entropy", np.full((N, K), 1 / K), "ties"),
    "callable": (huber, np.random.default_rng(0).standard_normal((N, K)), "other targets"),
    "counts": (lambda z, y: z[0] * y, np.arange(N), "0 to 5"),
    "trees": (lambda z, y: z[0] * y["a"] * y["b"], {"a": LABELS, "b": LABELS}, "2 arrays"),
    "floats": (lambda z, y: z[0] * y, LABELS / 2, "float"),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_other_targets_are_refused(name):
    loss, targets, key = REGRESSIONS[name]
    with refused(ValueError, key, "omit the collapse probe"):
        read(loss, targets)


def test_one_output_is_refused():
    with refused(ValueError, "1 output", "omit the collapse probe"):
        read(lambda z, y: z[0] * y, LABELS % 2, k=1)
