"""Test losses that couple examples: they are refused, or the user is warned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import data
from rankmon import Problem, RankMonitor, hessian_ranks
from refusals import refused, unwarned, warned

X, Y = data(6, 4, 2)
W = data(4, 2, 2)[0]
LABELS = np.arange(6) % 2


def triplet(z, label):
    distance = jnp.sum((z[:, None] - z[None]) ** 2, -1)
    same = label[:, None] == label[None]
    near, far = jnp.where(same, distance, 0.0), jnp.where(same, 0.0, distance)
    return jnp.mean(jnp.maximum(near - far + 1, 0.0))


def info_nce(z, y):
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(z @ y.T)))


def barlow_of_shape(z, y):
    return jnp.sum((z.T @ y / len(z) - jnp.eye(z.shape[1])) ** 2)


def vector(z, y):
    return (z - y) ** 2


def over_an_axis_of_outputs(z, y):
    return jnp.mean(jnp.sum((z - y) ** 2, axis=1))


def a_pair(z, y):
    return jnp.sum((z - y) ** 2), {"mean": jnp.mean(z)}


def an_integer(z, y):
    return jnp.argmax(z)


def mean_of_correct_labels(z, label):
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(label.shape[0]), label])


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (triplet, LABELS),
        (info_nce, Y),
        (barlow_of_shape, Y),
        (vector, Y),
        (over_an_axis_of_outputs, Y),
        (a_pair, Y),
        (an_integer, Y),
        (mean_of_correct_labels, LABELS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("lift_dtype", [False, True])
def test_a_loss_of_a_batch_or_of_no_scalar_is_refused(loss, targets, lift_dtype):
    problem = Problem(
        lambda w, x: x @ w, loss=loss, inputs=X, targets=targets, lift_dtype=lift_dtype
    )
    with refused(ValueError, "one example", "float32[2]", "into apply", "[n, 1]"):
        hessian_ranks(problem, W)


def test_positions_are_examples_too():
    problem = Problem(
        lambda w, x: x[..., None] * w,
        loss=lambda z, y: jnp.mean(z - y, axis=1),
        inputs=X,
        targets=np.zeros((6, 4)),
    )
    with refused(ValueError, "one example", "float32[3]", "float"):
        hessian_ranks(problem, np.ones(3))


# Scalars for [k] as well as for [n, k]


def barlow(z, y):
    a, b = ((v - v.mean(0)) / (v.std(0) + 1e-3) for v in (z, y))
    return jnp.sum((a.T @ b / len(z) - jnp.eye(2)) ** 2)


def triplet_without_labels(z, y):
    return jnp.mean(jnp.maximum(0.0, 1 - jnp.sum((z[:, None] - z[None]) ** 2, -1)))


def mean_over_axis_0(z, y):
    return jnp.sum(jnp.mean((z - y) ** 2, axis=0))


@pytest.mark.parametrize(
    "loss",
    [pytest.param(barlow, marks=pytest.mark.slow), triplet_without_labels, mean_over_axis_0],
)
def test_one_that_couples_examples_without_an_error_is_said_once(loss):
    problem = Problem(lambda w, x: x @ w, loss=loss, inputs=X, targets=Y)
    with warned("one example", "into apply", "[n, 1]", "ndim == 1") as said:
        with RankMonitor(problem, every=1, probes=["hessian"], writers=[]) as monitor:
            monitor(0, W)
            monitor(1, 2 * W)
    assert len(said) == 1


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: jnp.sum((z - y) ** 2),
        lambda z, y: jnp.mean((z - y) ** 2),
        lambda z, y: jnp.linalg.norm(z - y),
        lambda z, y: 1 - jnp.vdot(z, y) / jnp.linalg.norm(z) / jnp.linalg.norm(y),
        lambda z, y: jnp.max(z) - jnp.min(y) + jnp.sum(z**2),
        lambda z, y: jnp.sum(jnp.array([1.0, 2.0]) * (z - y) ** 2),
        lambda z, y: jnp.linalg.norm(jnp.array([1.0, 2.0]) * (z - y)),
        lambda z, y: jax.nn.logsumexp(z) - z @ y,
        lambda z, y: jnp.sum((z - y) ** 2, axis=-1),
        lambda z, y: jnp.sum((z[:1] - y[:1]) ** 2) + jnp.sum(jnp.exp(z[1:])) ** 2,
        lambda z, y: jnp.sum((z[np.array([0, 1])] - y) ** 4) ** 0.5,
    ],
    ids=["sum", "mean", "norm", "cosine", "max", "weights", "weighted-norm", "logits", "axis"]
    + ["slices", "indices"],
)
def test_losses_of_one_example_pass(loss):
    with unwarned():
        Problem(lambda w, x: x @ w, loss=loss, inputs=X, targets=Y).flat(W)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (lambda z, y: jnp.sum((z - y) ** 2), Y[:, 0]),
        (lambda z, y: jnp.mean(jnp.logaddexp(0, z) - y * z), LABELS),
        (lambda z, t: jnp.sum(t["w"] * (z - t["y"]) ** 2), {"y": Y[:, 0], "w": Y[:, 1] ** 2}),
    ],
    ids=["square", "logistic", "weighted"],
)
def test_one_output_and_one_number_an_example_pass(loss, targets):
    """[n, 1] - [n] is [n, n] for a batch; for one example it is what it looks like."""
    with unwarned():
        Problem(lambda w, x: x @ w[:, :1], loss=loss, inputs=X, targets=targets).flat(W)


def test_coupled_losses_of_one_output_are_said():
    def ranking(z, y):
        return jnp.mean(jnp.logaddexp(0, -(z - z.T) * jnp.sign(y - jnp.reshape(y, (1, -1)))))

    problem = Problem(lambda w, x: x @ w[:, :1], loss=ranking, inputs=X, targets=Y[:, :1])
    with warned("one example", "into apply"):
        problem.flat(W)


def test_the_advice_measures_the_coupled_loss():
    """The share of each example, from apply: H_L is the Hessian of the coupled loss."""

    def shares(w, x):
        z = x @ w
        gram = jax.nn.log_softmax(z @ Y.T)
        return -jnp.diag(gram)[:, None]

    problem = Problem(shares, loss=lambda z, y: z[0], inputs=X, targets=Y)
    with jax.enable_x64(True):
        coupled = lambda w: info_nce(jnp.asarray(X) @ w.reshape(W.shape), jnp.asarray(Y))  # noqa: E731
        hessian = np.asarray(jax.jit(jax.hessian(coupled))(jnp.asarray(W.ravel())))
    truth = np.linalg.matrix_rank(hessian, hermitian=True)
    assert hessian_ranks(problem, W)["H_L"].rank == truth > 0
