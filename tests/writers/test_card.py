"""Test cards, read and rendered by TensorBoard: all curves are explained, and no others."""

import re
import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.util import tensor_util

from rankmon import (
    CollapseProbe,
    FeaturesProbe,
    GradientsProbe,
    HessianProbe,
    Lemma8Probe,
    MemoryWriter,
    Problem,
    RankMonitor,
    RankmonWarning,
    SeedsMonitor,
    Tolerance,
    WeightsProbe,
    alerts,
    schedule,
    theory,
)
from rankmon._util.facts import Fact
from rankmon.monitor.hooks import watch_weights
from rankmon.probes.base import Description, Measurement
from rankmon.writers.legend import LEGEND, OVER_SEEDS
from reading import legacy_events
from rendering import rendered

RNG = np.random.default_rng(0)
# What TensorBoard's own pages are told, which is no curve.
DASHBOARDS = ("custom_scalars", "hparams")


def chain(dims, *activations, bias=False, seed=0):
    """A stack of dense layers, the last ones' activations if any, and its parameters in float32."""
    activations = (lambda z: z,) * (len(dims) - 2 - len(activations)) + activations
    rng = np.random.default_rng(seed)
    params = {}
    for i, shape in enumerate(zip(dims, dims[1:], strict=False), 1):
        params[f"W{i}"] = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        if bias:
            params[f"b{i}"] = jnp.asarray(rng.standard_normal(shape[1]), jnp.float32)
    depth = len(dims) - 1

    def apply(params, x):
        for i in range(1, depth + 1):
            x = x @ params[f"W{i}"]
            x = x + params[f"b{i}"] if f"b{i}" in params else x
            x = activations[i - 1](x) if i < depth else x
        return x

    return apply, params


def problem_of(apply, dims, *, loss="mse", n=40, **options):
    x = np.random.default_rng(1).standard_normal((n, dims[0]))
    y = np.random.default_rng(2).standard_normal((n, dims[-1]))
    y = np.argmax(y, axis=1) if loss == "cross_entropy" else y
    return Problem(apply, loss=loss, inputs=x, targets=y, **options)


@cache
def stack(dims, *activations, bias=False, loss="mse", n=40):
    """A problem and its parameters; those of several tests are compiled once."""
    apply, params = chain(dims, *activations, bias=bias)
    return problem_of(apply, dims, loss=loss, n=n), params


# So few examples that the bound of the rank of H_L says something.
RELU = ((20, 5, 3), jax.nn.relu)
SILU = ((6, 5, 3), lambda z: jax.nn.silu(z))


def card_of(problem, params, **options):
    """The text of the first card, as TensorBoard renders it, and its source."""
    options = options if "schedule" in options else {"every": 1, **options}
    memory = MemoryWriter()
    with RankMonitor(problem, writers=[memory], **options) as monitor:
        monitor(0, params)
    source = memory.records[0].texts["rankmon/card"]
    return rendered(source), source


def pairs(page):
    return {row[0]: row[1] for row in page.rows if len(row) == 2}


def predicted(page):
    return {row[0]: row[1] for row in page.rows if len(row) == 4}


def explained(page):
    """The tags that have a row, as they are shown."""
    return [tag for row in page.rows if len(row) == 3 for tag in row[0].split(", ")][1:]


def matches(shown, tag):
    """Whether a row's tag stands for this one; "…", <part> and <layer> for anything."""
    parts = re.split("…|<layer>|<part>", shown)
    return re.fullmatch(".+".join(map(re.escape, parts)), tag, re.DOTALL) is not None


# Every curve has its row


class Noise:
    """A probe of one's own."""

    name = "noise"

    def placeholder_state(self, problem):
        return {}

    def initial_state(self):
        return {}

    def prepare(self, flat):
        return self

    def measure(self, snapshot, state):
        return Measurement({"noise/level": 0.5}), state

    def describe(self):
        return Description([Fact("noise", "1|2 <b>of</b> `x`")])


def logged(folder):
    """The tags of a run and the plugin of each, by TensorBoard's own reader."""
    events = legacy_events(folder)
    tags = events.Tags()
    named = {tag: "" for kind in ("scalars", "histograms", "tensors") for tag in tags[kind]}
    for tag, metadata in events.summary_metadata.items():
        named[tag] = metadata.plugin_data.plugin_name
    return {tag for tag, plugin in named.items() if plugin not in DASHBOARDS}


