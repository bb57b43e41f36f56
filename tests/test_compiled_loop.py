"""Loops in compiled chunks: what lax.scan and a plain loop compute, measured where it is due."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, hessian_ranks, schedule
from rankmon.alerts import RankBelow, StopTraining
from rankmon.compiled_loop import CompiledLoop, CompiledSteps

X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((12, 3)).astype(np.float32)
TX = optax.adam(1e-2)


def apply(params, x):
    return jnp.tanh(x @ params["W1"]) @ params["W2"]


PROBLEM = Problem(apply, loss="mse", inputs=X, targets=Y)


def started():
    init, (a, b) = jax.nn.initializers.glorot_normal(), jax.random.split(jax.random.key(0))
    params = {"W1": init(a, (5, 4)), "W2": init(b, (4, 3))}
    return params, TX.init(params)


def step_fn(carry, batch):
    params, state = carry
    loss, grads = jax.value_and_grad(
        lambda p: jnp.mean((apply(p, jnp.asarray(X)[batch]) - jnp.asarray(Y)[batch]) ** 2)
    )(params)
    updates, state = TX.update(grads, state)
    return (optax.apply_updates(params, updates), state), loss


def batches(steps):
    return jax.random.randint(jax.random.key(3), (steps, 4), 0, len(X))


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.weak_type) == (y.dtype, y.weak_type)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


def plain_loop(carry, xs):
    step, losses = jax.jit(step_fn), []
    for x in xs:
        carry, loss = step(carry, x)
        losses.append(loss)
    return carry, jnp.stack(losses)


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
@pytest.mark.parametrize(
    ("when", "due"),
    [
        (schedule.every(7), [0, 7, 14, 21]),
        (schedule.log_spaced(per_decade=3), [0, 1, 2, 5, 10, 22]),
        (schedule.at_steps([1, 2, 20]), [0, 1, 2, 20]),
    ],
    ids=["every", "log", "steps"],
)
def test_a_scanned_loop_is_measured_where_due_and_trained_alike(when, due, background):
    carry, xs = started(), batches(24)
    memory = MemoryWriter()
    with RankMonitor(PROBLEM, schedule=when, writers=[memory], background=background) as monitor:
        last, losses = monitor.scan(step_fn, carry, 24, params_of=lambda c: c[0], xs=xs)
    assert_same_bits((last, losses), jax.lax.scan(step_fn, carry, xs))
    assert_same_bits((last, losses), plain_loop(carry, xs))
    assert [record.step for record in memory.records] == [*due, 24]
    for record in memory.records:
        at, _ = plain_loop(carry, xs[: record.step]) if record.step else (carry, None)
        want = hessian_ranks(PROBLEM, at[0])
        assert {part: record.scalars[f"rank/{part}"] for part in want} == {
            part: rank.rank for part, rank in want.items()
        }


def test_epochs_go_on_counting_and_compile_once():
    memory, compiled = MemoryWriter(), []

    def counted(carry, x):
        compiled.append(1)
        return step_fn(carry, x)

    carry = started()
    with RankMonitor(PROBLEM, every=4, probes=["weights"], writers=[memory]) as monitor:
        for epoch in range(3):
            carry, _ = monitor.scan(
                counted, carry, 6, params_of=lambda c: c[0], xs=batches(6), start=6 * epoch
            )
            if epoch == 0:
                first = len(compiled)
    # Later epochs only look at the shapes of the outputs once more.
    assert len(compiled) <= first + 2
    assert [record.step for record in memory.records] == [0, 4, 8, 12, 16, 18]


def test_what_the_caller_passed_is_neither_donated_nor_changed():
    carry = started()
    before = jax.tree.map(np.array, carry)
    loop = CompiledLoop(CompiledSteps(step_fn), carry, 6, batches(6))
    loop.advance(2)
    held = loop.carry
    loop.advance(6)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(held))
    jax.tree.map(np.testing.assert_array_equal, carry, before)


def test_a_put_off_probe_does_not_break_the_loop_into_single_steps(monkeypatch):
    stops = []
    advance = CompiledLoop.advance
    monkeypatch.setattr(
        CompiledLoop, "advance", lambda self, stop: (stops.append(stop), advance(self, stop))
    )
    monitor = RankMonitor(PROBLEM, every=10, overhead=1e-6)
    monitor.scan(step_fn, started(), 1000, params_of=lambda c: c[0], xs=batches(1000))
    assert stops[0] == 10
    assert len(stops) < 15
    assert stops[-1] == 1000
    monitor.close()


def test_a_state_without_outputs_or_inputs_runs_too():
    def half(carry, _):
        return {"W1": carry["W1"] / 2, "W2": carry["W2"]}, None

    params, _ = started()
    with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
        last, nothing = monitor.scan(half, params, 3, params_of=lambda c: c)
    assert nothing is None
    np.testing.assert_array_equal(last["W1"], params["W1"] / 8)


def test_no_step_changes_nothing():
    with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
        carry, losses = monitor.scan(step_fn, started(), 0, params_of=lambda c: c[0], xs=batches(0))
    assert_same_bits(carry, started())
    assert losses.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"xs": batches(5)}, ValueError, "expected xs with leading axis steps = 6, got shape"),
        ({"steps": -1, "xs": None}, ValueError, "expected steps to be at least 0, got -1"),
        ({"steps": 2.5}, TypeError, "expected steps to be an integer, got float"),
        ({"start": jnp.int32(3)}, TypeError, "expected step to be a Python or NumPy integer"),
        ({"step_fn": lambda c, x: c}, TypeError, r"expected step_fn\(carry, x\) to give"),
    ],
    ids=["xs", "negative", "float", "start", "pair"],
)
def test_wrong_input_is_refused_before_anything_runs(change, error, message):
    arguments = {"step_fn": step_fn, "carry": started(), "steps": 6, "xs": batches(6)} | change
    if message.startswith("expected step_fn"):
        arguments["step_fn"] = lambda carry, x: list(carry)
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=2, writers=[memory])
    with pytest.raises(error, match=message):
        monitor.scan(**arguments, params_of=lambda c: c[0])
    assert memory.records == []


def test_a_carry_that_changes_its_kind_is_refused_before_anything_runs():
    memory = MemoryWriter()
    monitor = RankMonitor(PROBLEM, every=2, writers=[memory])

    def widens(carry, _):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), carry), None

    with pytest.raises(TypeError, match="expected step_fn to give a carry like the one it takes"):
        monitor.scan(widens, started()[0], 6, params_of=lambda c: c)
    assert memory.records == []


def test_a_python_number_in_the_carry_may_be_promoted():
    def step(carry, _):
        params, total = carry
        return (params, total + jnp.sum(params["W1"])), None

    carry = started()[0], 0.0
    with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
        got, _ = monitor.scan(step, carry, 5, params_of=lambda c: c[0])
    want, _ = jax.lax.scan(step, carry, length=5)
    np.testing.assert_array_equal(got[1], want[1], strict=True)


def test_a_stop_hands_out_what_was_trained():
    def shrinks(params, _):
        return params | {"W1": params["W1"].at[:, -1].set(0.0)}, jnp.float32(1.0)

    params, _ = started()
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
    carry, xs = started(), batches(6)
    monitor = RankMonitor(PROBLEM, every=2, probes=["weights"])
    data = jnp.asarray(X), jnp.asarray(Y)

    def step(carry, batch):
        x, y = data[0][batch], data[1][batch]
        grads = jax.grad(lambda p: jnp.mean((apply(p, x) - y) ** 2))(carry)
        return jax.tree.map(lambda p, g: p - g / 8, carry, grads), None

    with jax.transfer_guard("disallow"):
        last, _ = monitor.scan(step, carry[0], 6, params_of=lambda c: c, xs=xs)
    monitor.close()
    assert_same_bits(last, jax.lax.scan(step, carry[0], xs)[0])


def test_what_the_step_function_holds_is_let_go():
    class Large:
        pass

    def scan_once():
        held = Large()

        def step(carry, _):
            assert held
            return carry, None

        with RankMonitor(PROBLEM, every=2, probes=["weights"]) as monitor:
            monitor.scan(step, started()[0], 4, params_of=lambda c: c)
        return weakref.ref(held)

    seen = scan_once()
    gc.collect()
    assert seen() is None


def test_after_close_the_loop_still_runs():
    monitor = RankMonitor(PROBLEM, every=2)
    monitor.close()
    with pytest.warns(RankmonWarning, match="called after close"):
        last, losses = monitor.scan(step_fn, started(), 6, params_of=lambda c: c[0], xs=batches(6))
    assert_same_bits((last, losses), jax.lax.scan(step_fn, started(), batches(6)))
