"""Outputs that are probabilities: cross entropy would apply a second softmax to them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import data
from rankmon import HessianProbe, MemoryWriter, Problem, RankMonitor, hessian_ranks
from refusals import unwarned, warned

X, Y = data(12, 5, 3)
LABELS = np.arange(12, dtype=np.int32) % 3  # JAX 0.12 warns of the int64 that Keras asks for
PARAMS = data(5, 3, 3)[0]
STATED = {"loss": "cross_entropy", "inputs": X, "targets": LABELS}


def logits(params, x):
    return x @ params


def softmax(params, x):
    return jax.nn.softmax(x @ params)


def log_softmax(params, x):
    return jax.nn.log_softmax(x @ params)


def test_probabilities_are_warned_of_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problem = Problem(softmax, **STATED)
        hessian_ranks(problem, PARAMS)
        probes = [HessianProbe(parts=("H_o",))]
        with RankMonitor(problem, every=1, batches=2, probes=probes) as monitor:
            monitor(0, PARAMS)
    (found,) = [str(w.message) for w in caught if "softmax" in str(w.message)]
    assert "keras.ops.log" in found


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_monitor_warns_of_probabilities(background):
    with (
        warned("logits", "second softmax", "jnp.log"),
        RankMonitor(Problem(softmax, **STATED), every=1, background=background) as monitor,
    ):
        monitor(0, PARAMS)
        monitor.flush()


@pytest.mark.parametrize(
    "problem",
    [
        Problem(logits, **STATED),
        Problem(log_softmax, **STATED),
        Problem(softmax, **STATED | {"loss": "mse", "targets": Y}),
        Problem(lambda p, x: softmax(p, x) / 2, **STATED),
        Problem(lambda p, x: 2 * softmax(p, x) - 1 / 3, **STATED),
    ],
    ids=["logits", "logarithms", "mse", "other-sum", "negative"],
)
def test_other_outputs_are_not_warned_of(problem):
    with unwarned():
        hessian_ranks(problem, PARAMS)


def test_examples_of_weight_zero_do_not_count():
    problem = Problem(
        lambda params, x: jnp.where(jnp.arange(12)[:, None] == 0, 7.0, softmax(params, x)),
        weights=np.arange(12) > 0,
        **STATED,
    )
    with warned("second softmax"):
        hessian_ranks(problem, PARAMS)


def test_logarithms_of_probabilities_have_the_hessian_of_logits():
    one, other = (Problem(f, **STATED) for f in (logits, log_softmax))
    np.testing.assert_allclose(one.residuals(PARAMS), other.residuals(PARAMS), atol=1e-12)
    ranks = [hessian_ranks(problem, PARAMS) for problem in (one, other)]
    assert [r["H_o"].rank for r in ranks] == [10, 10]  # d (k - 1)
    assert [r["H_f"].rank for r in ranks] == [0, 0]  # linear in the only layer


# Keras


def model_of(keras, *last):
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(4, activation="tanh")
    model = keras.Sequential([keras.Input((5,)), hidden, *last])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    return model


def test_keras_models_that_end_in_a_softmax_are_those_of_their_logits():
    keras = pytest.importorskip("keras")
    dense, layers = keras.layers.Dense, keras.layers
    plain = model_of(keras, dense(3))
    problem = Problem.from_keras(plain, **STATED)
    want, ranks = problem.residuals(plain), hessian_ranks(problem, plain)
    for last in ([dense(3, "softmax")], [dense(3), layers.Softmax()]):
        model = model_of(keras, *last)
        for variable, value in zip(model.weights, plain.weights, strict=True):
            variable.assign(value.value)
        stated = Problem.from_keras(model, **STATED)
        with unwarned():
            found = hessian_ranks(stated, model)
        np.testing.assert_allclose(stated.residuals(model), want, atol=1e-6)
        assert {p: r.rank for p, r in found.items()} == {p: r.rank for p, r in ranks.items()}


def test_the_advised_model_of_logarithms_is_measured_in_fit():
    keras = pytest.importorskip("keras")
    from rankmon.keras import RankCallback

    model, memory = model_of(keras, keras.layers.Dense(3, "softmax")), MemoryWriter()
    log = keras.Model(model.inputs, keras.ops.log(model.outputs[0]))
    callback = RankCallback(Problem.from_keras(log, **STATED), every=2, writers=[memory])
    model.fit(X, LABELS, batch_size=4, verbose=0, callbacks=[callback])
    want = model.evaluate(X, LABELS, verbose=0)
    np.testing.assert_allclose(memory.records[-1].scalars["loss"], want, rtol=1e-5)
