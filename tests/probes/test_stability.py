"""Test the stability threshold: against optimizers on a quadratic, sources, and its absence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankmon import (
    HessianProbe,
    MemoryWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    SeedsMonitor,
)
from rankmon.alerts import EdgeOfStability
from rankmon.probes.stability import stability_threshold
from refusals import refused
from small_probes import measured_by

TAG = "eigenvalue_max_threshold/H_L"
KINDS = {
    "plain": {},
    "heavy ball": {"momentum": 0.9},
    "light ball": {"momentum": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "light nesterov": {"momentum": 0.2, "nesterov": True},
}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 3))
LINEAR = Problem(lambda w, x: x @ w, loss="mse", inputs=X, targets=X @ np.ones((3, 1)))
LARGEST = np.linalg.eigvalsh(X.T @ X / 8)[-1]


def measured(probe, step=0, opt_state=None):
    memory = MemoryWriter()
    with RankMonitor(LINEAR, every=1, probes=[probe], writers=[memory]) as monitor:
        monitor(step, np.zeros((3, 1)), opt_state=opt_state)
    return memory.records[0].scalars


def threshold(opt_state=None, step=0, **options):
    return measured(HessianProbe(parts=("H_L",), **options), step, opt_state)[TAG]


@pytest.mark.parametrize("scale", [1.0, 2.5, 0.2], ids=lambda scale: f"scale {scale}")
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_diverges_on_a_quadratic_just_above_it(kind, scale):
    """Least squares: the loss is quadratic, and training minimizes its mean times the scale."""

    @jax.jit
    def final_error(rate):
        optimizer = optax.sgd(rate, **KINDS[kind])

        def trained(w):
            return scale * jnp.mean(0.5 * jnp.sum((X @ w - LINEAR.targets) ** 2, 1))

        def step(carry, _):
            w, state = carry
            update, state = optimizer.update(jax.grad(trained)(w), state)
            return (w + update, state), None

        w = jnp.zeros((3, 1))
        (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), None, 1500)
        return jnp.linalg.norm(w - 1)

    at_one = threshold(learning_rate=1.0, loss_scale=scale, **KINDS[kind])
    critical = at_one / LARGEST  # the rate at which the threshold is the largest eigenvalue
    with jax.enable_x64(True):
        assert final_error(0.99 * critical) < 1e-3
        assert final_error(1.01 * critical) > 1e3


def test_it_is_drawn_by_every_source_of_the_learning_rate():
    tree = np.zeros((3, 1), np.float32)
    injected = optax.inject_hyperparams(optax.sgd)(0.25, momentum=0.5)
    chained = optax.chain(optax.identity(), injected)
    decayed = {1: 0.5, 10: 0.125}.get
    assert threshold(learning_rate=0.25) == 8
    assert threshold(learning_rate=np.float32(0.25), momentum=0.5) == 12
    assert threshold(learning_rate=0.25, momentum=0.5, nesterov=True) == 6
    assert threshold(learning_rate=decayed, step=10) == 16
    assert threshold(learning_rate=optax.constant_schedule(jnp.float32(0.5))) == 4
    read = {"learning_rate": "optimizer", "momentum": 0.5}
    assert threshold(chained.init(tree), **read) == 12
    assert threshold(optax.MultiSteps(chained, every_k_schedule=2).init(tree), **read) == 12
    state = injected.init(tree)
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    assert threshold(state, **read) == 6


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_the_state_is_copied_before_the_loop_changes_it(background):
    tree, memory = np.zeros((3, 1), np.float32), MemoryWriter()
    state = optax.inject_hyperparams(optax.sgd)(0.25).init(tree)
    probe = HessianProbe(learning_rate="optimizer")
    options = {"probes": [probe], "writers": [memory], "background": background}
    with RankMonitor(LINEAR, every=1, **options) as monitor:
        for step, rate in enumerate((0.25, 0.5)):
            state.hyperparams["learning_rate"] = jnp.float32(rate)
            monitor(step, tree, opt_state=state)
            state.hyperparams["learning_rate"] = jnp.float32(4)
    assert [record.scalars[TAG] for record in memory.records] == [8, 4]


def test_each_seed_has_its_own_learning_rate():
    trees, rates = np.zeros((2, 3, 1), np.float32), jnp.asarray([0.25, 0.5], jnp.float32)
    states = jax.vmap(lambda rate, w: optax.inject_hyperparams(optax.sgd)(rate).init(w))(
        rates, trees
    )
    probe = HessianProbe(learning_rate="optimizer")
    with SeedsMonitor(LINEAR, seeds=2, every=1, probes=[probe]) as monitor:
        records = monitor(0, trees, opt_state=states)
    assert [record.scalars[TAG] for record in records] == [8, 4]


def test_rates_of_zero_and_senseless_ones():
    assert stability_threshold(0.0) == np.inf
    for rate in (-1.0, np.nan, np.inf):
        assert np.isnan(stability_threshold(rate, momentum=0.9))
    assert threshold(learning_rate=lambda step: 0) == np.inf


def test_the_threshold_alone_is_added_to_the_probe():
    plain, lined = measured(HessianProbe()), measured(HessianProbe(learning_rate=0.1))
    timed = {"monitor/seconds", "monitor/overhead"}
    assert lined.keys() - plain.keys() == {TAG}
    same = {tag: lined[tag] for tag in plain.keys() - timed}
    np.testing.assert_equal(same, {tag: plain[tag] for tag in same})
    params = np.full((3, 1), np.nan)
    probe = HessianProbe(learning_rate=0.1).prepare(LINEAR.flat(params))
    undefined, _ = measured_by(probe, LINEAR, params)
    assert undefined.scalars[TAG] == 20
    assert np.isnan(undefined.scalars["eigenvalue_max/H_L"])
    (fact,) = [fact for fact in probe.describe().facts if fact.name == "stability threshold"]
    assert "2 / eta, eta = 0.1" in fact.text


def unknown(reason, probe, opt_state=None):
    """Every other number is measured, and training goes on."""
    with pytest.warns(RankmonWarning, match=reason) as caught:
        scalars = measured(probe, opt_state=opt_state)
    assert len(caught) == 1
    assert TAG not in scalars
    assert scalars["rank/H_L"] == 3


def test_an_unknown_rate_gives_no_line_and_its_reason():
    tree = np.zeros((3, 1), np.float32)
    read = HessianProbe(learning_rate="optimizer")
    unknown("opt_state=opt_state", read)
    unknown("inject_hyperparams", read, optax.sgd(0.1).init(tree))
    adam = optax.inject_hyperparams(optax.adam)(0.1)
    unknown("only for gradient descent", read, adam.init(tree))
    heavy = optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9)
    unknown("momentum=0 .* 0.9", read, heavy.init(tree))
    two = optax.chain(*[optax.inject_hyperparams(optax.sgd)(0.1)] * 2)
    unknown("one state", read, two.init(tree))
    unknown("ZeroDivisionError|division", HessianProbe(learning_rate=lambda step: 1 / step))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"learning_rate": "adam"}, ValueError, ["'optimizer'", "'adam'"]),
        ({"learning_rate": 0.0}, ValueError, ["learning_rate", "positive", "0.0"]),
        ({"learning_rate": True}, TypeError, ["learning_rate", "bool"]),
        ({"learning_rate": 0.1, "momentum": 1.0}, ValueError, ["momentum", "[0, 1)"]),
        ({"learning_rate": 0.1, "nesterov": 1}, TypeError, ["nesterov", "True or False"]),
        ({"learning_rate": 0.1, "loss_scale": -1}, ValueError, ["loss_scale", "positive"]),
        ({"momentum": 0.9}, ValueError, ["learning_rate"]),
        ({"learning_rate": 0.1, "parts": ("H_o",)}, ValueError, ["parts", "H_L"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_what_means_nothing_is_refused(options, error, words):
    with refused(error, *words):
        HessianProbe(**options)


def test_the_alert_compares_with_the_lower_end_of_an_estimate():
    tag = "eigenvalue_max/H_L"
    exact = {tag: 10.0, TAG: 9.0}
    assert EdgeOfStability().found(exact, {}).keys() == {tag}
    assert not EdgeOfStability().found({**exact, f"interval_low/{tag}": 8.9}, {})
    assert EdgeOfStability(0.9).found({**exact, f"interval_low/{tag}": 8.9}, {})
    assert not EdgeOfStability().found({tag: 10.0}, {})
    assert not EdgeOfStability().found({tag: np.nan, TAG: 9.0}, {})
    assert not EdgeOfStability().found({tag: 9.0, TAG: 9.0}, {})
    with refused(ValueError, "share", "(0, 1]"):
        EdgeOfStability(1.5)
