"""Test common mistakes: the error says in one sentence how to correct each."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankmon import (
    MemoryWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    SeedsMonitor,
    hessian_ranks,
    hessian_spectra,
    ntk_rank,
    outer_rank,
    predicted_ranks,
    stochastic_spectra,
    weight_ranks,
)
from rankmon.monitor.hooks import report_weights, watch_weights
from refusals import assert_explains, refused, warned

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 3))
PARAMS = {"W": RNG.standard_normal((4, 3))}
STACKED = {"W": jnp.asarray(RNG.standard_normal((5, 4, 3)), jnp.float32)}


def apply(params, x):
    return x @ params["W"]


def problem(network=apply, *, inputs=X, targets=Y):
    return Problem(network, loss="mse", inputs=inputs, targets=targets)


PROBLEM = problem()


def monitor(**options):
    return RankMonitor(PROBLEM, **{"every": 1, "probes": ["weights"]} | options)


# Arguments in the wrong order


@pytest.mark.parametrize(
    "measure",
    [hessian_ranks, hessian_spectra, ntk_rank, outer_rank, predicted_ranks, stochastic_spectra],
)
def test_parameters_before_the_problem(measure):
    with refused(TypeError, "rankmon.Problem", "dict", "first"):
        measure(PARAMS, PROBLEM)


@pytest.mark.parametrize("kind", [RankMonitor, lambda p, **o: SeedsMonitor(p, seeds=2, **o)])
def test_a_monitor_of_parameters(kind):
    with refused(TypeError, "rankmon.Problem", "dict"):
        kind(PARAMS, every=1)


@pytest.mark.parametrize(
    ("network", "inputs", "keys"),
    [
        (lambda x, params: apply(params, x), X, ["(inputs, params)", "apply(x, params)"]),
        (lambda params, a, b: a @ params["W"] + b, (X, Y), ["2 inputs", "apply(params, *x)"]),
        (
            lambda params, a, b: a @ params["W"] + b,
            {"a": X, "b": Y},
            ["['a', 'b']", "apply(params, **x)"],
        ),
        (lambda params, x: params["W"].T.dot(x), X, ["one example", "jax.vmap"]),
        (lambda params, x: np.tanh(x @ params["W"]), X, ["NumPy", "jax.numpy"]),
    ],
    ids=["swapped", "spread", "keywords", "one-example", "numpy"],
)
def test_functions_of_other_arguments(network, inputs, keys):
    with refused(TypeError, *keys):
        problem(network, inputs=inputs).flat(PARAMS)


def test_an_error_of_the_users_own_passes_with_what_was_evaluated():
    with pytest.raises(KeyError) as caught:
        problem(lambda params, x: x @ params["V"]).flat(PARAMS)
    assert any("float64[6, 4]" in note for note in caught.value.__notes__)


def test_no_filter_is_none():
    stated = Problem(apply, loss="mse", inputs=X, targets=Y, include=None, exclude=None)
    assert stated.flat(PARAMS).narrowed(None, None).p == PROBLEM.flat(PARAMS).p


def test_images_without_channels():
    def network(params, x):
        return jnp.mean(jax.lax.conv_general_dilated(
            x, params["K"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ), axis=(1, 2))  # fmt: skip

    stated = problem(network, inputs=np.ones((6, 5, 5)))
    with refused(TypeError, "channels", "(6, 5, 5)", "inputs[..., None]"):
        stated.flat({"K": np.ones((2, 2, 1, 3))})


@pytest.mark.parametrize("call", [monitor().__call__, monitor().close])
def test_parameters_before_the_step(call):
    with refused(TypeError, "dict as step", "monitor(step, params)"):
        call(PARAMS, 3)


# Where nothing can be measured: inside of a program


def test_a_monitor_called_inside_of_jit():
    watching = monitor()
    for step in (lambda p: watching(0, p), lambda p: watching(p["W"][0, 0], p)):
        with refused(TypeError, "jax.jit", "monitor.scan"):
            jax.jit(step)(PARAMS)
    state = SimpleNamespace(step=jnp.int32(0), params=PARAMS)
    with refused(TypeError, "jax.jit", "monitor.scan"):
        jax.jit(lambda step: watching(SimpleNamespace(step=step, params=PARAMS)))(state.step)


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_monitor_that_comes_inside_of_jit_later_on_ends_nothing(background):
    memory = MemoryWriter()
    watching = monitor(background=background, writers=[memory])
    watching(0, PARAMS)
    with warned("jax.jit", "monitor.scan"):
        jax.jit(lambda p: [watching(1, p), p][1])(PARAMS)
        watching.flush()
    watching.close()
    assert memory.records[0].scalars["rank_weights/W"] == 3


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_monitor_inside_of_jit_with_parameters_from_outside(background):
    with refused(TypeError, "jax.jit", "monitor.scan"):
        jax.jit(lambda x: [monitor(background=background)(0, PARAMS), x][1])(1.0)
    watching = monitor(background=background)
    watching(0, PARAMS)
    with warned("jax.jit", "monitor.scan") as caught:
        jax.jit(lambda x: [watching(1, PARAMS), x][1])(1.0)
        watching.close()
    assert not any("report it" in str(warning.message) for warning in caught)


def test_the_last_parameters_may_be_traced_ones():
    watching = monitor(every=10)
    watching(0, PARAMS)
    jax.jit(lambda p: [watching(1, p), p][1])(PARAMS)
    with pytest.warns(RankmonWarning, match="jax.jit"):
        watching.close()


@pytest.mark.parametrize(
    "measure",
    [
        lambda p: problem(inputs=p["W"].T, targets=np.ones((3, 3))),
        lambda p: hessian_ranks(PROBLEM, p),
        weight_ranks,
        lambda p: SeedsMonitor(PROBLEM, seeds=4, every=1)(0, p),
    ],
    ids=["problem", "hessian", "weights", "seeds"],
)
def test_measurements_inside_of_jit(measure):
    with refused(TypeError, "jax.jit", "Python loop"):
        jax.jit(lambda p: [measure(p), 0][1])(PARAMS)


# Several seeds, or replicas, at once


def test_seeds_or_replicas_in_place_of_one_network():
    with refused(TypeError, "SeedsMonitor", "seeds=5", "unreplicate"):
        hessian_ranks(PROBLEM, STACKED)
    six = {"W": np.ones((6, 4, 3))}  # as many as there are examples
    with refused(TypeError, "SeedsMonitor", "seeds=6"), monitor() as watching:
        watching(0, six)
    state = SimpleNamespace(step=np.zeros(5, int), params=STACKED)
    with refused(TypeError, "SeedsMonitor", "(5,)", "unreplicate"):
        monitor()(state)


def test_a_scan_under_vmap():
    def run(params):
        return monitor().scan(lambda c, _: (c, None), params, 2, params_of=lambda c: c)[0]

    for transform in (jax.vmap, jax.jit):
        with refused(TypeError, "monitor.scan", "SeedsMonitor"):
            transform(run)(STACKED)


def reported(params):
    def body(params, i):
        report_weights(monitor(), i, params, every=1)
        return params, None

    return jax.lax.scan(body, params, jnp.arange(2))[0]


def watched(params):
    tx = watch_weights(1, reporter=monitor())
    return tx.update(params, tx.init(params), params)[0]


@pytest.mark.parametrize("report", [reported, jax.jit(watched)], ids=["scan", "jit"])
def test_reports_under_vmap(report):
    with refused(TypeError, "jax.vmap", "SeedsMonitor"):
        jax.vmap(report)(STACKED)


# Outputs and batches


@pytest.mark.parametrize(
    ("outputs", "picked"),
    [
        (lambda z: (z, z[:, :2], z[:, :2]), "[0]"),
        (lambda z: {"l": z, "mean": z[:, :2]}, "['l']"),
        (lambda z: [(z, z)], "[0]"),
    ],
    ids=["tuple", "dict", "nested"],
)
def test_several_outputs_are_to_be_concatenated(outputs, picked):
    with refused(TypeError, "concatenate", "KL", picked):
        problem(lambda params, x: outputs(apply(params, x))).flat(PARAMS)


def test_the_advice_to_concatenate_keeps_the_kl_term():
    def network(params, x):
        mean = x @ params["W"]
        return mean[:, :1], mean[:, 1:]

    def loss(z, y):
        return (z[0] - y[0]) ** 2 / 2 + jnp.sum(z[1:] ** 2) / 2

    advised = Problem(
        lambda params, x: jnp.concatenate(jax.tree.leaves(network(params, x)), axis=-1),
        loss=loss,
        inputs=X,
        targets=Y[:, :1],
    )
    assert hessian_ranks(advised, PARAMS)["H_o"].rank == 12


def test_parameters_that_are_arrays_of_objects():
    with refused(TypeError, "object", "'W'", "astype"):
        PROBLEM.flat({"W": PARAMS["W"].astype(object)})


def named(value: Any, **options: Any) -> Any:
    return lambda: problem(inputs=value, **options)


@pytest.mark.parametrize(
    ("state", "kind", "keys"),
    [
        (named(np.ones((300, 4)).tolist()), ValueError, ["1200", "np.asarray(inputs)"]),
        (named(X, targets=Y.tolist()), ValueError, ["targets", "18", "np.asarray(targets)"]),
        (named(list(X), targets=list(Y)), ValueError, ["4", "3", "np.stack"]),
        (named(["a"] * 6), ValueError, ["inputs", "<U1"]),
        (named(np.array([np.ones(2), np.ones(3)] * 3, object)), TypeError, ["object", "np.stack"]),
        (named([X[:i] for i in range(1, 9)]), ValueError, ["...", "stack"]),
    ],
    ids=["lists", "targets", "arrays", "strings", "objects", "ragged"],
)
def test_batches_that_are_no_arrays(state, kind, keys):
    with pytest.raises(kind) as caught:
        state()
    assert_explains(caught.value, *keys)
    assert len(str(caught.value)) < 400