def texts(folder, tag="rankmon/card"):
    """The texts at a tag, by TensorBoard's own reader."""
    events = legacy_events(folder)
    return [
        tensor_util.make_ndarray(event.tensor_proto).item().decode()
        for event in events.Tensors(tag)
    ]


def everything(folder):
    """A run with each probe, alerts, a worker, overhead, and numbers of the user's."""
    dims = (4, 4, 4)
    apply, params = chain(dims)
    eye = np.eye(4)
    x = np.concatenate([eye, -eye])
    problem = Problem(apply, loss="mse", inputs=x, targets=np.tile(eye, (2, 1)))
    tx = optax.sgd(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankmonWarning)
        with RankMonitor(
            problem,
            logdir=folder,
            every=1,
            probes=[
                HessianProbe(blocks=True, learning_rate=0.1),
                WeightsProbe(by_head=True, track=("start", "last"), spectra=True),
                FeaturesProbe(),
                GradientsProbe(optimizer=tx),
                CollapseProbe(),
                "ntk",
                Lemma8Probe(learning_rate=0.1),
            ],
            alerts=[alerts.RankBelow(1.0, tags="rank_weights/W1"), alerts.NonFinite()],
            background=True,
            overhead=1.0,
            hparams={"lr": 0.1},
        ) as monitor:
            for step in range(3):
                if step:
                    params["W1"] = jnp.asarray(np.asarray(params["W1"]) * [0, 1, 1, 1], jnp.float32)
                monitor(step, params, scalars={"loss": 1.0}, opt_state=tx.init(params))


class Estimated(Noise):
    """A probe whose numbers have intervals, and which measures four layers and saturated units."""

    name = "estimated"

    def measure(self, snapshot, state):
        ends = {f"interval_{end}/trace/H_L": 0.5 for end in ("low", "high")}
        layers = {f"stable_rank/block_{i}": 1.0 for i in range(4)} | {"saturated_share/W1": 0.5}
        return Measurement(ends | layers), state


def relu(folder):
    problem, params = stack(*RELU, n=8)
    with RankMonitor(
        problem, logdir=folder, every=1, probes=["hessian", "weights", "features", Estimated()]
    ) as monitor:
        monitor(0, params)


