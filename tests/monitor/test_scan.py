"""Test `monitor.scan`: the results of lax.scan and of a Python loop, measured at the due steps."""

import gc
import weakref
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, hessian_ranks, schedule
from rankmon.monitor.alerts import RankBelow, StopTraining
from rankmon.monitor.scan import CompiledLoop, CompiledSteps
from refusals import refused

X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)
TX = optax.sgd(1e-2, momentum=0.9)
STEPS = 24


def apply(params, x):
    return x @ params["W1"] @ params["W2"]


PROBLEM = Problem(apply, loss="mse", inputs=X, targets=Y)


def weights():
    rng = np.random.default_rng(2)
    shapes = {"W1": (5, 4), "W2": (4, 3)}
    return {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()}


def started():
    params = weights()
    return params, TX.init(params)


def step_fn(carry, batch):
    params, state = carry
    loss, grads = jax.value_and_grad(
        lambda p: jnp.mean((apply(p, jnp.asarray(X)[batch]) - jnp.asarray(Y)[batch]) ** 2)
    )(params)
    updates, state = TX.update(grads, state)
    return (optax.apply_updates(params, updates), state), loss


def batches(steps=STEPS):
    return np.random.default_rng(3).integers(0, len(X), (steps, 4)).astype(np.int32)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.weak_type) == (y.dtype, y.weak_type)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


@cache
def scanned():
    return jax.lax.scan(step_fn, started(), batches())


@cache
def plain_loop():
    """The carries before each step and after the last, and the losses."""
    step, carries, losses = jax.jit(step_fn), [started()], []
    for x in batches():
        carry, loss = step(carries[-1], x)
        carries.append(carry)
        losses.append(loss)
    return carries, jnp.asarray(np.stack(losses))


@pytest.mark.parametrize(
    ("when", "due", "background"),
    [
        (schedule.every(7), [0, 7, 14, 21], False),
        (schedule.log_spaced(per_decade=3), [0, 1, 2, 5, 10, 22], False),
        (schedule.log_spaced(per_decade=3), [0, 1, 2, 5, 10, 22], True),
        (schedule.at_steps([1, 2, 20]), [0, 1, 2, 20], False),
    ],
    ids=["every", "log", "log-background", "steps"],
)
def test_a_scanned_loop_is_measured_where_due_and_trained_alike(when, due, background):
    carry, xs = started(), batches()
    memory = MemoryWriter()
    with RankMonitor(PROBLEM, schedule=when, writers=[memory], background=background) as monitor:
        last, losses = monitor.scan(step_fn, carry, STEPS, params_of=lambda c: c[0], xs=xs)
    carries, plain_losses = plain_loop()
    assert_same_bits((last, losses), scanned())
    assert_same_bits((last, losses), (carries[-1], plain_losses))
    assert [record.step for record in memory.records] == [*due, STEPS]
    for record in memory.records:
        want = hessian_ranks(PROBLEM, carries[record.step][0])
        assert {part: record.scalars[f"rank/{part}"] for part in want} == {
            part: rank.rank for part, rank in want.items()
        }


def test_epochs_go_on_counting_and_compile_once():
    memory, compiled = MemoryWriter(), []

    def counted(carry, x):
        compiled.append(1)
        return step_fn(carry, x)

    carry = started()
    with RankMonitor(PROBLEM, every=16, probes=["weights"], writers=[memory]) as monitor:
        for epoch in range(3):
            carry, _ = monitor.scan(
                counted, carry, STEPS, params_of=lambda c: c[0], xs=batches(), start=STEPS * epoch
            )
            if epoch == 0:
                first = len(compiled)
    # Later epochs only look at the shapes of the outputs once more.
    assert len(compiled) <= first + 2
    assert [record.step for record in memory.records] == [0, 16, 32, 48, 64, 72]


def test_what_the_caller_passed_is_neither_donated_nor_changed():
    carry = started()
    before = jax.tree.map(np.array, carry)
    loop = CompiledLoop(CompiledSteps(step_fn), carry, STEPS, batches())
    loop.advance(2)
    held = loop.carry
    loop.advance(STEPS)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(held))
    jax.tree.map(np.testing.assert_array_equal, carry, before)


def halve(carry, _):
    params, steps = carry
    return ({"W1": params["W1"] / 2, "W2": params["W2"]}, steps + 1), None


def test_a_put_off_probe_does_not_break_the_loop_into_single_steps():
    stops = []

    def params_of(carry):
        stops.append(int(carry[1]))
        return carry[0]

    monitor = RankMonitor(PROBLEM, every=10, overhead=1e-6, probes=["weights"])
    monitor.scan(halve, (weights(), np.int32(0)), 1000, params_of=params_of)
    assert stops[:2] == [0, 10]
    assert len(stops) < 16
    assert stops[-1] == 1000
    monitor.close()


