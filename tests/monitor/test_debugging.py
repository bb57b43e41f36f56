"""Test that JAX's debugging options do not make monitored training differ from unmonitored."""

from contextlib import ExitStack
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankmon import (
    GradientsProbe,
    Lemma8Probe,
    MemoryWriter,
    Problem,
    RankMonitor,
    SeedsMonitor,
    hessian_ranks,
    ntk_rank,
    outer_rank,
    stochastic_spectra,
)
from rankmon.monitor.hooks import report_weights, watch_weights

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 3))
PARAMS = {"W": RNG.standard_normal((4, 4)), "V": RNG.standard_normal((4, 3))}
SINGULAR = {"W": np.diag([1.0, 1, 0, 0]), "V": np.zeros((4, 3))}
BROKEN = {"W": np.full((4, 4), np.nan), "V": PARAMS["V"]}
FLAGS = {
    "leaks": partial(jax.checking_leaks),
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "no-jit": jax.disable_jit,
    "rank-promotion": lambda: jax.numpy_rank_promotion("raise"),
}


def network(params, x):
    return jax.nn.relu(x @ params["W"]) @ params["V"]


def linear(params, x):
    return x @ params["W"] @ params["V"]


def problem(apply=network, loss="mse", targets=Y):
    """A new one each time, so that everything is traced under the flag."""
    return Problem(apply, loss=loss, inputs=X, targets=targets)


def gradients(params):
    return jax.grad(lambda p: jnp.mean((network(p, X) - Y) ** 2))(params)


def trained(monitor=None):
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), PARAMS)
    for step in range(2):
        if monitor is not None:
            monitor(step, params)
        params = jax.tree.map(lambda a, g: a - 0.1 * g, params, jax.jit(gradients)(params))
    if monitor is not None:
        monitor.close(2, params)
    return params


def watching(probes=("hessian", "weights", "features"), apply=network):
    memory = MemoryWriter()
    monitor = RankMonitor(
        problem(apply), every=1, probes=probes, writers=[memory], on_error="raise"
    )
    return monitor, memory


def counted(records):
    """The records' numbers but for times, and for gaps, which are rounding."""
    return [
        {
            tag: value
            for tag, value in record.scalars.items()
            if not tag.startswith(("monitor/", "gap/"))
        }
        for record in records
    ]


def assert_close(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    "flag",
    [
        pytest.param(flag, marks=[] if name == "nans" else pytest.mark.slow)
        for name, flag in FLAGS.items()
    ],
    ids=FLAGS,
)
def test_training_is_as_without_the_monitor(flag):
    with flag():
        bare, (monitor, memory) = trained(), watching()
        watched = trained(monitor)
    assert all(map(np.array_equal, jax.tree.leaves(bare), jax.tree.leaves(watched)))
    plain, expected = watching()
    trained(plain)
    assert_close(counted(memory.records), counted(expected.records))


@pytest.mark.parametrize("kind", ["features", "gradients"])
def test_a_probe_keeps_no_tracers(kind):
    with jax.checking_leaks():
        monitor, memory = watching(probes=[kind])
        trained(monitor)
    assert memory.records[0].scalars[f"rank_{kind.replace('ients', 'ient')}/V"] > 0


@pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
def test_updates_of_the_optimizer_are_the_same_under_every_flag(flag):
    tx = optax.adam(0.1)
    probe, found = GradientsProbe(optimizer=tx), []
    for context in (flag, ExitStack):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), PARAMS)
        with context():
            monitor, memory = watching(probes=[probe])
            monitor(0, params, opt_state=tx.init(params))
            monitor.close()
        found.append(memory.records[0].scalars["update_to_weight/W"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("flag", [FLAGS["nans"], FLAGS["infs"]], ids=["nans", "infs"])
@pytest.mark.filterwarnings("ignore:rankmon.*infinite:UserWarning")
def test_weights_that_are_singular_or_nan_are_measured(flag):
    records = []
    for context in (flag, ExitStack):
        monitor, memory = watching()
        with context():
            for step, params in enumerate((SINGULAR, BROKEN)):
                monitor(step, params)
            monitor.close()
        records.append(counted(memory.records))
    assert_close(*records)
    assert records[0][0]["rank_weights/W"] == 2
    assert np.isnan(records[0][1]["rank_weights/W"])


class Reports:
    def __init__(self):
        self.got = []

    def report(self, step, scalars):
        self.got.append(scalars)


@pytest.mark.parametrize(
    ("flag", "compiled"),
    [
        pytest.param(flag, compiled, marks=[] if here else pytest.mark.slow)
        for name, flag in FLAGS.items()
        for compiled in (True, False)
        for here in [(name, compiled) in (("nans", True), ("infs", True), ("nans", False))]
    ],
    ids=[f"{name}-{how}" for name in FLAGS for how in ("jit", "eager")],
)
def test_weights_watched_in_the_compiled_step(flag, compiled):
    """Of a singular matrix the condition number is infinite; of zeros it is not defined."""
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), SINGULAR)
    reports = Reports()
    tx = optax.chain(watch_weights(1, reporter=reports), optax.sgd(0.1))

    def step(params, state):
        report_weights(reports, 0, params, every=1)
        return tx.update(params, state, params)

    with flag():
        step = jax.jit(step) if compiled else step
        _, state = step(params, tx.init(params))
        jax.effects_barrier()
    scalars = {tag: float(value) for tag, value in state[0].scalars.items()}
    assert scalars["rank_weights/W"] == 2
    assert scalars["condition_number/W"] == np.inf
    assert np.isnan(scalars["condition_number/V"])
    for got in reports.got:
        assert got == pytest.approx(scalars, nan_ok=True)
    assert len(reports.got) == 2


def ranks_of(params, **options):
    found = hessian_ranks(problem(linear), params, **options)
    return {part: rank.rank for part, rank in found.items()}


def of_two_seeds():
    with SeedsMonitor(problem(), seeds=2, every=1, on_error="raise") as monitor:
        records = monitor(0, jax.tree.map(lambda a: np.stack([a, 2 * a]), PARAMS))
    return counted(records)


def scanned():
    monitor, memory = watching(["weights"])
    carry, ys = monitor.scan(
        lambda c, _: (jax.tree.map(lambda a: 0.5 * a, c), c["W"].sum()),
        PARAMS,
        3,
        params_of=lambda c: c,
    )
    monitor.close()
    return [*counted(memory.records), {"sum": float(ys.sum()), "last": float(carry["W"].sum())}]


def of_lemma_8():
    monitor, memory = watching([Lemma8Probe(0.1)], linear)
    for step, params in enumerate((PARAMS, SINGULAR)):
        monitor(step, params)
    monitor.close()
    return counted(memory.records)


def estimated():
    found = stochastic_spectra(problem(), PARAMS, probes=2, steps=4)
    return [{part: spectrum.p for part, spectrum in found.items()}]


EVERYTHING = {
    **{
        engine: partial(lambda engine: [ranks_of(PARAMS, engine=engine)], engine)
        for engine in ("deep_linear", "stack", "dense", "sketch")
    },
    "broken": lambda: [{"undefined": list(ranks_of(BROKEN).values()).count(None)}],
    "cosh": lambda: [{"p": hessian_ranks(problem(loss="cosh"), PARAMS)["H_L"].rank}],
    "classes": lambda: [
        {
            "p": hessian_ranks(problem(loss="cross_entropy", targets=np.arange(6) % 3), PARAMS)[
                "H_L"
            ].rank
        }
    ],
    "custom": lambda: [
        {"p": hessian_ranks(problem(loss=lambda z, y: jnp.sum((z - y) ** 4)), PARAMS)["H_L"].rank}
    ],
    "ntk": lambda: [{"rank": ntk_rank(problem(), PARAMS).rank}],
    "outer": lambda: [{"rank": outer_rank(problem(), PARAMS).rank}],
    "stochastic": estimated,
    "seeds": of_two_seeds,
    "scan": scanned,
    "lemma8": of_lemma_8,
}


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("measure", EVERYTHING.values(), ids=EVERYTHING)
def test_every_engine_probe_and_loop(measure, flag):
    want = measure()
    with flag():
        got = measure()
    assert_close(got, want)
