"""Test several probe batches: medians and ranges against one monitor for each batch, and NumPy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from rankmon import (
    HessianProbe,
    Lemma8Probe,
    MemoryWriter,
    Problem,
    RankMonitor,
    SeedsMonitor,
    WeightsProbe,
    read_jsonl,
)
from rankmon.monitor.over_batches import over_batches
from rankmon.probes.base import Measurement
from rankmon.probes.ntk import NtkProbe
from rankmon.probes.registry import as_probes
from rankmon.problem.batches import Batches
from rankmon.writers.condense import MOST_LAYERS, condensed
from reading import legacy_events
from refusals import refused, unwarned, warned
from small_probes import Light

COMPILED = "/jax/core/compile/backend_compile_duration"
compilations: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def note(event, seconds, **_):
    if event == COMPILED:
        compilations.append(event)


RNG = np.random.default_rng(0)
X, LABELS = RNG.standard_normal((24, 5)), np.arange(24) % 3
Y = RNG.standard_normal((24, 3))
M = 3


def apply(params, x):
    return jax.nn.relu(x @ params["W1"]) @ params["W2"]


def linear(params, x):
    return x @ params["W1"] @ params["W2"]


def weights_at(step):
    rng = np.random.default_rng(step)
    return {
        "W1": jnp.asarray(rng.standard_normal((5, 4)), jnp.float32),
        "W2": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32),
    }


def stated(**options):
    return Problem(
        **({"apply": apply, "loss": "cross_entropy", "inputs": X, "targets": LABELS} | options)
    )


PROBLEM = stated()
# Its batches; tests share what is traced for them.
EACH = Batches.of(PROBLEM, M).each
WATCHED = ("hessian", "weights", "gradients")


def records_of(problem, steps=range(3), state=None, **options):
    """The records of a run at these steps, and its last state."""
    memory = MemoryWriter()
    options = {"every": 1, "probes": "all", "writers": [memory], "state": state} | options
    with RankMonitor(problem, **options) as monitor:
        for step in steps:
            monitor(step, weights_at(step))
    return memory.records, monitor.state


def own(record):
    """The scalars of a record that do not measure time."""
    return {tag: x for tag, x in record.scalars.items() if not tag.startswith("monitor/")}


def assert_same(records, others):
    for one, other in zip(records, others, strict=True):
        np.testing.assert_equal(own(one), own(other))
        np.testing.assert_equal(dict(one.arrays), dict(other.arrays))


@pytest.fixture(scope="module")
def split():
    """The records of a run with several batches."""
    return records_of(PROBLEM, batches=M)[0]


@pytest.fixture(scope="module")
def alone():
    """The records of one monitor for each batch."""
    return [records_of(one)[0] for one in EACH]


# Numbers


def test_each_tag_is_the_median_of_monitors_with_one_batch_each(split, alone):
    for step, record in enumerate(split):
        singles = [own(records[step]) for records in alone]
        tags = {tag for single in singles for tag in single}
        assert {t for t in own(record) if not t.startswith("batches/")} == tags
        spread = {t.removeprefix("batches/") for t in record.arrays if t.startswith("batches/")}
        assert {"rank/H_f_fixed", "rank_features/W2", "ntk/alignment", "loss"} <= spread
        assert {"rank_gradient/W1", "collapse/nc1", "gap/H_o"} <= spread
        for tag in tags:
            values = np.array([single.get(tag, np.nan) for single in singles])
            np.testing.assert_equal(record.scalars[tag], np.median(values), tag)
            if tag in spread:
                np.testing.assert_equal(record.arrays[f"batches/{tag}"], values)
                assert record.scalars[f"batches/{tag}/low"] == pytest.approx(
                    np.min(values), abs=0, nan_ok=True
                )
                assert record.scalars[f"batches/{tag}/high"] == pytest.approx(
                    np.max(values), abs=0, nan_ok=True
                )
            else:  # measured once, on the weights
                assert f"batches/{tag}/low" not in record.scalars
                assert len({str(value) for value in values}) == 1, tag
        assert {"rank_weights/W1", "rank_since_start/W2"}.isdisjoint(spread)
        for tag, array in alone[0][step].arrays.items():
            np.testing.assert_equal(record.arrays[tag], array)


def test_a_list_of_problems_measures_the_same(split):
    assert_same(split, records_of(list(EACH))[0])


def test_a_single_batch_is_an_ordinary_run(alone):
    assert_same(alone[0], records_of(EACH[:1])[0])
    assert_same(alone[0], records_of(EACH[0], batches=1)[0])


def test_batches_are_disjoint_parts_of_equal_size_and_always_the_same():
    weights = RNG.uniform(1, 2, 24)
    one, other = (Batches.of(stated(weights=weights), 4) for _ in range(2))
    assert [part.n for part in one.each] == [6] * 4
    rows = [[int(np.flatnonzero((row == X).all(1))[0]) for row in p.inputs] for p in one.each]
    assert sorted(sum(rows, [])) == list(range(24))
    assert sorted(rows[0]) != list(range(6))  # examples may be sorted by class
    for mine, part, again in zip(rows, one.each, other.each, strict=True):
        np.testing.assert_array_equal(part.targets, LABELS[mine])
        np.testing.assert_array_equal(part.weights, weights[mine])
        np.testing.assert_array_equal(part.inputs, again.inputs)
    # States that were saved belong to these batches.
    assert rows[0] == [1, 10, 11, 14, 20, 22]


def test_examples_beyond_equal_batches_are_left_out_with_a_warning():
    with warned("batches=5", "24", "4 are left out", "pass 20 or 25"):
        monitor = RankMonitor(PROBLEM, every=1, batches=5, probes=["features"])
    record = monitor(0, weights_at(0))
    assert (
        "5 disjoint probe batches of 4 examples each (4 examples left out)"
        in record.texts["rankmon/card"]
    )
    with unwarned():
        RankMonitor(PROBLEM, every=1, batches=4)


class OfBatch(Light):
    """Logs numbers that depend on the batch: NaN in one, and one that a batch lacks."""

    name = "of_batch"

    def prepare(self, flat):
        prepared = OfBatch()
        prepared.first = float(flat.problem.inputs[0, 0])
        return prepared

    def measure(self, snapshot, state):
        scalars = {"own/all": self.first, "own/nan": self.first if self.first else np.nan}
        scalars |= {"own/some": self.first} if self.first > 1 else {}
        texts = ("the same warning",) if self.first else ()
        return Measurement(scalars, warnings=(*texts, f"batch of {self.first}")), state


def test_a_batch_that_is_nan_or_lacks_a_tag_makes_its_median_nan():
    problems = [stated(inputs=np.full((4, 5), float(i)), targets=LABELS[:4]) for i in range(4)]
    with pytest.warns() as caught:
        ((record,), _) = records_of(problems, [0], probes=[OfBatch()])
    assert record.scalars["own/all"] == 1.5  # the mean of the two in the middle
    assert record.scalars["batches/own/all/low"] == 0
    assert record.scalars["batches/own/all/high"] == 3
    np.testing.assert_array_equal(record.arrays["batches/own/all"], [0, 1, 2, 3])
    for tag in ("own/nan", "own/some"):
        ends = [f"batches/{tag}/low", f"batches/{tag}/high"]
        assert all(np.isnan(record.scalars[one]) for one in (tag, *ends))
    np.testing.assert_array_equal(record.arrays["batches/own/some"], [np.nan, np.nan, 2, 3])
    texts = [str(one.message) for one in caught]
    assert sum("the same warning" in text for text in texts) == 1
    assert sum("batch of" in text for text in texts) == 4


def test_lemma_8_is_measured_once_on_all_examples():
    problem = stated(apply=linear, loss="mse", targets=Y)
    options = {"probes": [Lemma8Probe(0.1), "weights"]}
    assert_same(records_of(problem, **options)[0], records_of(problem, batches=M, **options)[0])
    each = Batches.of(problem, M).each
    joined = stated(
        apply=linear,
        loss="mse",
        inputs=np.concatenate([one.inputs for one in each]),
        targets=np.concatenate([one.targets for one in each]),
    )
    assert_same(records_of(joined, **options)[0], records_of(each, **options)[0])


# Cost


def test_the_batches_share_compiled_programs():
    def rates(params, x):  # a network that no other test compiles
        return jnp.tanh(x @ params["W1"]) @ params["W2"] * 1.25

    parts, options = Batches.of(stated(apply=rates), 4), {"probes": ["hessian", "features"]}
    records_of(parts.each[0], range(2), **options)
    before = len(compilations)
    records_of(parts.whole, range(2), batches=4, **options)
    assert len(compilations) == before


def test_the_batches_share_the_time_limit():
    _, named = as_probes(["weights", "hessian"], tolerance=HessianProbe().tolerance, memory_limit=9)
    everything = as_probes("all", tolerance=named.tolerance, memory_limit=10)
    given = [HessianProbe(time_limit=8, blocks=True), NtkProbe(time_limit=2), WeightsProbe()]
    hessian, ntk, weights = over_batches(given, Batches.of(PROBLEM, 4))
    assert hessian.probe == HessianProbe(time_limit=2, blocks=True)
    assert ntk.probe == NtkProbe(time_limit=0.5)
    assert weights == given[2]
    by_name = {probe.name: probe for probe in over_batches(everything, Batches.of(PROBLEM, 4))}
    assert by_name["ntk"].probe.probe.time_limit == NtkProbe().time_limit / 4
    assert by_name["hessian"].probe.time_limit == HessianProbe().time_limit / 4


# The life of a run


@pytest.mark.parametrize("background", [False, True], ids=["here", "background"])
def test_a_restart_goes_on_to_the_bit(background):
    options = {"background": background, "probes": WATCHED}
    first, state = records_of(EACH, [0], **options)
    saved = jax.tree.map(np.copy, state)
    assert saved["hessian"]["reference"].shape == (M, 8, 3, 2)
    rest, _ = records_of(EACH, [1, 2], state=saved, **options)
    assert_same(records_of(EACH, **options)[0], [*first, *rest])
    assert rest[1].scalars["batches/rank/H_f_fixed/low"] > 0


def test_the_state_has_its_shapes_from_construction_on():
    monitor = RankMonitor(EACH, every=1, probes=WATCHED, params=weights_at(0))
    shapes = jax.tree.map(np.shape, monitor.state)
    assert shapes == jax.tree.map(np.shape, records_of(EACH, [0], probes=WATCHED)[1])
    blank = RankMonitor(EACH, every=1, probes=WATCHED).state
    assert jax.tree.structure(blank) == jax.tree.structure(monitor.state)


def trained(loop, monitor=None):
    """The weights after 6 steps of SGD on all examples."""
    tx = optax.sgd(0.1, momentum=0.9)

    def step_fn(carry, _):
        params, state = carry

        def loss(params):
            z = apply(params, jnp.asarray(X, jnp.float32))
            return optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(LABELS)).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = weights_at(0), tx.init(weights_at(0))
    if loop == "scan":
        if monitor is None:
            return jax.lax.scan(step_fn, carry, length=6)[0][0]
        return monitor.scan(step_fn, carry, 6, params_of=lambda carry: carry[0])[0][0]
    step = jax.jit(step_fn)
    for i in range(6):
        if monitor is not None:
            monitor(i, carry[0], opt_state=carry[1])
        carry, _ = step(carry, None)
    return carry[0]


@pytest.mark.parametrize(
    ("loop", "options"),
    [("loop", {"probes": "all"}), ("loop", {"background": True}), ("scan", {})],
    ids=["loop", "background", "scan"],
)
def test_training_does_not_change(loop, options):
    memory = MemoryWriter()
    with RankMonitor(EACH, every=2, writers=[memory], **options) as monitor:
        watched = trained(loop, monitor)
    jax.tree.map(np.testing.assert_array_equal, watched, trained(loop))
    assert [record.step for record in memory.records][:3] == [0, 2, 4]
    assert "batches/rank/H_L/low" in memory.records[-1].scalars


def test_what_the_files_hold(tmp_path):
    with RankMonitor(PROBLEM, logdir=tmp_path, every=1, batches=2, hparams={"lr": 1}) as monitor:
        record = monitor(0, weights_at(0))
    (line,) = read_jsonl(tmp_path / "rankmon.jsonl")
    np.testing.assert_equal(dict(line.arrays), dict(record.arrays))
    assert line.arrays["batches/rank/H_L"].shape == (2,)
    assert record.hparams["batches"] == 2
    events = legacy_events(tmp_path)
    tags = events.Tags()
    assert {"rank/H_L", "batches/rank/H_L/low", "batches/loss/high"} <= set(tags["scalars"])
    assert "spectrum/H_L" in tags["histograms"]
    others = (tag for kind in ("tensors", "histograms") for tag in tags[kind])
    assert not [tag for tag in others if tag.startswith("batches/")]
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    (category,) = [one for one in layout.category if one.title == "Probe batches"]
    (series,) = category.chart[0].margin.series
    assert {series.value, series.lower, series.upper} <= set(tags["scalars"])
    page = record.texts["rankmon/card"]
    assert "2 disjoint probe batches of 12 examples each:" in page
    assert "`batches/…`" in page


def test_layers_without_curves_have_no_range_either():
    layers = [f"rank_features/{i}" for i in range(MOST_LAYERS + 1)]
    ends = [f"batches/{tag}/{end}" for tag in (*layers, "loss") for end in ("low", "high")]
    shown = condensed(dict.fromkeys([*layers, *ends, "loss"], 1.0)).scalars
    assert set(shown) == {"loss", "batches/loss/low", "batches/loss/high"}


# Mistakes


@pytest.mark.parametrize(
    ("problem", "batches", "kind", "keys"),
    [
        (PROBLEM, 0, ValueError, ["batches", "at least 1", "0"]),
        (PROBLEM, True, TypeError, ["batches", "True"]),
        (PROBLEM, 2.5, TypeError, ["batches", "2.5"]),
        (PROBLEM, 25, ValueError, ["25 batches", "24 examples", "fewer batches"]),
        ([PROBLEM, PROBLEM], 2, ValueError, ["batches=2", "2 Problems", "omit batches="]),
        ([], 1, ValueError, ["at least one Problem", "empty list"]),
        ([PROBLEM, apply], 1, TypeError, ["rankmon.Problem", "function"]),
        ({"a": PROBLEM}, 1, TypeError, ["rankmon.Problem", "dict"]),
        (
            [PROBLEM, stated(inputs=X[:9], targets=LABELS[:9])],
            1,
            ValueError,
            ["inputs", "[24, 5]", "[9, 5]", "problems[1]"],
        ),
        (
            [PROBLEM, stated(inputs=X.astype(np.float32))],
            1,
            ValueError,
            ["inputs", "float64", "float32"],
        ),
        ([PROBLEM, stated(weights=np.ones(24))], 1, ValueError, ["weights", "problems[1]"]),
        (
            [stated(loss="mse", targets=Y), stated(loss="cosh", targets=Y)],
            1,
            ValueError,
            ["mse", "cosh", "same loss"],
        ),
        (
            [stated(loss=lambda z, y: z[y]), stated(loss=lambda z, y: -z[y])],
            1,
            ValueError,
            ["custom", "another function"],
        ),
        ([PROBLEM, stated(include="W1")], 1, ValueError, ["include", "W1"]),
        (
            stated(weights=np.arange(24) == 5),
            2,
            ValueError,
            ["positive weight", "none in batch", "fewer batches"],
        ),
    ],
    ids=[
        "none",
        "flag",
        "fraction",
        "more_than_examples",
        "both",
        "empty",
        "no_problem",
        "no_list",
        "sizes",
        "dtypes",
        "weights",
        "losses",
        "functions",
        "filters",
        "masked",
    ],
)
def test_mistakes_are_refused_at_construction(problem, batches, kind, keys, tmp_path):
    with refused(kind, *keys):
        RankMonitor(problem, every=1, batches=batches, logdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_with_other_outputs_are_refused_at_the_first_call():
    problems = [PROBLEM, stated(apply=lambda params, x: jnp.tile(apply(params, x), 2))]
    monitor = RankMonitor(problems, every=1, probes=["hessian"])
    with refused(ValueError, "one network", "(24, 3)", "(24, 6)", "problems[1]"):
        monitor(0, weights_at(0))


def test_states_of_other_batches_are_refused():
    problem, options = Batches.of(EACH, 1).whole, {"probes": ["hessian"]}
    _, of_three = records_of(EACH, [0], **options)
    _, of_one = records_of(problem, [0], **options)
    for state, shape in ((of_three, "(3, 8, 3)"), (of_one, "(24, 3)")):
        with refused(ValueError, "hessian/reference", shape, "(2, 12, 3)"):
            records_of(problem, [1], batches=2, state=state, **options)


def test_seeds_take_one_probe_batch():
    with refused(TypeError, "rankmon.Problem", "list"):
        SeedsMonitor([PROBLEM, PROBLEM], seeds=2, every=1)
    with refused(TypeError, "batches"):
        SeedsMonitor(PROBLEM, seeds=2, every=1, batches=2)


def test_a_probe_that_does_not_apply_to_a_batch_is_left_out_of_all():
    each = [stated(targets=LABELS), stated(targets=np.zeros_like(LABELS))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (record,), _ = records_of(each, [0])
    assert "rank_features/W1" in record.scalars
    assert not [tag for tag in record.scalars if "collapse" in tag]
    assert "without collapse" in record.texts["rankmon/card"]
