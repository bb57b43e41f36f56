"""`RankCallback` in `model.fit`: the steps that it measures, and training that it leaves alone."""

import sys
from importlib import import_module

import numpy as np
import pytest

from rankmon import MemoryWriter, Problem, read_jsonl
from refusals import refused

keras = pytest.importorskip("keras")

X = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32)


def new_model(**options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.1), loss="mse", **options)
    return model


def fit(model, *callbacks, **options):
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=list(callbacks), **options)
    return [np.asarray(variable.value) for variable in model.weights]


def callback(model, **options):
    problem = Problem.from_keras(model, loss="mse", inputs=X[:12], targets=Y[:12])
    return import_module("rankmon.keras").RankCallback(
        problem, every=2, probes=["weights", "hessian"], **options
    )


def test_fit_is_measured_and_left_alone(tmp_path):
    model, memory = new_model(), MemoryWriter()
    ranks = callback(model, logdir=tmp_path, writers=[memory])
    watched, bare = fit(model, ranks, epochs=2), fit(new_model(), epochs=2)
    for one, other in zip(watched, bare, strict=True):
        np.testing.assert_array_equal(one, other)
    records = read_jsonl(tmp_path / "rankmon.jsonl")
    assert [record.step for record in records] == [0, 2, 4, 6, 8, 10]
    assert records[0].scalars["loss"] != records[1].scalars["loss"] != records[2].scalars["loss"]
    # The last record is the trained model, with its batch statistics.
    want = 0.5 * np.mean(np.sum((model(X[:12]) - Y[:12]) ** 2, axis=1))
    np.testing.assert_allclose(records[-1].scalars["loss"], want, rtol=1e-5)


def test_another_fit_continues_the_run(tmp_path):
    model = new_model()
    ranks = callback(model, logdir=tmp_path)
    fit(model, ranks, epochs=1)
    fit(model, ranks, epochs=1)
    assert [r.step for r in read_jsonl(tmp_path / "rankmon.jsonl")] == [0, 2, 4, 5, 6, 8, 10]


@pytest.mark.parametrize("is_new", [False, True], ids=["same-callback", "state"])
def test_steps_count_on_after_another_compile(tmp_path, is_new):
    model = new_model()
    ranks = callback(model, logdir=tmp_path)
    fit(model, ranks, epochs=1)
    model.compile(optimizer="sgd", loss="mse")
    fit(model, callback(model, logdir=tmp_path, state=ranks.monitor.state) if is_new else ranks)
    assert [r.step for r in read_jsonl(tmp_path / "rankmon.jsonl")] == [0, 2, 4, 5, 6, 8, 10]


def test_several_steps_in_one_execution():
    model, memory = new_model(steps_per_execution=2), MemoryWriter()
    fit(model, callback(model, writers=[memory]), epochs=1)
    assert [record.step for record in memory.records] == [0, 2, 4, 5]


def test_an_alert_stops_fit():
    model, memory = new_model(), MemoryWriter()
    stop = type("Always", (), {"action": "stop", "found": lambda self, scalars, first: (
        {"loss": "now"} if scalars["loss"] != first["loss"] else {})})()  # fmt: skip
    fit(model, callback(model, writers=[memory], alerts=[stop]), epochs=2)
    assert int(model.optimizer.iterations.value) == 2
    assert [record.step for record in memory.records] == [0, 2]


def test_only_problems_are_accepted():
    with refused(TypeError, "rankmon.Problem"):
        import_module("rankmon.keras").RankCallback(new_model())


@pytest.mark.parametrize(
    ("options", "kind", "keys"),
    [
        ({}, ValueError, ["every=100"]),
        ({"every": 2, "log_dir": "logs"}, TypeError, ["'log_dir'", "'logdir'"]),
        ({"every": 2, "probes": ["weight"]}, ValueError, ["weights"]),
        ({"every": 2, "writers": MemoryWriter()}, TypeError, ["writers=[writer]"]),
    ],
    ids=["every", "log_dir", "probes", "writers"],
)
def test_arguments_are_checked_before_fit(tmp_path, monkeypatch, options, kind, keys):
    monkeypatch.chdir(tmp_path)
    problem = Problem.from_keras(new_model(), loss="mse", inputs=X, targets=Y)
    with refused(kind, *keys):
        import_module("rankmon.keras").RankCallback(problem, **options)
    assert not list(tmp_path.iterdir())


def test_names_that_keras_numbers_anew():
    model = new_model()
    problem = Problem.from_keras(model, loss="mse", inputs=X, targets=Y, include="dense_999/*")
    with refused(ValueError, "dense_999/*", "name='head'", "clear_session"):
        problem.flat(model)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.MeanSquaredError(),
    ],
    ids=["object", "function", "mse"],
)
def test_losses_of_keras_are_not_those_of_one_example(loss):
    with refused(TypeError, "y_true", "'cross_entropy'", "'mse'"):
        Problem.from_keras(new_model(), loss=loss, inputs=X, targets=Y)


def test_a_missing_keras_is_named(monkeypatch):
    for name in ("rankmon.keras", "rankmon.monitor.keras"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "keras", None)
    with refused(ModuleNotFoundError, "pip install keras", "KERAS_BACKEND=jax"):
        import_module("rankmon.keras")