def test_a_state_without_outputs_or_inputs_runs_too():
    start = weights(), np.int32(0)
    with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
        (last, steps), nothing = monitor.scan(halve, start, 3, params_of=lambda c: c[0])
    assert nothing is None
    assert steps == 3
    np.testing.assert_array_equal(last["W1"], np.asarray(start[0]["W1"]) / 8)


def test_no_step_changes_nothing():
    with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
        carry, losses = monitor.scan(step_fn, started(), 0, params_of=lambda c: c[0], xs=batches(0))
    assert_same_bits(carry, started())
    assert losses.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "keys"),
    [
        ({"xs": batches(5)}, ValueError, ["xs", "steps = 6"]),
        ({"steps": -1, "xs": None}, ValueError, ["steps", "-1"]),
        ({"steps": 2.5}, TypeError, ["steps", "integer", "float"]),
        ({"start": lambda: jnp.int32(3)}, TypeError, ["step", "integer"]),
        ({"step_fn": lambda carry, x: list(carry)}, TypeError, ["step_fn(carry, x)", "list"]),
    ],
    ids=["xs", "negative", "float", "start", "pair"],
)
def test_wrong_input_is_refused_before_anything_runs(change, error, keys):
    arguments = {"step_fn": step_fn, "carry": started(), "steps": 6, "xs": batches(6)} | change
    if "start" in change:
        arguments["start"] = change["start"]()  # nothing is on a device before the tests run
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=2, writers=[memory])
    with refused(error, *keys):
        monitor.scan(**arguments, params_of=lambda c: c[0])
    assert memory.records == []


def test_a_carry_that_changes_its_kind_is_refused_before_anything_runs():
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=2, writers=[memory])

    def widens(carry, _):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), carry), None

    with refused(TypeError, "step_fn", "carry", "float32", "bfloat16"):
        monitor.scan(widens, weights(), 6, params_of=lambda c: c)
    assert memory.records == []


def test_a_python_number_in_the_carry_may_be_promoted():
    def step(carry, _):
        params, total = carry
        return (params, total + jnp.sum(params["W1"])), None

    carry = weights(), 0.0
    with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
        got, _ = monitor.scan(step, carry, 5, params_of=lambda c: c[0])
    want, _ = jax.lax.scan(step, carry, length=5)
    np.testing.assert_array_equal(got[1], want[1], strict=True)


def test_a_stop_hands_out_what_was_trained():
    def shrinks(params, _):
        return params | {"W1": params["W1"].at[:, -1].set(0.0)}, jnp.float32(1.0)

    params = weights()
    alerts = [RankBelow(0.9, action="stop")]
    with (
        pytest.raises(StopTraining) as stopped,
        RankMonitor(PROBLEM, every=2, probes=["weights"], alerts=alerts) as monitor,
    ):
        monitor.scan(shrinks, params, 6, params_of=lambda c: c)
    assert stopped.value.alarm.step == 2
    np.testing.assert_array_equal(stopped.value.carry["W1"][:, -1], 0.0)
    np.testing.assert_array_equal(stopped.value.ys, [1, 1, 0, 0, 0, 0])


def test_it_runs_under_a_transfer_guard():
    params, xs = weights(), jnp.asarray(batches(6))
    monitor = RankMonitor(PROBLEM, every=2, probes=["weights"])
    data = jnp.asarray(X), jnp.asarray(Y)

    def step(params, batch):
        x, y = data[0][batch], data[1][batch]
        grads = jax.grad(lambda p: jnp.mean((apply(p, x) - y) ** 2))(params)
        return jax.tree.map(lambda p, g: p - g / 8, params, grads), None

    with jax.transfer_guard("disallow"):
        last, _ = monitor.scan(step, params, 6, params_of=lambda c: c, xs=xs)
    monitor.close()
    assert_same_bits(last, jax.lax.scan(step, params, xs)[0])


def test_what_the_step_function_holds_is_let_go():
    class Large:
        pass

    def scan_once():
        held = Large()

        def step(carry, _):
            assert held
            return carry, None

        with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
            monitor.scan(step, weights(), 4, params_of=lambda c: c)
        return weakref.ref(held)

    gc.freeze()  # what other tests left is not looked through
    seen = scan_once()
    gc.collect()
    gc.unfreeze()
    assert seen() is None


def test_after_close_the_loop_still_runs():
    monitor = RankMonitor(PROBLEM, every=2)
    monitor.close()
    with pytest.warns(RankmonWarning, match="after close"):
        got = monitor.scan(step_fn, started(), STEPS, params_of=lambda c: c[0], xs=batches())
    assert_same_bits(got, scanned())
