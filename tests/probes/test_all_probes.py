"""`probes="all"`: all probes that apply, with the reasons for the others on the card."""

import jax
import jax.numpy as jnp
import numpy as np

from rankmon import CollapseProbe, MemoryWriter, Problem, RankMonitor, SeedsMonitor, Tolerance
from refusals import refused

RNG = np.random.default_rng(0)
N, D, M, K = 40, 4, 6, 3
X = RNG.standard_normal((N, D))
LABELS = RNG.permutation(np.arange(N) % K)
VALUES = RNG.standard_normal((N, K))
PARAMS = {
    "U": RNG.standard_normal((D, M)),
    "W": RNG.standard_normal((M, K)),
    "b": RNG.standard_normal(K),
}
EVERYWHERE = {"rank/H_L", "rank_weights/W", "rank_since_start/W", "mp_edge/W", "rank_features/W"}


def apply(p, x):
    return jnp.tanh(x @ p["U"]) @ p["W"] + p["b"]


def classification(apply=apply, loss="cross_entropy", targets=LABELS):
    return Problem(apply, loss=loss, inputs=X, targets=targets)


def regression():
    return Problem(apply, loss="mse", inputs=X, targets=VALUES)


def record_of(problem, params=PARAMS, probes="all"):
    memory = MemoryWriter()
    with RankMonitor(
        problem, every=1, probes=probes, writers=[memory], on_error="raise"
    ) as monitor:
        monitor(0, params)
    return memory.records[0]


def left_out(record):
    """The probes that are left out, and the reasons, from the rows of the card."""
    rows = [line.split("|") for line in record.texts["rankmon/card"].splitlines()]
    return {r[1].split()[1]: r[2] for r in rows if len(r) > 3 and r[1].startswith(" without ")}


def has_collapse(record):
    return any("collapse" in tag for tag in record.scalars)


def test_all_takes_the_probes_that_apply_and_says_which_do_not():
    record = record_of(classification())
    assert {*EVERYWHERE, "collapse/nc1"} <= record.scalars.keys()
    assert left_out(record) == {}
    record = record_of(regression())
    assert record.scalars.keys() >= EVERYWHERE
    assert not has_collapse(record)
    reasons = left_out(record)
    assert reasons.keys() == {"collapse"}
    assert "classification problem" in reasons["collapse"]
    assert "`collapse`" not in record.texts["rankmon/card"]


def test_only_the_hessian_is_left_of_a_network_without_layers():
    problem = Problem(lambda p, x: x * p["a"], loss="mse", inputs=X, targets=np.ones((N, D)))
    record = record_of(problem, {"a": np.ones(D)})
    assert {"weights", "features", "collapse"} <= left_out(record).keys()
    assert "rank/H_L" in record.scalars


def test_errors_of_the_hessian_are_raised():
    with refused(ValueError, "parameters"):
        record_of(classification(lambda p, x: x[:, :K]))


def test_the_state_has_the_same_keys_from_construction_on_whatever_applies():
    for problem in (classification(), regression()):
        with RankMonitor(problem, every=1, probes="all") as monitor:
            before = {name: set(values) for name, values in monitor.state.items()}
            assert {"monitor", "hessian", "weights", "features", "collapse", "ntk"} <= before.keys()
            monitor(0, PARAMS)
            state = monitor.state
        assert {name: set(values) for name, values in state.items()} == before
        with RankMonitor(problem, every=1, probes="all", state=state) as resumed:
            record = resumed(1, jax.tree.map(lambda a: a + 1, PARAMS))
        assert record.scalars["rank_since_start/W"] == record.scalars["rank_since_last/W"] == 1


def test_next_to_all_a_probe_of_the_same_name_replaces_it():
    probes = ["all", CollapseProbe(tolerance=Tolerance(absolute=0.125))]
    record = record_of(classification(), probes=probes)
    assert record.scalars["tolerance/collapse/rank_means"] == 0.125
    with refused(ValueError, "omit the collapse probe"):  # the user asked for it
        record_of(regression(), probes=["all", "collapse"])


def test_an_unknown_name_is_answered_with_all_names():
    with refused(ValueError, "'all'", "'collapse'"):
        RankMonitor(classification(), every=1, probes=["everything"])


def test_seeds_share_what_applies():
    problem = regression()
    params = jax.tree.map(lambda a: np.stack([a, 2 * a]), PARAMS)
    with SeedsMonitor(problem, seeds=2, every=1, probes="all", on_error="raise") as monitor:
        keys = {seed: state.keys() for seed, state in monitor.state.items()}
        records = monitor(0, params)
        assert {seed: state.keys() for seed, state in monitor.state.items()} == keys
    assert len(records) == 2
    for record in records:
        assert "rank/H_L" in record.scalars
        assert not has_collapse(record)
    with SeedsMonitor(
        classification(), seeds=2, every=1, probes="all", on_error="raise"
    ) as monitor:
        records = monitor(0, params)
    assert list(map(has_collapse, records)) == [True, True]


def test_training_is_bit_identical_with_all_probes():
    x = jnp.asarray(X, jnp.float32)

    def loss(p):
        return -jnp.mean(jax.nn.log_softmax(apply(p, x)) * jnp.eye(K)[LABELS])

    @jax.jit
    def step(p):
        return jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(loss)(p))

    def trained(monitor):
        p = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), PARAMS)
        for i in range(4):
            if monitor is not None:
                monitor(i, p)
            p = step(p)
        return p

    with RankMonitor(classification(), every=1, probes="all", on_error="raise") as monitor:
        watched = trained(monitor)
    jax.tree.map(np.testing.assert_array_equal, watched, trained(None))