def batched(folder):
    problem, params = stack((4, 5, 3), jnp.tanh)
    with RankMonitor(problem, logdir=folder, every=1, batches=2, probes=["features"]) as monitor:
        monitor(0, params)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of the runs."""
    kinds = (everything, relu, batched)
    folders = {run.__name__: tmp_path_factory.mktemp(run.__name__) for run in kinds}
    for run in kinds:
        run(folders[run.__name__])
    return folders


@pytest.mark.parametrize(
    ("run", "families"),
    [
        ("everything", {"lemma8/centered", "rankmon/alerts", "monitor/skipped", "user/…"}),
        ("relu", {"dead_units/<layer>", "rank_bound/H_o", "rank_features/<layer>"}),
        ("batched", {"batches/…", "rank_features/<layer>"}),
    ],
    ids=["everything", "relu", "batched"],
)
def test_every_tag_of_a_run_has_exactly_one_row(runs, run, families):
    page, tags = rendered(texts(runs[run])[-1]), logged(runs[run])
    shown = explained(page)
    assert families <= set(shown)
    for tag in tags:
        assert [one for one in shown if matches(one, tag)] != [], tag
        assert sum(entry.explains(tag) for entry in LEGEND) == 1, tag
    # And no row is of a curve that the run does not have.
    rows = [row for row in page.rows if len(row) == 3][1:]
    for row in rows:
        assert any(matches(one, tag) for one in row[0].split(", ") for tag in tags), row


def test_all_runs_together_have_every_row(runs):
    shown = {tag for folder in runs.values() for tag in explained(rendered(texts(folder)[-1]))}
    assert shown == {tag for entry in LEGEND for tag in entry.tags}


def test_only_the_probes_in_use_are_explained():
    page, _ = card_of(*stack((4, 5, 3), jnp.tanh), probes=["weights"])
    shown = explained(page)
    assert "rank_weights/<layer>" in shown
    assert not {"rank/H_L", "rank_theory/…", "spectrum/…", "rank_features/<layer>", "loss"} & {
        *shown
    }
    assert "det_sign/<layer>" not in shown  # none is square
    assert not predicted(page)
    assert "r" not in pairs(page)


def test_a_curve_that_comes_later_makes_a_new_card():
    problem, params = stack((4, 5, 3))
    memory = MemoryWriter()
    with RankMonitor(problem, every=1, writers=[memory], probes=["weights"]) as monitor:
        for step in range(4):
            monitor(step, params, scalars={"train/acc": 1.0, "train/b": 2.0} if step > 1 else {})
    assert ["rankmon/card" in record.texts for record in memory.records] == [
        True, False, True, False
    ]  # fmt: skip
    first, later = (explained(rendered(memory.records[at].texts["rankmon/card"])) for at in (0, 2))
    assert later == [*first, "train/…"]


def test_ranks_that_are_not_finite_at_first_are_explained_once_they_come():
    problem, params = stack((4, 5, 3))
    broken = {**params, "W1": np.full((4, 5), np.nan, np.float32)}
    memory = MemoryWriter()
    with pytest.warns(RankmonWarning, match="NaN"):
        monitor = RankMonitor(problem, every=1, writers=[memory])
        monitor(0, broken)
        monitor(1, params)
    first, later = (rendered(record.texts["rankmon/card"]) for record in memory.records)
    assert "rank_theory/…" not in explained(first)
    assert set(predicted(first).values()) == {"rank", "none at this step"}
    assert "rank_theory/…" in explained(later)
    assert predicted(later)["H_o"] == str(theory.rank_outer((4, 5, 3)))


def test_reports_from_compiled_code_have_a_card(tmp_path):
    problem, params = stack((4, 3))
    with RankMonitor(problem, every=1, logdir=tmp_path, probes=["weights"]) as monitor:
        transformation = watch_weights(1, reporter=monitor)
        jax.jit(transformation.update)(params, transformation.init(params), params)
    (source,) = texts(tmp_path)
    shown = explained(rendered(source))
    assert all(any(matches(one, tag) for one in shown) for tag in logged(tmp_path))
    assert "loss" not in shown


# Facts


@pytest.mark.parametrize(
    ("problem", "dims", "kind", "named"),
    [
        (
            lambda: stack((6, 5, 4, 3), loss="cosh"),
            (6, 5, 4, 3),
            "deep linear network",
            "none",
        ),
        (
            lambda: stack((6, 5, 4, 3), bias=True, loss="cross_entropy"),
            (6, 5, 4, 3),
            "deep linear network",
            "none",
        ),
        (lambda: stack(*RELU, n=8), RELU[0], "stack of dense layers", "relu"),
        (
            lambda: stack(*SILU, bias=True),
            SILU[0],
            "stack of dense layers",
            "silu",
        ),
    ],
    ids=["linear", "linear-bias", "relu", "silu-bias"],
)
def test_facts_and_predictions(problem, dims, kind, named):
    problem, params = problem()
    loss, bias, n = problem.loss.name, "b1" in params, problem.n
    page, _ = card_of(problem, params, schedule=schedule.log_spaced(per_decade=4))
    facts = pairs(page)
    p = sum(a * b + b * bias for a, b in zip(dims, dims[1:], strict=False))
    r = min(dims[0], n)
    q = dims[-1] - (loss == "cross_entropy")
    text = "-".join(map(str, dims))
    assert page.headings[0] == f"Ranks of a {kind} {text} while it trains"
    assert facts["parameters"].startswith(f"{p:,}: ")
    assert all(
        f"{name} {'x'.join(map(str, a.shape))}" in facts["parameters"] for name, a in params.items()
    )
    assert facts["widths"] == text
    assert facts["biases"] == ("in every layer" if bias else "none")
    assert facts["activations"].split(" (")[0] == named
    assert facts["training dtype"] == "float32"
    assert facts["n"].startswith(f"{n} examples")
    assert facts["k"] == "3 outputs"
    assert facts["loss"].startswith(loss)
    assert facts["r"].startswith(f"{r}: ")
    assert facts["q"].startswith(f"{q}: ")
    assert facts["p"].startswith(f"{p} ")
    assert "float64, ranks with eps = 2.22e-16" in facts["Hessian dtype"]
    assert "p eps max(‖H_L‖₂, ‖X‖₂)" in facts["Hessian cut"]
    assert facts["engine"].split(":")[0] == ("deep_linear" if named == "none" else "stack")
    assert "recognized as" in facts["engine"]
    assert facts["schedule"].startswith("4 times per decade of steps")
    suffix = "" if named == "none" else ", linear counterpart"
    formulas = {"H_o": theory.rank_outer, "H_f": theory.rank_functional, "H_L": theory.rank_loss}
    for part, formula in formulas.items():
        claimed = formula(dims, r=r, bias=bias, loss=loss)
        assert predicted(page)[part + suffix] == str(claimed), part
    assert predicted(page)["Omega (s)"] == str(q)


def test_the_predictions_are_the_curves_of_the_same_record():
    apply, params = chain((6, 5, 4, 3))
    x = RNG.standard_normal((40, 6))
    exact = {name: np.asarray(array, np.float64) for name, array in params.items()}
    problem = Problem(apply, loss="mse", inputs=x, targets=apply(exact, x))
    memory = MemoryWriter()
    with RankMonitor(problem, every=1, writers=[memory]) as monitor:
        monitor(0, {**params, "W3": params["W3"] + 1})
        monitor.restore(monitor.state)
        monitor(1, params)
    for record in memory.records:
        page = rendered(record.texts["rankmon/card"])
        assert page.headings[1] == f"Predicted ranks, at step {record.step}"
        for part in ("H_L", "H_o", "H_f", "H_f_fixed"):
            assert predicted(page)[part] == f"{record.scalars[f'rank_theory/{part}']:.0f}"
    assert predicted(page)["H_f"] == "0"
    assert predicted(page)["H_f_fixed"] != "0"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loss": lambda z, y: jnp.sum((z - y) ** 4)}, "the loss is a user-defined function"),
        ({"bias": "some"}, "some layers have a bias"),
        ({"skip": True}, "not recognized as a stack of dense layers"),
    ],
    ids=["loss", "bias", "skip"],
)
def test_where_no_closed_form_applies_the_card_says_why(change, told):
    dims = (4, 4) if "skip" in change else (4, 4, 4)
    apply, params = chain(dims)
    if "bias" in change:
        params["b1"] = jnp.ones(4)
    network = (lambda p, x: x**2 + apply(p, x)) if "skip" in change else apply
    problem = problem_of(network, dims, loss=change.get("loss", "mse"))
    page, source = card_of(problem, params)
    assert "No closed form applies: " in source
    assert told in source
    assert not predicted(page)
    if "skip" in change:
        assert page.headings[0] == "Ranks of a network while it trains"
        assert "not recognized" in pairs(page)["engine"]


def test_bounds_of_networks_that_are_not_linear():
    problem, params = stack(*RELU, n=8)
    page, _ = card_of(problem, params, probes=["hessian", "features"])
    assert predicted(page)["H_L at most"] == str(8 * (3 + 2 * 5))
    assert predicted(page)["H_o at most"] == str(8 * 3)  # n K, below Theorem 9's


def test_a_bound_past_p_says_nothing():
    problem, params = stack(*SILU, bias=True)
    page, _ = card_of(problem, params, probes=["hessian"])
    assert "H_L at most" not in predicted(page)


def test_a_part_of_the_parameters_other_cuts_and_engines():
    problem, params = stack((4, 4, 4), bias=True)
    probes = [
        HessianProbe(include="W2", engine="dense", tolerance=Tolerance(relative=1e-3)),
        WeightsProbe(tolerance=Tolerance(absolute=0.25)),
    ]
    facts = pairs(card_of(problem, params, probes=probes, every=7, overhead=0.05)[0])
    assert facts["parameters"].startswith("40: ")
    assert facts["p"].startswith("16 ")
    assert facts["engine"].startswith("dense: ")
    assert facts["engine"].endswith("it was requested")
    assert facts["Hessian cut"].startswith("0.001 max(")
    assert facts["weight cut"] == "0.25"
    assert facts["schedule"].startswith("every 7 steps")
    assert "at most 0.05 of the wall time" in facts["schedule"]


def test_the_hessian_of_some_parameters_says_so():
    problem, params = stack((4, 4, 4), bias=True)
    facts = pairs(card_of(problem, params, probes=["hessian"])[0])
    assert "Hessian of" not in facts
    facts = pairs(card_of(problem, params, probes=[HessianProbe(include="?2")])[0])
    assert facts["Hessian of"] == "only W2, b2, p = 20"


def test_variables_beside_the_parameters_are_no_parameters():
    def apply(params, x, extra):
        return (x - extra["mean"]) @ params["head"]["kernel"] + params["head"]["bias"]

    params = {
        "head": {"kernel": jnp.ones((4, 3), jnp.float32), "bias": jnp.zeros(3, jnp.float32)},
        "scale": jnp.ones((3, 3), jnp.float32),
        "table": jnp.ones(5, jnp.int32),
    }
    problem = problem_of(apply, (4, 3), exclude="scale")
    extra = {"mean": jnp.zeros(4, jnp.float32), "seed": jnp.zeros(2, jnp.uint32)}
    memory = MemoryWriter()
    with RankMonitor(problem, every=1, probes=["hessian"], writers=[memory], hparams={}) as monitor:
        monitor(0, params, extra=extra)
    (record,) = memory.records
    facts = pairs(rendered(record.texts["rankmon/card"]))
    assert facts["parameters"] == "24: head/bias 3, head/kernel 4x3, scale 3x3"
    beside = "11: table 5, extra/mean 4, extra/seed 2"
    assert facts["variables beside them"] == beside
    assert facts["training dtype"] == "float32"
    assert facts["Hessian of"] == "only head/*, p = 15"
    assert (record.hparams["parameters"], record.hparams["differentiated"]) == (24, 15)


# What a user may put in


def test_names_of_layers_and_losses_do_not_break_the_tables():
    names = ["a|b", "c`d", "<b>e</b>", "f\ng", "h\\|i", "*j*"]

    def apply(params, x):
        for name in names:
            x = x @ params[name]
        return x

    def loss(z, y):
        return jnp.sum((z - y) ** 2)

    loss.__name__ = "<script>|`"
    params = {name: np.eye(3, dtype=np.float32) for name in names}
    page, _ = card_of(
        Problem(apply, loss=loss, inputs=np.eye(3), targets=np.ones((3, 3))),
        params,
        probes=["hessian", "weights", "features", Noise()],
    )
    assert {len(row) for row in page.rows} == {2, 3}
    facts = pairs(page)
    assert facts["weights"] == ", ".join(f"{' '.join(n.split())} 3x3" for n in sorted(names))
    assert facts["loss"] == "custom:<script>|`, mean over the probe batch"
    assert facts["noise"] == "1|2 <b>of</b> `x`"
    assert not page.tags & {"script", "b", "i"}
    assert explained(page).count("noise/…") == 1


def test_a_scalar_of_the_users_with_a_nasty_name():
    problem, params = stack((4, 5, 3))
    memory = MemoryWriter()
    with RankMonitor(problem, every=1, writers=[memory], probes=["weights"]) as monitor:
        monitor(0, params, scalars={"a|b": 1, "c`\n<i>": 2})
    page = rendered(memory.records[0].texts["rankmon/card"])
    assert [row[0] for row in page.rows[-2:]] == ["a|b", "c` <i>"]


def test_many_layers_are_cut_short():
    params = {f"W{i:02d}": np.eye(2, dtype=np.float32) for i in range(30)}

    def apply(params, x):
        for name in sorted(params):
            x = x @ params[name]
        return x

    problem = Problem(apply, loss="mse", inputs=np.eye(2), targets=np.ones((2, 2)))
    facts = pairs(card_of(problem, params, probes=["weights"])[0])
    assert facts["weights"].endswith("W19 2x2 and 10 more")


# Several seeds


def test_seeds_have_cards_and_the_median_says_what_it_is(tmp_path):
    problem, _ = stack(*RELU, n=8)
    params = {
        name: np.stack([chain(RELU[0], seed=seed)[1][name] for seed in range(3)])
        for name in ("W1", "W2")
    }
    with SeedsMonitor(
        problem, seeds=3, every=1, logdir=tmp_path, probes=["hessian", "weights"]
    ) as monitor:
        monitor(0, params)
        monitor(1, params)
    for seed in range(3):
        (source,) = texts(tmp_path / f"seed_{seed}")
        assert "stack of dense layers 20-5-3" in source
    (source,) = texts(tmp_path / "median")
    page = rendered(source)
    assert page.headings[0] == "Median over 3 seeds, and its range"
    assert "seed_0" in source
    assert "seed_2" in source
    shown = explained(page)
    assert {"…/median", "…/low", "…/high"} <= set(shown)
    for tag in logged(tmp_path / "median") - {"rankmon/card"}:
        assert OVER_SEEDS.explains(tag)
        assert sum(matches(one, tag.rsplit("/", 1)[0]) for one in shown) >= 1, tag
        assert sum(entry.explains(tag.rsplit("/", 1)[0]) for entry in LEGEND) == 1, tag
    assert "monitor/seconds" not in shown
