"""Loops in compiled chunks: what lax.scan and a plain loop compute, measured where it is due."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankmon import MemoryWriter, Problem, RankMonitor, RankmonWarning, hessian_ranks, schedule
from rankmon.compiled_loop import CompiledLoop

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
    loop = CompiledLoop(step_fn, carry, 6, batches(6))
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


def test_after_close_the_loop_still_runs():
    monitor = RankMonitor(PROBLEM, every=2)
    monitor.close()
    with pytest.warns(RankmonWarning, match="called after close"):
        last, losses = monitor.scan(step_fn, started(), 6, params_of=lambda c: c[0], xs=batches(6))
    assert_same_bits((last, losses), jax.lax.scan(step_fn, started(), batches(6)))
